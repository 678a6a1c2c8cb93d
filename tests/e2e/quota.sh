#!/usr/bin/env bash
# Quotas of owners and limits of the store: a copy fails at the first write that would pass one, in words; what is
# counted is right for holes, links, other owners, removal, renames, restarts, and changes behind the mount's back.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip "quotas" "needs root to act as several users"; exit 0; }
C=$T/dtxd.conf
D=$M/datasets
alice() { setpriv --reuid 1001 --regid 1001 --clear-groups "$@"; }
bob() { setpriv --reuid 1002 --regid 1002 --clear-groups "$@"; }
limits() { printf '%s\n' "$1" >"$C.new" && mv "$C.new" "$C" && wait_for 10 sh -c "tail -n 3 '$S/tree/log' | grep -q 'configuration read.*$2 quotas'"; sleep 0.3; }
used() { jq -r --arg u "$1" '.owners[] | select(.name == $u) | .bytes' "$M/status.json"; }
about() { # USER BYTES: within 100 kB
    local n
    n=$(used "$1")
    n=${n:-0}
    [ "$n" -gt $(($2 - 100000)) ] && [ "$n" -lt $(($2 + 100000)) ] || { echo "$1 has $n, expected about $2"; return 1; }
}
quota_error() { # NAME COMMAND... fails with EDQUOT
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then fail "$name" "it worked"; elif grep -q 'quota exceeded' <<<"$out"; then ok "$name"; else fail "$name" "$out"; fi
}
MB=1048576
printf '{"quotas": {"1001": "20 MiB"}}\n' >"$C"
start_dtxd --config "$C" || exit 1
chmod 755 "$T"
head -c $((12 * MB)) /dev/zero | tr '\0' 'x' >"$T/twelve"
head -c $((40 * MB)) /dev/zero | tr '\0' 'x' >"$T/forty"
alice mkdir "$D/x" "$D/y"
check "a copy within the quota" alice cp "$T/twelve" "$D/x/train.jsonl"
check "counted" wait_for 5 about 1001 $((12 * MB))
out=$(alice cp "$T/forty" "$D/y/train.jsonl" 2>&1) && fail "a copy past the quota" "it worked"
grep -q 'quota exceeded' <<<"$out" && ok "a copy past the quota: EDQUOT" || fail "a copy past the quota" "$out"
n=$(stat -c %s "$D/y/train.jsonl")
[ "$n" -gt $((6 * MB)) ] && [ "$n" -le $((8 * MB)) ] && ok "it failed at the limit ($n bytes)" || fail "it failed at the limit" "$n bytes"
check "in words in the log" grep -q 'uid 1001 cannot write datasets/y: your quota of 20 MiB is used up (.*; the largest: datasets/x 12 MiB): remove something or ask' "$M/log"
check "in words in NAME.status" wait_for 5 grep -q 'reason: your quota of 20 MiB is used up' "$D/y.status"
check "what was cut off is REJECTED" wait_state 10 "$D/y.status" REJECTED
check "and says what to do" grep -q 'datasets/y/train.jsonl was cut off: copy it again' "$D/y.status"
quota_error "fallocate" alice fallocate -l $((30 * MB)) "$D/y/more"
quota_error "a longer size" alice truncate -s $((30 * MB)) "$D/y/more2"
quota_error "the longest size" alice truncate -s 9223372036854775807 "$D/y/more2"
quota_error "fallocate of the longest" alice fallocate -l 9223372036854775807 "$D/y/more2"
alice truncate -s 0 "$D/y/train.jsonl"
alice touch "$D/y/ahead"
alice fallocate -n -o $((1 << 30)) -l $((6 * MB)) "$D/y/ahead"
quota_error "room far behind the end is not room before it" alice sh -c "head -c $((6 * MB)) '$T/forty' >>'$D/y/ahead'"
alice rm "$D/y/ahead"
wait_for 5 about 1001 $((12 * MB))
alice touch "$D/y/ahead"
alice fallocate -n -l $((7 * MB)) "$D/y/ahead"
check "room that was allocated ahead can be used to the end" alice sh -c "head -c $((7 * MB)) '$T/forty' >>'$D/y/ahead'"
alice rm "$D/y/ahead"
check "another user is free" bob sh -c "mkdir '$D/b' && cp '$T/forty' '$D/b/train.jsonl'"
check "counted for that one" wait_for 5 about 1002 $((40 * MB))
check "df shows the quota" test $(($(alice df --output=size -B1 "$M" | tail -n 1))) = $((20 * MB))
check "and the disk to others" test "$(bob df --output=size -B1 "$M" | tail -n 1)" -gt $((20 * MB))

