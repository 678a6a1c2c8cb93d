#!/usr/bin/env bash
# kill -9 of dtxd and of its workers at random moments under a working load: experiments, drops and deletions come and go.
# 15 kills; FULL=1: 1000; KILLS=n.  Afterwards every experiment ends as SUCCESS with the bytes of an undisturbed run,
# nothing half written is in the store, no worker is left.
. "$(dirname "$0")/lib.sh"
KILLS=${KILLS:-15}
[ -n "${FULL:-}" ] && KILLS=1000
mkdir "$T/inputs"
"$BUILD/tests/test_worker_faults" --make-inputs "$T/inputs" || { fail "inputs" "tests/unit/test_worker_faults --make-inputs"; exit 1; }
touch "$T/inputs/tiny/_SUCCESS" "$T/inputs/words/_SUCCESS"
QUIZ='{"questions":[{"question":"after a?","reference":"bb."},{"question":"after b?","reference":"cc."}],"max_new_tokens":4}'
GROUPS3='"g1","g2","g3"'
RESTARTS=0 TAKEN=0 WORKERS=0 ENDED=0 RETRIED=0 NEXT=1
declare -A alone
running=()

spec() { printf '{"models":["tiny"],"datasets":["words"],"paramgroups":[%s],"evaluation":"quiz"}' "$GROUPS3"; }
sums() { local g; for g in 1 2 3; do sha256sum <"$M/experiments/$1/jobs/0$g-g$g/checkpoint/adapter_model.safetensors" | cut -c1-64; done; }
# What a person does when the mount was away: again.
insist() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" 2>>"$T/insist"; do
        [ "$SECONDS" -lt "$end" ] || { fail "again and again: $*" "$(tail -n 2 "$T/insist")"; return 1; }
        alive
        sleep 0.05
    done
}
alive() { kill -0 "$DTXD_PID" 2>/dev/null && mounted && return 0; wait "$DTXD_PID" 2>/dev/null; start_dtxd || exit 1; RESTARTS=$((RESTARTS + 1)); }
strike() {
    local w
    local what=$((RANDOM % 3))
    if [ $what = 0 ]; then
        kill_child && TAKEN=$((TAKEN + 1))
    elif [ $what = 1 ]; then
        kill_dtxd
        sleep 0.0$((RANDOM % 10))
        start_dtxd || exit 1
        RESTARTS=$((RESTARTS + 1))
    else
        w=$(pgrep -P "$(child_pid)" dtx-worker | shuf -n 1)
        [ -n "$w" ] && kill -KILL "$w" 2>/dev/null && WORKERS=$((WORKERS + 1))
    fi
}
begin() { insist 30 drop "experiments/x$NEXT.json" "$(spec)"; running+=("x$NEXT"); NEXT=$((NEXT + 1)); }
retry_failed() { # a job whose worker was killed twice beside no other: the words say what to do
    local s
    for s in "$M/experiments/$1"/jobs/*/status; do
        [ "$(state_of "$s")" = FAILED ] || continue
        grep -q 'its worker ended twice' "$s" || fail "$1" "$(head -n 2 "$s" | tr '\n' ' ')"
        { echo retry >"${s%status}control"; } 2>>"$T/insist" && RETRIED=$((RETRIED + 1))
    done
}
judge() { # experiments that have ended
    local x still=() got
    for x in "${running[@]}"; do
        case $(state_of "$M/experiments/$x.status") in
        SUCCESS | FAILED)
            if grep -q '3 of 3 jobs successful' "$M/experiments/$x.status"; then
                got=$(sums "$x")
                [ "$got" = "$reference" ] || fail "$x: same bytes" "$(echo "$got" | tr '\n' ' ')"
                ENDED=$((ENDED + 1))
                if [ $((RANDOM % 2)) = 0 ]; then insist 20 rm -rf "$M/experiments/$x"; insist 20 rm -f "$M/experiments/$x.json"; fi
                continue
            fi
            retry_failed "$x"
            ;;
        CANCELLED | REJECTED) fail "$x" "$(cat "$M/experiments/$x.status")"; continue ;;
        esac
        still+=("$x")
    done
    running=("${still[@]}")
}
half_written() { find "$S" -name '*.tmp' -o -name '*.new' -o -name '*.tmp.labels' -o -name '*.tmp.starts'; }

start_dtxd || exit 1
cp -r "$T/inputs/tiny" "$M/models/base/"
cp -r "$T/inputs/words" "$M/datasets/"
check "model" wait_state 20 "$M/models/base/tiny.status" READY
check "dataset" wait_state 20 "$M/datasets/words.status" READY
drop evaluations/quiz.json "$QUIZ"
for g in 1 2 3; do
    check "group g$g" group "g$g" "{\"max_steps\":$((150 * g)),\"lora_r\":$((1 + g)),\"batch_size\":$((1 + g)),\"block_size\":64,\"save_every\":20,\"eval_every\":100,\"lora_dropout\":0.1,\"seed\":$g}"
done
drop experiments/alone.json "$(spec)"
check "undisturbed" wait_state 60 "$M/experiments/alone.status" SUCCESS
reference=$(sums alone)
[ "$(echo "$reference" | wc -l)" = 3 ] || { fail "undisturbed" "no adapters"; exit 1; }

kills=0
while [ "$kills" -lt "$KILLS" ] && [ "$FAILS" = 0 ]; do
    judge
    while [ "${#running[@]}" -lt 2 ]; do begin; done
    case $((RANDOM % 4)) in # something else goes on too
    0) insist 20 cp -r "$T/inputs/words" "$M/datasets/extra$kills" ;;
    1) insist 20 rm -rf "$M"/datasets/extra* ;;
    2) begin; x=${running[-1]}; unset 'running[-1]'; sleep 0.$((RANDOM % 5)); insist 20 rm -rf "$M/experiments/$x"; insist 20 rm -f "$M/experiments/$x.json" ;;
    esac
    sleep 0.$((RANDOM % 9))$((RANDOM % 9))
    strike
    kills=$((kills + 1))
done
end=$((SECONDS + 120))
while [ "${#running[@]}" -gt 0 ] && [ "$SECONDS" -lt "$end" ]; do alive; judge; sleep 0.1; done
if [ "${#running[@]}" = 0 ]; then ok "$RESTARTS kills of dtxd as a whole, $TAKEN taken over, $WORKERS of workers: $ENDED experiments ended with the same bytes ($RETRIED jobs retried)"; else
    fail "all experiments end" "${running[*]}: $(head -n 3 "$M/experiments/${running[0]}.status" | tr '\n' ' ')"; fi
insist 20 rm -rf "$M"/datasets/extra*
check "the catalog is sound" python3 -c "import sqlite3,sys; r=sqlite3.connect('$S/catalog.db').execute('pragma integrity_check').fetchall(); sys.exit(r!=[('ok',)])"
workers() { pgrep -f -- "^$BUILD/dtx-worker --store $S" | wc -l; }
no_worker() { [ "$(workers)" = 0 ]; }
check "one worker a device" test "$(workers)" -le 1
stop_dtxd
check "no worker is left" wait_for 5 no_worker
left=$(half_written)
if [ -z "$left" ]; then ok "nothing half written is left"; else fail "nothing half written is left" "$(echo "$left" | head -n 3 | tr '\n' ' ')"; fi
gone=$(ls "$S/tree/experiments" "$S/work" | grep '^x[0-9]*$' | sort -u | while read -r x; do sqlite3 "$S/catalog.db" "select 1 from experiment where name='$x'" 2>/dev/null | grep -q 1 || echo "$x"; done)
if ! command -v sqlite3 >/dev/null; then skip "files of deleted experiments" "no sqlite3"; elif [ -z "$gone" ]; then ok "no files of deleted experiments"; else fail "no files of deleted experiments" "$gone"; fi
