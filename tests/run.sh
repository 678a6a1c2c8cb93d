#!/usr/bin/env bash
# Run the unit tests (Check programs) and the end-to-end scripts; ends with "N passed, N failed, N skipped".
#   BUILD=build tests/run.sh [NAME-PATTERN]      FULL=1: long variants too      JOBS=2
# A unit test prints Check's summary; a test it could not run prints "SKIP: name: why".
# An end-to-end script prints "PASS name", "FAIL name: why", "SKIP name: why" lines (tests/e2e/lib.sh).
set -u
cd "$(dirname "$0")/.." || exit 1
export BUILD=${BUILD:-build}
pattern=${1:-}
logs=$BUILD/test-logs
rm -rf "$logs"
mkdir -p "$logs"

run_one() { # PATH: run it, output to its log, exit status as the last line
    name=$(basename "$1" .sh)
    start=$(date +%s)
    if timeout --kill-after=10 "${TEST_TIMEOUT:-400}" "$1" >"$logs/$name.log" 2>&1 </dev/null; then rc=0; else rc=$?; fi
    echo "exit status $rc, $(($(date +%s) - start)) s" >>"$logs/$name.log"
    printf '%-28s %s\n' "$name" "$(tail -n 1 "$logs/$name.log")"
}
export -f run_one
export logs

units=$(find "$BUILD/tests" -maxdepth 1 -type f -name 'test_*' -perm -u+x 2>/dev/null | grep -e "$pattern" | sort)
for t in $units; do [ -f "tests/unit/$(basename "$t").c" ] && echo "$t"; done |
    xargs -r -P "${JOBS:-2}" -I{} bash -c 'run_one {}'
if [ -c /dev/fuse ] || [ -n "$(find tests/e2e -name '[!l]*.sh')" ]; then
    # the longest first, or one core waits for it at the end
    { echo tests/e2e/survive.sh; find tests/e2e -maxdepth 1 -name '*.sh' ! -name lib.sh ! -name survive.sh | sort; } |
        grep -e "$pattern" | xargs -r -P "${E2E_JOBS:-2}" -I{} bash -c 'run_one {}'
fi

passed=0 failed=0 skipped=0
: >"$logs/failures" ; : >"$logs/skips"
for log in "$logs"/*.log; do
    [ -f "$log" ] || continue
    name=$(basename "$log" .log)
    rc=$(sed -n 's/^exit status \([0-9]*\),.*/\1/p' "$log" | tail -n 1)
    if [ "${name#test_}" != "$name" ]; then
        sums=$(sed -n 's/^[0-9]*%: Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 \2 \3/p' "$log")
        skips=$(grep -c '^SKIP: ' "$log")
        grep '^SKIP: ' "$log" | sed "s/^SKIP: /$name: /" >>"$logs/skips"
        bad=0
        while read -r checks f e; do
            [ -n "${checks:-}" ] || continue
            passed=$((passed + checks - f - e))
            bad=$((bad + f + e))
        done <<<"$sums"
        passed=$((passed - skips))
        skipped=$((skipped + skips))
        if [ -z "$sums" ] || { [ "$rc" != 0 ] && [ "$bad" = 0 ]; }; then bad=$((bad + 1)); fi
        failed=$((failed + bad))
        if [ "$bad" != 0 ]; then { echo "== $name (exit status $rc)"; grep -E ':[FE]:|Sanitizer|^FAIL' "$log" | head -n 20; } >>"$logs/failures"; fi
    else
        p=$(grep -c '^PASS ' "$log"); f=$(grep -c '^FAIL ' "$log"); s=$(grep -c '^SKIP ' "$log")
        if [ "$rc" != 0 ] && [ "$f" = 0 ]; then
            f=1
            { echo "== $name ended with status $rc before its end"; tail -n 15 "$log"; } >>"$logs/failures"
        fi
        [ "$((p + f + s))" = 0 ] && { f=1; echo "== $name tested nothing" >>"$logs/failures"; }
        passed=$((passed + p)); failed=$((failed + f)); skipped=$((skipped + s))
        grep '^FAIL ' "$log" | sed "s/^/$name: /" >>"$logs/failures"
        grep '^SKIP ' "$log" | sed "s/^SKIP /$name: /" >>"$logs/skips"
    fi
done
if [ -s "$logs/skips" ]; then echo; echo "Skipped:"; sed 's/^/  /' "$logs/skips"; fi
if [ -s "$logs/failures" ]; then echo; echo "Failed (logs in $logs):"; sed 's/^/  /' "$logs/failures"; fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
