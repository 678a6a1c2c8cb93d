#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# A job's adapter is the same byte for byte: alone, among seven others, on one or several workers, after kill -9 of its
# worker and of dtxd at random moments.
. "$(dirname "$0")/lib.sh"
PARAMS=${QUICK/\"max_steps\":4/\"max_steps\":30,\"lora_dropout\":0.1,\"save_every\":4,\"grad_acc_steps\":2,\"warmup_ratio\":0.1}
PARAMS=${PARAMS/\"eval_every\":0/\"eval_every\":7}
others() { for i in 1 2 3 4 5 6 7; do printf '"o%s",' "$i"; done; }
prepare() {
    demo_in tickets && group probe "$PARAMS" || return 1
    for i in 1 2 3 4 5 6 7; do # neighbours of other ranks, lengths and batches, which come and go
        drop "paramgroups/o$i.json" "{\"max_steps\":$((6 + 4 * i)),\"lora_r\":$((2 * i)),\"batch_size\":$((1 + i)),\"block_size\":128,\"learning_rate\":0.001,\"seed\":$i}" || return 1
        wait_state 20 "$M/paramgroups/o$i.status" READY || return 1
    done
}
worker_pids() { pgrep -P "$(child_pid)" dtx-worker; }
same() { # NAME EXP.JOB
    local sum
    sum=$(adapter "$2" 2>/dev/null)
    if [ "$sum" = "$alone" ]; then ok "$1"; else fail "$1" "$sum, alone it was $alone; $(tail -n 3 "$M/experiments/${2%%.*}/jobs/${2#*.}/log" | tr '\n' ';')"; fi
}
DEVICES=cpu start_dtxd || exit 1
check "model, data and parameter groups" prepare
experiment alone '"tickets"' '"probe"'
check "alone: ends" ended 60 alone
alone=$(adapter alone.01-probe)
[ -n "$alone" ] || { fail "alone" "$(cat "$M/experiments/alone/status")"; exit 1; }
cp "$M/experiments/alone/jobs/01-probe/metrics.csv" "$T/alone.csv"
check "alone: metrics.csv whole" metrics_whole "$T/alone.csv" 30
numbers() { cut -d, -f1-6 "$1"; } # without speed and memory
experiment again '"tickets"' '"probe"'
check "again: ends" ended 60 again
same "the same again" again.01-probe
experiment crowd '"tickets"' "$(others)\"probe\""
check "eight together: ends" ended 110 crowd
same "among seven others" crowd.08-probe
if cmp -s <(numbers "$T/alone.csv") <(numbers "$M/experiments/crowd/jobs/08-probe/metrics.csv"); then ok "its metrics.csv too"; else fail "its metrics.csv too" "$(diff <(numbers "$T/alone.csv") <(numbers "$M/experiments/crowd/jobs/08-probe/metrics.csv") | head -n 4)"; fi

# kill -9 of the worker, each time a little later
experiment killed '"tickets"' '"o1","probe"'
kills=0 at=5
for _ in 1 2 3; do # each time past the save after the last death: twice without one is a poison job
    wait_for 60 at_step killed/jobs/02-probe "$at" || break
    at=$(($(wc -l <"$M/experiments/killed/jobs/02-probe/metrics.csv") + 5))
    # shellcheck disable=SC2046
    kill -9 $(worker_pids) && kills=$((kills + 1))
    sleep 0.$((RANDOM % 9))
done
check "after kill -9 of its worker, $kills times: ends" ended 100 killed
check "it was killed in the middle" test "$kills" -ge 2
same "after kill -9 of its worker" killed.02-probe
check "metrics.csv after kill -9 of its worker: each step once" metrics_whole "$M/experiments/killed/jobs/02-probe/metrics.csv" 30
check "the log tells" has "$M/experiments/killed/log" 'its worker ended (signal 9'
if cmp -s <(numbers "$T/alone.csv") <(numbers "$M/experiments/killed/jobs/02-probe/metrics.csv"); then ok "its metrics.csv after kill -9 too"; else fail "its metrics.csv after kill -9 too" "$(diff <(numbers "$T/alone.csv") <(numbers "$M/experiments/killed/jobs/02-probe/metrics.csv") | head -n 4)"; fi

# kill -9 of dtxd; it comes back on two workers, then on four, then on one
experiment fallen '"tickets"' '"probe","o2"'
fell=0
for devices in cpu:2 cpu:4 cpu:1; do
    wait_for 60 at_step fallen/jobs/01-probe $((fell * 6 + 3)) || break
    sleep 0.$((RANDOM % 9))
    kill_dtxd && fell=$((fell + 1))
    DEVICES=$devices start_dtxd || exit 1
done
check "after kill -9 of dtxd, $fell times, on 2, 4 and 1 workers: ends" ended 100 fallen
same "after kill -9 of dtxd" fallen.01-probe
check "metrics.csv after kill -9 of dtxd: each step once" metrics_whole "$M/experiments/fallen/jobs/01-probe/metrics.csv" 30

stop_dtxd
DEVICES=cpu:4 start_dtxd || exit 1
for i in 0 1 2 3; do wait_state 20 "$M/devices/cpu$i/status" UP >/dev/null; done # else the first that is up takes them all
experiment four '"tickets"' '"probe","o3","o1","o2"'
check "on four workers: ends" ended 100 four
same "on cpu:4" four.01-probe
check "jobs went to several workers" sh -c "[ \$(grep -o 'job four/.*: to cpu[0-9]' '$M/log' | grep -o 'cpu[0-9]' | sort -u | wc -l) -ge 2 ]"
if [ "$(grep '^fingerprint\|"fingerprint"' "$M/experiments/four/jobs/01-probe/provenance.json")" = "$(grep '"fingerprint"' "$M/experiments/alone/jobs/01-probe/provenance.json")" ]; then ok "the fingerprint is the same"; else fail "the fingerprint is the same" "differs"; fi
