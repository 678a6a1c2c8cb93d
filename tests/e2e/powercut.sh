#!/usr/bin/env bash
# Power cuts in simulation at sampled moments of drop, accept, train, save, score, cancel and delete; FULL=1: at all.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { skip "power cuts" "no python3"; exit 0; }
[ "$(id -u)" = 0 ] || { skip "power cuts" "mounting several times without being root is slow: run as root"; exit 0; }
"${CC:-cc}" -shared -fPIC -O1 -o "$T/shim.so" "$ROOT/tests/crash/shim.c" -ldl || { skip "power cuts" "no C compiler"; exit 0; }
mkdir "$T/inputs"
"$BUILD/tests/test_worker_faults" --make-inputs "$T/inputs" || { fail "inputs" "tests/unit/test_worker_faults --make-inputs"; exit 1; }
python3 "$ROOT/tests/crash/powercut.py" "$BUILD" "$T" ${FULL:+all} || FAILS=1
