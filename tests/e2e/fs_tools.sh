#!/usr/bin/env bash
# The tools that people use, in a user-owned folder; large files; other users.
. "$(dirname "$0")/lib.sh"
H=$T/fs_helper
${CC:-cc} -O1 -D_GNU_SOURCE -Wno-unused-result -o "$H" "$ROOT/tests/e2e/fs_helper.c" || exit 1
start_dtxd || exit 1
D=$M/datasets/tools
mkdir "$D"

mkdir -p "$T/src/sub/deep" "$T/src/empty"
seq 1000 >"$T/src/numbers"
echo script >"$T/src/sub/run.sh"; chmod 4755 "$T/src/sub/run.sh"
ln -s ../numbers "$T/src/sub/link"; ln "$T/src/numbers" "$T/src/sub/deep/hard"
touch -d '2001-02-03 04:05:06.789' "$T/src/numbers" "$T/src/sub"
# without the times of links: rsync keeps those to the second only, on any file system
listing() { (cd "$1" && find . -type l -printf '%P %m %s %l %n\n' -o ! -type d -printf '%P %y %m %s %T@ %n\n' | sort); (cd "$1" && find . -type d -printf '%P %m\n' | sort); }
same() { diff <(listing "$T/src") <(listing "$1") && diff -r "$T/src" "$1"; }

check "cp -a" cp -a "$T/src" "$D/cp"
check "cp -a: all the same" same "$D/cp"
check "rsync -aH" rsync -aH "$T/src/" "$D/rsync/"
check "rsync -aH: all the same" same "$D/rsync"
if [ -z "$(rsync -aHin "$T/src/" "$D/rsync/")" ]; then ok "rsync again: nothing to do"; else fail "rsync again: nothing to do" "$(rsync -aHin "$T/src/" "$D/rsync/")"; fi
check "tar" sh -c "mkdir '$D/tar' && tar --format=posix -C '$T/src' -cf - . | tar -C '$D/tar' -xpf -"
check "tar: all the same" same "$D/tar"
check "mv within" mv "$D/tar" "$D/moved"
check "mv within: all the same" same "$D/moved"
check "mv in" sh -c "cp -a '$T/src' '$T/src2' && mv '$T/src2' '$D/in'"
check "mv in: all the same" same "$D/in"
check "mv out" sh -c "mv '$D/in' '$T/out'"
check "mv out: all the same" same "$T/out"
check "sed -i" sh -c "sed -i s/500/five/ '$D/cp/numbers' && grep -q five '$D/cp/numbers'"
if command -v vim >/dev/null; then
    check "vim" sh -c "vim -es -u NONE -c '%s/five/cinq/' -c wq '$D/cp/numbers' </dev/null; grep -q cinq '$D/cp/numbers'"
else skip "vim" "not installed"; fi
check "install" install -m 640 "$T/src/numbers" "$D/installed"
check "dd" sh -c "dd if='$T/src/numbers' of='$D/dd' bs=100 conv=fsync status=none && cmp '$T/src/numbers' '$D/dd'"
if command -v git >/dev/null; then
    check "git clone" sh -c "git init -q '$T/repo' && cd '$T/repo' && cp -r '$T/src' . && git add -A && git -c user.name=x -c user.email=x@x commit -qm x && git clone -q '$T/repo' '$D/clone' && git -C '$D/clone' status --porcelain | wc -l | grep -qx 0 && git -C '$D/clone' gc -q && git -C '$D/clone' fsck"
else skip "git clone" "not installed"; fi
check "find and grep -r end" sh -c "timeout 60 find '$M' >/dev/null && timeout 60 grep -rq cinq '$M'"
check "rm -rf of a whole folder" sh -c "rm -rf '$D/clone' '$D/moved' && [ ! -e '$D/clone' ]"
check "many files, listed and removed" sh -c "mkdir '$D/many' && cd '$D/many' && seq -f 'file%05.0f' 3000 | xargs touch && [ \$(ls | wc -l) = 3000 ] && rm -r '$D/many'"
mkdir "$D/posix"
"$H" posix "$D/posix"

# growing files
: >"$D/growing"
( for i in 1 2 3 4 5 6; do echo "line $i"; sleep 0.3; done >>"$D/growing" ) &
timeout 5 tail -n +1 -f "$D/growing" >"$T/tail" 2>/dev/null
if [ "$(wc -l <"$T/tail")" = 6 ]; then ok "tail -f"; else fail "tail -f" "$(cat "$T/tail")"; fi

