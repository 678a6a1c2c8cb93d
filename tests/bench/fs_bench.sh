#!/usr/bin/env bash
# The file system's speed: the native file system, libfuse's passthrough_ll and DTX in one call, with ratios; then what
# concerns generated files (10,000 objects in a collection, a status file).
#   tests/bench/fs_bench.sh [MEGABYTES, default 1024; 0: generated files only]
# ROUNDS (3): each figure is the median of so many, the three taking turns.  FILES (5000): small files of a round.
# OBJECTS (10000; 0: none).  PEER_OPTIONS (cache=auto): of passthrough_ll.  TMPDIR: where store and native folder are.
. "$(dirname "$0")/../e2e/lib.sh"
mb=${1:-1024}
rounds=${ROUNDS:-3}
files=${FILES:-5000}
B=$T/bench
examples=/usr/share/doc/libfuse3-dev/examples # of Debian's libfuse3-dev
peer=
${CC:-cc} -O2 -D_GNU_SOURCE -o "$B" "$ROOT/tests/bench/fs_bench.c" || exit 1
# shellcheck disable=SC2046
[ -f "$examples/passthrough_ll.c" ] &&
    ${CC:-cc} -O2 -w "$examples/passthrough_ll.c" -o "$T/passthrough_ll" $(pkg-config --cflags --libs fuse3) && peer=yes
start_dtxd >&2 || exit 1

start_peer() {
    mkdir -p "$T/peer-store" "$T/peer"
    "$T/passthrough_ll" -f -o "source=$T/peer-store,${PEER_OPTIONS:-cache=auto}" "$T/peer" &
    PEER_PID=$!
    wait_for 10 grep -q " $T/peer fuse" /proc/mounts
}
stop_peer() { umount "$T/peer"; wait "$PEER_PID"; }
one() { # WHO FOLDER ROUND: adds to $T/WHO.ROUND
    mkdir -p "$2"
    "$B" bulk "$2" "$mb" && "$B" small "$2" "$files"
} >"$T/$1.$3"
medians() { # WHO: name median unit
    sort -s -k1,1 -k2,2n "$T/$1".[0-9]* | awk '{ v[$1] = v[$1] " " $2; u[$1] = $3 }
        END { for (k in v) { n = split(v[k], a, " "); print k, a[int((n + 1) / 2)], u[k] } }' | sort
}
ratio() { awk "BEGIN { if ($2 + 0 > 0) printf \"%.2f\", $1 / $2; else printf \"-\" }"; }
table() {
    printf '%-14s %10s %14s %10s %10s %10s\n' what native passthrough_ll DTX DTX/native DTX/pll
    for what in $(cut -d ' ' -f 1 "$T/dtx.1"); do
        local n p d unit
        n=$(medians native | awk -v w="$what" '$1 == w { print $2 }')
        p=$(medians peer 2>/dev/null | awk -v w="$what" '$1 == w { print $2 }')
        d=$(medians dtx | awk -v w="$what" '$1 == w { print $2 }')
        unit=$(medians dtx | awk -v w="$what" '$1 == w { print $3 }')
        printf '%-14s %10s %14s %10s %10s %10s %s\n' "$what" "$n" "${p:--}" "$d" "$(ratio "$d" "$n")" "$(ratio "$d" "${p:-0}")" "$unit"
    done
}

echo "# $(date -u +%F) $(uname -r), $(nproc) CPUs, $(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2-), store on $(stat -f -c %T "$S"), $mb MB, $files files, median of $rounds; load $(cut -d ' ' -f 1 /proc/loadavg)"
echo "# tests/bench/fs_bench.sh $* with ${PEER_OPTIONS:-cache=auto} for passthrough_ll; $(sed -n "s/.*passthrough: /dtxd: /p" "$S/tree/log" | head -n 1)"
if [ "$mb" != 0 ]; then
    [ -z "$peer" ] || start_peer || exit 1
    mkdir "$M/datasets/bench"
    exec 9>"$M/datasets/bench/open" # RECEIVING to the end: its check shall not run beside the measurement
    one native "$T/native" warm # the machine's memory is there from now on
    for i in $(seq "$rounds"); do
        one native "$T/native" "$i"
        [ -z "$peer" ] || one peer "$T/peer" "$i"
        one dtx "$M/datasets/bench" "$i"
    done
    [ -z "$peer" ] || stop_peer
    exec 9>&-
    table
fi
n=${OBJECTS:-10000}
[ "$n" != 0 ] || exit 0
echo "# $n parameter groups"
seq "$n" | while read -r i; do echo '{"lora_r":8}' >"$M/paramgroups/p$i.json"; done
wait_for 120 sh -c "[ \$(grep -c READY '$M/paramgroups/LIST.tsv') -ge $n ]" || echo "not all are READY: $(grep -c READY "$M/paramgroups/LIST.tsv")"
sleep 1.5
"$B" list "$M/paramgroups"
sleep 1.5
"$B" list "$M/paramgroups"
start=$(date +%s%N)
ls -l "$M/paramgroups" >/dev/null
echo "ls-l $((($(date +%s%N) - start) / 1000000)) ms"
"$B" read "$M/paramgroups/p77.status" 5000
echo "# the root's status, README.md, LIST.tsv of all"
for f in status README.md paramgroups/LIST.tsv; do "$B" read "$M/$f" 2000 | sed "s|^|$f |"; done
