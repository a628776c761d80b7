#!/usr/bin/env bash
# A container engine of its own for tests, the demo and the benches.
#
#   engine.sh start podman|podman-rootless|docker DIR [--owner PID]   prints the engine's socket URL
#   engine.sh stop DIR                      containers, processes, mounts and the engine's files go
#   engine.sh kill DIR                      SIGKILL to the engine's service alone; its containers live on
#   engine.sh up DIR                        the service again, after `kill`
#   engine.sh exec DIR COMMAND...           runs COMMAND where the engine lives, with its client set up
#   engine.sh net DIR COMMAND...            runs COMMAND in the engine's network, as the caller
#   engine.sh image DIR NAME ROOTFS [CHANGE...]   imports a root file system as image NAME
#   engine.sh user DIR                      the user that an agent of this engine runs as
#
# An engine keeps every file of its own below DIR. Run by root, it lives in network and mount
# namespaces of its own as well: its bridges, firewall chains, published ports and mounts never meet
# those of the machine, and are gone with its last process. `--owner PID` stops the engine and removes
# DIR as soon as the process PID has ended, however it ended. docs/engines.md has the reasons for each
# setting below.
set -euo pipefail

self=$(readlink -f "$0")
test_user=mcp-test

die() { echo "engine.sh: $*" >&2; exit 1; }
usage() { sed -n '2,13s/^# \{0,1\}//p' "$self" >&2; exit 64; }
is_root() { [ "$(id -u)" = 0 ]; }

# --- What is known about an engine: its DIR ---------------------------------------------------------

load() {
    dir=$(readlink -f "$1")
    [ -f "$dir/lane" ] || die "$dir holds no engine"
    lane=$(cat "$dir/lane")
    user=$(cat "$dir/user")
    # A socket path is limited to 107 bytes, so it lies at the top of DIR.
    socket=$dir/engine.sock
    holder=$(own_pid "$dir/holder.pid")
}

# Not a zombie either: a slow parent may leave one for seconds.
alive() { [ -n "$1" ] && grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

# The process that FILE names, as long as it is this engine's: an id that outlived its process may by now be
# anybody's. Each of the engine's processes bears DIR on its command line.
own_pid() {
    local pid; pid=$(cat "$1" 2>/dev/null || true)
    if alive "$pid" && tr '\0' '\n' 2>/dev/null < "/proc/$pid/cmdline" | grep -qF "$dir/"; then echo "$pid"; fi
}

# When a process was started, in ticks since boot; nothing when it is gone.
started_at() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20 || true; }

# Runs a command in the engine's namespaces and as the engine's user, with its client set up.
inside() { (become "$@"); }

# The same in place of this shell, so that the process id stays known.
become() {
    local -a as=() ns=()
    if alive "$holder"; then
        ns=(nsenter --target "$holder" --net --mount "--wd=$dir")
    fi
    if [ "$user" != "$(id -un)" ]; then
        as=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups)
    fi
    local -a environment=("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin" "TMPDIR=$dir/tmp")
    if [ "$lane" = docker ]; then
        environment+=("DOCKER_HOST=unix://$socket" "HOME=$dir/home" "DOCKER_CONFIG=$dir/home/.docker")
    else
        environment+=("CONTAINERS_CONF=$dir/conf/containers.conf"
            "CONTAINERS_STORAGE_CONF=$dir/conf/storage.conf"
            "CONTAINERS_REGISTRIES_CONF=$dir/conf/registries.conf"
            "XDG_RUNTIME_DIR=$dir/run/user" "HOME=$dir/home" "XDG_CONFIG_HOME=$dir/home/.config"
            "XDG_DATA_HOME=$dir/home/.local/share" "DBUS_SESSION_BUS_ADDRESS=")
    fi
    cd "$dir"
    exec "${ns[@]}" "${as[@]}" env "${environment[@]}" "$@"
}

# --- Configuration ----------------------------------------------------------------------------------

