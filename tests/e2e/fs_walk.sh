#!/usr/bin/env bash
# Tools that walk the whole mount end, and say nothing but that something has gone, while a job trains and objects come and go.
. "$(dirname "$0")/lib.sh"
start_dtxd || exit 1
group q "$(steps 100000)"
demo_in tickets || { fail "the demo's model and data" "not READY"; exit 1; }
experiment long '"tickets"' '"q"'
wait_for 60 sh -c "ls '$M'/experiments/long/jobs/*/metrics.csv" || fail "a job trains" "no metrics.csv"
come_and_go() { # until $T/enough is there
    local i=0
    while [ ! -e "$T/enough" ]; do
        i=$((i + 1))
        echo '{"lora_r":4}' >"$M/paramgroups/g$((i % 50)).json"
        rm -f "$M/paramgroups/g$(((i + 25) % 50)).json"
        mkdir "$M/datasets/d$((i % 20))" 2>/dev/null && echo '{"text":"x"}' >"$M/datasets/d$((i % 20))/train.jsonl"
        rm -rf "$M/datasets/d$(((i + 10) % 20))"
        [ $((i % 10)) = 0 ] && echo '{"models":["nosuch"],"datasets":["tickets"],"paramgroups":["q"],"seeds":[1,2]}' >"$M/experiments/e$((i % 50)).json"
        [ $((i % 10)) = 5 ] && rm -rf "$M/experiments/e$(((i + 20) % 50 / 10 * 10))" "$M/experiments/e$(((i + 20) % 50 / 10 * 10)).json"
        sleep 0.02
    done
} 2>/dev/null
come_and_go &
busy=$!
gone='No such file or directory|file changed as we read it|File removed before we read it|vanished|Stale file handle|Exiting with failure status due to previous errors|some files vanished|file has vanished|changed size|shrank by|cannot access|file truncated'
walk() { # NAME STATUS... -- COMMAND: ends with one of these, and complains of nothing but what has gone
    local name=$1 allowed= rc start=$SECONDS
    shift
    while [ "$1" != -- ]; do allowed="$allowed $1 "; shift; done
    shift
    timeout $((60 * SLOW)) sh -c "$*" >"$T/out" 2>"$T/err"
    rc=$?
    case $allowed in *" $rc "*) ;; *) fail "$name" "status $rc after $((SECONDS - start)) s: $(tail -n 4 "$T/err" | tr "\n" ";")"; return ;; esac
    if grep -E -v -e "$gone" "$T/err" | grep -q .; then fail "$name" "$(grep -E -v -e "$gone" "$T/err" | head -n 3)"; else ok "$name ($((SECONDS - start)) s)"; fi
}
for round in 1 2; do
    walk "find $round" 0 1 -- find "$M" -ls
    walk "grep -r $round" 0 1 2 -- grep -r nosuchword "$M"
    walk "du $round" 0 1 -- du -a "$M"
    walk "ls -lR $round" 0 1 2 -- ls -lR "$M"
    walk "cp -a $round" 0 1 -- "rm -rf '$T/copy'; cp -a '$M' '$T/copy'"
    walk "tar $round" 0 1 2 -- tar cf "$T/t.tar" -C "$M" .
    walk "rsync $round" 0 11 23 24 -- rsync -a --delete "$M/" "$T/rsync" # 11: the folder that it was in went
done
check "the copy has what is always there" sh -c "for f in README.md models/base/lantern-2m/model.safetensors datasets/tickets/train.jsonl paramgroups/q.json; do cmp '$M/'\$f '$T/copy/'\$f && cmp '$M/'\$f '$T/rsync/'\$f || exit 1; done"
check "tar's copy can be read" sh -c "tar tf '$T/t.tar' | grep -q experiments/long/status"
check "the job still trains" in_state "$M/experiments/long/status" PROCESSING
touch "$T/enough"
wait $busy
check "what came and went is gone" wait_for 30 sh -c "rm -rf '$M'/paramgroups/g*.json '$M'/datasets/d*/ ; ! ls '$M/paramgroups' | grep -q '^g'"
check "cancel" sh -c "echo cancel >'$M/experiments/long/control'"
