#!/usr/bin/env bash
# What DTX makes of private things, as a stranger (65534) sees it: answers, experiments, evaluations, parameter groups,
# services, lists, logs, the console; and who may do what as a member of a group.  Owner: 1001.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip "security of what is made" "needs root to act as several users"; exit 0; }
chmod 700 "$S"
printf '{"admins": [1004]}\n' >"$T/dtxd.conf"
start_dtxd --config "$T/dtxd.conf" || exit 1
D=$M/datasets
alice() { setpriv --reuid 1001 --regid 1001 --groups 2000 "$@"; }
mate() { setpriv --reuid 1003 --regid 1003 --groups 1003,2000 "$@"; } # in the group 2000, but not first of all
refused() { # NAME COMMAND... as the stranger
    local name=$1 out
    shift
    if out=$(as_nobody "$@" 2>&1); then fail "$name" "it worked: $(printf %s "$out" | head -c 200)"; else ok "$name"; fi
}
secret=Zq9privatewords
leaks() { timeout 60 setpriv --reuid 65534 --regid 65534 --clear-groups grep -rlF -e "$secret" "$M" 2>/dev/null; }
no_leak() { local f; f=$(leaks); [ -z "$f" ] && ok "no leak: $1" || fail "no leak: $1" "$(tr '\n' ' ' <<<"$f")"; }
check "model" demo_in
Q='{"max_steps":2,"lora_r":2,"block_size":64,"batch_size":2,"eval_every":0}'
row="{\"instruction\":\"$secret question\",\"response\":\"$secret\"}"
alice sh -c "umask 077; mkdir '$D/priv' && printf '%s\n%s\n' '$row' '$row' >'$D/priv/train.jsonl' && cp '$D/priv/train.jsonl' '$D/priv/test.jsonl'; echo '{\"metadata\":{\"tags\":[\"$secret\"],\"task\":\"$secret\"}}' >'$D/priv/dataset.json'; touch '$D/priv/_SUCCESS'"
as_nobody sh -c "mkdir '$D/open' && echo '{\"instruction\":\"a\",\"response\":\"b\"}' >'$D/open/train.jsonl' && touch '$D/open/_SUCCESS'; echo '$Q' >'$M/paramgroups/p.json'"
alice sh -c "umask 077; echo '{\"questions\":[{\"question\":\"$secret?\",\"reference\":\"$secret\"}],\"max_new_tokens\":4}' >'$M/evaluations/priv.json'; echo '{\"\$comment\":\"$secret\",${Q#\{}' >'$M/paramgroups/priv.json'; echo '{\"dataset\":\"priv\",\"split\":\"test\",\"max_new_tokens\":4}' >'$M/evaluations/privdata.json'"
alice chmod 644 "$M/evaluations/privdata.json"
for o in datasets/priv datasets/open evaluations/priv evaluations/privdata paramgroups/priv paramgroups/p; do
    check "$o" wait_state 30 "$M/$o.status" READY
done

# ---- a worker as root: what it needs for the store's files, and no more (what a check may: test_confine.c) ----
worker=/proc/$(sed -n 's/^pid: //p' "$M/devices/cpu0/status")/status
check "a worker gets no new privileges" grep -q '^NoNewPrivs:.1$' "$worker"
for c in CapPrm CapEff CapBnd; do # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_RESOURCE
    caps=$(sed -n "s/^$c:.//p" "$worker")
    if [ -n "$caps" ] && [ $((0x$caps & ~0x100001f)) = 0 ] && [ $((0x$caps & 3)) = 3 ]; then ok "a worker's $c"; else fail "a worker's $c" "$caps"; fi
done

# ---- another's private things in one's own experiment ----
spec() { printf '{"models":["lantern-2m"],"datasets":["%s"],"paramgroups":["%s"]%s}' "$1" "$2" "${3:+,\"evaluation\":\"$3\"}"; }
as_nobody sh -c "echo '$(spec open p priv)' >'$M/experiments/t1.json'; echo '$(spec open priv)' >'$M/experiments/t2.json'; echo '$(spec priv p)' >'$M/experiments/t3.json'; echo '$(spec open p privdata)' >'$M/experiments/t4.json'"
alice sh -c "echo '$(spec priv priv priv)' >'$M/experiments/own.json'"
check "the owner trains on all of it" wait_state 60 "$M/experiments/own.status" SUCCESS
for t in t1:evaluation t2:paramgroup t3:dataset t4:dataset; do
    f=$M/experiments/${t%:*}.status
    if wait_state 10 "$f" PENDING && grep -q "its owner to let you read ${t#*:}" "$f"; then ok "a stranger's experiment with a private ${t#*:} waits for permission"
    else fail "a stranger's experiment with a private ${t#*:} waits for permission" "$(head -c 300 "$f")"; fi
done
check "the owner's score.json has the words" alice grep -q "$secret" "$M/experiments/own/jobs/01-priv/score.json"
for f in score.json provenance.json log metrics.csv status checkpoint/adapter_config.json; do refused "private: jobs/01-priv/$f" cat "$M/experiments/own/jobs/01-priv/$f"; done
for f in leaderboard.tsv report.html status.json log; do refused "private: own/$f" cat "$M/experiments/own/$f"; done
no_leak "after training"

