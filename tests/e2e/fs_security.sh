#!/usr/bin/env bash
# What one user can do to another, or to the machine, through the mount.  Users 1001 (the owner) and 1002 (the stranger).
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { skip "security" "needs root to act as several users"; exit 0; }
cat >"$T/sec.c" <<'C'
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* swap A B SECONDS: exchange two names as fast as possible.     handle: see fs_helper */
int main(int argc, char **argv)
{
    time_t end = time(NULL) + atoi(argv[3]);
    while (time(NULL) < end)
        for (int i = 0; i < 100; i++)
            renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE);
    return 0;
}
C
${CC:-cc} -O1 -D_GNU_SOURCE -Wno-unused-result -o "$T/swap" "$T/sec.c" || exit 1
chmod 700 "$S"
start_dtxd || exit 1
D=$M/datasets
alice() { setpriv --reuid 1001 --regid 1001 --clear-groups "$@"; }
mallory() { setpriv --reuid 1002 --regid 1002 --clear-groups "$@"; }
refused() { # NAME COMMAND... as the stranger
    local name=$1
    shift
    if out=$(mallory "$@" 2>&1); then fail "$name" "it worked: $(printf %s "$out" | head -c 100)"; else ok "$name"; fi
}
secret=Tk7secretwords
row="{\"instruction\":\"$secret question\",\"response\":\"$secret\"}"
alice sh -c "umask 077; mkdir '$D/closed' && echo '$row' >'$D/closed/train.jsonl' && touch '$D/closed/_SUCCESS'"
alice sh -c "mkdir '$D/file0600' && (umask 077; echo '$row' >'$D/file0600/train.jsonl'); touch '$D/file0600/_SUCCESS'"
alice sh -c "umask 077; mkdir '$D/broken' && echo '{\"$secret' >'$D/broken/dataset.json' && echo '$row' >'$D/broken/train.jsonl'; touch '$D/broken/_SUCCESS'"
alice sh -c "mkdir '$D/open' && echo '$row' | sed 's/$secret/harmless/g' >'$D/open/train.jsonl' && touch '$D/open/_SUCCESS'"

# ---- links and paths that lead out ----
shadow=$(cut -c1-40 /etc/shadow | head -n 1)
for n in 1 2 3 4 5 6 7 8; do mallory mkdir "$D/m$n"; done
mallory ln -s /etc/shadow "$D/m1/train.jsonl"
mallory ln -s ../closed/train.jsonl "$D/m2/train.jsonl"
mallory sh -c "echo '{\"splits\":{\"train\":\"../closed/train.jsonl\"}}' >'$D/m3/dataset.json'"
mallory sh -c "echo '{\"splits\":{\"train\":\"/etc/shadow\"}}' >'$D/m4/dataset.json'"
mallory sh -c "ln -s ../closed '$D/m5/sub'; echo '{\"splits\":{\"train\":\"sub/train.jsonl\"}}' >'$D/m5/dataset.json'"
mallory sh -c "ln -s /etc/shadow '$D/m6/dataset.json'; echo '{\"text\":\"x\"}' >'$D/m6/train.jsonl'"
mallory mkfifo "$D/m7/train.jsonl"
mallory sh -c "echo '{\"splits\":{\"train\":\"file:///etc/shadow\"}}' >'$D/m8/dataset.json'"
mallory ln -s closed "$D/m9"
mallory ln -s /etc/shadow "$M/paramgroups/m.json"
mallory ln -s /etc/shadow "$M/experiments/m.json"
mallory ln -s /etc/shadow "$M/models/compare/m.txt"
for n in 1 2 3 4 5 6 7 8; do mallory touch "$D/m$n/_SUCCESS"; done
mallory mkdir "$M/models/base/m" && mallory ln -s /etc/shadow "$M/models/base/m/config.json" && mallory touch "$M/models/base/m/_SUCCESS"
check "the owner's datasets are taken" wait_state 15 "$D/closed.status" READY
check "also where only the file is private" wait_state 15 "$D/file0600.status" READY
bad=
for n in 1 2 3 4 5 6 7 8 9; do wait_state 15 "$D/m$n.status" REJECTED >/dev/null || bad="$bad m$n:$(state_of "$D/m$n.status")"; done
for f in paramgroups/m models/compare/m models/base/m; do wait_state 15 "$M/$f.status" REJECTED FAILED >/dev/null || bad="$bad $f:$(state_of "$M/$f.status")"; done
[ -z "$bad" ] && ok "links and paths that lead out are REJECTED" || fail "links and paths that lead out are REJECTED" "$bad"
check "the owner reads the status" sh -c "grep -q $secret '$D/closed.status'"

