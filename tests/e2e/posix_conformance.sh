#!/usr/bin/env bash
# POSIX in a user-owned folder: posix_conformance.c on the mount, with files past dtxd and through it.  Where the native
# file system beside it fails a check too, the check is skipped in words: then it is the machine, not DTX.
. "$(dirname "$0")/lib.sh"
P=$T/conformance
${CC:-cc} -O1 -D_GNU_SOURCE -o "$P" "$ROOT/tests/e2e/posix_conformance.c" || exit 1
mkdir "$T/native"
timeout 100 "$P" "$T/native" >"$T/native.out"
conformance() { # HOW: the mount as it is now
    local how=$1 rc line name
    mkdir "$M/datasets/posix"
    timeout 200 "$P" "$M/datasets/posix" >"$T/mount.out"
    rc=$?
    [ $rc = 0 ] || [ $rc = 1 ] || fail "$how: the program ends" "status $rc"
    while IFS= read -r line; do
        case $line in
        FAIL*)
            name=$(printf %s "${line#FAIL }" | cut -d: -f1-2)
            if grep -qF "FAIL $name:" "$T/native.out"; then skip "$how: $name" "the native file system fails it too"
            else fail "$how: $name" "$(printf %s "${line#FAIL }" | cut -d: -f3-)"; fi ;;
        *) printf '%s %s: %s\n' "${line%% *}" "$how" "${line#* }" ;;
        esac
    done <"$T/mount.out"
    check "$how: rm -r of all of it" rm -r "$M/datasets/posix"
    if [ "$(grep -c . "$T/mount.out")" -ge 200 ] || [ "$(id -u)" != 0 ]; then ok "$how: all groups ran"
    else fail "$how: all groups ran" "$(grep -c . "$T/mount.out") checks"; fi
}
start_dtxd || exit 1
conformance "as it comes"
stop_dtxd
start_dtxd --no-passthrough || exit 1
conformance "through dtxd"
