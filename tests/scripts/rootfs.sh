#!/usr/bin/env bash
# Lays out a root file system to import as an image: a static busybox and what OVERLAY holds.
#
#   rootfs.sh OUT VERSION [OVERLAY]
#
# VERSION is written to /etc/version and /www/version, so that two versions never have one digest.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64; }
out=$1 version=$2 overlay=${3:-}

busybox=$(command -v busybox) || { echo "rootfs.sh: busybox-static is not installed" >&2; exit 1; }
mkdir -p "$out"/{bin,etc,tmp,proc,sys,dev,run,www,srv}
chmod 1777 "$out/tmp"
# The links point at the busybox of this machine, in /bin or /usr/bin; both names exist in the image.
busybox --install -s "$out/bin"
rm -f "$out/bin/busybox"
cp -L "$busybox" "$out/bin/busybox"
ln -sfn bin "$out/sbin"
mkdir -p "$out/usr"; ln -sfn ../bin "$out/usr/bin"
echo root:x:0:0:root:/:/bin/sh > "$out/etc/passwd"
echo app:x:1000:1000:app:/:/bin/sh >> "$out/etc/passwd"
printf 'root:x:0:\napp:x:1000:\n' > "$out/etc/group"
[ -z "$overlay" ] || cp -r "$overlay/." "$out/"
echo "$version" > "$out/etc/version"
echo "$version" > "$out/www/version"
chmod -R a+rX "$out"
