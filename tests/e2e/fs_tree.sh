#!/usr/bin/env bash
# The tree under the mount: every fixed row of the layout table is there; sizes agree wherever one looks.
. "$(dirname "$0")/lib.sh"
H=$T/fs_helper
${CC:-cc} -O1 -D_GNU_SOURCE -Wno-unused-result -o "$H" "$ROOT/tests/e2e/fs_helper.c" || exit 1
start_dtxd || exit 1

# fixed rows: those of the man page's source, the table, that have no {name} or **
missing=
for p in README.md status status.json index.html metrics.prom log bin/dtx templates/paramgroup.json \
    templates/experiment.json schemas/paramgroup.json schemas/experiment.json datasets paramgroups evaluations \
    plugins/data plugins/scoring models/base models/tuned models/by-base models/by-dataset models/by-experiment \
    models/by-task models/by-language models/by-tag models/compare services experiments devices; do
    [ -e "$M/$p" ] || missing="$missing $p"
done
if [ -z "$missing" ]; then ok "fixed rows of the layout"; else fail "fixed rows of the layout" "missing:$missing"; fi

# what the folders list is what is there, and each folder of DTX's has a README.md, each collection a LIST.tsv
bad=$(find "$M" -mindepth 1 -maxdepth 3 -exec sh -c 'for f; do [ -e "$f" ] || [ -L "$f" ] || echo "$f"; done' sh {} +)
if [ -z "$bad" ]; then ok "everything listed can be looked up"; else fail "everything listed can be looked up" "$bad"; fi
missing=
for d in . bin templates schemas datasets paramgroups evaluations plugins plugins/data plugins/scoring models models/base \
    models/tuned models/compare services experiments devices models/by-base; do
    [ -s "$M/$d/README.md" ] || missing="$missing $d"
done
if [ -z "$missing" ]; then ok "README.md in every folder"; else fail "README.md in every folder" "$missing"; fi
missing=
for d in datasets paramgroups evaluations plugins/data plugins/scoring models/base models/tuned models/compare services \
    experiments; do
    [ -f "$M/$d/LIST.tsv" ] || missing="$missing $d"
done
if [ -z "$missing" ]; then ok "LIST.tsv in every collection"; else fail "LIST.tsv in every collection" "$missing"; fi

mkdir "$M/datasets/d" && printf '{"instruction":"a","response":"b"}\n' >"$M/datasets/d/train.jsonl"
cp "$M/templates/paramgroup.json" "$M/paramgroups/p.json"
mkdir "$M/services/s" 2>/dev/null
sleep 0.5

# ls, stat, cat and mmap agree
bad=$(find "$M" -type f | "$H" sizes)
if [ -z "$bad" ]; then ok "read, fstat and mmap agree on every file"; else fail "read, fstat and mmap agree on every file" "$bad"; fi
bad=$(for i in 1 2 3 4 5 6; do find "$M" -type f -path '*status*' | "$H" sizes; sleep 0.3; done)
if [ -z "$bad" ]; then ok "they agree while they change"; else fail "they agree while they change" "$bad"; fi
# (not of the log: tar minds that it grows)
check "tar of generated files" sh -c "tar cf '$T/all.tar' -C '$M' README.md status status.json bin templates schemas devices 2>&1"
mkdir "$T/copy"
check "rsync of generated files" rsync -a "$M/templates" "$M/schemas" "$M/bin" "$T/copy/"
check "the copy is the same" diff -r "$M/schemas" "$T/copy/schemas"
again=$(rsync -ain "$M/templates" "$M/schemas" "$M/bin" "$T/copy/" | grep '^>f')
if [ -z "$again" ]; then ok "rsync finds nothing new the second time"; else fail "rsync finds nothing new the second time" "$again"; fi

# inode numbers of readdir are those of stat
for d in . datasets datasets/d experiments services devices; do check "readdir's inode numbers in $d" "$H" inodes "$M/$d"; done

# what is DTX's cannot be written, removed, renamed or covered
for t in "sh -c 'echo x > $M/README.md'" "rm -f $M/README.md" "rmdir $M/datasets" "mv $M/status $M/status2" "touch $M/new" \
    "mkdir $M/new" "mkdir $M/experiments/e" "chmod 777 $M/status" "ln $M/README.md $M/datasets/d/r" \
    "sh -c 'echo x > $M/log'" "sh -c 'echo x > $M/datasets/y.status'" "mkdir $M/datasets/x.status" \
    "mv $M/datasets/d $M/models/tuned/d" "sh -c 'echo x > $M/bin/dtx'" "touch $M/datasets/file"; do
    if eval "$t" 2>/dev/null; then fail "refused: ${t//$M/}" "it worked"; else ok "refused: ${t//$M/}"; fi
done

# names
long=$(printf 'n%.0s' $(seq 64))
mkdir "$M/datasets/$long" 2>"$T/err"; grep -q 'too long' "$T/err" && ok "a name of 64 bytes" || fail "a name of 64 bytes" "$(cat "$T/err")"
huge=$(printf 'n%.0s' $(seq 300))
mkdir "$M/datasets/$huge" 2>"$T/err"; grep -q 'too long' "$T/err" && ok "a name of 300 bytes" || fail "a name of 300 bytes" "$(cat "$T/err")"
mkdir "$M/datasets/$(printf 'a\tb')" 2>"$T/err"; grep -q 'Invalid argument' "$T/err" && ok "a control character" || fail "a control character" "$(cat "$T/err")"
mkdir "$M/datasets/$(printf '\377\376')" 2>"$T/err"; grep -q 'Invalid argument' "$T/err" && ok "a name that is not UTF-8" || fail "a name that is not UTF-8" "$(cat "$T/err")"
check "a name of 63 bytes" mkdir "$M/datasets/${long%n}"
check "a name in Japanese" mkdir "$M/datasets/データ"
check "leftovers are stored" sh -c "cd '$M/datasets' && echo x > .DS_Store && echo y > ._d && echo z > notes~ && [ \"\$(cat .DS_Store ._d notes~ | tr -d '\n')\" = xyz ] && rm .DS_Store ._d notes~"
stop_dtxd; check "SIGTERM ends it with status 0" test $? = 0
if mounted; then fail "SIGTERM unmounts" "still mounted"; else ok "SIGTERM unmounts"; fi
