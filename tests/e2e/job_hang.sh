#!/usr/bin/env bash
# A worker that hangs (stopped here; a driver or a disk elsewhere) is killed, and its job goes on and ends with the same bytes.
. "$(dirname "$0")/lib.sh"
echo '{"worker_timeout": 5}' >"$T/config.json"
start_dtxd --config "$T/config.json" || exit 1
demo_in tickets || { fail "the demo's model and data" "not READY"; exit 1; }
group q "$(steps 30)"
experiment calm '"tickets"' '"q"'
check "a job without trouble" ended 120 calm
group q "$(steps 30)"
experiment hang '"tickets"' '"q"'
J=$(wait_for 30 sh -c "ls -d '$M'/experiments/hang/jobs/*/" && ls -d "$M"/experiments/hang/jobs/*/)
J=${J%/}
wait_for 60 at_step "hang/jobs/$(basename "$J")" 5 || fail "it trains" "no step 5"
worker=$(sed -n 's/^pid: //p' "$M/devices/cpu0/status")
kill -STOP "$worker"
check "the hung worker is gone" wait_for 30 sh -c "! kill -0 $worker"
check "the job's log says why" wait_for 10 has "$J/log" 'said nothing for 5 s and was killed'
check "dtxd's log too" has "$M/log" "worker $worker has said nothing for 5 s: killed"
check "the job ends well" ended 120 hang
check "SUCCESS" in_state "$M/experiments/hang.status" SUCCESS
j=$(basename "$J")
check "with the same adapter" test "$(adapter "calm.$j")" = "$(adapter "hang.$j")"
echo '{"worker_timeout": "soon"}' >"$T/config.json"
check "a wrong value is refused in words" wait_for 10 has "$M/log" 'key "worker_timeout": found "soon"'

# ---- what stays in the store of a job that is done ----
check "no training state and no token cache" sh -c "[ -z \"\$(find '$S/work/hang' '$S/work/calm' -type f)\" ]"
mkdir -p "$S/work/hang/$j" && echo x >"$S/work/hang/$j/state.7"
stop_dtxd
start_dtxd || exit 1
check "nor what a crash left of it, after a restart" wait_for 10 test ! -e "$S/work/hang/$j"
check "its model is there" test -s "$M/models/tuned/hang.$j/adapter_model.safetensors"
