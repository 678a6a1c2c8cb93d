# Sourced by the end-to-end scripts.  Gives a live mount in a temporary folder:
#   start_dtxd [OPTION...]   store $S, mount $M; restarts on the same store when called again after stop/kill
#                            (DTXD_OPTIONS: more of them, e.g. --no-passthrough)
#   stop_dtxd                SIGTERM, waits for the unmount          kill_dtxd   kill -9 of the keeper and of dtxd
#   kill_child               kill -9 of dtxd alone: the keeper starts another, which takes the mount over
#   ok NAME | fail NAME WHY | skip NAME WHY      check NAME COMMAND...     passes when the command succeeds
#   wait_for SECONDS COMMAND...                  polls until it succeeds; wait_state SECONDS STATUSFILE STATE...
# shellcheck shell=bash
set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$ROOT/$BUILD ;; esac
SHARED=$ROOT/../shared
T=$(mktemp -d "${TMPDIR:-/tmp}/dtx-e2e.XXXXXX")
chmod 755 "$T"
S=$T/store
M=$T/mnt
DTXD_PID=
FAILS=0
SLOW=${CK_TIMEOUT_MULTIPLIER:-1} # a whole number: how much longer everything may take (sanitizers)
mkdir -p "$S" "$M"
# What a sanitizer says goes to files of its own: a worker's stderr may lead anywhere.
for v in ASAN UBSAN TSAN LSAN; do
    old=${v}_OPTIONS
    export "$old=${!old:-}${!old:+:}log_path=$T/sanitizer"
done

ok() { echo "PASS $1"; }
fail() { echo "FAIL $1: ${2:-}"; FAILS=$((FAILS + 1)); }
skip() { echo "SKIP $1: ${2:-}"; }
check() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1); then ok "$name"; else fail "$name" "$* -> $(printf %s "$out" | tail -c 300 | tr '\n' ' ')"; fi
}
wait_for() {
    local end=$((SECONDS + $1 * SLOW))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}
state_of() { head -n 1 "$1" 2>/dev/null; }
in_state() {
    local file=$1 now
    shift
    now=$(state_of "$file")
    for s; do [ "$now" = "$s" ] && return 0; done
    return 1
}
wait_state() { # SECONDS FILE STATE...
    local seconds=$1
    shift
    wait_for "$seconds" in_state "$@" || { echo "waited $seconds s for $*; it is: $(cat "$1" 2>&1)"; return 1; }
}
mounted() { grep -q " $M fuse" /proc/mounts; }
start_dtxd() {
    # shellcheck disable=SC2086
    "$BUILD/dtxd" --store "$S" --devices "${DEVICES:-cpu}" --foreground --log "$T/dtxd.log" ${DTXD_OPTIONS:-} "$@" "$M" >>"$T/dtxd.out" 2>&1 &
    DTXD_PID=$!
    if ! wait_for 20 head -c 1 "$M/README.md"; then # opened: a dead mount still answers stat from the kernel's cache
        echo "dtxd did not come up:"; tail -n 20 "$T/dtxd.out" "$T/dtxd.log"
        return 1
    fi
}
stop_dtxd() {
    [ -n "$DTXD_PID" ] || return 0
    kill -TERM "$DTXD_PID" 2>/dev/null
    local end=$((SECONDS + 30 * SLOW))
    while kill -0 "$DTXD_PID" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    kill -KILL "$DTXD_PID" 2>/dev/null
    wait "$DTXD_PID" 2>/dev/null
    local rc=$?
    DTXD_PID=
    [ "$rc" = 0 ] || fail "dtxd ends with status 0" "status $rc"
    return "$rc"
}
child_pid() { # of the keeper; empty while there is none
    local pids
    pids=$(cat "/proc/$DTXD_PID/task/$DTXD_PID/children" 2>/dev/null)
    echo "${pids%% *}"
}
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null; }
have_child() { [ -n "$(child_pid)" ]; }
kill_child() { wait_for 10 have_child && kill -KILL "$(child_pid)"; }
kill_dtxd() {
    local child
    child=$(child_pid)
    kill -KILL "$DTXD_PID" $child 2>/dev/null
    wait "$DTXD_PID" 2>/dev/null
    [ -z "$child" ] || wait_for 10 gone "$child"
    DTXD_PID=
}
# A report of any process of this script fails it: memory, undefined behaviour, races, and leaks of those that ended.
no_reports() {
    local f
    for f in "$T"/sanitizer.* "$T/dtxd.out" "$T/dtxd.log" "$S/tree/log"; do
        [ -f "$f" ] && grep -q -e 'Sanitizer' -e 'runtime error:' "$f" || continue
        fail "no sanitizer has anything to report" "$(grep -m 1 -e 'Sanitizer' -e 'runtime error:' "$f")"
        head -n 60 "$f"
    done
}
cleanup() {
    local rc=$?
    stop_dtxd
    no_reports
    umount -l "$M" 2>/dev/null || fusermount3 -uzq "$M" 2>/dev/null
    if [ "$FAILS" != 0 ] || [ "$rc" != 0 ]; then
        echo "--- dtxd.log"; tail -n 40 "$T/dtxd.log" 2>/dev/null; tail -n 20 "$T/dtxd.out" 2>/dev/null
    fi
    [ -n "${KEEP:-}" ] && echo "kept $T" || rm -rf "$T"
    [ "$FAILS" = 0 ] || rc=1
    exit "$rc"
}
trap cleanup EXIT
trap 'exit 143' TERM INT
if [ ! -c /dev/fuse ]; then
    skip "$(basename "$0" .sh)" "no /dev/fuse on this machine"
    exit 0
