#!/bin/sh
# Everything that needs a GPU, and a table at the end:
#   parity of each operation with the CPU version, the golden runs beside PEFT's own in bf16, the oracle (transformers +
#   PEFT), compute-sanitizer on parity, the whole appliance, the benchmark.
#
#   tests/gpu/run.sh [STEP...]      steps: parity golden oracle sanitizer appliance bench (default: all)
#
# Builds what is missing if nvcc and make are there; on a machine without them it uses the carried build.  Environment:
# BUILD (build), ORACLE_SHAPES ("7b"; "7b 8b"), MODELS (/dev/shm), OUT (a new folder under /tmp), and those of
# tests/bench/run.sh.
set -u
cd "$(dirname "$0")/../.." || exit 2
export BUILD="${BUILD:-build}" MODELS="${MODELS:-/dev/shm}"
OUT=${OUT:-$(mktemp -d /tmp/dtx-gpu.XXXXXX)}
mkdir -p "$OUT"
table=$OUT/table
: >"$table"
failed=0

step() { # NAME COMMAND...: runs it, its output in OUT/NAME.log, a line in the table
    name=$1
    shift
    start=$(date +%s)
    "$@" >"$OUT/$name.log" 2>&1
    rc=$?
    case $rc in 0) word=ok ;; 77) word="not run" ;; *) word="FAILED ($rc)" failed=1 ;; esac
    printf '%-18s %-12s %4s s  %s\n' "$name" "$word" $(($(date +%s) - start)) "$(tail -1 "$OUT/$name.log" | cut -c1-90)" >>"$table"
}

parity() { "$BUILD/gpu_parity" 1 && "$BUILD/gpu_parity" 2; }
older_code() { DTX_CUDA_NO_HOPPER=1 DTX_CUDA_NO_OVERLAP=1 "$BUILD/gpu_parity" 3; } # the paths of other GPUs
golden() {
    [ -d ../shared/golden ] || { echo "no golden data here"; return 77; }
    "$BUILD/gpu_golden" cuda:0 >"$OUT/golden.jsonl" && python3 tests/gpu/golden.py "$OUT/golden.jsonl"
}
oracle() {
    model=$MODELS/dtx-$1
    [ -f "$model/config.json" ] || python3 tests/gpu/make_model.py "$1" "$model" || return 1
    "$BUILD/gpu_oracle" "$model" cuda:0 "$OUT/oracle-$1" && python3 tests/gpu/oracle.py "$model" "$OUT/oracle-$1"
}
sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here"; return 77; }
    PARITY_QUICK=1 compute-sanitizer --error-exitcode 9 --kernel-name-exclude kernel_substring=nvjet "$BUILD/gpu_parity" 1
}

if command -v make >/dev/null && command -v nvcc >/dev/null && [ ! -x "$BUILD/gpu_parity" ]; then
    step build make -s cuda "$BUILD/gpu_parity" "$BUILD/gpu_oracle" "$BUILD/gpu_golden" "$BUILD/engine_bench"
fi
[ -x "$BUILD/gpu_parity" ] || { echo "no build in $BUILD, and nvcc or make is missing" >&2; exit 2; }
for s in ${*:-parity golden oracle sanitizer appliance bench}; do
    case $s in
    parity) step parity parity && step parity-older older_code ;;
    golden) step golden golden ;;
    oracle) for shape in ${ORACLE_SHAPES:-7b}; do step "oracle-$shape" oracle "$shape"; done ;;
    sanitizer) step sanitizer sanitizer ;;
    appliance) step appliance tests/gpu/appliance.sh ;;
    bench) step bench tests/bench/run.sh "$OUT/bench" ;;
    *) echo "unknown step $s" >&2; exit 2 ;;
    esac
done
cat "$OUT"/bench/table-*.md 2>/dev/null
cat "$table"
echo "logs in $OUT"
exit $failed
