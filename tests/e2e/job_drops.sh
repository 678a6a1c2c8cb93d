#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# How things are dropped: mv, cp, rsync, editors, slowly and in pieces; leftovers are never specs; DataTunerX's document.
. "$(dirname "$0")/lib.sh"
start_dtxd || exit 1
E=$M/experiments G=$M/paramgroups
check "model" demo_in
# a dataset that comes file by file with pauses is not checked early
mkdir "$M/datasets/slow"
head -n 3 "$DEMO/datasets/tickets/train.jsonl" >"$M/datasets/slow/train.jsonl"
sleep 1.2
check "a folder that still grows is RECEIVING" in_state "$M/datasets/slow.status" RECEIVING
(head -n 5 "$DEMO/datasets/tickets/test.jsonl"; sleep 3; tail -n 2 "$DEMO/datasets/tickets/test.jsonl") >"$M/datasets/slow/test.jsonl" &
writer=$!
sleep 2.6
check "also while a file is open" in_state "$M/datasets/slow.status" RECEIVING
wait $writer
check "then READY" wait_state 30 "$M/datasets/slow.status" READY
check "with all its rows" has "$M/datasets/slow.status" '^rows: .*test 7.*train 3\|^rows: .*train 3.*test 7'
# renamed into place: at once
mkdir -p "$T/quickly" && cp "$M/datasets/slow/train.jsonl" "$T/quickly/" && mv "$T/quickly" "$M/datasets/.moving" && mv "$M/datasets/.moving" "$M/datasets/quickly"
check "a renamed folder is taken at once" wait_for 2 grep -q '^CHECKING\|^READY' "$M/datasets/quickly.status"
check "READY" wait_state 20 "$M/datasets/quickly.status" READY
mkdir "$M/datasets/marked" && cp "$M/datasets/slow/train.jsonl" "$M/datasets/marked/"
touch "$M/datasets/marked/_SUCCESS"
check "_SUCCESS ends it at once" wait_for 2 grep -q '^CHECKING\|^READY' "$M/datasets/marked.status"
rsync -a "$DEMO/datasets/website" "$M/datasets/"
check "rsync of a folder" wait_state 30 "$M/datasets/website.status" READY

# parameter groups, each way
r() { grep -o '"lora_r":[ ]*[0-9]*' "$1"; }
taken() { wait_state 10 "$G/$1.status" READY; } # NAME
steps 2 >"$T/src.json"
cp "$T/src.json" "$G/cp.json"; check "cp" taken cp
cp "$T/src.json" "$T/mv.json"; mv "$T/mv.json" "$G/mv.json"; check "mv" taken mv
rsync -a "$T/src.json" "$G/rsync.json"; check "rsync" taken rsync
cat "$T/src.json" >"$G/echo.json"; check "echo >" taken echo
tr -d '\n' <"$T/src.json" | dd of="$G/dd.json" bs=7 status=none; check "dd" taken dd
echo '{"lora_r":5, "lora_alpha": 1}' >"$G/edit.json"; taken edit >/dev/null
if command -v vim >/dev/null; then
    vim -es -u NONE -c '%s/5/many/' -c wq "$G/edit.json" </dev/null 2>/dev/null
    check "vim: the new text counts" wait_state 10 "$G/edit.status" REJECTED
    vim -es -u NONE -c '%s/many/"x"/' -c wq "$G/edit.json" </dev/null 2>/dev/null
    vim -es -u NONE -c '%s/"x"/6/' -c wq "$G/edit.json" </dev/null 2>/dev/null
    check "vim: corrected" taken edit
else skip "vim" "not installed"; fi
sed -i 's/6/seven/; s/5/seven/' "$G/edit.json"
check "sed -i: the new text counts" wait_state 10 "$G/edit.status" REJECTED
echo '{"lora_r":5}' >"$G/edit.json"
check "corrected" taken edit
( printf '{"lora_r":'; sleep 1; printf ' 4,\n"max_'; sleep 1; printf 'steps": 2}\n' ) >"$G/pieces.json" &
writer=$!
early=''
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    in_state "$G/pieces.status" READY REJECTED && kill -0 $writer 2>/dev/null && early="$early $(state_of "$G/pieces.status")"
    sleep 0.1
