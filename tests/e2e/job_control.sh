#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# Control words, rm -r, rmdir, pinned specs, held datasets, waiting for what is not there yet, training on.
. "$(dirname "$0")/lib.sh"
command -v jq >/dev/null || { skip job_control "jq is not installed"; exit 0; }
start_dtxd || exit 1
check "model and data" demo_in tickets website
group long "$(steps 100000)"
group quick "$(steps 6)"
group middle "$(steps 60)"
E=$M/experiments
job_state() { state_of "$E/$1/jobs/$2/status"; }
is_job() { [ "$(job_state "$1" "$2")" = "$3" ]; }
refused() { # NAME ERROR COMMAND...: fails with these words
    local name=$1 words=$2
    shift 2
    if "$@" 2>"$T/err"; then fail "$name" "it worked"; elif grep -q "$words" "$T/err"; then ok "$name"; else fail "$name" "$(cat "$T/err")"; fi
}
word() { echo "$2" >"$E/$1/control"; }

# pause and resume, a job and the experiment
experiment a '"tickets"' '"long","middle"'
if ! wait_for 40 at_step a/jobs/01-long 3; then fail "both train" "$(cat "$E/a/status")"; exit 1; fi
check "a job is paused" word a/jobs/01-long pause
check "PAUSED" wait_for 20 is_job a 01-long PAUSED
sleep 0.5 # the step that it is in
step=$(step_of a/jobs/01-long)
other=$(step_of a/jobs/02-middle)
check "its neighbour goes on" wait_for 40 at_step a/jobs/02-middle $((other + 5 < 60 ? other + 5 : 60))
if [ "$(step_of a/jobs/01-long)" = "$step" ]; then ok "paused means paused"; else fail "paused means paused" "$step -> $(step_of a/jobs/01-long)"; fi
check "it is resumed" word a/jobs/01-long resume
check "it goes on from where it was" wait_for 40 at_step a/jobs/01-long $((step + 3))
check "each step once" metrics_whole "$E/a/jobs/01-long/metrics.csv" "$(step_of a/jobs/01-long)"
check "the experiment is paused" word a pause
check "experiment PAUSED" wait_state 20 "$E/a.status" PAUSED
check "jobs PAUSED" wait_for 20 is_job a 01-long PAUSED
stop_dtxd; start_dtxd || exit 1
check "PAUSED after a restart" in_state "$E/a.status" PAUSED
sleep 1
check "jobs too" is_job a 01-long PAUSED
step=$(step_of a/jobs/01-long)
check "resumed" word a resume
check "goes on" wait_for 40 at_step a/jobs/01-long $((step + 2))
# words that are wrong, or mean nothing now
refused "an unknown word" 'Invalid argument' word a 'explode'
refused "an unknown word to a job" 'Invalid argument' word a/jobs/01-long 'puase'
if command -v python3 >/dev/null; then
    check "it fails in write(2), not only in close" python3 -c "
import os, sys
fd = os.open('$E/a/control', os.O_WRONLY)
try:
    os.write(fd, b'explode\n')
except OSError as e:
    sys.exit(0 if e.errno == 22 else 1)
sys.exit(1)"
fi
check "a word without a newline" sh -c "printf pause >'$E/a/jobs/01-long/control'"
check "is taken as well" wait_for 20 is_job a 01-long PAUSED
check "resume" word a/jobs/01-long resume
# stop: exported and scored with what there is
check "a running job is stopped" sh -c "sleep 1; echo stop >'$E/a/jobs/01-long/control'"
check "it ends SUCCESSFUL" wait_for 40 is_job a 01-long SUCCESSFUL
check "stop: exported" test -s "$M/models/tuned/a.01-long/adapter_model.safetensors"
check "a is SUCCESS" wait_state 60 "$E/a.status" SUCCESS
refused "stop after the end" 'Invalid argument' word a/jobs/01-long stop
check "retry where nothing failed changes nothing" sh -c "echo retry >'$E/a/control'; sleep 0.5; head -n 1 '$E/a.status' | grep -qx SUCCESS"

# cancel keeps logs only; retry starts it again
experiment b '"tickets"' '"long","quick"'
check "b trains" wait_for 40 at_step b/jobs/01-long 2
check "a job is cancelled" word b/jobs/01-long cancel
check "CANCELLED" wait_for 20 is_job b 01-long CANCELLED
check "b ends as SUCCESS with the other" wait_state 40 "$E/b.status" SUCCESS
check "it says how many" has "$E/b.status" '1 of 2 jobs successful, 0 failed, 1 cancelled'
check "its log stays" has "$E/b/jobs/01-long/log" CANCELLED
if [ -e "$E/b/jobs/01-long/checkpoint/adapter_model.safetensors" ] || [ -e "$M/models/tuned/b.01-long" ]; then fail "its checkpoint is gone" "$(ls "$E/b/jobs/01-long")"; else ok "its checkpoint is gone"; fi
check "retry of the cancelled job" word b/jobs/01-long retry
check "b is PROCESSING again" wait_state 10 "$E/b.status" PROCESSING
check "it trains again" wait_for 40 grep -q '^FINETUNE, step [0-9]*/' "$E/b/jobs/01-long/progress"
check "rm -r of a job cancels it" rm -r "$E/b/jobs/01-long"
check "b ends without it" wait_state 40 "$E/b.status" SUCCESS
check "the other's model stays" test -s "$M/models/tuned/b.02-quick/adapter_model.safetensors"
experiment c '"tickets"' '"long"'
wait_for 40 at_step c/jobs/01-long 1
check "the experiment is cancelled" word c cancel
check "c is CANCELLED" wait_state 20 "$E/c.status" CANCELLED

