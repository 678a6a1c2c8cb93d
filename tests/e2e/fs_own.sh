#!/usr/bin/env bash
# What is DTX's own inside the mount: control files, rm -r of an experiment, hidden files, specs at close(2).
. "$(dirname "$0")/lib.sh"
start_dtxd || exit 1
E=$M/experiments
cp "$M/templates/paramgroup.json" "$M/paramgroups/p.json"
spec='{"models":["m"],"datasets":["d"],"paramgroups":["p"]}'
echo "$spec" >"$E/e.json"
check "a spec makes a folder" wait_for 10 test -f "$E/e/status"
check "its jobs" wait_for 10 sh -c "ls '$E/e/jobs' | grep -q p.status"

# control
if echo dance >"$E/e/control" 2>/dev/null; then fail "an unknown word fails in write(2)" "it worked"; else ok "an unknown word fails in write(2)"; fi
check "a known word" sh -c "echo pause >'$E/e/control'"
check "it is obeyed" wait_state 5 "$E/e/status" PAUSED
check "a control file can be read" test -s "$E/e/control"
if [ "$(id -u)" = 0 ]; then
    if setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "echo cancel >'$E/e/control'" 2>/dev/null; then fail "not by another user" "it worked"; else ok "not by another user"; fi
    if setpriv --reuid 65534 --regid 65534 --clear-groups rm -rf "$E/e" 2>/dev/null; then fail "rm -r not by another user" "it worked"; else ok "rm -r not by another user"; fi
    check "it is all there" test -s "$E/e/status"
fi

# specs at close(2)
echo '{"models": 5' >"$T/wrong.json"
if cp "$T/wrong.json" "$E/wrong.json" 2>"$T/err"; then fail "cp of a wrong spec" "it worked"; else
    grep -q 'Invalid argument' "$T/err" && ok "cp of a wrong spec: EINVAL" || fail "cp of a wrong spec" "$(cat "$T/err")"; fi
check "it is kept, and rejected in words" wait_state 10 "$E/wrong.status" REJECTED
check "it is what was written" cmp "$T/wrong.json" "$E/wrong.json"
check "a right one over it" sh -c "echo '$spec' >'$T/right.json' && cp '$T/right.json' '$E/wrong.json'"
check "by rsync too" rsync -a "$T/right.json" "$E/third.json"
check "no temporary name became an experiment" sh -c "! ls '$E' | grep -v -x -e e -e e.json -e e.status -e wrong -e wrong.json -e wrong.status -e third -e third.json -e third.status -e README.md -e LIST.tsv"

# hidden one by one
rm "$E/e/report.html"
if [ -e "$E/e/report.html" ]; then fail "an unlinked generated file is hidden" "there"; else ok "an unlinked generated file is hidden"; fi
if rmdir "$E/e" 2>"$T/err"; then fail "rmdir of a folder that is not emptied" "it worked"; else
    grep -q 'not empty' "$T/err" && ok "rmdir of a folder that is not emptied" || fail "rmdir of a folder that is not emptied" "$(cat "$T/err")"; fi
mv "$E/e/log" "$E/e/.nfs0123456789" 2>/dev/null
if [ -e "$E/e/log" ]; then fail "an NFS client's removal of an open file" "there"; else ok "an NFS client's removal of an open file"; fi
exec 7<"$E/e/status"
check "rm -r" rm -r "$E/e"
if [ -e "$E/e" ]; then fail "it is gone" "$(ls "$E/e")"; else ok "it is gone"; fi
if head -n 1 <&7 | grep -q '[A-Z]'; then ok "who had a file open still reads it"; else fail "who had a file open still reads it" "nothing"; fi
exec 7<&-
check "it stays gone" sh -c "sleep 2; [ ! -e '$E/e' ]"
check "rm -rf of the rest" sh -c "rm -rf '$E/third' '$E/wrong' && [ ! -e '$E/third' ]"

# a service's folder with what DTX puts into it
mkdir "$M/services/s"
check "a service has a status" wait_for 10 test -f "$M/services/s.status"
check "DTX's files in a user's folder" wait_for 10 test -f "$M/services/s/stats"
check "a folder of DTX's in it takes files" sh -c "echo hello >'$M/services/s/ask/q.txt' && rm '$M/services/s/ask/q.txt'"
check "rm -r of a service" rm -r "$M/services/s"
if [ -e "$M/services/s" ]; then fail "the service is gone" "$(ls -la "$M/services/s")"; else ok "the service is gone"; fi

# the log grows
timeout 4 tail -n 0 -f "$M/log" >"$T/tail" 2>/dev/null &
sleep 0.5; echo "$spec" >"$E/grow.json"; wait $!
if [ -s "$T/tail" ]; then ok "tail -f of the appliance's log"; else fail "tail -f of the appliance's log" "$(tail -n 3 "$M/log")"; fi

# a full store says so
if [ "$(id -u)" = 0 ]; then
    stop_dtxd
    mkdir "$T/small" && mount -t tmpfs -o size=8m none "$T/small" && {
        old=$S; S=$T/small/store
        if start_dtxd; then
            mkdir "$M/datasets/full"
            if head -c 20M /dev/zero 2>/dev/null | dd of="$M/datasets/full/big" bs=64k status=none 2>"$T/err"; then fail "ENOSPC" "it worked"; else
                grep -q 'No space left' "$T/err" && ok "ENOSPC" || fail "ENOSPC" "$(cat "$T/err")"; fi
            check "and goes on" wait_for 10 sh -c "rm -f '$M/datasets/full/big' && echo x >'$M/datasets/full/small'"
        fi
        stop_dtxd; umount "$T/small"; S=$old
    }
fi
