#!/usr/bin/env bash
# POSIX in a user-owned folder: posix_conformance.c on the mount.  Where the native file system beside it fails a check
# too, the check is skipped in words: then it is the machine, not DTX.
. "$(dirname "$0")/lib.sh"
P=$T/conformance
${CC:-cc} -O1 -D_GNU_SOURCE -o "$P" "$ROOT/tests/e2e/posix_conformance.c" || exit 1
mkdir "$T/native"
timeout 100 "$P" "$T/native" >"$T/native.out"
start_dtxd || exit 1
mkdir "$M/datasets/posix"
timeout 200 "$P" "$M/datasets/posix" >"$T/mount.out"
rc=$?
[ $rc = 0 ] || [ $rc = 1 ] || fail "the program ends" "status $rc"
while IFS= read -r line; do
    case $line in
    FAIL*)
        name=${line#FAIL }
        if grep -qF "FAIL $(printf %s "$name" | cut -d: -f1-2):" "$T/native.out"; then skip "$(printf %s "$name" | cut -d: -f1-2)" "the native file system fails it too"
        else fail "$(printf %s "$name" | cut -d: -f1-2)" "$(printf %s "$name" | cut -d: -f3-)"; fi ;;
    *) echo "$line" ;;
    esac
done <"$T/mount.out"
check "rm -r of all of it" rm -r "$M/datasets/posix"
if [ "$(grep -c . "$T/mount.out")" -ge 200 ] || [ "$(id -u)" != 0 ]; then ok "all groups ran"; else fail "all groups ran" "$(grep -c . "$T/mount.out") checks"; fi