# large
mb=256; [ -n "${FULL:-}" ] && mb=1024
head -c "${mb}M" /dev/urandom >"$T/big"
check "$mb MB in" cp "$T/big" "$D/big"
check "$mb MB the same" cmp "$T/big" "$D/big"
echo 3 2>/dev/null >/proc/sys/vm/drop_caches
check "$mb MB out" cp "$D/big" "$T/big2"
check "$mb MB out the same" cmp "$T/big" "$T/big2"
rm -f "$T/big2"
check "$mb MB within (copy_file_range)" sh -c "cp '$D/big' '$D/big2' && cmp '$T/big' '$D/big2' && rm '$D/big2'"

# other users
if [ "$(id -u)" = 0 ]; then
    as() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
    check "another user makes a dataset" as sh -c "mkdir '$M/datasets/theirs' && echo x > '$M/datasets/theirs/f' && ln -s f '$M/datasets/theirs/l'"
    owner=$(stat -c '%u:%g' "$M/datasets/theirs" "$M/datasets/theirs/f" "$M/datasets/theirs/l" | sort -u)
    if [ "$owner" = 65534:65534 ]; then ok "it belongs to them"; else fail "it belongs to them" "$owner"; fi
    if as touch "$D/x" 2>/dev/null; then fail "not into another's folder" "it worked"; else ok "not into another's folder"; fi
    if as rm -rf "$D" 2>/dev/null; then fail "another's dataset stays" "removed"; else ok "another's dataset stays"; fi
    if as mv "$D" "$M/datasets/stolen" 2>/dev/null; then fail "sticky collections" "moved"; else ok "sticky collections"; fi
    chmod 600 "$D/dd"
    if as cat "$D/dd" >/dev/null 2>&1; then fail "0600 is private" "read"; else ok "0600 is private"; fi
    if as chown 65534 "$D/dd" 2>/dev/null; then fail "chown is root's" "it worked"; else ok "chown is root's"; fi
    mkdir "$D/setgid"; chgrp 1234 "$D/setgid"; chmod 2777 "$D/setgid"
    as sh -c "mkdir '$D/setgid/sub'; echo x > '$D/setgid/f'"
    if [ "$(stat -c '%g' "$D/setgid/f")" = 1234 ] && [ "$(stat -c '%g %a' "$D/setgid/sub" | cut -c1-6)" = '1234 2' ]; then ok "set-group-id folders"
    else fail "set-group-id folders" "$(stat -c '%n %g %a' "$D"/setgid/*)"; fi
    as sh -c "umask 077; echo x > '$M/datasets/theirs/private'"
    if [ "$(stat -c %a "$M/datasets/theirs/private")" = 600 ]; then ok "umask"; else fail "umask" "$(stat -c %a "$M/datasets/theirs/private")"; fi
    echo bin >"$D/suid"; chmod 4777 "$D/suid"; as sh -c "echo y >> '$D/suid'"
    if [ "$(stat -c %a "$D/suid")" = 777 ]; then ok "a write drops set-user-id"; else fail "a write drops set-user-id" "$(stat -c %a "$D/suid")"; fi
else
    skip "other users" "needs root"
fi

# a link out of the tree leads the caller, never the daemon
ln -s /etc "$D/out"
check "a link out is only a link" sh -c "[ \"\$(readlink '$D/out')\" = /etc ] && rm '$D/out' && [ -d /etc ]"
ln -s "$T/src" "$S/tree/datasets/tools/behind"
check "a folder swapped for a link behind the mount" sh -c "[ -L '$D/behind' ]"

# behind the mount's back
echo one >"$D/behind1"; ino=$(stat -c %i "$D/behind1")
echo two >"$S/tree/datasets/tools/.new"; mv "$S/tree/datasets/tools/.new" "$S/tree/datasets/tools/behind1"
sleep 1.2
if [ "$(cat "$D/behind1")" = two ] && [ "$(stat -c %i "$D/behind1")" != "$ino" ]; then ok "a file replaced in the store is a new file"
else fail "a file replaced in the store is a new file" "$(cat "$D/behind1") $ino $(stat -c %i "$D/behind1")"; fi
echo more >>"$S/tree/datasets/tools/behind1"
sleep 1.2
if [ "$(wc -l <"$D/behind1")" = 2 ]; then ok "a file that grew in the store"; else fail "a file that grew in the store" "$(cat "$D/behind1")"; fi
