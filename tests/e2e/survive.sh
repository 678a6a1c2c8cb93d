#!/usr/bin/env bash
# The mount outlives dtxd: kill -9 again and again under load, an upgrade, a crash loop, and the ends.
. "$(dirname "$0")/lib.sh"
H=$T/survive_load
${CC:-cc} -O1 -D_GNU_SOURCE -o "$H" "$ROOT/tests/e2e/survive_load.c" || exit 1
KILLS=20; [ -n "${FULL:-}" ] && KILLS=100
said() { grep -q "$1" "$T/dtxd.log"; }
start_dtxd || exit 1
if said 'cannot send requests again'; then
    skip "taking the mount over" "Linux $(uname -r) cannot send requests again"
    kill_child
    check "the mount is made anew" wait_for 20 sh -c "echo x >'$M/datasets/.x'"
    exit
fi
D=$M/datasets/load
mkdir "$D"

# by hand, where each thing can be seen
echo first >"$D/open"; exec 7>>"$D/open" 8<"$D/open" 6<"$M/README.md"
rm "$D/open"; mkdir "$D/cwd"; cd "$D/cwd" || exit 1
words=$(cat "$M/README.md")
for i in 1 2 3; do
    kill_child
    check "an append to an unlinked open file, death $i" sh -c "echo line$i >&7"
    check "mkdir in the current folder, death $i" mkdir "dir$i"
done
check "the unlinked file has it all" test "$(cat <&8)" = "$(printf 'first\nline1\nline2\nline3')"
check "it has no name still" test "$(stat -L -c %h /dev/fd/8)" = 0
check "an open generated file is the same" test "$(cat <&6)" = "$words"
check "the current folder is the same" test "$(pwd -P) $(echo *)" = "$D/cwd dir1 dir2 dir3"
cd / && exec 6<&- 7>&- 8<&-
# a file that has a name is opened again by it, whatever has become of it meanwhile; without one it lives on
for f in over new moved shut linked; do echo "$f" >"$D/$f"; done
exec 3<"$D/linked" 5<"$D/over" 7<>"$D/moved" 8>>"$D/shut"
for i in $(seq 120); do mkdir "$M/datasets/one-of-many-datasets-that-make-the-list-of-them-long-$i"; done
long_list() { [ "$(wc -c <"$M/datasets/LIST.tsv")" -gt 10000 ]; }
wait_for 10 long_list
exec 6<"$M/datasets/LIST.tsv"
mkdir "$D/deep"; mv "$D/new" "$D/over"; mv "$D/moved" "$D/deep/it"; chmod 0 "$D/shut"; ln "$D/linked" "$D/deep/link"; rm "$D/linked"
head -c 100 <&6 >"$T/list"
kill_child
check "an open file that another was renamed over" test "$(cat <&5)" = over
check "the other has its name" test "$(cat "$D/over")" = new
check "an open file that was moved: reading" test "$(cat <&7)" = moved
check "an open file that was moved: writing" sh -c "echo more >&7 && test \"\$(cat '$D/deep/it')\" = 'moved
more'"
check "one that nobody may open any more" sh -c "echo more >&8 && test \"\$(stat -c %s '$D/shut')\" = 10"
check "one of whose names was removed" test "$(cat <&3)" = linked
cat <&6 >>"$T/list"
check "a long generated file, half read ($(wc -c <"$T/list") bytes)" test "$(grep -c 'list-of-them-long-[0-9]*	' "$T/list")" = 120
exec 3<&- 5<&- 6<&- 7>&- 8>&-
rm -r "$D/deep" "$D/over" "$D/shut"; rmdir "$M"/datasets/one-of-many-*/
inode=$(stat -c %i "$D/cwd"); dev=$(stat -c %d "$M")

# under load
if [ -d "$ROOT/packaging/demo/models/lantern-2m" ]; then
    demo=$ROOT/packaging/demo
    cp -r "$demo/models/lantern-2m" "$M/models/base/" && cp -r "$demo/datasets/tickets" "$M/datasets/"
    sed 's/"max_steps": [0-9]*/"max_steps": 60, "save_every": 5/' "$demo/paramgroups/careful.json" >"$M/paramgroups/careful.json"
    echo '{"models":["lantern-2m"],"datasets":["tickets"],"paramgroups":["careful"]}' >"$M/experiments/during.json"
else
    skip "training meanwhile" "no demo model here"
fi
"$H" "$M" "$D" "$T/stop" >"$T/load" 2>&1 &
load=$!
: >"$D/growing"
(n=0; while [ ! -e "$T/stop" ]; do n=$((n + 1)); echo "$n" >>"$D/growing" || echo "append $n" >>"$T/errors"; sleep 0.05; done; echo end >>"$D/growing") &
tail -n +1 -f "$D/growing" >"$T/tail" 2>>"$T/errors" &
tailing=$!
head -c 3M /dev/urandom >"$T/data"
(n=0; while [ ! -e "$T/stop" ]; do n=$((n + 1)); { cp "$T/data" "$D/copy" && cmp "$T/data" "$D/copy" && mv "$D/copy" "$D/moved" && cat "$M/status" "$M/datasets/LIST.tsv" >/dev/null && rm "$D/moved"; } 2>>"$T/errors"; done; echo "$n" >"$T/copies") &
copies=$!
done_kills=0
for _ in $(seq "$KILLS"); do
    sleep 0.$((5 + RANDOM % 5))$((RANDOM % 10)); sleep 0.$((RANDOM % 9))
    kill_child && done_kills=$((done_kills + 1))
