#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# Prompts, services and bin/dtx on a live mount.
. "$(dirname "$0")/lib.sh"
command -v jq >/dev/null || { skip job_compare "jq is not installed"; exit 0; }
start_dtxd || exit 1
E=$M/experiments C=$M/models/compare
check "model and data" demo_in tickets website
group quick "$(steps 12)"
group long "$(steps 100000)"
jq '.questions |= .[0:3] | .max_new_tokens = 16' "$DEMO/evaluations/puffin.json" >"$T/short.json" && cp "$T/short.json" "$M/evaluations/short.json"
experiment one '"tickets","website"' '"quick"' '"evaluation":"short"'
check "one ends" ended 60 one
best=$(readlink "$M/models/tuned/one.best")
experiment busy '"tickets"' '"long"'
check "training goes on meanwhile" wait_for 40 at_step busy/jobs/01-long 3

# without services: READY bases and EXP.best, while training runs
start=$(date +%s%N)
check "a prompt is copied in" cp "$DEMO/prompts/price.txt" "$C/"
check "DONE" wait_state 30 "$C/price.status" DONE
ms=$((($(date +%s%N) - start) / 1000000))
if [ $ms -lt 10000 ]; then ok "answered while training in $ms ms"; else fail "answered while training" "$ms ms"; fi
check "training did not stop" sh -c "head -n 1 '$E/busy/jobs/01-long/status' | grep -qx FINETUNE"
check "base and best were asked" jq -e '[.answers[].model] | sort == ["lantern-2m","one.best"]' "$C/price/answers.json"
check "the prompt is kept" jq -e '.prompt | startswith("Hello, I am Mira")' "$C/price/answers.json"
check "numbers of each answer" jq -e 'all(.answers[]; .prompt_tokens > 5 and .new_tokens > 0 and .tokens_per_s > 0 and .ttft_s > 0 and .total_s >= .ttft_s and .together == 2)' "$C/price/answers.json"
check "stats.tsv" awk -F '\t' 'NR == 1 { if ($0 != "model\tprompt_tokens\tnew_tokens\ttokens_per_s\tttft_s\ttotal_s\ttogether\terror") exit 1; next } NF != 8 || $8 != "-" { exit 1 } END { exit NR != 3 }' "$C/price/stats.tsv"
for m in lantern-2m one.best; do
    if [ "$(cat "$C/price/$m.txt")" = "$(jq -r ".answers[] | select(.model == \"$m\").text" "$C/price/answers.json")" ]; then ok "$m.txt is its answer"; else fail "$m.txt is its answer" "$(cat "$C/price/$m.txt")"; fi
    check "$m in answers.md" has "$C/price/answers.md" "^## $m"
done
check "LIST.tsv" wait_for 5 has "$C/LIST.tsv" '^price	DONE'
first=$(cat "$C/price/lantern-2m.txt")
cp "$DEMO/prompts/price.txt" "$C/again.txt"
wait_state 30 "$C/again.status" DONE
if [ "$(cat "$C/again/lantern-2m.txt")" = "$first" ]; then ok "temperature 0: the same answer"; else fail "temperature 0: the same answer" "$(cat "$C/again/lantern-2m.txt")"; fi
# front matter, wrong prompts
printf -- '---\n{"models":["tuned/%s"],"max_new_tokens":3}\n---\nHow much is the Otter bike?\n' "$best" >"$C/front.txt"
check "settings in the prompt" wait_state 30 "$C/front.status" DONE
check "count" jq -e --arg b "$best" '.answers | length == 1 and .[0].new_tokens <= 3 and .[0].model == $b' "$C/front/answers.json"
printf -- '---\n{"max_tokens":3}\n---\nHow?\n' >"$C/wrong.txt" 2>/dev/null
check "a wrong setting is told" wait_for 15 grep -q '^reason: .*max_tokens.*max_new_tokens' "$C/wrong.status"
printf -- '---\n{"models":["nobody"]}\n---\nHow?\n' >"$C/nobody.txt"
check "a model that is not there is waited for" wait_for 15 grep -q '^reason: waiting for: model nobody' "$C/nobody.status"
check "rm of a prompt and its answers" rm -r "$C/nobody.txt" "$C/price" "$C/price.txt"
check "it is gone" wait_for 10 sh -c "[ ! -e '$C/price' ] && [ ! -e '$C/price.status' ] && ! grep -q '^price	' '$C/LIST.tsv'"

# services
V=$M/services
check "a service is a folder" mkdir "$V/desk"
check "with a link" ln -s ../../models/tuned/one.best "$V/desk/model"
check "RUNNING" wait_state 20 "$V/desk.status" RUNNING
check "ask/ is there" test -d "$V/desk/ask"
echo "What does the Otter bike cost?" >"$V/desk/ask/q1.txt"
check "it answers" wait_for 20 test -s "$V/desk/ask/q1.md"
drop services/plain.json '{"model":"lantern-2m","max_new_tokens":5}'
check "a service from a spec" wait_state 20 "$V/plain.status" RUNNING
echo "What does the Otter bike cost?" >"$C/two.txt"
check "compare asks the services" wait_state 30 "$C/two.status" DONE
check "both of them, and only them" jq -e '[.answers[].model] | sort == ["desk","plain"]' "$C/two/answers.json"
check "stats count" wait_for 5 grep -q '^requests: 1\|requests.*1' "$V/desk/stats"
if [ "$(cat "$C/two/desk.txt")" = "$(cat "$V/desk/ask/q1.md")" ]; then ok "ask and compare give the same answer"; else fail "ask and compare give the same answer" "$(cat "$C/two/desk.txt" "$V/desk/ask/q1.md")"; fi
check "stop" sh -c "echo stop >'$V/desk/control'"
check "STOPPED" wait_state 10 "$V/desk.status" STOPPED
if echo explode 2>/dev/null >"$V/desk/control"; then fail "an unknown word to a service" "it worked"; else ok "an unknown word to a service"; fi
check "start" sh -c "echo start >'$V/desk/control'"
check "RUNNING again" wait_state 10 "$V/desk.status" RUNNING
check "another model" ln -sfn ../../models/base/lantern-2m "$V/desk/model"
check "is taken" wait_for 10 grep -q '^model: .*lantern-2m' "$V/desk.status"
mkdir "$V/lost" && ln -s ../../models/tuned/nobody "$V/lost/model"
check "a model that is not there" wait_for 10 grep -q 'waiting for: model tuned/nobody' "$V/lost.status"
check "rm -r ends a service" rm -r "$V/desk" "$V/lost"
check "gone" wait_for 10 sh -c "[ ! -e '$V/desk.status' ] && ! grep -q desk '$V/LIST.tsv'"
rm "$V/plain.json"
check "without its spec a service does not run" wait_state 10 "$V/plain.status" PENDING
check "its folder can go" rm -r "$V/plain"
check "then it is gone" wait_for 10 test ! -e "$V/plain.status"

# bin/dtx
dtx() { DTX=$M sh "$M/bin/dtx" "$@"; }
check "dtx status" sh -c "sh '$M/bin/dtx' status | grep -q '^RUNNING'"
check "dtx status EXP/JOB" sh -c "sh '$M/bin/dtx' status one/01-quick-tickets | grep -q '^SUCCESSFUL'"
check "dtx ls" sh -c "sh '$M/bin/dtx' ls | grep -q 'lantern-2m .*READY'"
check "dtx new, run" sh -c "cd '$T' && sh '$M/bin/dtx' new experiment mine && printf '{\"models\":[\"lantern-2m\"],\"datasets\":[\"tickets\"],\"paramgroups\":[\"quick\"]}' >mine.json && timeout 60 sh '$M/bin/dtx' run mine.json >run.out && grep -q 01-quick run.out"
check "dtx wait" timeout 30 sh "$M/bin/dtx" wait mine
check "dtx leaderboard, best" sh -c "sh '$M/bin/dtx' leaderboard one | grep -q base:lantern-2m && sh '$M/bin/dtx' best one | grep -q quick"
check "dtx log" sh -c "sh '$M/bin/dtx' log one/01-quick-tickets | grep -q 'state SUCCESSFUL'"
check "dtx ask" sh -c "timeout 40 sh '$M/bin/dtx' ask one.best 'What does the Otter bike cost?' | grep -q '^## one.best'"
cp "$DEMO/prompts/stolen.txt" "$T/"; timeout 40 sh "$M/bin/dtx" compare "$T/stolen.txt" >"$T/stolen.out" 2>&1
check "dtx compare" has "$T/stolen.out" '^## lantern-2m'
check "dtx pause, resume" sh -c "sh '$M/bin/dtx' pause busy && sleep 1 && sh '$M/bin/dtx' resume busy"
check "dtx cancel" dtx cancel busy
check "busy is CANCELLED" wait_state 20 "$E/busy.status" CANCELLED
if dtx wait busy >/dev/null 2>&1; then fail "dtx wait of a cancelled one" "status 0"; else ok "dtx wait of a cancelled one"; fi
if dtx pause nobody 2>"$T/err"; then fail "dtx: a name that is not there" "status 0"; else check "dtx: a name that is not there" has "$T/err" nobody; fi
# the worker dies while it answers: asked again
# shellcheck disable=SC2046
sh -c "echo 'Who are you?' >'$C/dies.txt'; sleep 0.3; kill -9 $(pgrep -P "$(child_pid)" dtx-worker)"
check "an answer after the worker's death" wait_state 40 "$C/dies.status" DONE
check "no prompt was answered twice" hasnt "$M/log" "compare prompt .*: ANSWERING -> RECEIVING"
