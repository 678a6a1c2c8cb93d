#!/usr/bin/env bash
# Programs that watch a file with inotify hear of what DTX changes.
. "$(dirname "$0")/lib.sh"
IW=$T/inotify_wait
${CC:-cc} -O1 -D_GNU_SOURCE -o "$IW" "$ROOT/tests/e2e/inotify_wait.c" || exit 1
start_dtxd || exit 1
P=$M/paramgroups
helper() { pgrep -f "^dtxd --touch $M\$"; }
n=0
change() { n=$((n + 1)) && printf '{"lora_r":%d}' $((n % 60 + 1)) >"$P/.x" && mv "$P/.x" "$P/$1.json"; }
woken() { # NAME EVENT PATH [NAME-IN-IT] COMMAND...: the event comes after the command
    local name=$1 event=$2 path=$3 inside=
    shift 3
    case $1 in in:*) inside=${1#in:}; shift ;; esac
    "$IW" $((5 * SLOW)) "$path" "$event" $inside >"$T/events" &
    local pid=$!
    wait_for 5 grep -q watching "$T/events"
    "$@" || fail "$name" "$*"
    if wait $pid; then ok "$name"; else fail "$name" "$(tr '\n' ';' <"$T/events")"; fi
}
ended_well() { if wait "$2"; then ok "$1"; else fail "$1" "no event"; fi; } # NAME PID
change a
wait_state 10 "$P/a.status" READY
for event in modify close_write open; do
    sleep 1 # the text tells seconds: within one it may be the same
    woken "LIST.tsv: $event" $event "$P/LIST.tsv" change b$event
    woken "a status file: $event" $event "$P/a.status" change a
done
woken "the appliance's status" modify "$M/status" change c
woken "its log" modify "$M/log" change d
woken "a folder: a new object" attrib "$P" change e
woken "a folder: a status file that nobody has looked at" modify "$P" in:never.status change never
woken "a folder: LIST.tsv" modify "$P" in:LIST.tsv change another
woken "a status file that goes: its watcher is told" delete_self "$P/e.status" rm "$P/e.json"

# times and texts are not touched
sleep 2
before=$(stat -c '%y %s %i' "$M/log" "$P/a.status" "$P")
"$IW" 4 "$P" all >"$T/quiet"
check "a touch changes nothing" test "$before" = "$(stat -c '%y %s %i' "$M/log" "$P/a.status" "$P")"
check "no change: no event" sh -c "! grep -q -e modify -e attrib '$T/quiet'"

# not too often, and never without the last
"$IW" 8 "$P/LIST.tsv" all >"$T/often" &
iw=$!
wait_for 5 grep -q watching "$T/often"
(tail -n +1 -f "$T/often" & echo $! >"$T/tail"; wait) 2>/dev/null | grep --line-buffered modify | while read -r _; do cat "$P/LIST.tsv" >"$T/seen.new" && mv "$T/seen.new" "$T/seen"; done &
for i in $(seq 25); do change "f$((i % 3))"; sleep "0.$((RANDOM % 3 + 1))"; done
change last
sleep 3
cut -f 1-3,5 "$P/LIST.tsv" >"$T/is" # without the age
check "who reads after each event has read the last state" sh -c "cut -f 1-3,5 '$T/seen' | cmp - '$T/is'"
kill "$(cat "$T/tail")"; wait $iw
times=$(grep -c ' modify' "$T/often")
if [ "$times" -ge 3 ] && [ "$times" -le 8 ]; then ok "at most once a second ($times in 8 s)"; else fail "at most once a second" "$times in 8 s"; fi

# nobody else can do what the helper does
touched() { touch -m "$P/LIST.tsv" || touch "$P/a.status" || touch -m "$M/log" || sh -c ": >>'$P/LIST.tsv'" || sh -c ": >>'$M/log'"; }
if touched 2>/dev/null; then fail "others cannot touch what is DTX's" "$(id -un) could"; else ok "others cannot touch what is DTX's"; fi
if [ "$(id -u)" = 0 ]; then
    export -f touched; export P M
    if as_nobody bash -c touched 2>/dev/null; then fail "nor can another user" "it worked"; else ok "nor can another user"; fi
fi

# the helper dies, or hangs
kill -KILL "$(helper)"
woken "the helper was killed: another does it" modify "$P/LIST.tsv" change g
kill -STOP "$(helper)"
change h
sleep 1
check "the helper hangs: the mount does not" timeout 5 sh -c "ls -lR '$M' >/dev/null && cat '$P/LIST.tsv' | grep -q '^h'"
for i in $(seq 20); do change "g$i"; done
stop_dtxd && ok "it ends in time"
check "and is unmounted in order" hasnt "$T/dtxd.log" 'detaching'
check "no helper is left" sh -c "! pgrep -f '^dtxd --touch $M\$'"
start_dtxd || exit 1
woken "after a restart" modify "$P/LIST.tsv" change h
for i in $(seq 30); do change "k$i"; done
stop_dtxd
check "changes until the end: unmounted in order" hasnt "$T/dtxd.log" 'detaching'

# the mount outlives dtxd, and so does a watch
start_dtxd || exit 1
if [ -n "$(child_pid)" ]; then
    change s
    "$IW" $((20 * SLOW)) "$P/LIST.tsv" all >"$T/outlives" &
    iw=$!
    wait_for 5 grep -q watching "$T/outlives"
    kill_child
    : >"$T/outlives"
    change after
    check "dtxd is killed: the same watch goes on" wait_for 10 grep -q ' modify' "$T/outlives"
    kill $iw
    check "one helper" test "$(helper | wc -l)" = 1
else
    skip "dtxd is killed: the same watch goes on" "the mount does not outlive it here"
fi
stop_dtxd

# a job
start_dtxd || exit 1
group q "$(steps 40)"
demo_in tickets || fail "the demo's model and data" "not READY"
experiment e '"tickets"' '"q"'
wait_for 30 sh -c "ls -d '$M'/experiments/e/jobs/*/ >/dev/null"
J=$(ls -d "$M"/experiments/e/jobs/*/ | head -n 1)
wait_for 60 test -s "$J/metrics.csv"
for f in metrics.csv log status status.json progress; do "$IW" $((90 * SLOW)) "$J$f" modify >"$T/w.$f" & eval "w_${f%%.*}${f##*.}=$!"; done
"$IW" $((90 * SLOW)) "$M/experiments/e/status" close_write >"$T/w.exp" & wexp=$!
"$IW" $((90 * SLOW)) "$J" attrib >"$T/w.dir" & wdir=$!
ended 120 e
for f in metrics.csv log status status.json progress; do v="w_${f%%.*}${f##*.}"; ended_well "a job's $f" "${!v}"; done
ended_well "an experiment's status" $wexp
ended_well "a job's folder, when files come" $wdir