configure_podman() {
    # One pool of addresses for each engine, so that two of them which share a network namespace
    # (rootless, run by a user) do not hand out the same ones.
    local octet=$((RANDOM % 100 + 100))
    # crun refuses hybrid cgroups, and podman's default limits need CAP_SYS_RESOURCE.
    # Locks in files: the default is one piece of shared memory for all engines of a user.
    cat > "$dir/conf/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$dir/run/libpod"
static_dir = "$dir/root/libpod"
volume_path = "$dir/root/volumes"
[network]
network_backend = "netavark"
network_config_dir = "$dir/networks"
default_subnet_pools = [{ base = "10.$octet.0.0/16", size = 24 }]
EOF
    cat > "$dir/conf/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$dir/root"
rootless_storage_path = "$dir/root"
runroot = "$dir/run/storage"
EOF
    # Any port of this machine may serve a test registry without TLS.
    cat > "$dir/conf/registries.conf" <<'EOF'
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "127.0.0.1"
location = "127.0.0.1"
insecure = true
EOF
}

configure_docker() {
    local octet=$((RANDOM % 100 + 100))
    # An own file: the machine's /etc/docker/daemon.json must not reach this daemon.
    cat > "$dir/conf/daemon.json" <<EOF
{
  "data-root": "$dir/root",
  "exec-root": "$dir/run",
  "pidfile": "$dir/dockerd.pid",
  "hosts": ["unix://$socket"],
  "bip": "10.$octet.0.1/24",
  "default-address-pools": [{ "base": "10.$((octet + 100 > 255 ? octet - 100 : octet + 100)).0.0/16", "size": 24 }],
  "deprecated-key-path": "$dir/conf/key.json",
  "group": "root",
  "live-restore": false,
  "log-level": "warn"
}
EOF
}

make_user() {
    is_root || return 0
    if ! getent passwd "$test_user" >/dev/null; then
        useradd --system --create-home --home-dir "/var/lib/$test_user" --shell /usr/sbin/nologin \
            --comment "rootless engine of the MCP tests" "$test_user" 2>/dev/null \
            || getent passwd "$test_user" >/dev/null || die "cannot add the user $test_user"
    fi
    local file
    for file in /etc/subuid /etc/subgid; do
        # `useradd --system` gives no subordinate ids. Take a range that nobody in the file has.
        if ! grep -q "^$test_user:" "$file" 2>/dev/null; then
            local next
            next=$(awk -F: 'BEGIN { m = 100000 } { e = $2 + $3; if (e > m) m = e } END { print m }' "$file" 2>/dev/null || echo 100000)
            echo "$test_user:$next:65536" >> "$file"
        fi
    done
}

# --- Processes --------------------------------------------------------------------------------------

# A process that holds the namespaces open, so that the service can die and come back inside them.
start_holder() {
    is_root || return 0
    # shellcheck disable=SC2016
    setsid unshare --net --mount --propagation slave bash -c '
        set -e
        ip link set lo up 2>/dev/null || busybox ip link set lo up
        # podman keeps network namespaces here, for every engine of the machine.
        mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && mount --make-shared /run/netns
        # And the state of its name server, whose process another engine would take for its own.
        mkdir -p /run/containers && mount -t tmpfs tmpfs /run/containers
        # Nothing outside can be reached from here. A name server that never answers would hold up the one
        # of the containers (aardvark-dns asks it for each name it does not know, one query after the other).
        if [ -e /etc/resolv.conf ]; then mount --bind "$1/conf/resolv.conf" "$(readlink -f /etc/resolv.conf)"; fi
        if [ "$2" = podman-rootless ]; then
            # Open to everyone, without changing the device node of the machine.
            mkdir -p "$1/dev"
            for node in "net/tun 10 200" "fuse 10 229"; do
                set -- "$1" "$2" $node
                [ -e "/dev/$3" ] || continue
                mknod -m 0666 "$1/dev/${3##*/}" c "$4" "$5"
                mount --bind "$1/dev/${3##*/}" "/dev/$3"
            done
        fi
        touch "$1/holder.ready"
        exec -a "$1/holder" sleep infinity
    ' holder "$dir" "$lane" < /dev/null >> "$dir/log" 2>&1 &
    holder=$!
    echo "$holder" > "$dir/holder.pid"
    local i
    for i in $(seq 100); do
        [ -e "$dir/holder.ready" ] && return 0
        alive "$holder" || die "no namespaces of its own for the engine: $(tail -3 "$dir/log")"
        sleep 0.05
    done
    die "namespaces were not ready after 5 s: $(tail -3 "$dir/log")"
}

