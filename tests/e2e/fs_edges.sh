#!/usr/bin/env bash
# Small things that people stumble over: chmod of what is READY, rmdir of a job, control by the group, odd names.
. "$(dirname "$0")/lib.sh"
start_dtxd || exit 1
E=$M/experiments
P=$M/paramgroups

# ---- metadata is not content ----
mkdir "$M/datasets/d" && echo '{"instruction":"a","response":"b"}' >"$M/datasets/d/train.jsonl" && : >"$M/datasets/d/_SUCCESS"
cp "$M/templates/paramgroup.json" "$P/p.json"
check "a dataset is READY" wait_state 20 "$M/datasets/d.status" READY
check "a parameter group is READY" wait_state 20 "$P/p.status" READY
stays() { local end=$((SECONDS + 3)); while [ $SECONDS -lt $end ]; do [ "$(state_of "$1")" = READY ] || { state_of "$1"; return 1; }; sleep 0.1; done; }
sleep 3.5 # what inotify says within 3 s of a drop counts as its echo
changes() { chmod 600 "$M/datasets/d/train.jsonl"; touch -d 2001-01-01 "$M/datasets/d/train.jsonl"; chmod 750 "$M/datasets/d"; chmod 640 "$P/p.json"; touch "$P/p.json"; }
changes
check "chmod and touch of a READY dataset: it stays" stays "$M/datasets/d.status"
check "and of a spec" stays "$P/p.status"
check "who may read its status follows" test "$(stat -c %a "$M/datasets/d.status")" = 400
chmod 644 "$M/datasets/d/train.jsonl" && chmod 755 "$M/datasets/d"
check "both ways" wait_for 5 sh -c "[ \$(stat -c %a '$M/datasets/d.status') = 444 ]"
if [ "$(id -u)" = 0 ]; then
    chown -R 1001:1001 "$M/datasets/d"
    check "chown too" stays "$M/datasets/d.status"
    check "its status has the new owner" wait_for 5 sh -c "[ \$(stat -c %u '$M/datasets/d.status') = 1001 ]"
fi
stop_dtxd
start_dtxd || exit 1
check "a restart finds it READY" stays "$M/datasets/d.status"
echo '{"instruction":"c","response":"d"}' >>"$M/datasets/d/train.jsonl"
check "a write makes it RECEIVING" wait_state 5 "$M/datasets/d.status" RECEIVING CHECKING

# ---- rmdir of a job cancels it ----
drop experiments/e.json '{"models":["nosuch"],"datasets":["d"],"paramgroups":["p"],"seeds":[1,2,3]}'
wait_for 10 test -d "$E/e/jobs" || fail "an experiment" "none"
job() { ls -d "$E"/e/jobs/*/ | sed -n "${1}p" | sed 's,/$,,'; }
one=$(job 1) two=$(job 2)
check "rmdir of a job" rmdir "$one"
check "it is cancelled" wait_for 5 has "$E/e/status" "$(basename "$one").*CANCELLED"
check "and gone from the list" sh -c "! ls '$E/e/jobs' | grep -qx '$(basename "$one")'"
check "rm -r of another" rm -r "$two"
check "it is cancelled too" wait_for 5 has "$E/e/status" "$(basename "$two").*CANCELLED"
check "the third still waits" sh -c "grep '$(basename "$(job 1)")' '$E/e/status' | grep -q INIT"
if rmdir "$E/e" 2>/dev/null; then fail "rmdir of the experiment needs rm -r" "it worked"; else ok "rmdir of the experiment needs rm -r"; fi
if [ "$(id -u)" = 0 ]; then
    if as_nobody rmdir "$(job 1)" 2>/dev/null; then fail "not by another user" "it worked"; else ok "not by another user"; fi
fi

# ---- a group that may write the spec may steer ----
if [ "$(id -u)" = 0 ]; then
    as() { setpriv --reuid "$1" --regid "$2" --clear-groups sh -c "$3"; }
    spec='{"models":["nosuch"],"datasets":["d"],"paramgroups":["p"],"seeds":[1,2]}'
    as 1001 2000 "umask 022; echo '$spec' >'$E/mine.json'; umask 002; echo '$spec' >'$E/ours.json'"
    wait_for 10 test -f "$E/mine/control" && wait_for 10 test -f "$E/ours/control"
    # write(2) decides, not the kernel by the mode: it knows nothing of admins
    check "control has the spec's owner and group" test "$(stat -c %a:%u:%g "$E/ours/control")" = 666:1001:2000
    check "the group pauses it" as 1002 2000 "echo pause >'$E/ours/control'"
    check "it is paused" wait_state 5 "$E/ours/status" PAUSED
    J=$(ls -d "$E"/ours/jobs/*/ | head -n 1)
    check "and its job" as 1002 2000 "echo cancel >'${J}control'"
    for try in "1002 2000 $E/mine/control" "1002 2001 $E/ours/control" "1002 2001 $E/mine/control"; do
        set -- $try
        if as "$1" "$2" "echo cancel >'$3'" 2>/dev/null; then fail "refused: $1:$2 $(basename "$(dirname "$3")")" "it worked"; else ok "refused: $1:$2 $(basename "$(dirname "$3")")"; fi
    done
    as 1001 2000 "rm '$E/ours.json'"
    check "the spec is gone: the folder remembers" as 1002 2000 "echo resume >'$E/ours/control'"
    as 1001 2000 "chmod g+w '$E/mine.json'"
    check "chmod g+w later" wait_for 5 as 1002 2000 "echo pause >'$E/mine/control'"
