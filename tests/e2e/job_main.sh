#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# The main path: copies in, four jobs and an evaluation, everything that must be there during and after.
. "$(dirname "$0")/lib.sh"
command -v jq >/dev/null || { skip job_main "jq is not installed"; exit 0; }
H=$T/fs_helper
${CC:-cc} -O1 -D_GNU_SOURCE -Wno-unused-result -o "$H" "$ROOT/tests/e2e/fs_helper.c" || exit 1
start_dtxd || exit 1
STEPS=40
check "the base model is copied in" cp -r "$DEMO/models/lantern-2m" "$M/models/base/"
check "the datasets are copied in" cp -r "$DEMO/datasets/website" "$DEMO/datasets/tickets" "$M/datasets/"
for g in careful thorough; do
    sed "s/\"max_steps\": 120/\"max_steps\": $STEPS/; s/\"eval_every\": 30/\"eval_every\": 10/" "$DEMO/paramgroups/$g.json" >"$M/paramgroups/$g.json"
done
jq '.questions |= .[0:6] | .max_new_tokens = 24' "$DEMO/evaluations/puffin.json" >"$M/evaluations/puffin.json"
check "the experiment is copied in" cp "$DEMO/experiments/first.json" "$M/experiments/"
X=$M/experiments/first
J=$X/jobs/01-careful-website
check "training starts by itself" wait_for 60 at_step first/jobs/01-careful-website 1
timeout $((100 * SLOW)) tail -n +1 -f "$J/metrics.csv" >"$T/tail.csv" 2>/dev/null &
tailing=$!
timeout $((100 * SLOW)) tail -n +1 -f "$X/log" >"$T/tail.log" 2>/dev/null &
tailing="$tailing $!"
timeout $((100 * SLOW)) tail -n +1 -f "$J/log" >"$T/tail.joblog" 2>/dev/null &
tailing="$tailing $!"
check "progress tells the step and the time left" wait_for 20 grep -Eq "^01-careful-website: FINETUNE, step [0-9]+/$STEPS .*loss [0-9.]+.*tokens/s, .* left" "$X/progress"
check "a job's own progress" has "$J/progress" "step [0-9]*/$STEPS"
check "the device's status names the base" wait_for 10 grep -q lantern-2m "$M/devices/cpu0/status"
check "loss.svg while it runs is XML" xmllint --noout "$J/loss.svg"
check "the job's state while it runs" has "$X/status" "^01-careful-website: FINETUNE"
bad=$(for _ in 1 2 3; do find "$M" -type f ! -path '*/models/base/*' | "$H" sizes; sleep 0.7; done)
if [ -z "$bad" ]; then ok "stat, read and mmap agree while it runs"; else fail "stat, read and mmap agree while it runs" "$bad"; fi
check "it ends" ended 120 first
check "as SUCCESS" in_state "$X.status" SUCCESS
sleep 1.5
# shellcheck disable=SC2086
kill $tailing
if cmp -s "$T/tail.csv" "$J/metrics.csv"; then ok "tail -f followed metrics.csv"; else fail "tail -f followed metrics.csv" "$(tail -n 1 "$T/tail.csv")"; fi
if cmp -s "$T/tail.log" "$X/log"; then ok "tail -f followed the experiment's log"; else fail "tail -f followed the experiment's log" "$(tail -n 1 "$T/tail.log")"; fi
if cmp -s "$T/tail.joblog" "$J/log"; then ok "tail -f followed a job's log"; else fail "tail -f followed a job's log" "$(tail -n 1 "$T/tail.joblog")"; fi