out=$(alice bash -c 'cd "$1"; exec 3>a; rm a; head -c 7340032 "$2" >&3 || exit 9; exec 4>b; rm b
    for i in 1 2; do head -c 7340032 "$2" >&4 && exit 8; sleep 3; done' - "$D/y" "$T/forty" 2>&1) && ok "files that were unlinked while they are open count" ||
    fail "files that were unlinked while they are open count" "status $?: $out"
check "until they are closed" wait_for 5 about 1001 $((12 * MB))
alice rm -r "$D/y"
check "removal gives it back" wait_for 3 about 1001 $((12 * MB))
alice ln "$D/x/train.jsonl" "$D/x/again"
check "a hard link counts once" wait_for 3 about 1001 $((12 * MB))
alice rm "$D/x/again"
check "also when it goes" wait_for 3 about 1001 $((12 * MB))
alice sh -c "exec 3>'$D/x/hole'; head -c 4096 '$T/forty' >&3; dd if='$T/forty' of='$D/x/hole' bs=4096 count=1 seek=100000 conv=notrunc" 2>/dev/null
check "a hole counts nothing" wait_for 3 about 1001 $((12 * MB))
alice rm "$D/x/hole"
alice sh -c "exec 3<>'$D/x/open'; rm '$D/x/open'; head -c $((30 * MB)) '$T/forty' >&3" 2>/dev/null && fail "an unlinked file counts" "it grew past the quota" || ok "an unlinked file counts"
wait_for 3 about 1001 $((12 * MB)) && ok "and goes when it is closed" || fail "and goes when it is closed" "$(used 1001)"
check "many writers together do not pass it" alice sh -c "for i in 1 2 3 4; do head -c $((5 * MB)) '$T/forty' >'$D/x/w\$i' 2>/dev/null & done; wait; test \$(du -sB1 '$D/x' | cut -f1) -le $((20 * MB))"
alice sh -c "rm '$D'/x/w*"
chown 1002 "$D/x/train.jsonl"
check "given away" wait_for 3 about 1002 $((52 * MB))
chown 1001 "$D/x/train.jsonl"
check "and back" wait_for 3 about 1001 $((12 * MB))
alice sh -c "head -c $((3 * MB)) '$T/forty' >'$D/x/over' && head -c $MB '$T/forty' >'$D/x/new' && mv '$D/x/new' '$D/x/over'"
check "a file that is renamed over goes" wait_for 3 about 1001 $((13 * MB))

kill_dtxd
start_dtxd --config "$C" || exit 1
check "counted again after a crash" wait_for 5 about 1001 $((13 * MB))
rm "$S/tree/datasets/x/over"
quota_error "what was removed behind the mount's back is counted still" alice sh -c "head -c $((9 * MB)) '$T/forty' >'$D/x/not'"
alice rm -f "$D/x/not"
check "but a refusal looks again" wait_for 10 about 1001 $((12 * MB))
check "and then it fits" alice sh -c "head -c $((7 * MB)) '$T/forty' >'$D/x/fits'"
alice rm "$D/x/fits"

limits '{"quotas": {"default": "5 MiB", "1001": null}}' 1
quota_error "the default counts for others" bob sh -c "head -c 8192 '$T/forty' >>'$D/b/train.jsonl'"
check "overwriting needs no room" bob sh -c "dd if='$T/twelve' of='$D/b/train.jsonl' bs=64k count=4 conv=notrunc 2>/dev/null"
quota_error "an attribute needs room too" bob setfattr -n user.x -v "$(head -c 2000 "$T/forty")" "$D/b/train.jsonl"
check "null: no limit" alice sh -c "head -c $((15 * MB)) '$T/forty' >'$D/x/much'"
total=$(jq -r .space.used "$M/status.json")
limits "{\"store_max\": $((total + 4 * MB))}" 0
alice sh -c "cat '$T/twelve' >'$D/x/more'" 2>"$T/err" && fail "the store's limit" "it worked" || { grep -q 'No space left' "$T/err" && ok "the store's limit: ENOSPC" || fail "the store's limit" "$(cat "$T/err")"; }
check "in words" grep -q "the store's limit of .* is used up" "$M/log"
limits '{"store_reserve": "8000 TiB"}' 0
alice touch "$D/x/empty" 2>"$T/err" && fail "the reserve" "it worked" || { grep -q 'No space left' "$T/err" && ok "the reserve: ENOSPC" || fail "the reserve" "$(cat "$T/err")"; }
check "what is there can be read and removed" alice rm "$D/x/much"
limits '{"qoutas": {}}' 0
check "a wrong configuration is refused in words" wait_for 5 grep -q 'configuration not taken: .*qoutas.*did you mean "quotas"' "$M/log"
check "and changes nothing" sh -c "! setpriv --reuid 1001 --regid 1001 --clear-groups touch '$D/x/empty' 2>/dev/null"
limits '{}' 0
check "no limits: all is free again" alice cp "$T/forty" "$D/x/train.jsonl"

# ---- what DTX keeps: logs, training state ----
check "model and data" demo_in tickets
group g "$QUICK"
experiment done '"tickets"' '"g"'
check "an experiment" ended 90 done
w=$S/work/done/01-g
mkdir -p "$w" && head -c 100000 "$T/forty" >"$w/state"
check "status names its owner's use" grep -q '^  root: .* objects, 0 jobs running, 0 waiting' "$M/status"
check "metrics.prom too" grep -q '^dtx_owner_bytes{owner="root"} [1-9]' "$M/metrics.prom"
for i in $(seq 300); do echo "$(printf 'x%.0s' $(seq 100)) $i" >>"$S/tree/log"; done
limits '{"log_max": 16384, "work_days": 0.00001}' 0
check "training state of what ended goes" wait_for 20 test ! -e "$w"
check "the log is cut" wait_for 20 sh -c "test \$(stat -c %s '$M/log') -le 16384"
check "its newest lines stay" grep -q 'x 300$' "$M/log"
check "the model stays" test -s "$M/models/tuned/done.01-g/adapter_model.safetensors"
# jobs of an owner without room wait
limits '{"quotas": {"1001": 4096}}' 1
alice sh -c "echo '{\"models\":[\"lantern-2m\"],\"datasets\":[\"tickets\"],\"paramgroups\":[\"g\"]}' >'$M/experiments/waits.json'" 2>"$T/err"
check "a spec cannot be dropped over the quota" grep -q 'quota exceeded' "$T/err"
limits '{}' 0
alice sh -c "echo '{\"models\":[\"lantern-2m\"],\"datasets\":[\"tickets\"],\"paramgroups\":[\"g\"]}' >'$M/experiments/.waits.json'"
limits '{"quotas": {"1001": 4096}}' 1
alice mv "$M/experiments/.waits.json" "$M/experiments/waits.json"
check "a job of an owner without room waits in words" wait_for 15 grep -q 'waiting for: space: your quota of 4 KiB is used up' "$M/experiments/waits/jobs/01-g/status"
limits '{}' 0
check "and runs when there is room" ended 90 waits