done
taken() { [ "$done_kills $(grep -c 'another takes the mount over' "$T/dtxd.log")" = "$KILLS $((KILLS + 4))" ]; }
check "killed $KILLS times under load, each time another took over" wait_for 10 taken
wait_for 10 test -f "$M/README.md"

# another program on disk
old=$(child_pid)
kill -HUP "$DTXD_PID"
another() { local now; now=$(child_pid); [ -n "$now" ] && [ "$now" != "$old" ]; }
check "SIGHUP: another process" wait_for 30 another
check "the log says so" said 'SIGHUP: starting dtxd again'
check "the mount answers" test -f "$M/README.md"
check "it is the same mount" test "$(stat -c %d "$M") $(stat -c %i "$D/cwd")" = "$dev $inode"
sleep 1
touch "$T/stop"
wait "$load"; rc=$?
wait "$copies"
while IFS= read -r line; do case $line in ERROR*) fail "a client's error" "$line" ;; *) echo "# $line" ;; esac; done <"$T/load"
if [ $rc = 0 ]; then ok "no client saw an error"; else fail "no client saw an error" "status $rc"; fi
if [ -s "$T/errors" ]; then fail "nor did cp, cmp, mv, cat, rm ($(cat "$T/copies") times)" "$(head -c 300 "$T/errors")"; else ok "nor did cp, cmp, mv, cat, rm ($(cat "$T/copies") times)"; fi
tail_done() { [ "$(tail -n 1 "$T/tail")" = end ]; }
wait_for 10 tail_done
kill "$tailing"
lines=$(($(wc -l <"$D/growing") - 1))
if cmp -s "$T/tail" "$D/growing" && [ "$(head -n "$lines" "$T/tail")" = "$(seq "$lines")" ]; then ok "tail -f saw each of $lines lines once"; else fail "tail -f saw each line once" "$(diff "$T/tail" "$D/growing" | head -n 3)"; fi
if [ -d "$ROOT/packaging/demo/models/lantern-2m" ]; then
    check "the training went on to its end" wait_state 120 "$M/experiments/during.status" SUCCESS FAILED CANCELLED REJECTED
    check "as SUCCESS" in_state "$M/experiments/during.status" SUCCESS
    csv=$(echo "$M"/experiments/during/jobs/*/metrics.csv)
    check "each step once" test "$(tail -n +2 "$csv" | cut -d, -f1 | tr '\n' ' ')" = "$(seq 60 | tr '\n' ' ')"
fi
# rm -r of what DTX made, killed in the middle: what is hidden stays so, and the name can be used again
if [ -d "$M/experiments/during" ]; then
    rm "$M/experiments/during/status" "$M/experiments/during/log"
    kill_child
    check "what rm -r has hidden stays hidden" test ! -e "$M/experiments/during/status"
    check "rm -r of an experiment ends" rm -r "$M/experiments/during"
    kill_child
    echo '{"models":["lantern-2m"],"datasets":["tickets"],"paramgroups":["careful"]}' >"$M/experiments/during.json"
    check "its name is free again, with all files" wait_for 20 test -f "$M/experiments/during/status" -a -f "$M/experiments/during/log"
    rm -r "$M/experiments/during"
fi
handles=$(find "/proc/$DTXD_PID/fd" -type l | wc -l)
check "the keeper has no file open that nobody has ($handles)" test "$handles" -lt 20

# a program that cannot take over is not started
cp "$BUILD/dtxd" "$T/dtxd"; cp "$BUILD/dtx-worker" "$T/"
stop_dtxd; check "SIGTERM ends it with status 0" test $? = 0
if mounted; then fail "SIGTERM unmounts" "still mounted"; else ok "SIGTERM unmounts"; fi
real=$BUILD
BUILD=$T start_dtxd || exit 1
mv "$T/dtxd" "$T/dtxd.old"; printf '#!/bin/sh\nexit 1\n' >"$T/dtxd"; chmod 755 "$T/dtxd"
old=$(child_pid)
kill -HUP "$DTXD_PID"
check "an upgrade to a program that cannot take over is refused" wait_for 10 said 'cannot take over'
check "the old one goes on" test "$(child_pid)" = "$old" -a -f "$M/README.md"

# it dies at every start: given up in words
kill_child
check "a crash loop ends" wait_for 60 gone "$DTXD_PID"
check "in words" said 'died .* times in a row .*giving up'
wait "$DTXD_PID"; check "with a status that says so" test $? = 1
if mounted; then fail "it is unmounted then" "still mounted"; else ok "it is unmounted then"; fi
DTXD_PID=
BUILD=$real

# mounting anew instead, where that is wanted or the kernel is too old
start_dtxd --remount || exit 1
kill_child
check "--remount: mounted anew" wait_for 20 said 'mounting anew'
check "--remount: it works" wait_for 20 sh -c "echo x >'$D/after' && [ \"\$(cat '$D/after')\" = x ]"

# SIGTERM while dtxd is just being started again
kill_child; kill -TERM "$DTXD_PID"
check "SIGTERM at a bad moment ends it" wait_for 30 gone "$DTXD_PID"
if mounted; then fail "SIGTERM at a bad moment unmounts" "still mounted"; else ok "SIGTERM at a bad moment unmounts"; fi
wait "$DTXD_PID" # 1 where the child was killed on its way out
DTXD_PID=
