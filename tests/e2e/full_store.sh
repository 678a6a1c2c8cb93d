#!/usr/bin/env bash
# A full disk under the store: a copy that does not fit fails with ENOSPC, a running job ends in words or waits, what is
# READY stays, and when there is room again everything goes on and ends with the same bytes.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip "full store" "mounting a small tmpfs needs root"; exit 0; }
mount -t tmpfs -o size=40m tmpfs "$S" 2>/dev/null || { skip "full store" "tmpfs cannot be mounted here"; exit 0; }
small() { stop_dtxd; umount -l "$M" 2>/dev/null; umount -l "$S" 2>/dev/null; cleanup; }
trap small EXIT
mkdir "$T/inputs"
"$BUILD/tests/test_worker_faults" --make-inputs "$T/inputs" || { fail "inputs" "tests/unit/test_worker_faults --make-inputs"; exit 1; }
touch "$T/inputs/tiny/_SUCCESS" "$T/inputs/words/_SUCCESS"
spec() { printf '{"models":["tiny"],"datasets":["words"],"paramgroups":["g1","g2"],"evaluation":"quiz"}'; }
sums() { local g; for g in 1 2; do sha256sum <"$M/experiments/$1/jobs/0$g-g$g/checkpoint/adapter_model.safetensors" | cut -c1-64; done; }
start_dtxd || exit 1
cp -r "$T/inputs/tiny" "$M/models/base/"
cp -r "$T/inputs/words" "$M/datasets/"
check "model" wait_state 20 "$M/models/base/tiny.status" READY
check "dataset" wait_state 20 "$M/datasets/words.status" READY
drop evaluations/quiz.json '{"questions":[{"question":"after a?","reference":"bb."}],"max_new_tokens":4}'
for g in 1 2; do
    check "group g$g" group "g$g" "{\"max_steps\":$((900 * g)),\"lora_r\":$((1 + g)),\"batch_size\":3,\"block_size\":64,\"save_every\":30,\"eval_every\":100,\"seed\":$g}"
done
drop experiments/alone.json "$(spec)"
check "with room" wait_state 60 "$M/experiments/alone.status" SUCCESS
want=$(sums alone)

drop experiments/full.json "$(spec)"
check "training" wait_state 20 "$M/experiments/full/jobs/01-g1/status" FINETUNE
head -c 100000000 /dev/zero >"$T/big"
mkdir "$M/datasets/big"
out=$(cp "$T/big" "$M/datasets/big/train.jsonl" 2>&1); rc=$?
if [ $rc != 0 ] && echo "$out" | grep -q 'No space left'; then ok "a 100 MB copy fails: $(echo "$out" | tail -c 40)"; else fail "a 100 MB copy" "$rc $out"; fi
while head -c 4096 /dev/zero >>"$M/datasets/big/fill" 2>/dev/null; do :; done
used=$(df --output=avail -k "$S" | tail -n 1)
if [ "$used" -lt 64 ]; then ok "the store is full"; else fail "the store is full" "$used kB are free"; fi
sleep 3
check "the dataset stays READY" in_state "$M/datasets/words.status" READY
check "its bytes stay" cmp "$T/inputs/words/train.jsonl" "$M/datasets/words/train.jsonl"
check "the finished experiment stays" in_state "$M/experiments/alone.status" SUCCESS
check "its adapters stay" test "$(sums alone)" = "$want"
check "the mount can be listed" ls -l "$M" "$M/experiments/full" "$M/experiments/full/jobs"
check "dtxd is there" kill -0 "$DTXD_PID"
s=$(cat "$M"/experiments/full/jobs/*/status "$M/status")
if echo "$s" | grep -qi 'no space left\|cannot be written\|full\|make room'; then ok "in words: $(echo "$s" | grep -i -m 1 'space\|cannot\|full' | cut -c1-150)"; else fail "in words" "$(echo "$s" | head -n 30 | tr '\n' ';')"; fi
drop paramgroups/late.json '{"lora_r":4}' 2>"$T/late" && fail "a drop into a full store" "it went through" || ok "a drop into a full store: $(tail -c 60 "$T/late" | tr '\n' ' ')"

kill_dtxd # also a restart on a full disk is in words or works
if start_dtxd; then ok "dtxd starts on a full store"; else fail "dtxd on a full store" "$(tail -n 3 "$T/dtxd.out")"; exit 1; fi
check "what fills it can be removed" rm -rf "$M/datasets/big"
for i in 1 2 3 4 5 6 7 8 9 10; do # retry what failed
    for c in "$M"/experiments/full/jobs/*; do
        [ "$(state_of "$c/status")" = FAILED ] && { echo retry >"$c/control"; } 2>/dev/null
    done
    wait_state 6 "$M/experiments/full.status" SUCCESS >/dev/null && grep -q '2 of 2' "$M/experiments/full.status" && break
done
check "with room again: ends" has "$M/experiments/full.status" '2 of 2 jobs successful'
if [ "$(sums full)" = "$want" ]; then ok "with the same bytes"; else fail "with the same bytes" "$(sums full | tr '\n' ' ')"; fi
if group late '{"lora_r":4}'; then ok "drops go through again"; else fail "drops go through again" "$(cat "$M/paramgroups/late.status")"; fi
check "no TROUBLE" in_state "$M/status" RUNNING