# ---- nothing of it in what a stranger can read ----
leaks() { timeout 60 setpriv --reuid 1002 --regid 1002 --clear-groups grep -rlF -e "$secret" -e "$shadow" "$M" 2>/dev/null; }
found=$(leaks)
[ -z "$found" ] && ok "grep -r as a stranger finds nothing private" || fail "grep -r as a stranger finds nothing private" "$found"
refused "a private dataset's status" cat "$D/closed.status"
refused "the status where the file is private" cat "$D/file0600.status"
check "an open dataset's status" mallory cat "$D/open.status"
alice chmod 700 "$D/open"
check "chmod closes it" wait_for 5 sh -c "! setpriv --reuid 1002 --regid 1002 --clear-groups cat '$D/open.status'"
alice chmod 755 "$D/open"
check "chmod opens it" wait_for 5 setpriv --reuid 1002 --regid 1002 --clear-groups cat "$D/open.status"
cp -r "$ROOT/packaging/demo/models/lantern-2m" "$M/models/base/lantern"
mallory sh -c "echo '{\"max_steps\":2,\"lora_r\":2,\"block_size\":32,\"batch_size\":1}' >'$M/paramgroups/p.json'"
mallory sh -c "echo '{\"models\":[\"lantern\"],\"datasets\":[\"closed\"],\"paramgroups\":[\"p\"]}' >'$M/experiments/theft.json'"
alice sh -c "echo '{\"models\":[\"lantern\"],\"datasets\":[\"closed\"],\"paramgroups\":[\"p\"]}' >'$M/experiments/own.json'"
check "the owner trains on it" wait_state 40 "$M/experiments/own.status" SUCCESS
if [ "$(state_of "$M/experiments/theft.status")" = PENDING ] && grep -q 'let you read' "$M/experiments/theft.status"; then ok "a stranger's experiment waits for permission"
else fail "a stranger's experiment waits for permission" "$(cat "$M/experiments/theft.status")"; fi
refused "an experiment on private data is private" cat "$M/experiments/own/report.html"
refused "its model too" sh -c "cat '$M'/models/tuned/own.*/adapter_config.json"
check "but its owner's" alice sh -c "cat '$M'/models/tuned/own.01*/adapter_config.json '$M/experiments/own/status'"
mallory sh -c "echo hi >'$M/models/compare/all.txt'; echo '{\"models\":[\"tuned/own.best\"]}
hi' >'$M/models/compare/named.txt'"
check "a stranger's prompt" wait_state 30 "$M/models/compare/all.status" DONE
if grep -q "own\.01" "$M/models/compare/all/answers.md"; then fail "does not ask a private model" "$(head -n 5 "$M/models/compare/all/answers.md")"; else ok "does not ask a private model"; fi
found=$(leaks)
[ -z "$found" ] && ok "nor after training" || fail "nor after training" "$found"

# ---- what is another's, and what is DTX's ----
refused "control by a stranger" sh -c "echo cancel >'$M/experiments/own/control'"
refused "removing another's experiment" rm -r "$M/experiments/own"
refused "removing another's job" rmdir "$M/experiments/own/jobs/01-p"
refused "removing another's model" sh -c "rm -r '$M'/models/tuned/own.01*"
refused "another's spec" sh -c "echo >'$M/experiments/own.json'"
refused "moving another's dataset" mv "$D/open" "$D/m1/x"
refused "a hard link to another's private file" ln "$D/file0600/train.jsonl" "$D/m1/stolen.jsonl"
if [ "$(cat /proc/sys/fs/protected_hardlinks)" = 1 ]; then
    echo 0 >/proc/sys/fs/protected_hardlinks
    refused "also where the kernel would allow it" ln "$D/file0600/train.jsonl" "$D/m1/stolen.jsonl"
    echo 1 >/proc/sys/fs/protected_hardlinks