fi

# ---- names that editors and rsync leave behind: stored like other files everywhere, never objects, never half of one ----
spec='{"models":["m"],"datasets":["d"],"paramgroups":["p"]}'
bad=
for n in 'foo~' x.tmp a.part sedabcdef 4913 v.swp; do
    for d in datasets paramgroups evaluations experiments services models/base models/compare plugins/data; do
        mkdir "$M/$d/$n" && echo x >"$M/$d/$n/f" || bad="$bad mkdir:$d/$n"
    done
    for d in paramgroups evaluations experiments services; do
        echo "$spec" 2>/dev/null >"$M/$d/$n.json" && bad="$bad json:$d/$n"
    done 2>/dev/null
    { echo "Why?" >"$M/models/compare/$n.txt"; } 2>/dev/null && bad="$bad txt:$n"
    mv "$M/experiments/$n" "$M/experiments/renamed" 2>/dev/null && bad="$bad mv:$n"
done
if [ -z "$bad" ]; then ok "leftovers' names: folders are kept, specs are refused"; else fail "leftovers' names: folders are kept, specs are refused" "$bad"; fi
echo "$spec" >"$T/x.json" && cp "$T/x.json" "$S/tree/experiments/foo~.json" && cp "$T/x.json" "$S/tree/paramgroups/a.part.json"
check "put there behind the mount: REJECTED in words" wait_for 20 has "$E/foo~.status" 'looks like what an editor or rsync leaves behind'
check "a parameter group too" wait_for 20 has "$P/a.part.status" 'rename it'
sleep 2.5
check "none became an object" sh -c "! cut -f 1,2 '$M'/datasets/LIST.tsv '$M'/services/LIST.tsv '$M'/models/base/LIST.tsv '$M'/models/compare/LIST.tsv '$M'/plugins/data/LIST.tsv | grep -e '~' -e tmp -e part -e sedabc -e 4913 -e swp"
check "the folders hold what they held" test "$(cat "$E/foo~/f" "$M/datasets/x.tmp/f" "$P/4913/f" | tr -d '\n')" = xxx
check "rm -r of them" rm -r "$E/foo~" "$E/4913" "$M/datasets/x.tmp" "$P/4913"
check "a leftover that gets a proper name is taken" sh -c "mkdir '$M/datasets/new.tmp' && cp '$M/datasets/d/train.jsonl' '$M/datasets/new.tmp/' && mv '$M/datasets/new.tmp' '$M/datasets/new'"
check "READY at once" wait_state 10 "$M/datasets/new.status" READY

# DTX looks into folders again and again: that is no use of them (of root's a check may not say so: it is nobody)
D=$M/datasets/looked
owner() { if [ "$(id -u)" = 0 ]; then setpriv --reuid 1002 --regid 1002 --clear-groups "$@"; else "$@"; fi; }
owner sh -c "mkdir -p '$D/in'; echo '{\"text\":\"x y\"}' >'$D/train.jsonl'; touch -a -d 2001-01-01 '$D' '$D/in'"
check "a dataset is taken" wait_state 20 "$M/datasets/looked.status" READY
check "its folders' access times stay" test "$(stat -c %x "$D" "$D/in" | cut -c1-4 | uniq)" = 2001