jobs="01-careful-website 02-thorough-website 03-careful-tickets 04-thorough-tickets"
if [ "$(cd "$X/jobs" && echo [0-9]*[a-z])" = "$(for j in $jobs; do printf '%s %s.status ' "$j" "$j"; done | sed 's/ $//')" ]; then ok "four jobs"; else fail "four jobs" "$(ls "$X/jobs")"; fi
for j in $jobs; do
    d=$X/jobs/$j tuned=$M/models/tuned/first.$j
    check "$j: SUCCESSFUL" in_state "$d/status" SUCCESSFUL
    check "$j: metrics.csv has each step once" metrics_whole "$d/metrics.csv" "$STEPS"
    check "$j: loss falls" awk -F, 'NR == 2 { first = $3 } { last = $3 } END { exit !(last < first * 0.8) }' "$d/metrics.csv"
    check "$j: eval_loss every 10 steps" awk -F, 'NR > 1 && ($4 != "") != ($1 % 10 == 0) { exit 1 }' "$d/metrics.csv"
    check "$j: loss.svg is XML with a curve" sh -c "xmllint --noout '$d/loss.svg' && grep -q '<polyline\|<path' '$d/loss.svg'"
    for f in status.json score.json provenance.json checkpoint/adapter_config.json; do check "$j: $f is JSON" valid_json "$d/$f"; done
    check "$j: every question with its answer" jq -e '[.. | objects | select(has("answer"))] | length == 6' "$d/score.json"
    check "$j: provenance names the adapter's checksum" sh -c "jq -r '.sha256[\"adapter_model.safetensors\"]' '$d/provenance.json' | grep -qx $(adapter "first.$j")"
    check "$j: its log" sh -c "grep -q 'state FINETUNE' '$d/log' && grep -q 'saved at step $STEPS\|step $STEPS/$STEPS' '$d/log'"
    check "$j: the tuned model is READY" in_state "$tuned.status" READY
    for f in adapter_model.safetensors adapter_config.json; do
        if [ "$(stat -c %i "$d/checkpoint/$f")" = "$(stat -c %i "$tuned/$f")" ] && [ "$(stat -c %h "$tuned/$f")" = 2 ]; then ok "$j: $f is a hard link"; else fail "$j: $f is a hard link" "$(stat -c '%n %i %h' "$d/checkpoint/$f" "$tuned/$f")"; fi
    done
    check "$j: info.json" jq -e --arg j "$j" '.base == "lantern-2m" and .experiment == "first" and .job == $j and .score >= 0' "$tuned/info.json"
done
check "adapter_config.json is PEFT's" jq -e '.peft_type == "LORA" and .r == 4 and .lora_alpha == 8 and .task_type == "CAUSAL_LM"' "$J/checkpoint/adapter_config.json"

# leaderboard, best, report
check "the leaderboard has every job and the base" awk -F '\t' 'NR == 1 { for (i = 1; i <= NF; i++) col[$i] = i; next }
    $col["job"] ~ /^0[1-4]-/ { n++; if ($col["score"] > last + 0 && n > 1) exit 2; last = $col["score"] }
    $col["job"] == "base:lantern-2m" { base++ } END { exit !(n == 4 && base == 1) }' "$X/leaderboard.tsv"
top=$(awk -F '\t' '$1 == 1 { print $2 }' "$X/leaderboard.tsv")
if [ "$(head -n 1 "$X/best")" = "$top" ]; then ok "best is the first of the leaderboard"; else fail "best is the first of the leaderboard" "$(cat "$X/best")"; fi
if [ "$(readlink "$M/models/tuned/first.best")" = "first.$top" ] && [ -f "$M/models/tuned/first.best/adapter_model.safetensors" ]; then ok "models/tuned/first.best"; else fail "models/tuned/first.best" "$(readlink "$M/models/tuned/first.best")"; fi
base_score=$(awk -F '\t' '$2 ~ /^base:/ { print $3 }' "$X/leaderboard.tsv")
best_score=$(awk -F '\t' '$1 == 1 { print $3 }' "$X/leaderboard.tsv")
check "tuning raises the score by tens of points ($base_score -> $best_score)" awk "BEGIN { exit !($best_score > $base_score + 10) }"
check "report.html stands by itself" sh -c "grep -q '<svg' '$X/report.html' && grep -q '04-thorough-tickets' '$X/report.html' && grep -q 'base:lantern-2m' '$X/report.html' && ! grep -E '(src|href)=\"(https?:)?//' '$X/report.html'"
check "index.html" sh -c "xmllint --html --noout '$M/index.html' 2>/dev/null; grep -q first '$M/index.html'"

