#!/usr/bin/env bash
# Bulk data past dtxd (FUSE passthrough): what is written and read there, who sees it when, what it means for RECEIVING and
# READY, files that are open in both ways, and over a takeover.  Then the same calls with passthrough turned off.
. "$(dirname "$0")/lib.sh"
H=$T/helper
${CC:-cc} -O1 -D_GNU_SOURCE -o "$H" "$ROOT/tests/e2e/fs_bulk.c" || exit 1
D=$M/datasets
past() { grep -q 'passthrough: the kernel reads' "$S/tree/log"; }
row='{"instruction":"Say hello to nobody in particular, at length","response":"Hello"}'
rows() { yes "$row" | head -n "$1"; }

calls() { # MODE: what must be so in both modes
    mkdir "$D/calls"
    while read -r line; do
        case $line in
        PASS*) ok "$1: ${line#PASS }" ;;
        SKIP*) skip "$1: ${line#SKIP }" ;;
        *) fail "$1: calls" "$line" ;;
        esac
    done < <("$H" calls "$D/calls" 2>&1)
    cp "$BUILD/dtxd" "$D/calls/copy"
    check "$1: a copy is equal" cmp "$BUILD/dtxd" "$D/calls/copy"
    check "$1: and in the store" cmp "$BUILD/dtxd" "$S/tree/datasets/calls/copy"
    echo more >>"$D/calls/copy"
    { cat "$BUILD/dtxd"; echo more; } >"$T/longer"
    check "$1: appended to" cmp "$T/longer" "$D/calls/copy"
    check "$1: a program runs from there" "$D/calls/copy" --version
    rm -r "$D/calls"
}

states() { # MODE
    mkdir "$D/slow"
    { rows 3000; sleep 3.5; rows 3000; } >"$D/slow/train.jsonl" &
    sleep 3
    check "$1: RECEIVING while it is being written" in_state "$D/slow.status" RECEIVING
    wait $!
    check "$1: READY after its close" wait_state 20 "$D/slow.status" READY
    check "$1: all rows are there" grep -q '6,*000' "$D/slow.status"
    # in place, without truncation: seen
    printf x | dd of="$D/slow/train.jsonl" conv=notrunc bs=1 seek=9999999 2>"$T/dd" &&
        check "$1: a write makes READY RECEIVING again" wait_for 3 grep -q "dataset slow: READY -> RECEIVING" "$S/tree/log"
    check "$1: and it settles again" wait_state 20 "$D/slow.status" READY REJECTED
    rows 6000 >"$D/slow/train.jsonl"
    check "$1: READY once more" wait_state 20 "$D/slow.status" READY
    # a mapping that outlives its descriptor
    mkdir "$D/mapped"
    "$H" mapped "$D/mapped/train.jsonl" 5 &
    sleep 4
    check "$1: RECEIVING while it is mapped for writing" in_state "$D/mapped.status" RECEIVING
    wait $!
    check "$1: READY when it is not any more" wait_state 20 "$D/mapped.status" READY
    check "$1: with what was written last" grep -q '"last"' "$D/mapped/train.jsonl"
    # a writer follows its file
    mkdir "$D/moves"
    { rows 10; sleep 5; rows 10; } >"$D/moves/.part" &
    sleep 0.5
    mv "$D/moves/.part" "$D/moves/train.jsonl"
    sleep 3.5
    check "$1: RECEIVING while a renamed file is being written" in_state "$D/moves.status" RECEIVING
    wait $!
    check "$1: READY after that" wait_state 20 "$D/moves.status" READY
    rm -r "$D/slow" "$D/mapped" "$D/moves"
}

# After many small files the next one is expected to be small, too, and goes through dtxd: whatever it then is.
many() { # MODE
    local d=$D/many
    mkdir "$d"
    for i in $(seq 20); do echo "$i" >"$d/part-$i.txt" || return; done
    cp "$BUILD/dtxd" "$d/part-21.txt"
    check "$1: a large file among small ones" cmp "$BUILD/dtxd" "$d/part-21.txt"
    for i in $(seq 22 50); do echo "$i" >"$d/part-$i.txt" || return; done
    check "$1: small files" test "$(cat "$d"/part-??.txt | grep -a -c '^[2-5][0-9]$')" = 29
    exec 5>"$d/part-51.txt" 6<"$d/part-51.txt"
    echo one >&5
    check "$1: what is written is read at once" test "$(cat <&6)" = one
    check "$1: by name, too" test "$(cat "$d/part-51.txt") $(stat -c %s "$d/part-51.txt")" = "one 4"
    if [ "$1" = passthrough ]; then kill_child; wait_for 20 head -c 1 "$M/status"; fi
    echo two >&5
    check "$1: and what is written then" test "$(cat "$d/part-51.txt" | tr '\n' ' ')$(cat <&6)" = 'one two two'
    check "$1: RECEIVING while one is open" in_state "$D/many.status" RECEIVING
    exec 5>&- 6<&-
    echo more >>"$d/part-52.txt" && echo more >>"$d/part-52.txt"
    check "$1: a small one that is appended to" test "$(wc -l <"$d/part-52.txt")" = 2
    echo a-longer-line >"$d/part-53.txt" && echo b >"$d/part-53.txt"
    check "$1: and one that is written anew" test "$(cat "$d/part-53.txt")" = b
    rm -r "$d"
}

start_dtxd || exit 1
if past; then
    many passthrough
    calls passthrough
    states passthrough
    # open files over the death of dtxd; the new one knows how they are open
    mkdir "$D/held"
    "$H" takeover "$D/held" "$T/go" >"$T/takeover" 2>&1 &
    check "files are open" wait_for 10 test -e "$T/go.ready"
    check "dtxd dies" kill_child
    wait_for 20 head -c 1 "$M/status"
    touch "$T/go"
    wait $!
    check "open past dtxd, they outlive it" grep -q '^PASS' "$T/takeover"
    grep -v '^PASS' "$T/takeover"
    check "READY after that" wait_state 20 "$D/held.status" READY REJECTED
    check "no open failed with EIO" sh -c "! grep -q 'Input/output' '$T/takeover'"
    stop_dtxd
else
    skip passthrough "$(grep -o 'passthrough: off.*' "$S/tree/log" | tail -n 1)"
    stop_dtxd
fi
DTXD_OPTIONS="${DTXD_OPTIONS:-} --no-passthrough"
: >"$S/tree/log"
start_dtxd || exit 1
check "turned off, in words" grep -q 'passthrough: off, large files go through dtxd: not wanted' "$S/tree/log"
many 'through dtxd'
calls 'through dtxd'
states 'through dtxd'
