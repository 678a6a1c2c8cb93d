#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# A full disk and a dataset that is in use: errors in words, nothing lost, all goes on when there is room.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip job_disk "mounting a small store needs root"; exit 0; }
umount_store() { stop_dtxd; umount -l "$M" 2>/dev/null; umount -l "$S"; }
mount -t tmpfs -o size=24m none "$S" 2>"$T/err" || { skip job_disk "no tmpfs: $(cat "$T/err")"; exit 0; }
trap 'umount_store 2>/dev/null; cleanup' EXIT
start_dtxd || exit 1
E=$M/experiments
check "model and data" demo_in tickets
group long "$(steps 100000 | sed 's/"lora_r":4/"lora_r":16,"save_every":5/')"
group middle "$(steps 120 | sed 's/"lora_r":4/"lora_r":16,"save_every":5/')"
fill() { dd if=/dev/zero of="$S/filler" bs=4k 2>/dev/null; sync; true; }

# a dataset is held only until the token cache is made
pid=$(pgrep -P "$(child_pid)" dtx-worker)
kill -STOP "$pid"
experiment held '"tickets"' '"long"'
wait_for 10 grep -q 'job held/01-long: to cpu0' "$M/log"
for t in "sh -c 'echo x >>$M/datasets/tickets/train.jsonl'" "truncate -s 0 $M/datasets/tickets/train.jsonl" "rm -f $M/datasets/tickets/train.jsonl" \
    "mv $M/datasets/tickets $M/datasets/other" "touch $M/datasets/tickets/new" "rm -r $M/models/base/lantern-2m"; do
    if eval "$t" 2>"$T/err"; then fail "held: ${t//$M/}" "it worked"; elif grep -qi 'not permitted\|nonexistent' "$T/err"; then ok "held: ${t//$M/}"; else fail "held: ${t//$M/}" "$(cat "$T/err")"; fi
done
check "the log says who holds it" grep -q 'dataset tickets cannot be changed now .*job held/01-long needs it' "$M/log"
kill -CONT "$pid"
check "training goes on" wait_for 40 at_step held/jobs/01-long 3
check "now the dataset may change" sh -c "echo '{\"instruction\":\"a\",\"response\":\"b\"}' >>'$M/datasets/tickets/train.jsonl'"
check "and is READY again" wait_state 40 "$M/datasets/tickets.status" READY
step=$(step_of held/jobs/01-long)
check "the job is not touched by it" wait_for 20 at_step held/jobs/01-long $((step + 5))

# no room while training: saves fail in words, training goes on; with room again all is well
fill
step=$(step_of held/jobs/01-long)
printf 'x%.0s' $(seq 9000) >"$T/some"
if cp "$T/some" "$M/datasets/tickets/more.txt" 2>"$T/err"; then fail "a user's write" "it worked"; elif grep -q 'No space left' "$T/err"; then ok "a user's write: no space left"; else fail "a user's write" "$(cat "$T/err")"; fi
rm -f "$M/datasets/tickets/more.txt"
check "a save that fails is told in words" wait_for 40 grep -qi 'no space left' "$E/held/jobs/01-long/log" "$E/held/jobs/01-long/status" "$M/log" "$M/status"
check "status is still readable" head -n 1 "$M/status"
check "dtxd lives" kill -0 "$DTXD_PID"
check "df tells" sh -c "[ \$(df --output=avail -k '$M' | tail -n 1) -lt 1000 ]"
rm -f "$S/filler"
check "with room again: state RUNNING" wait_state 30 "$M/status" RUNNING
step=$(step_of held/jobs/01-long)
check "with room again: training goes on" wait_for 40 at_step held/jobs/01-long $((${step:-0} + 5))
check "stop" wait_for 20 sh -c "echo stop >'$E/held/jobs/01-long/control'"
check "the job ends well" wait_for 60 in_state "$E/held/jobs/01-long/status" SUCCESSFUL
check "metrics.csv whole after all this" metrics_whole "$E/held/jobs/01-long/metrics.csv" "$(step_of held/jobs/01-long)"
rm -r "$E/held" "$M/models/tuned/held.01-long"

# no room for the export: FAILED in words, or waits; retry after space is freed ends with the right bytes
experiment good '"tickets"' '"middle"'
check "the same with room" ended 60 good
sum=$(adapter good.01-middle)
rm -r "$E/good" "$M/models/tuned/good.01-middle"
experiment full '"tickets"' '"middle"'
check "it trains" wait_for 40 at_step full/jobs/01-middle 30
fill
sleep 8
now=$(state_of "$E/full/jobs/01-middle/status")
case $now in
FAILED) check "no room to export: FAILED in words" has "$E/full/jobs/01-middle/status" '[Nn]o space' ;;
*) check "no room to export ($now): told in words" grep -qi 'no space left\|full' "$M/log" "$E/full/jobs/01-middle/status" "$M/status" ;;
esac
rm -f "$S/filler"
check "room again" wait_state 30 "$M/status" RUNNING
sleep 1
in_state "$E/full/jobs/01-middle/status" FAILED && check "retry" sh -c "echo retry >'$E/full/jobs/01-middle/control'"
check "it ends" wait_state 60 "$E/full.status" SUCCESS
if [ "$(adapter full.01-middle)" = "$sum" ]; then ok "with the same bytes"; else fail "with the same bytes" "$(adapter full.01-middle), expected $sum"; fi
check "a new experiment runs" experiment last '"tickets"' '"middle"'
check "to SUCCESS" wait_state 60 "$E/last.status" SUCCESS
