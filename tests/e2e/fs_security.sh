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
if grep -q 'symbolic link' "$M/models/base/m.status"; then ok "a base model's files are not read through links"
else fail "a base model's files are not read through links" "$(head -n 2 "$M/models/base/m.status")"; fi
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

# ---- DTX makes folders and files beside what users dropped: never through a link, nor in another's place ----
mkdir -m 755 "$T/outside" && echo untouched >"$T/outside/file" && chmod 600 "$T/outside/file"
outside() { stat -c '%a %u %n' "$T/outside" "$T/outside"/*; }
before=$(outside)
alice sh -c "umask 077; echo '$secret' >'$M/models/compare/mine.txt'"
mallory ln -s "$T/outside" "$M/services/link"
mallory sh -c "ln -s '$T/outside' '$M/services/spec'; echo '{\"model\":\"lantern\"}' >'$M/services/spec.json'"
mallory sh -c "ln -s '$T/outside' '$M/models/compare/dir.txt'; ln -s '$T/outside/file' '$M/models/compare/file.txt'"
mallory sh -c "for n in dir.txt file.txt README.md; do echo hi >'$M/models/compare/'\$n.txt; done"
bad=
for f in services/link services/spec models/compare/dir.txt models/compare/file.txt models/compare/README.md; do
    wait_state 15 "$M/$f.status" REJECTED FAILED >/dev/null || bad="$bad $f:$(state_of "$M/$f.status")"
done
[ -z "$bad" ] && ok "services behind links, and prompts whose answers have another's name" || fail "services behind links, and prompts whose answers have another's name" "$bad"
[ "$(outside)" = "$before" ] && ok "nothing outside is made or changed" || fail "nothing outside is made or changed" "$(outside)"
refused "a prompt whose answers would be another's prompt" sh -c "echo hi >'$M/models/compare/mine.txt.txt'"
refused "which stays private" cat "$M/models/compare/mine.txt"
chmod 700 "$M/models/base/lantern"
mallory sh -c "mkdir '$M/models/base/theft' && cd '$M/models/base/theft' && for f in config.json model.safetensors tokenizer.json tokenizer_config.json; do ln -s ../lantern/\$f; done; touch _SUCCESS"
wait_state 15 "$M/models/base/theft.status" REJECTED >/dev/null && ok "a private model through links" || fail "a private model through links" "$(head -n 2 "$M/models/base/theft.status")"
cp "$M/models/base/lantern"/*.json "$T/" && chmod 644 "$T"/*.json
mallory sh -c "mkdir '$M/models/base/theft2' && cd '$M/models/base/theft2' && cp '$T/config.json' '$T/tokenizer.json' . && ln -s ../lantern/model.safetensors && touch _SUCCESS"
wait_state 15 "$M/models/base/theft2.status" REJECTED >/dev/null && ok "its weights alone" || fail "its weights alone" "$(head -n 2 "$M/models/base/theft2.status")"
chmod 755 "$M/models/base/lantern"
wait_for 10 mallory test -r "$M/models/base/lantern/config.json"
# the folder of a service is exchanged for a link while a question waits for its answer
mallory sh -c "echo '{\"model\":\"lantern\",\"max_new_tokens\":400}' >'$M/services/swap.json'"
mkdir -p "$T/outside/ask"
check "a service" wait_state 15 "$M/services/swap.status" RUNNING
mallory sh -c "for n in 1 2 3 4; do echo 'Tell me a long story.' >'$M/services/swap/ask/'\$n.txt; done; sleep 0.3; mv '$M/services/swap' '$M/services/.swap' && ln -s '$T/outside' '$M/services/swap'"
sleep 4
[ -z "$(ls "$T/outside/ask")" ] && ok "an answer is not written behind a link" || fail "an answer is not written behind a link" "$(ls "$T/outside/ask")"

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

# ---- another's file in one's own folder, and a file of another group ----
mallory sh -c "umask 0; mkdir '$D/shared'"
alice sh -c "umask 077; echo '$row' >'$D/shared/train.jsonl'"
mallory touch "$D/shared/_SUCCESS"
if wait_state 15 "$D/shared.status" REJECTED >/dev/null && mallory grep -q 'train.jsonl in it belongs to another user' "$D/shared.status"; then ok "a private file in a stranger's folder is not read for the stranger"
else fail "a private file in a stranger's folder is not read for the stranger" "$(cat "$D/shared.status")"; fi
alice chmod 644 "$D/shared/train.jsonl"
check "it is once its owner lets them" wait_state 15 "$D/shared.status" READY
alice chmod 600 "$D/shared/train.jsonl"
check "and not any more" wait_state 15 "$D/shared.status" REJECTED
alice sh -c "mkdir '$D/grouped' && (umask 027; echo '$row' >'$D/grouped/train.jsonl'); chmod 755 '$D/grouped'; touch '$D/grouped/_SUCCESS'"
chgrp 2000 "$D/grouped/train.jsonl"
check "a file of another group than the folder" wait_state 15 "$D/grouped.status" READY
check "the folder's group does not read it" wait_for 5 sh -c "! setpriv --reuid 1003 --regid 1001 --clear-groups cat '$D/grouped.status'"
check "the owner does" alice cat "$D/grouped.status"

# ---- names that differ only in how a letter is composed ----
one=caf$(printf 'e\314\201') other=caf$(printf '\303\251')
alice sh -c "umask 077; mkdir '$D/$one' && echo '$row' >'$D/$one/train.jsonl' && touch '$D/$one/_SUCCESS'; echo '$secret' >'$M/models/compare/$one.txt'"
check "the owner's dataset" wait_state 15 "$D/$one.status" READY
refused "a second folder of its name" mkdir "$D/$other"
mallory mkdir "$D/twin"
refused "or one renamed to it" mv "$D/twin" "$D/$other"
refused "a second prompt of its name" sh -c "echo hi >'$M/models/compare/$other.txt'"
mkdir "$S/tree/datasets/$other" && chown 1002:1002 "$S/tree/datasets/$other"
mallory sh -c "echo '{\"text\":\"x\"}' >'$D/$other/train.jsonl'; touch '$D/$other/_SUCCESS'"
sleep 3
refused "also one made behind the mount's back does not open its status" cat "$D/$other.status"
found=$(leaks)
[ -z "$found" ] && ok "nothing of it shows" || fail "nothing of it shows" "$found"

# ---- sizes ----
mallory sh -c "mkdir '$D/holes'; truncate -s 4T '$D/holes/train.jsonl'; touch '$D/holes/_SUCCESS'"
mallory sh -c "mkdir '$M/models/base/wide' && cp '$T/config.json' '$T/tokenizer.json' '$M/models/base/wide/'"
{ printf '\000\000\000\002\000\000\000\000{"a":['; head -c $(((32 << 20) - 8)) /dev/zero | tr '\0' '[' | sed 's/\[\[/0,/g'; printf '0]'; } >"$T/wide"
chmod 644 "$T/wide"
mallory cp "$T/wide" "$M/models/base/wide/model.safetensors"
biggest=0
for _ in 1 2 3 4 5 6; do
    sleep 0.5
    now=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$(child_pid)/status")
    [ "$now" -gt "$biggest" ] && biggest=$now
done
[ "$biggest" -lt $((200 << 10)) ] && ok "dtxd itself does not parse a header of 32 MB" || fail "dtxd itself does not parse a header of 32 MB" "$biggest kB"
mallory rm -r "$M/models/base/wide"
check "terabytes of holes do not keep a check busy" wait_state 15 "$D/holes.status" REJECTED
esc=$(printf 'a\302\233b')
refused "names that steer a terminal" mkdir "$D/$esc"
mallory sh -c "printf '{\"\\\\u009b2J\\\\u202ex\":1}' >'$M/paramgroups/esc.json'" 2>/dev/null
check "a key that does" wait_state 10 "$M/paramgroups/esc.status" REJECTED
mallory sh -c "mkdir '$D/esc'; printf '{\"instruction\":\"\\\\u001b[2J\",\"response\":\"\\\\u009b\"}' >'$D/esc/train.jsonl'; touch '$D/esc/_SUCCESS'"
check "an example that does" wait_state 15 "$D/esc.status" READY
if grep -q -P '\x1b|\xc2\x9b|\xe2\x80\xae' "$D/esc.status" "$M/paramgroups/esc.status" "$M/paramgroups/LIST.tsv" "$M/log"; then fail "none of it is shown" "$(cat -v "$D/esc.status" "$M/paramgroups/esc.status")"; else ok "none of it is shown"; fi
mallory sh -c "truncate -s 8E '$D/m3/huge' 2>/dev/null; truncate -s 1T '$M/paramgroups/huge.json'; head -c 100000 /dev/zero | tr '\0' '[' >'$M/paramgroups/deep.json'"
check "a spec of a terabyte" wait_state 20 "$M/paramgroups/huge.status" REJECTED
check "a spec of 100,000 brackets" wait_state 20 "$M/paramgroups/deep.status" REJECTED
check "the daemon lives" sh -c "[ \"\$(head -n 1 '$M/status')\" = RUNNING ]"
