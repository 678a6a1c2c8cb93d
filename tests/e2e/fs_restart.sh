#!/usr/bin/env bash
# Node ids and handles over restarts; one daemon a store; dead mounts.
. "$(dirname "$0")/lib.sh"
H=$T/fs_helper
${CC:-cc} -O1 -D_GNU_SOURCE -Wno-unused-result -o "$H" "$ROOT/tests/e2e/fs_helper.c" || exit 1
start_dtxd || exit 1
D=$M/datasets/d
mkdir -p "$D/sub"
echo hello >"$D/f"; ln "$D/f" "$D/sub/hard"; mkdir "$D/old"; echo deep >"$D/old/deep"; mv "$D/old" "$D/new"
inodes() { (cd "$M" && stat -c '%n %i' . status README.md datasets datasets/README.md experiments bin/dtx datasets/d datasets/d/f datasets/d/sub/hard datasets/d/new/deep); }
before=$(inodes)
hf=$("$H" handle "$D/f"); hd=$("$H" handle "$D/new"); hg=$("$H" handle "$M/README.md"); hr=$("$H" handle "$M")
ino=$(stat -c %i "$D/f")
dev=$(stat -c %d "$M")

handles() { # WHEN
    out=$("$H" open "$M" "$hf" 2>&1)
    if [ "$out" = "$ino 6 hello" ]; then ok "handle of a file $1"; else fail "handle of a file $1" "$out"; fi
    check "handle of a folder $1" "$H" open "$M" "$hd"
    check "handle of a generated file $1" "$H" open "$M" "$hg"
    check "handle of the root $1" "$H" open "$M" "$hr"
}
if [ "$(id -u)" = 0 ]; then
    handles "at once"
    echo 3 >/proc/sys/vm/drop_caches
    handles "after drop_caches"
fi
if "$BUILD/dtxd" --store "$S" --devices cpu "$T/other" >"$T/second" 2>&1; then fail "a second daemon on the store" "it started"; else
    if [ -s "$T/second" ]; then ok "a second daemon on the store: $(tail -n 1 "$T/second" | cut -c1-60)"; else fail "a second daemon on the store" "no words"; fi; fi
if "$BUILD/dtxd" --store "$T/store2" --devices cpu "$M" >"$T/second" 2>&1; then fail "a second mount there" "it started"; else
    if grep -q mounted "$T/second"; then ok "a second mount there"; else fail "a second mount there" "$(cat "$T/second")"; fi; fi
mkdir "$T/in"
for pair in "$T/in $T/in/mnt" "$T/in/store $T/in" "$T/in $T/in"; do
    if "$BUILD/dtxd" --store "${pair% *}" --devices cpu "${pair#* }" >"$T/err" 2>&1; then fail "store and mountpoint inside each other" "$pair"; else
        grep -q 'contain each other' "$T/err" && ok "store and mountpoint inside each other: ${pair//$T/}" || fail "store and mountpoint inside each other" "$(cat "$T/err")"; fi
done

stop_dtxd; check "SIGTERM" test $? = 0
if [ "$(id -u)" = 0 ] && mkdir "$T/shm1" "$T/shm2" && mount -t tmpfs none "$T/shm1" && mount -t tmpfs none "$T/shm2"; then
    start_dtxd || exit 1
    if [ "$(stat -c %d "$M")" = "$dev" ]; then ok "st_dev after a restart, with other mounts in between"; else fail "st_dev after a restart, with other mounts in between" "$dev, now $(stat -c %d "$M")"; fi
    umount "$T/shm1" "$T/shm2"
else
    start_dtxd || exit 1
    skip "st_dev after a restart" "mounting needs root"
fi
after=$(inodes)
if [ "$before" = "$after" ]; then ok "inode numbers after a restart"; else fail "inode numbers after a restart" "$(diff <(echo "$before") <(echo "$after"))"; fi
if [ "$(id -u)" = 0 ]; then handles "after a restart"; else skip "handles" "open_by_handle_at needs root"; fi

# killed
echo late >"$D/late"; sleep 0.5
late=$(stat -c %i "$D/late"); hl=$("$H" handle "$D/late")
kill_dtxd
stat "$M/status" >/dev/null 2>&1 && fail "a killed daemon's mount is dead" "it answers"
start_dtxd || exit 1
ok "a dead mount is cleared"
if [ "$(grep -c " $M fuse" /proc/mounts)" = 1 ]; then ok "one mount is left"; else fail "one mount is left" "$(grep "$M" /proc/mounts)"; fi
if [ "$(inodes)" = "$before" ] && [ "$(stat -c %i "$D/late")" = "$late" ]; then ok "inode numbers after kill -9"; else fail "inode numbers after kill -9" "$(inodes)"; fi
[ "$(id -u)" = 0 ] && check "a handle from before kill -9" "$H" open "$M" "$hl"

# never the same id for another file
rm "$D/f" "$D/sub/hard"; echo other >"$D/f"
if [ "$(stat -c %i "$D/f")" != "$ino" ]; then ok "a new file has a new id"; else fail "a new file has a new id" "$ino"; fi
if [ "$(id -u)" = 0 ]; then
    if "$H" open "$M" "$hf" 2>"$T/err"; then fail "a removed file's handle is stale" "it opened"; else
        grep -q 'Stale' "$T/err" && ok "a removed file's handle is stale" || fail "a removed file's handle is stale" "$(cat "$T/err")"; fi
fi

# busy at SIGTERM: detached, and it ends
exec 7<"$D/f"
stop_dtxd; check "SIGTERM while a file is open" test $? = 0
if mounted; then fail "it is unmounted all the same" "mounted"; else ok "it is unmounted all the same"; fi
exec 7<&-

# a container that began meanwhile has a copy of the mount, which umount(2) does not reach
start_dtxd || exit 1
if unshare --mount --propagation private true 2>/dev/null; then
    unshare --mount --propagation private sleep 300 &
    elsewhere=$!
    wait_for 5 sh -c "[ \$(readlink /proc/$elsewhere/ns/mnt) != \$(readlink /proc/$$/ns/mnt) ]"
    kill -TERM "$DTXD_PID"
    check "SIGTERM while another mount namespace has the mount" wait_for 15 gone "$DTXD_PID"
    check "in words" grep -q 'another mount namespace' "$S/tree/log"
    kill "$elsewhere"
    stop_dtxd; check "with status 0" test $? = 0
else
    skip "SIGTERM while another mount namespace has the mount" "unshare(1) may not make one here"
fi

# in the background: returns when the mount is live
"$BUILD/dtxd" --store "$S" --devices cpu --log "$T/dtxd.log" "$M"; rc=$?
if [ $rc = 0 ] && [ -f "$M/README.md" ]; then ok "the daemon returns when the mount is live"; else fail "the daemon returns when the mount is live" "$rc"; fi
umount "$M" 2>/dev/null || fusermount3 -u "$M"
# the store's lock is free again once it has ended
check "umount ends it" wait_for 10 sh -c "'$BUILD/dtxd' --store '$S' --devices cpu --log '$T/dtxd.log' '$M'"
umount "$M" 2>/dev/null || fusermount3 -u "$M"
"$BUILD/dtxd" --store "$S" "$T/no/such/folder" >"$T/err" 2>&1; rc=$?
if [ $rc != 0 ] && [ -s "$T/err" ]; then ok "a wrong mountpoint in words"; else fail "a wrong mountpoint in words" "$rc"; fi
check "--help" sh -c "'$BUILD/dtxd' --help | grep -q -- --store"
check "--version" sh -c "'$BUILD/dtxd' --version | grep -q dtxd"
