#!/usr/bin/env bash
# What asks to be on the disk is synced in the store before the call returns: fsync, fdatasync, of a folder, and single
# writes with RWF_DSYNC (the kernel's NFS server makes such).  tests/crash/shim.c records what dtxd does to its store.
. "$(dirname "$0")/lib.sh"
"${CC:-cc}" -shared -fPIC -O1 -o "$T/shim.so" "$ROOT/tests/crash/shim.c" -ldl || { skip "durable" "no C compiler"; exit 0; }
cat >"$T/write.c" <<'EOF'
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
int main(int argc, char **argv) /* HOW FILE */
{
    struct iovec one = {"\n", 1}; /* a record of the shim begins a line */
    int fd = open(argv[2], strcmp(argv[1], "folder") ? O_WRONLY : O_RDONLY), rc = 0;
    int flags = !strcmp(argv[1], "dsync") ? RWF_DSYNC : !strcmp(argv[1], "sync") ? RWF_SYNC : 0;

    if (strcmp(argv[1], "folder"))
        rc = pwritev2(fd, &one, 1, 0, flags) == 1 ? 0 : 1;
    if (!strcmp(argv[1], "fdatasync"))
        rc |= fdatasync(fd);
    else if (!strcmp(argv[1], "fsync") || !strcmp(argv[1], "folder"))
        rc |= fsync(fd);
    return rc;
}
EOF
${CC:-cc} -D_GNU_SOURCE -o "$T/write" "$T/write.c" || exit 1
D=$M/datasets/d
syncs() { grep -a -c "^F $(stat -c %i "$S/tree/datasets/d/$1") " "$T/record"; }
synced() { # MORE HOW FILE: the call makes so many syncs of the file, or more if it makes any
    local before n
    sleep 1.5 # what status shows is a second old
    wait_state 20 "$D.status" READY || return 1 # so that dtxd sees the write; else the kernel syncs by itself
    before=$(syncs "$3")
    "$T/write" "$2" "$D/$3" || { echo "the call fails"; return 1; }
    n=$(($(syncs "$3") - before))
    [ "$n" = "$1" ] || { [ "$1" -gt 0 ] && [ "$n" -gt 0 ]; } || { echo "$n syncs"; return 1; }
}
calls() { # HOW
    mkdir "$D"
    echo '{"text":"some words"}' >"$D/train.jsonl"
    echo '{"text":"some words"}' >"$D/note"
    : >"$D/_SUCCESS"
    check "$1: fsync" synced 1 fsync note
    check "$1: fdatasync" synced 1 fdatasync note
    check "$1: of the folder" synced 1 folder .
    check "$1: a write with RWF_DSYNC" synced 1 dsync note
    check "$1: a write with RWF_SYNC" synced 1 sync note
    check "$1: a mere write is not" synced 0 plain note
    rm -r "$D"
}
recorded() { ASAN_OPTIONS=$ASAN_OPTIONS:verify_asan_link_order=0 LD_PRELOAD=$T/shim.so SHIM_STORE=$S SHIM_LOG=$T/record start_dtxd "$@"; }
recorded || exit 1
calls "as it comes"
stop_dtxd
recorded --no-passthrough || exit 1
calls "through dtxd"
