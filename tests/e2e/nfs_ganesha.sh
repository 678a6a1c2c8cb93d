#!/usr/bin/env bash
# The mount through a real NFS server: nfs-ganesha on loopback with packaging/nfs/ganesha.conf, and the client nfs4.py
# (kernels that test machines run on often have neither server nor client).
. "$(dirname "$0")/lib.sh"
for need in ganesha.nfsd python3; do
    command -v $need >/dev/null || { skip "nfs" "$need is not installed (apt-get install nfs-ganesha nfs-ganesha-vfs python3)"; exit 0; }
done
[ "$(id -u)" = 0 ] || { skip "nfs" "nfs-ganesha needs root"; exit 0; }
[ -e /usr/lib/*/ganesha/libfsalvfs.so ] || { skip "nfs" "nfs-ganesha-vfs is not installed"; exit 0; }
DEMO=$ROOT/packaging/demo
PORT=$((20000 + $$ % 10000))
GANESHA_PID=

# What a test machine needs to differ: path, port, loopback, no Kerberos, its own recovery folder, a short grace period.
sed -e "s#^    Path = /dtx;#    Path = $M;#" -e "s#NFS_Port = 2049;#NFS_Port = $PORT; Bind_addr = 127.0.0.1;#" \
    -e 's#Clients = .*;#Clients = 127.0.0.1;#' \
    -e "s#^NFSV4 {#NFSV4 { RecoveryRoot = \"$T/recovery\"; Grace_Period = 6; Lease_Lifetime = 5;#" \
    "$ROOT/packaging/nfs/ganesha.conf" >"$T/ganesha.conf"
echo 'NFS_KRB5 { Active_krb5 = false; }' >>"$T/ganesha.conf"
grep -q "$M" "$T/ganesha.conf" && grep -q "$PORT" "$T/ganesha.conf" && grep -q 'Clients = 127' "$T/ganesha.conf" &&
    grep -q recovery "$T/ganesha.conf" || { fail "packaging/nfs/ganesha.conf" "is not what this script expects"; exit 1; }
mkdir -p /var/run/ganesha "$T/recovery"

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; }
start_ganesha() {
    ganesha.nfsd -F -L "$T/ganesha.log" -f "$T/ganesha.conf" -p "$T/ganesha.pid" >/dev/null 2>&1 &
    GANESHA_PID=$!
    wait_for 10 listening || { echo "ganesha did not come up"; tail -n 5 "$T/ganesha.log"; return 1; }
}
stop_ganesha() { # [SIGNAL]
    [ -n "$GANESHA_PID" ] || return 0
    kill "-${1:-TERM}" "$GANESHA_PID" 2>/dev/null
    wait "$GANESHA_PID" 2>/dev/null
    GANESHA_PID=
}
trap 'stop_ganesha KILL; cleanup' EXIT
nfs() { timeout 60 python3 "$ROOT/tests/e2e/nfs4.py" -p "$PORT" -u 1000 "$@"; }
as_root() { timeout 60 python3 "$ROOT/tests/e2e/nfs4.py" -p "$PORT" -u 0 "$@"; }
other() { timeout 60 python3 "$ROOT/tests/e2e/nfs4.py" -p "$PORT" -u 1001 "$@"; }
refused() { # NAME ERROR COMMAND...: fails with this error, within 5 s
    local name=$1 error=$2 start=$SECONDS
    shift 2
    if "$@" >"$T/out" 2>"$T/err"; then fail "$name" "it worked"
    elif ! grep -q "$error" "$T/err"; then fail "$name" "$(tail -n 1 "$T/err")"
    elif [ $((SECONDS - start)) -gt 5 ]; then fail "$name" "it took $((SECONDS - start)) s"
    else ok "$name"; fi
}
same() { # NAME GOT WANTED
    if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "got '$2', expected '$3'"; fi
}

start_dtxd --devices cpu || exit 1
start_ganesha || exit 1
check "the export is DTX's root" sh -c "[ \"\$(timeout 20 python3 $ROOT/tests/e2e/nfs4.py -p $PORT ls / | grep -c -E ' (status|datasets|experiments)\$')\" = 3 ]"

# ---- an experiment, from the drop to the answer ----
check "a base model with cp -r" nfs cp -r "$DEMO/models/lantern-2m" /models/base/lantern
mkdir "$T/tickets"
cp "$DEMO/datasets/tickets/"*.jsonl "$T/tickets"
touch "$T/tickets/_SUCCESS"
check "a dataset with cp -r" nfs cp -r "$T/tickets" /datasets/tickets
(nfs mkdir /datasets/slow && nfs cp "$T/tickets/train.jsonl" /datasets/slow/train.jsonl 10) >"$T/slow" 2>&1 &
slow=$!
(sleep 1; end=$((SECONDS + 7)); while [ $SECONDS -lt $end ]; do nfs cat /datasets/slow.status | head -n 1; sleep 0.7; done | sort -u) >"$T/slow.states" 2>&1 &
echo '{"lora_r":4,"max_steps":300,"batch_size":4,"block_size":64,"target_modules":["q_proj"]}' >"$T/quick.json"
check "a parameter group with cp" nfs cp "$T/quick.json" /paramgroups/quick.json
echo '{"models":["lantern"],"datasets":["tickets"],"paramgroups":["quick"]}' >"$T/exp.json"
check "the dataset is READY" nfs wait /datasets/tickets.status READY 30
check "the model is READY" nfs wait /models/base/lantern.status READY 30
cp "$T/exp.json" "$T/wrong.json"
sed -i s/datasets/datasest/ "$T/wrong.json"
check "a wrong spec is taken" nfs cp "$T/wrong.json" /experiments/wrong.json
check "an experiment with a temporary name and mv" sh -c "
    timeout 20 python3 $ROOT/tests/e2e/nfs4.py -p $PORT -u 1000 cp $T/exp.json /experiments/.e.json.tmp &&
    timeout 20 python3 $ROOT/tests/e2e/nfs4.py -p $PORT -u 1000 mv /experiments/.e.json.tmp /experiments/e.json"
check "its folder appears" wait_for 10 nfs stat /experiments/e/status
job=$(wait_for 10 nfs stat /experiments/e/jobs/LIST.tsv; nfs ls /experiments/e/jobs | awk '$1 == "d" { print $NF }')
same "its job is listed" "$(printf %s "$job" | wc -w)" 1
J=/experiments/e/jobs/$job
check "it runs" nfs wait /experiments/e/status PROCESSING 20
refused "writing to what a job holds is an error at once" NFS4ERR_PERM nfs append /models/base/lantern/training.json x
refused "and so is removing it" NFS4ERR_PERM nfs rm /models/base/lantern/training.json
nfs follow /experiments/e/log 7 >"$T/followed" 2>"$T/follow.err" &
follow=$!
if nfs wait /experiments/wrong.status REJECTED 15 >"$T/err" 2>&1 && nfs cat /experiments/wrong.status | grep -q datasets; then ok "a wrong spec is REJECTED in words"
else fail "a wrong spec is REJECTED in words" "$(cat "$T/err"; nfs cat /experiments/wrong.status)"; fi
check "the experiment ends" nfs wait /experiments/e/status SUCCESS 60
same "metrics.csv has a line a step" "$(nfs cat "$J/metrics.csv" | grep -c "^[0-9]")" 300
nfs cat "$J/checkpoint/adapter_model.safetensors" >"$T/adapter" 2>"$T/err"
check "the checkpoint is the store's, byte for byte" cmp "$T/adapter" "$S/tree$J/checkpoint/adapter_model.safetensors"
wait "$follow"
if [ -s "$T/followed" ] && [ "$(head -c "$(stat -c %s "$T/followed")" "$S/tree/experiments/e/log")" = "$(cat "$T/followed")" ]; then ok "following the log"
else fail "following the log" "$(cat "$T/follow.err"; wc "$T/followed")"; fi
bad=
for f in /status /status.json /experiments/e/status /experiments/e/progress /experiments/e/leaderboard.tsv /experiments/LIST.tsv \
    "$J/status" "$J/loss.svg" /README.md /datasets/tickets.status /bin/dtx; do
    nfs cat "$f" >"$T/text" 2>"$T/err" && [ -s "$T/text" ] || bad="$bad $f($(tail -n 1 "$T/err"))"
done
same "generated files are whole" "$bad" ""
check "a prompt" nfs write /models/compare/hello.txt "Where do I complain?"
check "is answered" nfs wait /models/compare/hello.status DONE 30
check "with answers.md" sh -c "timeout 20 python3 $ROOT/tests/e2e/nfs4.py -p $PORT cat /models/compare/hello/answers.md | grep -q lantern"
wait "$slow"
same "a slow copy ends" "$(cat "$T/slow")" ""
check "and is whole" cmp "$T/tickets/train.jsonl" "$S/tree/datasets/slow/train.jsonl"
same "it is not taken in its pause" "$(cat "$T/slow.states")" RECEIVING

# ---- owners ----
same "it belongs to the client's user" "$(nfs stat /experiments/e.json | awk '{ print $5 }')" 1000:1000
refused "another user cannot change it" NFS4ERR_ other write /experiments/e.json x
refused "another user cannot remove it" NFS4ERR_ other rm -r /datasets/tickets
refused "another user cannot command it" NFS4ERR_ other write /experiments/e/control cancel
refused "an unknown word" NFS4ERR_INVAL nfs write /experiments/e/control dance
check "root makes a folder" as_root mkdir /datasets/squashed
same "root is nobody" "$(as_root stat /datasets/squashed | awk '{ print $5 }')" 65534:65534
refused "root cannot remove another's" NFS4ERR_ as_root rm /experiments/e.json
as_root chown 0 /datasets/squashed
same "root cannot give to root" "$(stat -c %u "$S/tree/datasets/squashed")" 65534
refused "nobody gives away" NFS4ERR_PERM nfs chown 1001 /experiments/e.json
nfs write /datasets/slow/private secret && nfs chmod 600 /datasets/slow/private
refused "0600 is private, for root too" NFS4ERR_ACCESS as_root cat /datasets/slow/private

# ---- leftovers, open files, two clients ----
check "Finder's leftovers" sh -c "for f in .DS_Store ._train.jsonl; do timeout 20 python3 $ROOT/tests/e2e/nfs4.py -p $PORT -u 1000 write /datasets/\$f x || exit 1; done"
same "they are no datasets" "$(nfs ls /datasets | grep -c -E '_Store.status|_train')" 1
same "removing an open file" "$(nfs hold-rm /datasets/slow/private 2>&1)" secret
same "nothing is left of it" "$(nfs ls /datasets/slow | grep -c -E 'private|nfs0')" 0
same "removing an open generated file" "$(nfs hold-rm /experiments/e/best 2>&1 | wc -l | sed 's/^[1-9].*/some/')" some
nfs write /datasets/slow/shared one
coproc HOLD { nfs hold /datasets/slow/shared; }
hold_pid=$HOLD_PID
read -r -t 10 a <&"${HOLD[0]}"
other cat /datasets/slow/shared >/dev/null && nfs append /datasets/slow/shared two
echo again >&"${HOLD[1]}"
read -r -t 10 b <&"${HOLD[0]}"; read -r -t 10 _ <&"${HOLD[0]}"
read -r -t 10 c <&"${HOLD[0]}"
same "one client sees what another wrote" "$a,$c" "one,two"

# ---- restarts ----
handles=
paths="/status /experiments/e/status $J/metrics.csv /datasets/tickets/train.jsonl /datasets /README.md"
for p in $paths; do handles="$handles $(nfs handle "$p")"; done
still() { # WHEN
    local h bad= n=0
    for h in $handles; do n=$((n + 1)); nfs stat-handle "$h" >"$T/out" 2>"$T/err" || bad="$bad [$n] $(tail -n 1 "$T/err" | sed 's/.*NFS4/NFS4/')"; done
    same "handles $1" "$bad" ""
}
stop_ganesha
start_ganesha || exit 1
still "after a restart of ganesha"
echo again >&"${HOLD[1]}"
read -r -t 10 _ <&"${HOLD[0]}"; read -r -t 30 d <&"${HOLD[0]}"
same "an open file goes on after it" "$d" one
exec {HOLD[1]}>&-
wait "$hold_pid" 2>/dev/null
stop_ganesha; stop_dtxd
start_dtxd && start_ganesha || exit 1
still "after a restart of dtxd and ganesha"
kill_dtxd; stop_ganesha KILL
start_dtxd && start_ganesha || exit 1
still "after both were killed"

# ---- the end ----
check "rm -r of the dataset" nfs rm -r /datasets/tickets
check "rm -r of the experiment" nfs rm -r /experiments/e
refused "it is gone" NFS4ERR_NOENT nfs stat /experiments/e/status
same "and does not come back" "$(sleep 1; nfs ls /experiments | grep -c ' e$')" 0
if grep -q -E ' (FATAL|BUG)|Segfault' "$T/ganesha.log"; then fail "ganesha's log" "$(grep -E 'FATAL|BUG' "$T/ganesha.log" | head -n 3)"; else ok "ganesha's log"; fi
