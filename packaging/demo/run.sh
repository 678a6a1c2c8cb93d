#!/bin/sh
# The demo: what DTX exists for, in less than three minutes on two cores, without a GPU.  `make demo` runs it.
#
# A store and a mount point in a temporary folder; a small base model, two datasets, two parameter groups and an
# evaluation copied into the mount; an experiment of four jobs; the scores; base and tuned answers side by side.
# Afterwards everything is removed again.  Environment:
#   KEEP=1              leave the mount and the daemon as they are
#   DTX_STORE=DIR       where the store goes (kept afterwards)       DTX_MOUNT=DIR   where to mount
#   DTX_DEVICES=cpu     devices for dtxd                             BUILD=build     where dtxd was built
#   DTX_DEMO_TIMEOUT=300   seconds that the experiment may take
set -eu

here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
build=${BUILD:-build}
case $build in /*) ;; *) build=$root/$build ;; esac
keep=${KEEP:-}
limit=${DTX_DEMO_TIMEOUT:-300}
started=$(date +%s)
width=118 work='' pid='' store='' mnt='' made_mnt='' bold='' plain='' tty=no
if [ -t 1 ]; then
    tty=yes bold=$(printf '\033[1m') plain=$(printf '\033[0m')
    size=$(stty size </dev/tty 2>/dev/null) || size=''
    [ "${size##* }" -gt 20 ] 2>/dev/null && width=$((${size##* } - 3))
fi

die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

heading() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# Show a command as a user would type it, with /dtx for the mount point, and run it.
typed() {
    printf '  $'
    for word; do
        case $word in
        "$mnt") word=/dtx ;;
        "$mnt"/*) word=/dtx/${word#"$mnt"/} ;;
        "$here"/*) word=packaging/demo/${word#"$here"/} ;;
        esac
        printf ' %s' "$word"
    done
    echo
    timeout 60 "$@" || die "that failed or took more than a minute (status $?); dtxd said:
$(tail -n 20 "$work/dtxd.log")"
}

indented() { sed 's/^/  /'; }

# The same for a generated file: typed_cat FILE [FILTER]
typed_cat() {
    typed cat "$1" >"$work/text"
    head -n 1 "$work/text"
    tail -n +2 "$work/text" | "${2:-indented}"
}

# A file in the mount; a mount that hangs shall not hang the demo.
show() { timeout 20 cat "$1" 2>/dev/null || true; }

# First line of a status file: the state.
state() { show "$1" | head -n 1; }

mounted() {
    MNT=$mnt awk '{ gsub(/\\040/, " ", $2) } $2 == ENVIRON["MNT"] { found = 1 } END { exit !found }' /proc/self/mounts
}

running() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }

# Tab-separated lines as columns.
columns() {
    awk -F '\t' '{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) }
                   fields[NR] = NF }
         END { for (n = 1; n <= NR; n++) { line = " "
                   for (i = 1; i <= fields[n]; i++) line = line sprintf(" %-" width[i] "s", cell[n, i]) " "
                   sub(/ +$/, "", line); print line } }'
}

stop_daemon() {
    running && kill "$pid" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        running || return 0
        sleep 0.5
    done
    kill -9 "$pid" 2>/dev/null || true
}

# Leave a clean machine, also after an error or Ctrl-C.
cleanup() {
    status=$?
    trap - EXIT
    trap '' INT TERM HUP
    [ -n "$work" ] || exit "$status"
    [ "$status" = 0 ] && [ -n "$keep" ] && exit 0
    [ -n "$pid" ] && stop_daemon
    if [ -n "$mnt" ] && mounted; then
        fusermount3 -u "$mnt" 2>/dev/null || umount "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || true
    fi
    if [ -n "$mnt" ] && mounted; then
        echo "demo: could not unmount $mnt; do it with: umount -l $mnt; then: rm -r $work" >&2
        exit 1
    fi
    [ -n "$made_mnt" ] && rmdir "$mnt" 2>/dev/null
    rm -rf "$work"
    [ "$status" = 0 ] && echo "Unmounted and removed.  KEEP=1 make demo leaves it mounted for you to look around."
    exit "$status"
}

check_machine() {
    [ "$(uname -s)" = Linux ] || die "DTX needs Linux (this is $(uname -s))"
    for program in dtxd dtx-worker; do
        [ -x "$build/$program" ] || die "$build/$program is not there: run make first (or make demo, which does)"
    done
    [ -c /dev/fuse ] || die "this machine has no /dev/fuse, which a mount needs: modprobe fuse; or start the" \
        "container with --device /dev/fuse --cap-add SYS_ADMIN"
    if [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then
        die "mounting without being root takes fusermount3: apt-get install fuse3, or run this as root"
    fi
}

make_places() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/dtx-demo.XXXXXX") || die "cannot make a temporary folder in ${TMPDIR:-/tmp}"
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    store=${DTX_STORE:-$work/store}
    mkdir -p "$store" || die "cannot make the store $store"
    mnt=${DTX_MOUNT:-$work/dtx}
    [ -d "$mnt" ] || made_mnt=yes
    mkdir -p "$mnt" || die "cannot make the mount point $mnt"
    mnt=$(cd "$mnt" && pwd -P)
    if mounted; then
        busy=$mnt mnt=''
        die "something is mounted on $busy already; choose another place with DTX_MOUNT=DIR"
    fi
}

start_daemon() {
    printf '  $ %s --store %s --devices %s %s   (below: /dtx)\n' "${build#"$root"/}/dtxd" "$store" "${DTX_DEVICES:-cpu}" "$mnt"
    nohup "$build/dtxd" --store "$store" --devices "${DTX_DEVICES:-cpu}" --foreground "$mnt" \
        >"$work/dtxd.log" 2>&1 </dev/null &
    pid=$!
    waited=0
    until mounted && [ -n "$(state "$mnt/status")" ]; do
        running || die "dtxd ended at once and said:
$(tail -n 20 "$work/dtxd.log")"
        waited=$((waited + 1))
        [ "$waited" -lt 100 ] || die "dtxd did not mount $mnt within 20 seconds; it said:
$(tail -n 20 "$work/dtxd.log")"
        sleep 0.2
    done
}

copy_in() {
    typed cp -r "$here/models/lantern-2m" "$mnt/models/base/"
    typed cp -r "$here/datasets/website" "$here/datasets/tickets" "$mnt/datasets/"
    typed cp "$here/paramgroups/careful.json" "$here/paramgroups/thorough.json" "$mnt/paramgroups/"
    typed cp "$here/evaluations/puffin.json" "$mnt/evaluations/"
    echo "  Two datasets x two parameter groups = four jobs; copying the experiment in starts them:"
    typed cp "$here/experiments/first.json" "$mnt/experiments/"
}

# The newest text over the older one on a terminal; elsewhere a new copy whenever it changed, each 10 seconds at most.
drawn=0 last_text='' last_time=0
draw() {
    text=$(printf '%s\n' "$1" | cut -c "1-$width" | indented)
    [ "$text" != "$last_text" ] || return 0
    now=$(date +%s)
    if [ "$tty" = yes ]; then
        [ "$drawn" = 0 ] || printf '\033[%dA\033[J' "$drawn"
        drawn=$(printf '%s\n' "$text" | wc -l)
    else
        [ $((now - last_time)) -ge 10 ] || [ -n "${2:-}" ] || return 0
        echo "  --- after $((now - started)) s"
    fi
    last_time=$now last_text=$text
    printf '%s\n' "$text"
}

# Waits until the experiment has ended, showing the files that tell about it.
watch_experiment() {
    printf '  $ watch cat /dtx/experiments/first/progress\n'
    begun=$(date +%s)
    while :; do
        now_state=$(state "$mnt/experiments/first.status")
        progress=$(show "$mnt/experiments/first/progress")
        [ -n "$progress" ] || progress=$(show "$mnt/experiments/first.status")
        case $now_state in
        SUCCESS)
            draw "$progress" last
            return 0
            ;;
        FAILED | CANCELLED | REJECTED)
            die "the experiment ended as $now_state:
$(show "$mnt/experiments/first.status")
$(show "$mnt/experiments/first/log" | tail -n 20)"
            ;;
        esac
        [ -z "$progress" ] || draw "$progress"
        running || die "dtxd ended before its time; it said:
$(tail -n 20 "$work/dtxd.log")"
        [ $(($(date +%s) - begun)) -lt "$limit" ] || die "the experiment took more than $limit seconds (it is" \
            "${now_state:-nowhere to be seen}); set DTX_DEMO_TIMEOUT to wait longer on a slow machine:
$(show "$mnt/experiments/first.status")"
        sleep 1
    done
}

show_scores() {
    typed_cat "$mnt/experiments/first/leaderboard.tsv" columns
    echo
    typed_cat "$mnt/experiments/first/best"
    printf '  $ readlink /dtx/models/tuned/first.best\n  %s\n' "$(readlink "$mnt/models/tuned/first.best" || true)"
}

# A prompt for the base model and the best tuned one.
compare() {
    typed cp "$here/prompts/price.txt" "$mnt/models/compare/"
    waited=0
    while :; do
        now_state=$(state "$mnt/models/compare/price.status")
        case $now_state in
        DONE) break ;;
        FAILED | REJECTED) die "comparing ended as $now_state:
$(show "$mnt/models/compare/price.status")" ;;
        esac
        running || die "dtxd ended before its time; it said:
$(tail -n 20 "$work/dtxd.log")"
        waited=$((waited + 1))
        [ "$waited" -lt 120 ] || die "no answers after a minute:
$(show "$mnt/models/compare/price.status")"
        sleep 0.5
    done
    typed_cat "$mnt/models/compare/price/answers.md"
    echo
    typed_cat "$mnt/models/compare/price/stats.tsv" columns
}

where_to_look() {
    top=/dtx
    [ -z "$keep" ] || top=$mnt
    cat <<END
  $top/README.md                        what to do first; every folder has one
  $top/status                           the whole appliance on one screen
  $top/experiments/first/report.html    table, loss curves and answers: open it in a browser
  $top/experiments/first/jobs/          each job: log, metrics.csv, score.json, checkpoint/
  $top/models/tuned/first.best/         the winner's adapter, as PEFT, vLLM and llama.cpp load it
  $top/models/compare/                  copy packaging/demo/prompts/stolen.txt in; read stolen/answers.md
END
    if [ -n "$keep" ]; then
        printf '\n  It stays mounted.  To end it:  kill %s; sleep 3; rm -r %s\n' "$pid" "$work"
    fi
}

check_machine
make_places
heading "1. A store and a mount point"
start_daemon
heading "2. A base model, data and settings, copied in"
copy_in
heading "3. Training on $(nproc 2>/dev/null || echo some) cores: the four jobs together"
watch_experiment
heading "4. Scores (0-100), the untuned base among them"
show_scores
heading "5. One question to the base model and to the best tuned one"
compare
heading "6. Where to look"
where_to_look
printf '\nDone in %d seconds.\n' $(($(date +%s) - started))
