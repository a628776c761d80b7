#!/usr/bin/env bash
# Installs what tests, benches and the demo need on Debian and Ubuntu; does nothing where all is there.
#
#   install-deps.sh [all|podman|docker|none]      `all` is the default; `none`: tools, but no engine
#
# As root it asks nothing; else it asks before it uses sudo, and without a terminal it ends with a hint.
set -euo pipefail

engine=${1:-all}
# One line each: the program (or file) that shows the package is there, and the package.
tools='
cc gcc
git git
ssh-keygen openssh-client
curl curl
ip iproute2
setpriv util-linux
unshare util-linux
pgrep procps
jq jq
sqlite3 sqlite3
script bsdutils
busybox busybox-static'
podman='
podman podman
runc runc
conmon conmon
netavark netavark
aardvark-dns aardvark-dns
iptables iptables
newuidmap uidmap
catatonit catatonit
slirp4netns slirp4netns
fuse-overlayfs fuse-overlayfs
docker-registry docker-registry'
docker='
dockerd docker.io
docker docker.io
apparmor_parser apparmor
runc runc
iptables iptables
docker-registry docker-registry'

case $engine in
    all) wanted="$tools$podman$docker" ;;
    podman) wanted="$tools$podman" ;;
    docker) wanted="$tools$docker" ;;
    none) wanted=$tools ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac

# Programs of the system are not always in a user's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

is_there() {
    case $1 in
        # Debian keeps podman's helpers out of the PATH.
        netavark | aardvark-dns) [ -x "/usr/lib/podman/$1" ] || [ -x "/usr/libexec/podman/$1" ] || command -v "$1" > /dev/null ;;
        # The plain busybox package would do for its user, and not for a container: it is linked dynamically.
        busybox) busybox --list > /dev/null 2>&1 && ! ldd "$(command -v busybox)" > /dev/null 2>&1 ;;
        *) command -v "$1" > /dev/null ;;
    esac
}

missing=
while read -r program package; do
    [ -n "$program" ] || continue
    is_there "$program" || case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done <<< "$wanted"
missing=${missing# }
[ -n "$missing" ] || exit 0

command -v apt-get > /dev/null || {
    echo "error: these packages are missing: $missing" >&2
    echo "hint: this machine has no apt-get; install them (or what provides the same programs) and run again" >&2
    exit 1
}

sudo=
if [ "$(id -u)" != 0 ]; then
    if ! { [ -t 0 ] && [ -t 2 ] && command -v sudo > /dev/null; }; then
        echo "error: these packages are missing: $missing" >&2
        echo "hint: sudo apt-get install --no-install-recommends $missing" >&2
        exit 1
    fi
    printf 'To be installed with sudo apt-get: %s\nGo on? [y/N] ' "$missing" >&2
    read -r answer
    case $answer in y | Y | yes) sudo=sudo ;; *) exit 1 ;; esac
fi

echo "installing $missing" >&2
export DEBIAN_FRONTEND=noninteractive
# The tests start engines of their own. A service that the package would start now would take ports,
# bridges and firewall chains that nobody asked for, so packages may not start any while they unpack.
policy=/usr/sbin/policy-rc.d
placed=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" > /dev/null
    $sudo chmod 0755 "$policy"
    placed=yes
fi
trap '[ -z "$placed" ] || $sudo rm -f "$policy"' EXIT

# shellcheck disable=SC2086
install() { $sudo apt-get install --yes --quiet --no-install-recommends $missing > "$log" 2>&1; }
log=$(mktemp)
# The lists may be older than the mirror; fetch them only when they do not do.
install || { $sudo apt-get update --quiet >> "$log" 2>&1 && install; } || {
    tail -20 "$log" >&2
    echo "error: apt-get could not install: $missing" >&2
    exit 1
}
rm -f "$log"