# ---- a private spec's own words ----
alice sh -c "umask 077; echo '{\"$secret\":1}' >'$M/experiments/wrong.json'" 2>/dev/null
alice sh -c "umask 077; echo '{\"models\":[\"$secret\"],\"datasets\":[\"$secret\"],\"paramgroups\":[\"$secret\"]}' >'$M/experiments/waits.json'"
alice sh -c "umask 077; echo '{\"$secret\":1}' >'$M/paramgroups/wrong.json'" 2>/dev/null
as_nobody sh -c "echo '$(spec open wrong)' >'$M/experiments/t5.json'"
check "a wrong private spec" wait_state 10 "$M/experiments/wrong.status" REJECTED
check "its owner reads why" alice grep -q "$secret" "$M/experiments/wrong.status"
check "a private spec that waits" wait_state 10 "$M/experiments/waits.status" PENDING
check "a stranger's that waits for it" wait_state 10 "$M/experiments/t5.status" PENDING
no_leak "of private specs in LIST.tsv, status, status.json, index.html, log"

# ---- what a spec closed stays closed when the spec is removed ----
alice sh -c "umask 077; echo '{\"models\":[\"lantern-2m\"],\"datasets\":[\"late\"],\"paramgroups\":[\"p\"]}' >'$M/experiments/early.json'"
check "a private spec" wait_state 10 "$M/experiments/early.status" PENDING
alice rm "$M/experiments/early.json"
as_nobody sh -c "mkdir '$D/late' && echo '{\"instruction\":\"a\",\"response\":\"b\"}' >'$D/late/train.jsonl' && touch '$D/late/_SUCCESS'"
check "starts when its data is there" wait_state 40 "$M/experiments/early.status" SUCCESS
refused "its folder is as private as the spec was" cat "$M/experiments/early/spec.json"

# ---- what a name meant when an experiment began may be another's, or closed, when a job of it runs ----
alice sh -c "echo '${Q/\"max_steps\":2/\"max_steps\":100000}' >'$M/paramgroups/ages.json'"
cp -r "$M/models/base/lantern-2m" "$M/models/base/second"
as_nobody sh -c "mkdir '$D/swap' && echo '{\"instruction\":\"a\",\"response\":\"b\"}' >'$D/swap/train.jsonl' && touch '$D/swap/_SUCCESS'"
as_nobody sh -c "echo '{\"jobs\":[{\"name\":\"a\",\"model\":\"lantern-2m\",\"dataset\":\"open\",\"paramgroup\":\"ages\"},{\"name\":\"b\",\"model\":\"second\",\"dataset\":\"swap\",\"paramgroup\":\"p\"}]}' >'$M/experiments/swap.json'"
check "a stranger's experiment runs" wait_state 30 "$M/experiments/swap.status" PROCESSING
check "a job of it waits for the device" wait_for 10 grep -q 'waits for a device' "$M/experiments/swap/jobs/b/status"
check "its dataset goes" wait_for 10 as_nobody rm -r "$D/swap"
alice sh -c "umask 077; mkdir '$D/swap' && echo '$row' >'$D/swap/train.jsonl' && touch '$D/swap/_SUCCESS'"
check "another's private one takes the name" wait_state 20 "$D/swap.status" READY
as_nobody sh -c "echo cancel >'$M/experiments/swap/jobs/a/control'"
check "it is not used" wait_for 10 grep -q 'its owner to let you read dataset swap' "$M/experiments/swap/jobs/b/status"
as_nobody sh -c "echo cancel >'$M/experiments/swap/control'"

# ---- prompts and answers ----
alice sh -c "umask 077; printf '%s one two' '$secret' >'$M/models/compare/mine.txt'"
alice sh -c "echo '{\"model\":\"lantern-2m\",\"max_new_tokens\":4}' >'$M/services/open.json'"
check "a private prompt is answered" wait_state 40 "$M/models/compare/mine.status" DONE
refused "its answers are private" cat "$M/models/compare/mine/answers.json"
check "but its owner's" alice grep -q "$secret" "$M/models/compare/mine/answers.json"
check "a service" wait_state 10 "$M/services/open.status" RUNNING
alice sh -c "umask 077; printf '%s three' '$secret' >'$M/services/open/ask/q.txt'"
check "a private question" wait_state 40 "$M/services/open/ask/q.status" DONE
refused "its answer is private" cat "$M/services/open/ask/q.md"
check "but its owner's" alice cat "$M/services/open/ask/q.md"
alice sh -c "printf -- '---\n{\"models\":[\"tuned/own.best\"]}\n---\nhi' >'$M/models/compare/tuned.txt'"
check "a public prompt to a private model" wait_state 40 "$M/models/compare/tuned.status" DONE
refused "the answers are as private as the model" cat "$M/models/compare/tuned/answers.json"
as_nobody sh -c "echo '{\"model\":\"tuned/own.best\"}' >'$M/services/thief.json'; mkdir '$M/services/thief2' && ln -s ../../models/tuned/own.01-priv '$M/services/thief2/model'"
for n in thief thief2; do
    check "a stranger's service of a private model waits" wait_for 10 grep -q 'its owner to let you read model tuned/own' "$M/services/$n.status"
    check "and does not run" in_state "$M/services/$n.status" PENDING
