#!/usr/bin/env bash
# The file system's speed: the native file system and the mount in one call, with ratios; then what concerns generated files
# (10,000 objects in a collection, a status file).  tests/bench/fs_bench.sh [MEGABYTES, default 1024, 0: generated files only]
. "$(dirname "$0")/../e2e/lib.sh"
mb=${1:-1024}
B=$T/bench
${CC:-cc} -O2 -D_GNU_SOURCE -o "$B" "$ROOT/tests/bench/fs_bench.c" || exit 1
start_dtxd >&2 || exit 1
mkdir "$T/native" "$M/datasets/bench"
echo "# $(date -u +%F) $(uname -r), $(nproc) CPUs, $(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2-), store on $(stat -f -c %T "$S"), $mb MB"
[ "$mb" = 0 ] || "$B" "$T/native" "$mb" >"$T/n"
[ "$mb" = 0 ] || "$B" "$M/datasets/bench" "$mb" >"$T/d"
[ "$mb" = 0 ] || printf '%-14s %10s %10s %6s\n' what native DTX ratio
[ "$mb" = 0 ] || paste -d ' ' "$T/n" "$T/d" | while read -r what native unit _ dtx _; do
    printf '%-14s %10s %10s %6s %s\n' "$what" "$native" "$dtx" "$(awk "BEGIN { printf \"%.2f\", $dtx / $native }")" "$unit"
done
n=${OBJECTS:-10000}
echo "# $n parameter groups"
seq "$n" | while read -r i; do echo '{"lora_r":8}' >"$M/paramgroups/p$i.json"; done
wait_for 120 sh -c "[ \$(grep -c READY '$M/paramgroups/LIST.tsv') -ge $n ]" || echo "not all are READY: $(grep -c READY "$M/paramgroups/LIST.tsv")"
sleep 1.5
"$B" list "$M/paramgroups"
sleep 1.5
"$B" list "$M/paramgroups"
start=$(date +%s%N)
ls -l "$M/paramgroups" >/dev/null
echo "ls-l $((($(date +%s%N) - start) / 1000000)) ms"
"$B" read "$M/paramgroups/p77.status" 5000
echo "# the root's status, README.md, LIST.tsv of all"
for f in status README.md paramgroups/LIST.tsv; do "$B" read "$M/$f" 2000 | sed "s|^|$f |"; done
