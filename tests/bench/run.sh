#!/bin/sh
# DTX and its peer (transformers + PEFT) at the same shapes, one after the other on one GPU, and a table of both.
#
#   tests/bench/run.sh [OUT_DIR]        default OUT_DIR: a new folder under /tmp
#
# Environment: BUILD (build): where dtx_cuda.so and engine_bench are; PEER (../shared/bench/peer_peft.py); PEER_CASES
# (train,dropout,compile,small,decode; empty: no peer); SHAPES (7b, or "7b 1b"); SCALING=1: the tables over sequence
# length, jobs and rank too; MODELS (/dev/shm): where the random models are made.
set -u
cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-build} PEER=${PEER:-../shared/bench/peer_peft.py} MODELS=${MODELS:-/dev/shm} SHAPES=${SHAPES:-7b}
PEER_CASES=${PEER_CASES-train,dropout,compile,small,decode}
OUT=${1:-$(mktemp -d /tmp/dtx-bench.XXXXXX)}
mkdir -p "$OUT"
bad=0
for shape in $SHAPES; do
    model=$MODELS/dtx-$shape
    [ -f "$model/config.json" ] || python3 tests/gpu/make_model.py "$shape" "$model" || exit 2
    cases="train:1:4:1024:16:0:10 train:1:2:2048:16:0:8 train:1:4:1024:16:0.1:10 train:8:1:512:16:0:10 train:1:1:512:16:0:10
        train:1:2:512:16:0:10 decode:1:128:128:0 decode:1:128:128:16 decode:8:128:128:16"
    if [ "${SCALING:-0}" = 1 ]; then
        for s in 512 2048 4096; do cases="$cases train:1:$((4096 / s)):$s:16:0:6"; done
        cases="$cases train:1:1:8192:16:0:4"
        for n in 2 4 16 32; do cases="$cases train:$n:1:512:16:0:6"; done
        for r in 8 32 64 128; do cases="$cases train:1:4:1024:$r:0:6"; done
    fi
    # shellcheck disable=SC2086
    "$BUILD/engine_bench" "$model" cuda:0 $cases >"$OUT/dtx-$shape.jsonl" || bad=1
    python3 tests/bench/sustained.py "$model/config.json" >"$OUT/peer-$shape.jsonl" || bad=1
    if [ -n "$PEER_CASES" ]; then
        python3 "$PEER" --model "$shape" --cases "$PEER_CASES" >>"$OUT/peer-$shape.jsonl" 2>"$OUT/peer-$shape.log" || bad=1
    fi
    python3 tests/bench/table.py "$shape" "$model/config.json" "$OUT/dtx-$shape.jsonl" "$OUT/peer-$shape.jsonl" |
        tee "$OUT/table-$shape.md"
    if [ "${SCALING:-0}" = 1 ]; then
        python3 tests/bench/scaling.py "$OUT/dtx-$shape.jsonl" "$OUT/scaling-$shape.svg" \
            "$shape, $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1), $(date +%F)" |
            tee "$OUT/scaling-$shape.md"
    fi
done
echo "results in $OUT"
exit $bad
