#!/bin/sh
# Install what DTX needs from Debian's (or Ubuntu's) packages.
#   deps.sh               install everything
#   deps.sh --if-missing  only when something is missing
#   deps.sh --tests       also what some tests need and skip without: a real NFS server, another shell, g++
#   deps.sh --clang       also clang, its sanitizers and libFuzzer (for `make check-all`)
set -eu
pkgs="gcc make pkg-config libc6-dev libfuse3-dev fuse3 libjansson-dev libsqlite3-dev check libopenblas-pthread-dev
libpcre2-dev libutf8proc-dev libssl-dev zlib1g-dev rsync attr procps"
missing_only=no
for arg; do
    case $arg in
    --if-missing) missing_only=yes ;;
    --tests) pkgs="$pkgs busybox nfs-ganesha nfs-ganesha-vfs python3 g++" ;;
    --clang) pkgs="$pkgs clang libclang-rt-14-dev llvm" ;;
    *) echo "deps.sh: unknown option $arg (expected --if-missing or --clang)" >&2; exit 2 ;;
    esac
done
missing=
for p in $pkgs; do
    dpkg-query -W -f='${db:Status-Abbrev}\n' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ "$missing_only" = yes ] && [ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "deps.sh: missing packages:$missing; install them as root" >&2; exit 1; }
    sudo=sudo
else
    sudo=
fi
echo "installing:${missing:-" (all present)"}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $pkgs >/dev/null