answers() {
    [ -S "$socket" ] || return 1
    if command -v curl >/dev/null; then
        curl --silent --max-time 2 --unix-socket "$socket" http://localhost/_ping >/dev/null
    else
        inside timeout 5 "${1:-podman}" version >/dev/null 2>&1
    fi
}

start_service() {
    rm -f "$socket"
    if [ "$lane" = docker ]; then
        # containerd dies with a killed dockerd; as a zombie that nobody reaped yet it would still pass for alive.
        rm -f "$dir/dockerd.pid" "$dir/run/containerd/containerd.pid"
        become setsid dockerd --config-file "$dir/conf/daemon.json" < /dev/null >> "$dir/log" 2>&1 &
    else
        become setsid podman system service --time 0 "unix://$socket" < /dev/null >> "$dir/log" 2>&1 &
    fi
    # Everything before the engine's own program replaces itself by it: this is the engine.
    local pid=$! i
    echo "$pid" > "$dir/service.pid"
    for i in $(seq 300); do
        if answers "${lane%%-*}"; then return 0; fi
        alive "$pid" || die "$lane did not start: $(grep -v '^time=.*level=info' "$dir/log" | tail -5)"
        sleep 0.1
    done
    die "$lane did not answer at $socket within 30 s: $(tail -5 "$dir/log")"
}

# Ids of the containers in the engine's store, read without the engine.
container_ids() {
    local base
    for base in "$dir/root/overlay-containers" "$dir/root/containers"; do
        [ -d "$base" ] && find "$base" -mindepth 1 -maxdepth 1 -type d -printf '%f\n'
    done | grep -E '^[0-9a-f]{64}$' || true
}

