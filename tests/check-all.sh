#!/usr/bin/env bash
# `make check-all`: everything that takes longer than `make test` should.
#   sanitizer builds of the whole test suite, a clang build, formatting, the long variants, the CUDA kernels on the device
#   in software, fuzzing.
#   FUZZ_SECONDS=60 per target, STEPS="address undefined thread clang format full kernels fuzz" to choose.
set -u
cd "$(dirname "$0")/.." || exit 1
steps=${STEPS:-"format clang address undefined thread full kernels fuzz"}
failed=
step() {
    local name=$1
    shift
    echo "== $name"
    if ! "$@"; then
        echo "== $name FAILED"
        failed="$failed $name"
    fi
}
sanitized() {
    make -j2 SAN="$1" all units >/dev/null || return 1
    ASAN_OPTIONS=detect_leaks=${LEAKS:-1}:handle_abort=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 CK_TIMEOUT_MULTIPLIER=10 TEST_TIMEOUT=1800 \
        SAN=$1 BUILD=build-$1 tests/run.sh
}
with_clang() { make -j2 CC=clang all units >/dev/null && BUILD=build-clang tests/run.sh; }
formatted() { git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' | xargs clang-format --dry-run --Werror; }
long_runs() { make -j2 all units >/dev/null && FULL=1 TEST_TIMEOUT=3600 tests/run.sh; }
soft_parity() { build/soft/gpu_parity "$@" >build/soft/parity.log 2>&1 || { grep -v ' ok$' build/soft/parity.log; return 1; }; }
kernels() { # every world, copies and warps in another order each time, another shape of tiles; the paths of older GPUs
    make -j2 soft >/dev/null || return 1
    local rc=0
    DTX_SOFT_SEED=1 DTX_CUDA_TILES=0 soft_parity 1 || rc=1
    DTX_SOFT_SEED=2 DTX_CUDA_TILES=2 soft_parity 2 || rc=1
    DTX_CUDA_NO_HOPPER=1 soft_parity 3 || rc=1
    return $rc
}
fuzz() {
    make -j2 CC=clang SAN=address FUZZING=1 fuzzers >/dev/null || return 1
    local rc=0 target name corpus
    if [ -f tests/fuzz/make_seeds.py ]; then python3 tests/fuzz/make_seeds.py build-address-clang-fuzz/seeds || rc=1; fi
    for target in build-address-clang-fuzz/fuzz/fuzz_*; do
        case $target in *.d | *.o) continue ;; esac
        name=$(basename "$target")
        corpus=build-address-clang-fuzz/corpus/$name
        mkdir -p "$corpus" build-address-clang-fuzz/seeds/"$name"
        echo "-- $name"
        "$target" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
            "$corpus" build-address-clang-fuzz/seeds/"$name" >"build-address-clang-fuzz/$name.log" 2>&1 ||
            { tail -n 30 "build-address-clang-fuzz/$name.log"; rc=1; }
    done
    return $rc
}
for s in $steps; do
    case $s in
    format) step "formatting" formatted ;;
    clang) step "tests built by clang" with_clang ;;
    address | undefined | thread) step "tests under the $s sanitizer" sanitized "$s" ;;
    full) step "long variants" long_runs ;;
    kernels) step "CUDA kernels in software" kernels ;;
    fuzz) step "fuzzing" fuzz ;;
    *) echo "unknown step $s"; failed="$failed $s" ;;
    esac
done
[ -z "$failed" ] && { echo "check-all: all steps passed: $steps"; exit 0; }
echo "check-all: failed:$failed"
exit 1