done
no_leak "of prompts and answers"

# ---- names and links ----
as_nobody mkdir "$D/n"
refused "a hard link into a private dataset" ln "$D/priv/train.jsonl" "$D/n/train.jsonl"
refused "moving it" mv "$D/priv" "$D/n/x"
refused "exchanging one's own with it" python3 -c "import ctypes,sys; sys.exit(0 if ctypes.CDLL(None).renameat2(-100, b'$D/n', -100, b'$D/priv', 2) == 0 else 1)"
as_nobody sh -c "echo '{\"splits\":{\"train\":\"../../../../../../etc/shadow\"}}' >'$D/n/dataset.json'; touch '$D/n/_SUCCESS'"
check "../../ in dataset.json" wait_state 15 "$D/n.status" REJECTED
for c in "echo cancel >'$M/experiments/own/control'" "echo retry >'$M/experiments/own/jobs/01-priv/control'" "echo stop >'$M/services/open/control'" "rm -r '$M/models/compare/mine'" "rm '$M/services/open/ask/q.txt'"; do
    refused "a stranger: ${c//$M/}" sh -c "$c"
done
no_leak "at the end"

# ---- a tuned model outlives its experiment: who takes the name again does not get it ----
model=$(alice stat -c '%i' "$M/models/tuned/own.01-priv/adapter_model.safetensors")
alice rm -r "$M/experiments/own" "$M/experiments/own.json"
check "the name is free" wait_for 10 sh -c "! test -e '$M/experiments/own'"
as_nobody sh -c "echo '{\"jobs\":[{\"name\":\"01-priv\",\"model\":\"lantern-2m\",\"dataset\":\"open\",\"paramgroup\":\"p\"}]}' >'$M/experiments/own.json'"
check "an experiment that would replace another's model" wait_state 20 "$M/experiments/own.status" REJECTED
[ "$(alice stat -c '%i' "$M/models/tuned/own.01-priv/adapter_model.safetensors")" = "$model" ] && ok "the model is still there" || fail "the model is still there" "$(ls -la "$M/models/tuned")"

# ---- a spec and what was made of it: either half may be there alone, and the other is its owner's ----
alice sh -c "printf '%s' '$(spec open ages)' >'$M/experiments/half.json'"
check "an experiment" wait_state 30 "$M/experiments/half.status" PROCESSING
alice sh -c "rm '$M/experiments/half.json'; rm '$M/models/compare/mine.txt'; mkdir '$M/services/half'; echo '{\"model\":\"lantern-2m\"}' >'$M/services/half2.json'"
check "a service that is a folder" wait_for 10 test -e "$M/services/half/ask"
refused "a stranger's spec for it" sh -c "umask 0; echo '{}' >'$M/experiments/half.json'"
refused "or one renamed to it" sh -c "echo '{}' >'$M/experiments/.half' && mv '$M/experiments/.half' '$M/experiments/half.json'"
refused "a stranger's prompt for another's answers" sh -c "echo hi >'$M/models/compare/mine.txt'"
refused "a stranger's spec of another's service" sh -c "echo '{\"model\":\"lantern-2m\"}' >'$M/services/half.json'"
printf '%s' '{}' >"$S/tree/experiments/half.json" && chown 65534:65534 "$S/tree/experiments/half.json" && chmod 666 "$S/tree/experiments/half.json"
sleep 2
refused "nor does one behind the mount's back give control" sh -c "echo cancel >'$M/experiments/half/control'"
alice sh -c "echo cancel >'$M/experiments/half/control'"

# ---- groups: also the second ones of a process ----
as_nobody sh -c "printf '%s' '$(spec open p)' >'$M/experiments/any.json'"
alice sh -c "echo '${Q/\"max_steps\":2/\"max_steps\":100000}' >'$M/paramgroups/long.json'"
alice sh -c "umask 002; printf '%s' '$(spec open long)' >'$M/experiments/.team' && chgrp 2000 '$M/experiments/.team' && mv '$M/experiments/.team' '$M/experiments/team.json'"
check "an experiment of a group" wait_state 30 "$M/experiments/team.status" PROCESSING
refused "control by who is not in it" sh -c "echo pause >'$M/experiments/team/control'"
check "control by who is" mate sh -c "echo pause >'$M/experiments/team/control'"
check "is obeyed" wait_state 10 "$M/experiments/team.status" PAUSED
check "control by an admin" setpriv --reuid 1004 --regid 1004 --clear-groups sh -c "echo resume >'$M/experiments/team/control'"
check "is obeyed too" wait_state 10 "$M/experiments/team.status" PROCESSING
chmod 644 "$M/experiments/team.json"
if mate sh -c "echo pause >'$M/experiments/team/control'" 2>/dev/null; then fail "not where the spec is not the group's to write" "it worked"; else ok "not where the spec is not the group's to write"; fi