# Processes that the engine left: of its containers (by cgroup), in its namespaces, and, rootless, those
# that its user's runtime directory names, since podman moves itself into namespaces of its own there.
leftover_pids() {
    local ids=$1 mnt=$2 net=$3 proc pid
    for proc in /proc/[0-9]*; do
        pid=${proc#/proc/}
        [ "$pid" != "$$" ] && [ "$pid" != "$BASHPID" ] || continue
        if [ -n "$mnt" ] && { [ "$(readlink "$proc/ns/mnt" 2>/dev/null)" = "$mnt" ] \
            || [ "$(readlink "$proc/ns/net" 2>/dev/null)" = "$net" ]; }; then echo "$pid"
        elif [ -n "$ids" ] && grep -qsF "$ids" "$proc/cgroup"; then echo "$pid"
        elif [ "$lane" = podman-rootless ] && tr '\0' '\n' 2>/dev/null < "$proc/environ" \
            | grep -qxF "XDG_RUNTIME_DIR=$dir/run/user"; then echo "$pid"
        fi
    done
}

# The service and, rootless, the copy of itself that it runs in a user namespace.
service_pids() {
    local pid; pid=$(own_pid "$dir/service.pid")
    [ -n "$pid" ] || return 0
    [ "$lane" = docker ] || pgrep -P "$pid" -x podman || true
    echo "$pid"
}

# --- Commands ---------------------------------------------------------------------------------------

cmd_start() {
    lane=$1; dir=$2; shift 2
    local owner=
    while [ $# -gt 0 ]; do
        case $1 in --owner) owner=$2; shift 2 ;; *) usage ;; esac
    done
    case $lane in podman | podman-rootless | docker) ;; *) usage ;; esac
    command -v "${lane%%-*}" >/dev/null || die "${lane%%-*} is not installed; run tests/scripts/install-deps.sh"
    if [ "$lane" != podman-rootless ] && ! is_root; then
        die "the lane $lane needs root; podman-rootless does not"
    fi
    mkdir -p "$dir"; dir=$(readlink -f "$dir")
    [ ! -e "$dir/lane" ] || die "$dir holds an engine already; stop it first"
    user=$(id -un)
    if [ "$lane" = podman-rootless ] && is_root; then make_user; user=$test_user; fi
    socket=$dir/engine.sock holder=
    [ ${#socket} -le 107 ] || die "$dir is too long a path for a socket"
    mkdir -p "$dir/conf" "$dir/root" "$dir/run/user" "$dir/run/libpod" "$dir/networks" "$dir/home/.config" "$dir/tmp"
    chmod 0711 "$dir"
    chmod 0700 "$dir/run/user"
    : > "$dir/log"
    echo "$user" > "$dir/user"
    if [ "$lane" = docker ]; then configure_docker; else configure_podman; fi
    if [ "$user" != "$(id -un)" ]; then
        chown "$user:" "$dir" "$dir/log"
        chown -R "$user:" "$dir/conf" "$dir/root" "$dir/run" "$dir/networks" "$dir/home" "$dir/tmp"
    fi
    echo "$lane" > "$dir/lane"
    echo "nameserver 127.0.0.1" > "$dir/conf/resolv.conf"
    trap 'cmd_stop "$dir" >&2 || true' EXIT
    start_holder
    start_service
    trap - EXIT
    if [ -n "$owner" ]; then
        # In a session of its own, with nothing of the caller's open: it outlives a killed test.
        setsid "$self" reap "$dir" "$owner" < /dev/null > /dev/null 2>&1 &
    fi
    echo "unix://$socket"
}

cmd_stop() {
    load "$1"
    local mnt= net= ids
    if alive "$holder"; then
        mnt=$(readlink "/proc/$holder/ns/mnt")
        net=$(readlink "/proc/$holder/ns/net")
    fi
    ids=$(container_ids)
    if [ "$lane" = docker ]; then
        inside timeout 20 bash -c 'docker ps -aq | xargs -r docker rm -f -v' > /dev/null 2>&1 || true
    else
        inside timeout 20 podman rm --all --force --time 0 > /dev/null 2>&1 || true
    fi
    local service pids i
    service=$(service_pids)
    if [ -n "$service" ]; then
        # shellcheck disable=SC2086
        kill $service 2>/dev/null || true
        for i in $(seq 50); do [ -n "$(service_pids)" ] || break; sleep 0.05; done
    fi
    # What a killed process leaves is one more reason to look again.
    for i in 1 2 3; do
        pids=$(leftover_pids "$ids" "$mnt" "$net")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086
        kill -9 $pids 2>/dev/null || true
    done
    local id
    for id in $ids; do
        find /sys/fs/cgroup -depth -type d -name "*$id*" -exec rmdir {} + 2>/dev/null || true
    done
    if [ "$lane" = podman-rootless ] && ! is_root; then
        inside podman unshare rm -rf "$dir/root" 2>/dev/null || true
        # `unshare` leaves a pause process that holds the user namespace.
        pids=$(leftover_pids "" "" "")
        # shellcheck disable=SC2086
        [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
    fi
    rm -rf "$dir/root" "$dir/run" "$dir/networks" "$dir/conf" "$dir/home" "$dir/tmp" "$dir/dev" \
        "$socket" "$dir"/*.pid "$dir/holder.ready" "$dir/user" "$dir/lane" || true
}

cmd_reap() {
    local started; started=$(started_at "$2")
    while alive "$2" && [ "$(started_at "$2")" = "$started" ]; do sleep 0.5; done
    "$self" stop "$1" || true
    rm -rf "$1"
}

cmd_kill() {
    load "$1"
    local pids; pids=$(service_pids)
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
    rm -f "$dir/service.pid"
}

cmd_up() {
    load "$1"
    if [ -n "$(own_pid "$dir/service.pid")" ] && answers; then return 0; fi
    start_service
}

cmd_image() {
    load "$1"
    local name=$2 rootfs=$3 change; shift 3
    local -a changes=()
    for change in "$@"; do changes+=(--change "$change"); done
    if [ "$lane" = docker ]; then
        tar -C "$rootfs" --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -c . | inside docker import "${changes[@]}" - "$name"
    else
        tar -C "$rootfs" --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -c . | inside podman import --quiet "${changes[@]}" - "$name"
    fi
}

[ $# -ge 2 ] || usage
command=$1; shift
case $command in
    start) [ $# -ge 2 ] || usage; cmd_start "$@" ;;
    stop) cmd_stop "$1" ;;
    reap) cmd_reap "$1" "$2" ;;
    kill) cmd_kill "$1" ;;
    up) cmd_up "$1" ;;
    exec) load "$1"; shift; inside "$@" ;;
    net) load "$1"; shift; if alive "$holder"; then exec nsenter --target "$holder" --net "$@"; else exec "$@"; fi ;;
    image) [ $# -ge 3 ] || usage; cmd_image "$@" ;;
    user) load "$1"; echo "$user" ;;
    *) usage ;;
esac
