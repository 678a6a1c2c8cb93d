#!/usr/bin/env bash
# The CUDA kernels on the device in software (kernels/cuda/soft): parity with the CPU version in worlds that have all of
# it and are small, the paths of older GPUs, and the same bits whatever the order in which warps and copies come.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit 1
command -v "${CXX:-g++}" >/dev/null || { skip "kernels in software" "no C++ compiler (packaging/deps.sh --tests)"; exit 0; }
[ "${SAN:-}" = thread ] && { skip "kernels in software" "their threads are fibers, which ThreadSanitizer does not follow"; exit 0; }
make -s soft BUILD="$BUILD" >"$T/build" 2>&1 || { fail "make soft" "$(tail -n 20 "$T/build")"; exit 1; }

parity() { # WORLD [CHECKS]: its output in $T/out
    "$BUILD/soft/gpu_parity" 1 cuda:0 "$@" >"$T/out" 2>&1 && return 0
    grep -v ' ok$' "$T/out"
    return 1
}
export DTX_CUDA_TILES=0 # none is measured: all give the same bits (parity's check `tiles`)
check "all of a small model with dropout, tiles of 256 columns in clusters" parity d32]
DTX_CUDA_TILES=6 check "all of a smaller one, heads of 8, tiles of 64 columns" parity 64,172
DTX_CUDA_TILES=3 check "products with dropout, tiles of 128 columns" parity 256,384 linear
check "heads of 128 in groups" parity 256,384 attention
check "high ranks beside none" parity 17:1 linear
DTX_CUDA_TILES=1 check "odd ranks and sides" parity 2:1 linear
DTX_CUDA_NO_HOPPER=1 check "products of older GPUs" parity 192,512 linear
DTX_CUDA_NO_HOPPER=1 check "attention of older GPUs" parity 192,512 attention
digest_of() { # SEED CHECKS
    DTX_SOFT_SEED=$1 parity 256,384 "$2" && sed -n 's/^digest of what was read back: //p' "$T/out"
}
for part in linear attention; do
    first=$(digest_of 1 $part)
    check "$part: the same bits in another order" test "$first" = "$(digest_of 7 $part)" -a -n "$first"
done
exit "$FAILS"
