#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2016
# Several users: each drops, changes and cancels what is theirs; private data stay private.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip job_users "needs root to become another user"; exit 0; }
start_dtxd || exit 1
E=$M/experiments
as() { as_nobody "$@"; }
refused() { local name=$1; shift; if "$@" 2>/dev/null; then fail "$name" "it worked"; else ok "$name"; fi; }
check "root's model and data" demo_in tickets
group quick "$(steps 4)"
group long "$(steps 100000)"
mkdir -p "$T/theirs" && cp "$DEMO/datasets/website/"* "$T/theirs/" && printf '{"instruction":"Q","response":"The secret word is Rumpelstiltskin"}\n' >"$T/theirs/train.jsonl"
chmod -R a+rX "$T/theirs"
check "another user drops a private dataset" as sh -c "umask 077; mkdir '$M/datasets/private' && cp '$T/theirs/'* '$M/datasets/private/'"
check "a group" as sh -c "cp '$DEMO/paramgroups/careful.json' '$M/paramgroups/theirs.json'"
check "READY" wait_state 30 "$M/datasets/private.status" READY
cat >"$T/spec.json" <<'JSON'
{"models":["lantern-2m"],"datasets":["private"],"paramgroups":["long"]}
JSON
check "an experiment" as cp "$T/spec.json" "$E/theirs.json"
check "it trains" wait_for 40 at_step theirs/jobs/01-long 2
check "its files belong to them" test "$(stat -c %u "$E/theirs/log")$(stat -c %u "$E/theirs/jobs/01-long/metrics.csv")" = 6553465534
check "its owner is named" has "$E/theirs.status" '^owner: 65534'
experiment mine '"tickets"' '"long"'
check "root's trains too" wait_for 40 at_step mine/jobs/01-long 2
# not another's
refused "may not cancel root's" as sh -c "echo cancel >'$E/mine/control'"
refused "may not pause a job of root's" as sh -c "echo pause >'$E/mine/jobs/01-long/control'"
refused "may not rm -r root's" as rm -rf "$E/mine"
refused "may not write over root's spec" as sh -c "echo x >'$E/mine.json'"
refused "may not rename over root's spec" as sh -c "cp '$T/spec.json' '$E/.x.part' && mv -f '$E/.x.part' '$E/mine.json'"
refused "may not remove root's group" as rm -f "$M/paramgroups/quick.json"
refused "may not change root's data" as sh -c "echo x >>'$M/datasets/tickets/train.jsonl'"
refused "may not remove root's model" as rm -rf "$M/models/base/lantern-2m/config.json"
third() { setpriv --reuid 1234 --regid 1234 --clear-groups "$@"; }
refused "a third may not cancel theirs" third sh -c "echo cancel >'$E/theirs/control'"
refused "a third may not remove theirs" third rm -rf "$E/theirs"
check "both still train" sh -c "head -n 1 '$E/mine.status' | grep -qx PROCESSING && head -n 1 '$E/theirs.status' | grep -qx PROCESSING"
check "the others may look at what is public" third sh -c "cat '$E/mine/status' '$E'/mine/jobs/*/metrics.csv '$M/status' '$E/LIST.tsv'"
refused "an experiment on private data" third sh -c "cat '$E/theirs/jobs/01-long/metrics.csv'"
# private data
refused "a private dataset's files" third sh -c "cat '$M/datasets/private/train.jsonl'"
# every file that a third may read
leak=$(third find "$M" -type f ! -path '*/models/base/*' 2>/dev/null | third xargs -d '\n' grep -l Rumpelstiltskin 2>/dev/null)
if [ -z "$leak" ]; then ok "private rows in no file that others can read"; else fail "private rows in no file that others can read" "$leak"; fi
check "root's public data have examples" has "$M/datasets/tickets.status" '^example 1: '
check "the private one's too, for its owner" as grep -q '^example 1: ' "$M/datasets/private.status"
refused "but not for others" third sh -c "cat '$M/datasets/private.status'"
check "root's are shown as long as others may read them" chmod 700 "$M/datasets/tickets"
check "no longer" wait_for 10 third sh -c "! cat '$M/datasets/tickets.status' >/dev/null 2>&1"
check "public again" chmod 755 "$M/datasets/tickets"
check "cancels their own" as sh -c "echo cancel >'$E/theirs/control'"
check "CANCELLED" wait_state 20 "$E/theirs.status" CANCELLED
check "removes their own" as rm -r "$E/theirs" "$M/datasets/private" "$M/paramgroups/theirs.json"
check "gone" wait_for 10 sh -c "[ ! -e '$E/theirs.status' ] && [ ! -e '$M/datasets/private.status' ] && [ ! -e '$M/paramgroups/theirs.status' ]"
check "root's goes on" in_state "$E/mine.status" PROCESSING
check "root may cancel anybody's" as sh -c "printf '%s' '{\"models\":[\"lantern-2m\"],\"datasets\":[\"tickets\"],\"paramgroups\":[\"long\"]}' >'$E/again.json'"
wait_for 40 at_step again/jobs/01-long 1
check "root cancels it" sh -c "echo cancel >'$E/again/control'"
check "it is" wait_state 20 "$E/again.status" CANCELLED