# the same bytes, other bytes, rm -r
spec='{"models":["lantern-2m"],"datasets":["tickets"],"paramgroups":["quick"]}'
drop experiments/d.json "$spec"
check "d ends" ended 40 d
before=$(stat -c '%Y %s' "$E/d/log")
printf '%s\n' "$spec" >"$E/d.json"
sleep 1.5
if [ "$(stat -c '%Y %s' "$E/d/log")" = "$before" ] && in_state "$E/d.status" SUCCESS; then ok "the same bytes again: nothing happens"; else fail "the same bytes again: nothing happens" "$(cat "$E/d.status")"; fi
refused "other bytes: cp says so" 'Invalid argument' cp "$DEMO/experiments/first.json" "$E/d.json"
check "REJECTED in words" wait_for 10 grep -q 'rm -r experiments/d/ first' "$E/d.status"
check "what was done stays" test -s "$E/d/jobs/01-quick/metrics.csv"
drop experiments/d.json "$spec"
check "the old bytes again: fine again" wait_for 10 sh -c "! grep -q 'rm -r' '$E/d.status'"
check "removing the spec changes nothing" sh -c "rm '$E/d.json' && sleep 0.7 && head -n 1 '$E/d.status' | grep -qx SUCCESS && [ -s '$E/d/leaderboard.tsv' ]"
refused "mkdir in experiments" 'not permitted' mkdir "$E/new"
check "rm -r of a finished experiment" rm -r "$E/d"
check "it is gone" wait_for 10 sh -c "[ ! -e '$E/d' ] && [ ! -e '$E/d.status' ] && ! grep -q '^d	' '$E/LIST.tsv'"
check "its tuned model stays" test -s "$M/models/tuned/d.01-quick/adapter_model.safetensors"
experiment r '"tickets"' '"long","middle"'
check "r trains" wait_for 40 at_step r/jobs/01-long 2
check "rm -r while it runs" rm -r "$E/r"
check "gone at once" test ! -e "$E/r"
check "the device is free again" wait_for 20 grep -q 'cpu0: UP, 0 jobs' "$M/status"
check "its spec can go too" rm -f "$E/r.json"
drop experiments/r.json "$spec"
check "the name can be used again" ended 40 r
check "with a fresh folder" sh -c "head -n 1 '$E/r.status' | grep -qx SUCCESS && [ ! -e '$E/r/jobs/01-long' ]"
# without the last rmdir nothing is lost
( cd "$E/r" && rm -f status progress leaderboard.tsv )
if [ -e "$E/r/status" ]; then fail "a removed generated file is hidden" "it is there"; else ok "a removed generated file is hidden"; fi
check "and the experiment is still there" in_state "$E/r.status" SUCCESS

# specs are pinned
experiment p '"website"' '"middle"'
check "p trains" wait_for 40 at_step p/jobs/01-middle 1
drop paramgroups/middle.json "$(steps 3)"
check "the group may change" wait_state 10 "$M/paramgroups/middle.status" READY
check "and go" rm "$M/paramgroups/middle.json"
check "p ends" ended 60 p
check "with the parameters it began with" metrics_whole "$E/p/jobs/01-middle/metrics.csv" 60

# a name that is not there yet
experiment w '"later"' '"quick","soon"'
check "w waits" wait_state 10 "$E/w.status" PENDING
check "w says for what" wait_for 5 grep -q 'waiting for: .*dataset later' "$E/w.status"
check "for the group too" has "$E/w.status" 'paramgroup soon'
sleep 1
cp -r "$DEMO/datasets/website" "$M/datasets/later"
check "still for the group" wait_for 10 sh -c "grep -q 'waiting for: paramgroup soon' '$E/w.status' && ! grep -q later '$E/w.status'"
group soon "$(steps 3)"
check "then it runs" ended 40 w
check "to SUCCESS" in_state "$E/w.status" SUCCESS

# training on from the best
group more "$(steps 40)"
experiment base2 '"tickets"' '"more"' '"seeds":[1,2]'
check "two seeds" ended 60 base2
check "jobs are named after seeds" test -d "$E/base2/jobs/01-more-s1" -a -d "$E/base2/jobs/02-more-s2"
best=$(readlink "$M/models/tuned/base2.best")
drop experiments/on.json '{"models":["tuned/base2.best"],"datasets":["tickets"],"paramgroups":["quick"]}'
check "training on ends" ended 60 on
check "as SUCCESS" in_state "$E/on.status" SUCCESS
check "it began with the best of the last" has "$E/on/jobs/01-quick/provenance.json" "$best"
check "its loss begins below the first's" awk -F, 'FNR == 2 { first[++n] = $3 } END { exit !(first[2] < first[1]) }' "$E/base2/jobs/${best#base2.}/metrics.csv" "$E/on/jobs/01-quick/metrics.csv"
check "its base is the base" sh -c "jq -e '.base == \"lantern-2m\"' '$M/models/tuned/on.01-quick/info.json'"
# explicit jobs with overrides
drop experiments/list.json '{"jobs":[{"name":"one","model":"lantern-2m","dataset":"tickets","paramgroup":"quick","overrides":{"max_steps":3}},{"name":"two","model":"lantern-2m","dataset":"website","paramgroup":"quick"}]}'
check "explicit jobs end" ended 60 list
check "an override counts" metrics_whole "$E/list/jobs/one/metrics.csv" 3
check "the other has the group's" metrics_whole "$E/list/jobs/two/metrics.csv" 6