fi

# ---- with the demo's model and data ----
DEMO=$ROOT/packaging/demo
# A parameter group that trains quickly; "${QUICK/\"max_steps\":4/\"max_steps\":9}" for another length.
QUICK='{"max_steps":4,"lora_r":4,"lora_alpha":8,"target_modules":["q_proj","v_proj"],"learning_rate":0.003,"batch_size":4,"block_size":128,"eval_every":0}'
steps() { printf '%s' "${QUICK/\"max_steps\":4/\"max_steps\":$1}"; } # the same with N steps
drop() { # FILE-IN-MOUNT TEXT: renamed into place, so taken at once
    local part
    part=$(dirname "$M/$1")/.part.$$
    printf '%s\n' "$2" >"$part" && mv "$part" "$M/$1"
}
group() { drop "paramgroups/$1.json" "$2" && wait_state 20 "$M/paramgroups/$1.status" READY; }
demo_in() { # [DATASET...]: the base model and datasets, READY
    local d
    cp -r "$DEMO/models/lantern-2m" "$M/models/base/" || return 1
    for d; do cp -r "$DEMO/datasets/$d" "$T/$d" && mv "$T/$d" "$M/datasets/" || return 1; done
    for d; do wait_state 60 "$M/datasets/$d.status" READY || return 1; done
    wait_state 60 "$M/models/base/lantern-2m.status" READY
}
# EXPERIMENT DATASETS GROUPS [MORE]: comma-separated JSON strings, dropped
experiment() { drop "experiments/$1.json" "{\"models\":[\"lantern-2m\"],\"datasets\":[$2],\"paramgroups\":[$3]${4:+,$4}}"; }
ended() { wait_state "$1" "$M/experiments/$2.status" SUCCESS FAILED CANCELLED REJECTED; } # SECONDS EXPERIMENT
adapter() { sha256sum <"$M/models/tuned/$1/adapter_model.safetensors" | cut -c1-64; }     # EXP.JOB
has() { grep -q -e "$2" "$1" || { echo "no \"$2\" in $1:"; head -c 1500 "$1"; return 1; }; } # FILE PATTERN
hasnt() { ! grep -e "$2" "$1" || { echo "\"$2\" in $1"; return 1; }; }
step_of() { tail -n 1 "$M/experiments/$1/metrics.csv" 2>/dev/null | sed -n 's/^\([0-9][0-9]*\),.*/\1/p'; }
at_step() { local n; n=$(step_of "$1"); [ "${n:-0}" -ge "$2" ]; } # EXP/jobs/JOB STEP
# metrics.csv has its header and the rows 1..N, each once
metrics_whole() {
    awk -F, -v n="$2" 'NR == 1 { if ($0 != "step,epoch,loss,eval_loss,lr,grad_norm,tokens_per_s,memory") { print "header: " $0; exit 1 } next }
        NF != 8 || $1 != NR - 1 || $3 !~ /^[0-9.e+-]+$/ { print "line " NR ": " $0; bad = 1; exit 1 }
        END { if (!bad && NR != n + 1) { print NR - 1 " rows"; exit 1 } }' "$1"
}
valid_json() { jq -e . "$1" >/dev/null; }
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