done
wait $writer
if [ -z "$early" ]; then ok "not parsed while it is written"; else fail "not parsed while it is written" "$early"; fi
check "written in pieces" taken pieces
# each piece by a process of its own: quiet for longer than 200 ms, and does not parse yet
for part in '{"lora_r":' ' 4' ',"max_steps":3}'; do printf '%s' "$part" >>"$G/appended.json" 2>/dev/null; sleep 0.7; done
check "appended by several writers" wait_state 45 "$G/appended.status" READY

# leftovers
n=0
for f in .DS_Store ._echo.json echo.json~ .echo.json.swp .echo.json.swx sedA1b2C3 .echo.json.Xy12Zz echo.json.tmp echo.json.part 4913; do
    for d in paramgroups experiments evaluations models/compare; do
        echo '{"models":["lantern-2m"],"datasets":["slow"],"paramgroups":["cp"]}' >"$M/$d/$f" 2>/dev/null && n=$((n + 1))
    done
done
mkdir "$M/datasets/.rsync-partial" 2>/dev/null
sleep 2.5
check "leftovers are stored ($n)" test "$n" = 40
seen=$(cd "$M" && for d in paramgroups experiments evaluations models/compare datasets; do tail -n +2 "$d/LIST.tsv" | cut -f1; done | sort | tr '\n' ' ')
want=$(printf '%s\n' appended cp dd echo edit mv pieces rsync marked quickly slow website | sort | tr '\n' ' ')
if [ "$seen" = "$want" ]; then ok "and never taken for specs"; else fail "and never taken for specs" "$seen"; fi
rm -f "$M"/experiments/* "$M"/experiments/.[!.]* 2>/dev/null
# behind the mount's back
steps 2 >"$S/tree/paramgroups/behind.json"
check "a file put into the store itself" wait_state 20 "$G/behind.status" READY

# an experiment by each way; the quickest
one='{"models":["lantern-2m"],"datasets":["slow"],"paramgroups":["cp"]}'
echo "$one" >"$T/e1.json" && cp "$T/e1.json" "$E/e1.json"
echo "$one" >"$E/e2.json"
rsync "$T/e1.json" "$E/e3.json"
( printf '%s' "${one%\"slow*}"; sleep 1.3; printf '%s' "\"slow${one#*\"slow}" ) >"$E/e4.json"
for e in e1 e2 e3 e4; do
    ended 40 $e >/dev/null
    check "$e runs" in_state "$E/$e.status" SUCCESS
done

# DataTunerX's own document
cat >"$G/dtx.json" <<'JSON'
{"apiVersion": "core.datatunerx.io/v1beta1", "kind": "Hyperparameter", "metadata": {"name": "dtx"},
 "spec": {"objective": {"type": "SFT"}, "parameters": {"scheduler": "cosine", "optimizer": "AdamW", "int4": false, "int8": false,
  "loRA_R": "8", "loRA_Alpha": "32.0", "loRA_Dropout": "0.1", "learningRate": "0.001", "epochs": 1, "blockSize": 64,
  "batchSize": 4, "warmupRatio": "0.1", "weightDecay": "0.0001", "gradAccSteps": 1, "trainerType": "Standard", "PEFT": true, "FP16": false}}}
JSON
check "DataTunerX's hyperparameters" taken dtx
experiment dtx '"slow"' '"dtx"'
check "an experiment with them" ended 40 dtx
check "SUCCESS" in_state "$E/dtx.status" SUCCESS
check "its values and defaults" jq -e '.params | .lora_r == 8 and .lora_alpha == 32 and .lora_dropout == 0.1 and .learning_rate == 0.001 and .block_size == 64 and .weight_decay == 0.0001 and (.target_modules == ["q_proj","v_proj"])' "$E/dtx/jobs/01-dtx/status.json"