# lists, statuses
for l in datasets paramgroups evaluations models/base models/tuned experiments services models/compare plugins/data plugins/scoring experiments/first/jobs; do
    check "$l/LIST.tsv: whole lines" awk -F '\t' 'NR == 1 { if ($0 != "name\tstate\tsize\tage\treason") exit 1; next } NF != 5 { exit 1 }' "$M/$l/LIST.tsv"
done
lists=$(for l in datasets paramgroups evaluations models/base models/tuned experiments experiments/first/jobs; do tail -n +2 "$M/$l/LIST.tsv" | cut -f 1,2 | tr '\t' ' '; done | sort | tr '\n' ';')
want=$(printf '%s\n' 'website READY' 'tickets READY' 'careful READY' 'thorough READY' 'puffin READY' 'lantern-2m READY' 'first SUCCESS'; for j in $jobs; do echo "first.$j READY"; echo "$j SUCCESSFUL"; done)
want=$(sort <<<"$want" | tr '\n' ';')
if [ "$lists" = "$want" ]; then ok "the lists name every object with its state"; else fail "the lists name every object with its state" "$lists, expected $want"; fi
check "status" sh -c "head -n 1 '$M/status' | grep -qx RUNNING && grep -q 'first: SUCCESS' '$M/status'"
check "status.json" jq -e '.state == "RUNNING" and (.experiments | length) == 1 and .experiments[0].state == "SUCCESS" and (.experiments[0].leaderboard | length) == 5' "$M/status.json"
check "the experiment's status.json" jq -e '.state == "SUCCESS" and (.jobs | length) == 4' "$X/status.json"
check "metrics.prom is Prometheus text" awk '/^# (HELP|TYPE) [a-z_]+ / { next } /^[a-z_]+({[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*})? -?[0-9.e+-]+$/ { n++; next } { print; exit 1 } END { exit n < 5 }' "$M/metrics.prom"
for l in base/lantern-2m dataset/website experiment/first task/question-answering language/en tag/web; do
    n=0 broken=''
    for link in "$M/models/by-$l"/first.*; do
        n=$((n + 1))
        [ -f "$link/adapter_config.json" ] || broken=$link
    done
    if [ "$n" -ge 2 ] && [ -z "$broken" ]; then ok "models/by-$l"; else fail "models/by-$l" "$n links, broken: $broken"; fi
done
sleep 1
bad=$(find "$M" -type f | "$H" sizes)
if [ -z "$bad" ]; then ok "stat, read and mmap agree afterwards"; else fail "stat, read and mmap agree afterwards" "$bad"; fi
bad=$(find "$M" -type f -printf '%p %s\n' | while read -r f n; do [ "$(wc -c <"$f")" = "$n" ] || [ "$(stat -c %s "$f")" = "$(wc -c <"$f")" ] || echo "$f $n"; done | grep -v -e '/status' -e metrics.prom -e index.html)
if [ -z "$bad" ]; then ok "find's sizes are cat's"; else fail "find's sizes are cat's" "$bad"; fi
before=$(sha256sum "$X/leaderboard.tsv" "$X/report.html" "$J/score.json" "$J/metrics.csv" "$X/jobs/LIST.tsv" | cut -c1-64 | head -n 4)
stop_dtxd; start_dtxd || exit 1
after=$(sha256sum "$X/leaderboard.tsv" "$X/report.html" "$J/score.json" "$J/metrics.csv" | cut -c1-64)
if [ "$before" = "$after" ]; then ok "results after a restart"; else fail "results after a restart" "$(diff <(echo "$before") <(echo "$after") | head -n 3)"; fi
