#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# Bad input and bad luck: an error in words, the rest goes on.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { skip job_bad "python3 is not installed"; exit 0; }
start_dtxd || exit 1
check "model and data" demo_in tickets
group quick "$QUICK"
E=$M/experiments
rejected() { # NAME STATUSFILE WORDS...: REJECTED with a reason that has all of these
    local name=$1 file=$2 w
    shift 2
    wait_state 50 "$file" REJECTED >"$T/why" || { fail "$name" "$(cat "$T/why")"; return; }
    for w; do grep '^reason:' "$file" | grep -q -e "$w" || { fail "$name" "no \"$w\" in: $(grep '^reason:' "$file")"; return; }; done
    ok "$name"
}
# specs
printf '{\n  "models": ["lantern-2m"],\n  "datasets": ["tickets"]\n  "paramgroups": ["quick"]\n}\n' >"$T/broken.json"
cp "$T/broken.json" "$E/broken.json" 2>"$T/err"
if grep -q 'Invalid argument' "$T/err"; then ok "cp says that it is broken"; else fail "cp says that it is broken" "$(cat "$T/err")"; fi
rejected "broken JSON: line and column" "$E/broken.status" 'broken.json:4:[0-9]'
printf '{\n  "learning_rat": 0.1\n}\n' >"$M/paramgroups/typo.json" 2>/dev/null
rejected "an unknown key, with the nearest one" "$M/paramgroups/typo.status" 'typo.json:2' learning_rat 'learning_rate'
printf '{"lora_r": "many"}\n' >"$M/paramgroups/kind.json" 2>/dev/null
rejected "a wrong type" "$M/paramgroups/kind.status" lora_r many
printf '{"quantization": "int4"}\n' >"$M/paramgroups/quant.json" 2>/dev/null
rejected "quantization that is not built" "$M/paramgroups/quant.status" quantization int4
drop experiments/huge.json "$(python3 -c 'print("[" * 100000)')"
rejected "very deep JSON" "$E/huge.status" 'huge.json'
drop "experiments/twice.json" '{"jobs":[{"name":"x","model":"lantern-2m","dataset":"tickets","paramgroup":"quick"},{"name":"x","model":"lantern-2m","dataset":"tickets","paramgroup":"quick"}]}'
rejected "two jobs of one name" "$E/twice.status" '"*x"*'
printf '{"models":["lantern-2m"],"datasets":["tickets"],"paramgroups":["quick"]}' >"$T/spec"
if cp "$T/spec" "$E/a.b.json" 2>/dev/null && ! wait_state 5 "$E/a.b.status" REJECTED >/dev/null; then fail "an experiment's name with a dot" "$(cat "$E/a.b.status")"; else ok "an experiment's name with a dot"; fi
cp "$T/spec" "$E/$(printf 'n%.0s' $(seq 300)).json" 2>"$T/err"
if grep -q 'too long' "$T/err"; then ok "a spec whose name has 300 bytes"; else fail "a spec whose name has 300 bytes" "$(cat "$T/err")"; fi
check "a corrected spec is taken" cp "$T/spec" "$E/broken.json"
check "and runs" wait_state 60 "$E/broken.status" SUCCESS FAILED CANCELLED
check "to SUCCESS" in_state "$E/broken.status" SUCCESS
# a group that is REJECTED is no reason to lose the experiment
experiment late '"tickets"' '"typo"'
check "it waits for a REJECTED group, saying why" wait_for 10 grep -q 'waiting for: paramgroup typo (REJECTED: .*learning_rat' "$E/late.status"
drop paramgroups/typo.json "$QUICK"
check "and runs when that is corrected" ended 40 late

# datasets
dataset() { mkdir -p "$T/ds/$1" && cat >"$T/ds/$1/train.jsonl" && mv "$T/ds/$1" "$M/datasets/"; }
mkdir -p "$T/ds"
dataset empty </dev/null
mkdir "$T/ds/nothing" && touch "$T/ds/nothing/_SUCCESS" && mv "$T/ds/nothing" "$M/datasets/"
printf '{"instruction":"a","response":"b"}\n{"instruction":"only a question"}\n' | dataset half
printf '{"instruction":"a"}\n{"instruction":"b","response":""}\n' | dataset noanswers
printf '{"instruction":"a","response":"b"}\n{"instruction":"\377\376","response":"b"}\n' | dataset utf8
printf '{"instruction":"a","response":"b"}\nnot json\n' | dataset junk
rejected "an empty dataset" "$M/datasets/empty.status" 'train'
rejected "a folder without train.*" "$M/datasets/nothing.status" 'train'
rejected "rows without answers, file and line" "$M/datasets/noanswers.status" 'train.jsonl:1'
for d in half utf8 junk; do
    wait_state 30 "$M/datasets/$d.status" READY REJECTED >/dev/null
    check "$d: the line is named" has "$M/datasets/$d.status" 'train.jsonl:2'
done
check "half: one row is left" sh -c "grep -q '^READY' '$M/datasets/half.status' && grep -q 'skipped: 1' '$M/datasets/half.status'"
printf '{"instruction":"a","response":"c"}\n' >>"$M/datasets/noanswers/train.jsonl"
check "a corrected dataset is READY" wait_state 60 "$M/datasets/noanswers.status" READY

# base models
model() { rm -rf "$T/ds/$1" && cp -r "$DEMO/models/lantern-2m" "$T/ds/$1"; }
place() { mv "$T/ds/$1" "$M/models/base/"; }
model lying && python3 - "$T/ds/lying/model.safetensors" <<'PY' && place lying
import json, struct, sys
p = sys.argv[1]
b = open(p, 'rb').read()
n = struct.unpack('<Q', b[:8])[0]
h = json.loads(b[8:8 + n])
k = next(k for k in h if k != '__metadata__')
h[k]['data_offsets'][1] += 1 << 40
s = json.dumps(h).encode()
open(p, 'wb').write(struct.pack('<Q', len(s)) + s + b[8 + n:])
PY
model header && printf '\377\377\377\377\377\377\377\177{' >"$T/ds/header/model.safetensors" && place header
model short && truncate -s -100000 "$T/ds/short/model.safetensors" && place short
model pickle && mv "$T/ds/pickle/model.safetensors" "$T/ds/pickle/pytorch_model.bin" && place pickle
model vocab && python3 - "$T/ds/vocab/tokenizer.json" <<'PY' && place vocab
import json, sys
t = json.load(open(sys.argv[1]))
t['model']['vocab'].update({'extra%d' % i: 1536 + i for i in range(500)})
json.dump(t, open(sys.argv[1], 'w'))
PY
rejected "a lying safetensors header" "$M/models/base/lying.status" safetensors
rejected "a header length that cannot be" "$M/models/base/header.status" safetensors
rejected "truncated weights" "$M/models/base/short.status" safetensors
rejected "pickles are refused" "$M/models/base/pickle.status" safetensors
rejected "a tokenizer that does not fit" "$M/models/base/vocab.status" tokenizer 1536
check "all of it is in the lists" wait_for 5 sh -c "grep -c REJECTED '$M/models/base/LIST.tsv' | grep -qx 5 && grep -q '^lantern-2m	READY' '$M/models/base/LIST.tsv'"

# a job that kills its worker each time it runs alone
group long "$(steps 100000)"
experiment poison '"tickets"' '"long"'
P=$E/poison/jobs/01-long
workers() { pgrep -P "$(child_pid)" dtx-worker; }
kills=0
while [ $kills -lt 5 ] && ! in_state "$P/status" FAILED; do
    wait_for 30 sh -c "[ \"\$(head -n 1 '$P/status')\" = FINETUNE ] && grep -q step '$P/progress'" || break
    # shellcheck disable=SC2046
    kill -9 $(workers)
    kills=$((kills + 1))
    wait_for 3 in_state "$P/status" PENDING FAILED
done
check "a poison job FAILS" wait_state 10 "$P/status" FAILED
check "after two or three deaths" test $kills -ge 2 -a $kills -le 3
check "its reason is in words" has "$P/status" '^reason: .*worker ended twice'
check "the experiment FAILS" wait_state 10 "$E/poison.status" FAILED
check "retry tries once more" sh -c "echo retry >'$P/control'"
check "it runs again" wait_for 40 sh -c "[ \"\$(head -n 1 '$P/status')\" = FINETUNE ]"
check "and is stopped" sh -c "sleep 1; echo cancel >'$E/poison/control'"
experiment after '"tickets"' '"quick"'
check "the next one runs" ended 40 after
check "to its end" in_state "$E/after.status" SUCCESS
