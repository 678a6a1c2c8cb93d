#!/usr/bin/env bash
# The whole appliance on a GPU: the demo's experiment through the mount, then one of its jobs alone (its adapter must be
# the same bytes), a comparison.   BUILD=build tests/gpu/appliance.sh
# shellcheck source=tests/e2e/lib.sh
DEVICES=${DEVICES:-cuda}
. "$(dirname "$0")/../e2e/lib.sh"
demo=$ROOT/packaging/demo

run_experiment() { # NAME: waits for its end, says how long it took
    local start=$SECONDS
    cp "$T/$1.json" "$M/experiments/" && wait_state 180 "$M/experiments/$1.status" SUCCESS FAILED REJECTED
    echo "  $1: $(state_of "$M/experiments/$1.status") after $((SECONDS - start)) s"
    in_state "$M/experiments/$1.status" SUCCESS
}
sha() { sha256sum <"$1" | cut -d' ' -f1; }

start_dtxd || { fail "dtxd starts on $DEVICES" "see above"; exit 1; }
cat "$M"/devices/*/status
is_up() { grep -q '^device: cuda' "$1" && ! in_state "$1" DOWN STARTING; }
for status in "$M"/devices/*/status; do
    wait_for 20 is_up "$status" || { fail "a GPU serves" "$(cat "$status")"; exit 1; }
    ok "a GPU serves: $(sed -n 's/^device: //p' "$status")"
done
cp -r "$demo/models/lantern-2m" "$M/models/base/"
cp -r "$demo"/datasets/* "$M/datasets/"
cp "$demo"/paramgroups/*.json "$M/paramgroups/"
cp "$demo"/evaluations/*.json "$M/evaluations/"
cp "$demo/experiments/first.json" "$T/first.json"
cat >"$T/alone.json" <<'J'
{"models": ["lantern-2m"], "datasets": ["tickets"], "paramgroups": ["thorough"], "evaluation": "puffin"}
J
gpus=$(find "$M/devices" -mindepth 1 -maxdepth 1 -type d | wc -l)
watch_devices() { # which devices the jobs were seen on
    until in_state "$M/experiments/first.status" SUCCESS FAILED REJECTED; do
        sed -n 's/^device: *//p' "$M"/experiments/first/jobs/*/status 2>/dev/null
        sleep 0.1
    done | sort -u >"$T/seen"
}
watch_devices &
check "four jobs together" run_experiment first
wait $!
check "they were on as many GPUs as there are ($gpus; seen: $(tr '\n' ' ' <"$T/seen"))" \
    test "$(wc -l <"$T/seen")" -eq "$((gpus < 4 ? gpus : 4))"
check "one of them alone" run_experiment alone
cat "$M/experiments/first/leaderboard.tsv"
a=$(sha "$M/models/tuned/first.04-thorough-tickets/adapter_model.safetensors")
b=$(sha "$M"/models/tuned/alone.*/adapter_model.safetensors)
if [ "$a" = "$b" ]; then ok "alone = among others, byte for byte"; else fail "alone = among others, byte for byte" "$a $b"; fi
cp "$demo/prompts/price.txt" "$M/models/compare/"
check "a comparison" wait_state 60 "$M/models/compare/price.status" DONE
cat "$M/models/compare/price/answers.md"
check "an answer of the tuned model" grep -q "Puffin desk" "$M/models/compare/price/answers.md"
tail -n 3 "$M/experiments/first/jobs/04-thorough-tickets/metrics.csv"
stop_dtxd
check "unmounted" sh -c "! grep -q ' $M fuse' /proc/mounts"