fi
for t in "touch $D/x.status" "mkdir $M/experiments/x" "touch $M/models/tuned/x" "mkdir $M/devices/x" "ln -s /etc $M/status2" \
    "mv $D/m1 $D/README.md" "mv $D/m1 $D/open.status" "ln $D/m3/dataset.json $D/LIST.tsv" "mkdir $M/models/by-base/x" "rm $M/status" \
    "mkdir $D/.." "mv $D/m1 $M/models/tuned/own.99" "touch $M/experiments/own/jobs/x" "rmdir $D" "mv $D $M/d" "chmod 777 $M/experiments/own"; do
    # shellcheck disable=SC2086
    refused "refused: ${t//$M/}" $t
done
refused "device nodes" mknod "$D/m1/dev" c 1 3
check "device nodes by root are kept" mknod -m 666 "$D/m1/dev" c 1 5
refused "but nobody opens them" head -c 1 "$D/m1/dev"
head -c 1 "$D/m1/dev" >/dev/null 2>&1 && fail "nor does root" "read" || ok "nor does root"
mkdir "$D/zeros"; mknod "$D/zeros/train.jsonl" c 1 5; touch "$D/zeros/_SUCCESS"
check "nor DTX" wait_state 20 "$D/zeros.status" REJECTED
rm -r "$D/zeros" "$D/m1/dev"
grep " $M fuse" /proc/mounts | grep -q nosuid && grep " $M fuse" /proc/mounts | grep -q nodev && ok "nosuid, nodev" || fail "nosuid, nodev" "$(grep " $M " /proc/mounts)"
for a in trusted.x security.x security.capability system.posix_acl_access; do
    if setfattr -n $a -v 0x0100000000000000000000000000000000000000 "$D/m3/dataset.json" 2>/dev/null; then fail "no $a" "set"; else ok "no $a"; fi
done
[ ! -e "$M/work" ] && [ ! -e "$M/tree" ] && [ ! -e "$M/catalog.db" ] && ok "the store's own files are not in the mount" || fail "the store's own files are not in the mount" "$(ls "$M")"
refused "the store" ls "$S"
bad=$(find "$S" -maxdepth 2 \( -name work -o -name catalog.db -o -name nodes.db \) -perm /007)
[ -z "$bad" ] && ok "nor open to others" || fail "nor open to others" "$bad"

# ---- races: a name that changes while the daemon looks at it ----
mallory sh -c "mkdir '$D/race' '$D/race/a'; echo '{\"text\":\"mine\"}' >'$D/race/a/f'; ln -s /etc '$D/race/b'; mkdir '$D/race/c'; echo '{\"text\":\"x\"}' >'$D/race/train.jsonl'; ln -s ../closed/train.jsonl '$D/race/evil'"
mallory "$T/swap" "$D/race/a" "$D/race/b" 4 & one=$!
mallory "$T/swap" "$D/race/train.jsonl" "$D/race/evil" 4 & two=$!
mallory sh -c "end=\$((\$(date +%s) + 4)); while [ \$(date +%s) -lt \$end ]; do touch '$D/race/a/pwned' '$D/race/a/shadow' ; rm -f '$D/race/a/shadow'; touch '$D/race/_SUCCESS'; done" 2>/dev/null
wait $one $two
[ ! -e /etc/pwned ] && [ -e /etc/shadow ] && ok "folders swapped for links lead the daemon nowhere" || fail "folders swapped for links lead the daemon nowhere" "it wrote to /etc"
rm -f /etc/pwned
sleep 3
found=$(leaks)
[ -z "$found" ] && ok "files swapped for links show nothing" || fail "files swapped for links show nothing" "$found"

# ---- sizes ----
mallory sh -c "truncate -s 8E '$D/m3/huge' 2>/dev/null; truncate -s 1T '$M/paramgroups/huge.json'; head -c 100000 /dev/zero | tr '\0' '[' >'$M/paramgroups/deep.json'"
check "a spec of a terabyte" wait_state 20 "$M/paramgroups/huge.status" REJECTED
check "a spec of 100,000 brackets" wait_state 20 "$M/paramgroups/deep.status" REJECTED
check "the daemon lives" sh -c "[ \"\$(head -n 1 '$M/status')\" = RUNNING ]"
