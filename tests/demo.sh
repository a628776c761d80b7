#!/usr/bin/env bash
# The main job, told and shown: a signed revision becomes running containers, and goes back.
#
#   make demo                     on podman or docker, whichever is there
#   MCP_ENGINE=docker make demo   podman, podman-rootless or docker
#   KEEP=1 make demo              leaves it running, and says how to talk to it
#   MCP_BIN_DIR=DIR make demo     with binaries that are there already
#
# It uses an engine of its own in a temporary directory, touches nothing else of the machine, and ends
# non-zero as soon as a step does not do what it says.
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD
engine_sh=$repo/tests/scripts/engine.sh

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' cyan=$'\e[36m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' cyan='' plain=''
fi
chapter() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
well() { printf '%s✓ %s%s\n' "$green" "$*" "$plain"; }
die() { printf '%s✗ %s%s\n' "$red" "$*" "$plain" >&2; exit 1; }
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" > /dev/null; }

# --- Engine, binaries, then the rest within the engine's network ------------------------------------

choose_engine() {
    case ${MCP_ENGINE:-} in
        podman) if [ "$(id -u)" = 0 ]; then echo podman; else echo podman-rootless; fi ;;
        podman-rootless | docker) echo "$MCP_ENGINE" ;;
        '')
            if has podman; then MCP_ENGINE=podman choose_engine
            elif has dockerd; then echo docker
            # Older releases have no netavark, and so no names between podman's containers.
            elif apt-cache show netavark > /dev/null 2>&1 || ! apt-cache show docker.io > /dev/null 2>&1; then
                MCP_ENGINE=podman choose_engine
            else echo docker
            fi ;;
        *) die "MCP_ENGINE=$MCP_ENGINE: write podman, podman-rootless or docker" ;;
    esac
}

if [ "${1:-}" != --body ]; then
    lane=$(choose_engine)
    tests/scripts/install-deps.sh "${lane%%-*}"
    if [ -z "${MCP_BIN_DIR:-}" ]; then
        has cargo || die "cargo is not installed; https://rustup.rs tells how"
        say "building mcp and mcp-agent (a few minutes the first time)"
        cargo build --quiet --locked --package mcp --package mcp-agent --bins
        MCP_BIN_DIR=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/debug
        export MCP_BIN_DIR
    fi
    if [ "$lane" = docker ] && [ "$(id -u)" != 0 ]; then
        [ -t 0 ] && has sudo || { echo "hint: sudo env MCP_ENGINE=docker MCP_BIN_DIR=$MCP_BIN_DIR make demo" >&2; die "a dockerd of its own needs root"; }
        printf 'A dockerd of its own needs root. Go on with sudo? [y/N] '
        read -r answer
        case $answer in y | Y | yes) ;; *) exit 1 ;; esac
        exec sudo env MCP_ENGINE=docker MCP_BIN_DIR="$MCP_BIN_DIR" KEEP="${KEEP:-}" PATH="$PATH" "$0"
    fi

    dir=$(mktemp -d /tmp/mcp-demo-XXXXXX)
    chmod 0755 "$dir"
    agent_pid() { cat "$dir/agent.pid" 2> /dev/null || true; }
    clean() {
        local code=$?
        if [ "$code" != 0 ] && [ -s "$dir/agent.log" ]; then
            echo "--- the agent's log" >&2
            tail -30 "$dir/agent.log" >&2
        fi
        if [ -n "${KEEP:-}" ] && [ -e "$dir/ready" ]; then exit "$code"; fi
        pid=$(agent_pid)
        [ -z "$pid" ] || kill "$pid" 2> /dev/null || true
        [ ! -e "$dir/e/lane" ] || "$engine_sh" stop "$dir/e" || true
        rm -rf "$dir"
        exit "$code"
    }
    trap clean EXIT
    trap 'exit 130' INT TERM
    "$engine_sh" start "$lane" "$dir/e" > /dev/null
    "$engine_sh" net "$dir/e" "$0" --body "$dir" "$lane"
    exit 0
fi

# --- The body ---------------------------------------------------------------------------------------

dir=$2 lane=$3
engine=${lane%%-*}
user=$("$engine_sh" user "$dir/e")
PATH=$MCP_BIN_DIR:$PATH
# A workstation of its own: whoever runs this keeps their git, SSH and mcp configuration to themselves.
work=$dir/alice
mkdir -p "$work/.ssh"
unset "${!MCP_@}" "${!GIT_@}" SSH_AUTH_SOCK
export HOME=$work XDG_CONFIG_HOME=$work/.config XDG_STATE_HOME=$work/.local/state MCP_REPO=$work/desired
export GIT_CONFIG_NOSYSTEM=1 USER=alice LOGNAME=alice
cd "$work"
git config --global user.name Alice
git config --global user.email alice@example.net
git config --global init.defaultBranch main

# Shows a command, runs it, and holds it to an exit code.
run() { expect 0 "$@"; }
expect() {
    local wanted=$1 code=0; shift
    printf '%s$ %s%s\n' "$cyan" "$(quoted "$@")" "$plain"
    "$@" || code=$?
    [ "$code" = "$wanted" ] || die "\`$(quoted "$@")\` exited with $code, and $wanted was to be"
    [ "$wanted" = 0 ] || say "[exit $code]"
}
quoted() {
    local word out=
    for word in "$@"; do
        case $word in *' '* | '') word="\"$word\"" ;; esac
        out="$out $word"
    done
    echo "${out# }" | sed "s|as_agent $dir/node/||; s|$work|~|g; s|$dir|DIR|g"
}
# Holds a fact: holds "what" "wanted" "found".
holds() { if [ "$2" = "$3" ]; then well "$1: $3"; else die "$1: $3, and not $2"; fi; }
engine() { "$engine_sh" exec "$dir/e" "$engine" "$@"; }
id_of() { engine inspect --format '{{.Id}}' "$1" 2> /dev/null | cut -c1-12; }
as_agent() {
    if [ "$user" = "$(id -un)" ]; then "$@"
    else setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups "$@"
    fi
}
# What is published answers, at the latest, when the engine's proxy and name server have caught up.
answer_of() {
    local _ answer
    for _ in $(seq 50); do
        if answer=$(curl --silent --fail --max-time 2 "http://127.0.0.1:$1") && [ "$answer" = "$2" ]; then break; fi
        sleep 0.1
    done
    echo "${answer:-nothing}"
}
# Holds what a published port answers.
answers() { holds "$1" "$3" "$(answer_of "$2" "$3")"; }
edit() {
    local file=$1 from=$2 to=$3
    printf '%s$ sed -i "s|%s|%s|" %s%s\n' "$cyan" "$from" "$to" "${file#"$MCP_REPO/"}" "$plain"
    grep -qF "$from" "$file" || die "$from is not in $file"
    sed -i "s|$from|$to|" "$file"
}
started=$SECONDS

chapter "A node"
say "An agent on $("$engine_sh" exec "$dir/e" "$engine" --version), with images made on the spot."
for image in metacrypt:v1.4.0 metacrypt:v1.5.0 metacrypt:v1.6.0 metacrypt-web:v1.4.0 ledger:v2.0.0; do
    rm -rf "$dir/rootfs"
    "$repo/tests/scripts/rootfs.sh" "$dir/rootfs" "${image#*:}" "$repo/tests/images/${image%:*}"
    change=()
    [ "${image%:*}" != metacrypt-web ] || change=('CMD ["web"]')
    "$engine_sh" image "$dir/e" "localhost/mcp-demo/$image" "$dir/rootfs" "${change[@]}" > /dev/null
done
rm -rf "$dir/rootfs"
ssh-keygen -q -t ed25519 -N '' -C alice -f "$work/.ssh/id_ed25519"
install -d -m 0755 "$dir/node"
# Where the engine's user can reach them, whatever this checkout's mode is.
install -m 0755 "$(command -v mcp-agent)" "$dir/node/mcp-agent"
install -m 0644 "$work/.ssh/id_ed25519.pub" "$dir/node/alice.pub"
install -d "$dir/node/data" "$dir/node/srv"
[ "$user" = "$(id -un)" ] || chown -R "$user:" "$dir/node"
run as_agent "$dir/node/mcp-agent" init --node rift --data-dir "$dir/node/data" --config "$dir/node/data/agent.toml" \
    --services-dir "$dir/node/srv" --listen 127.0.0.1:9444 --engine "$engine" \
    --socket "unix://$dir/e/engine.sock" --trust "$dir/node/alice.pub"
well "the node trusts alice's key and nobody else's"
as_agent "$dir/node/mcp-agent" serve --config "$dir/node/data/agent.toml" < /dev/null > "$dir/agent.log" 2>&1 &
agent=$!
echo "$agent" > "$dir/agent.pid"
for _ in $(seq 100); do
    if (exec 3<> /dev/tcp/127.0.0.1/9444) 2> /dev/null; then break; fi
    kill -0 "$agent" 2> /dev/null || die "the agent ended"
    sleep 0.1
done
as_agent "$dir/node/mcp-agent" token issue --config "$dir/node/data/agent.toml" --subject alice --role admin > "$dir/token"

chapter "A repository: what ought to run, in git, signed"
cp -r "$repo/example-repo" "$MCP_REPO"
cd "$MCP_REPO"
run mcp init "$MCP_REPO" --key "$work/.ssh/id_ed25519"
run mcp node add rift 127.0.0.1:9444 --ca "$dir/node/data/tls/ca.pem"
run mcp login --token-stdin < "$dir/token"
run mcp service check
run mcp sync -m "first"
first=$(git rev-parse HEAD)
git verify-commit HEAD 2> /dev/null || die "stock git does not verify the commit"
well "stock git verifies the commit $(git rev-parse --short HEAD)"

chapter "Deploy"
run mcp plan metacrypt
run mcp deploy metacrypt
run mcp deploy ledger
answers "web asks api, over the service's own network" 18080/cgi-bin/api "web v1.4.0, api v1.4.0"
answers "ledger's app runs after its migration" 18090/healthz ok
run mcp list
say "The same again finds nothing to do."
run mcp deploy metacrypt

chapter "One component changes"
api=$(id_of metacrypt-api) web=$(id_of metacrypt-web)
edit services/metacrypt.toml metacrypt:v1.4.0 metacrypt:v1.5.0
run mcp plan metacrypt
run mcp deploy metacrypt
[ "$(id_of metacrypt-api)" != "$api" ] || die "api was not replaced"
holds "web is the very same container" "$web" "$(id_of metacrypt-web)"
answers "the answer" 18080/cgi-bin/api "web v1.4.0, api v1.5.0"
run git log --oneline -2

chapter "Somebody works by hand, past MCP"
engine rm --force metacrypt-web > /dev/null
say "(metacrypt-web was removed with $engine's own command)"
expect 2 mcp status --exit-code
run mcp deploy metacrypt
answers "repaired" 18080/cgi-bin/api "web v1.4.0, api v1.5.0"

chapter "A version that does not work"
say "v1.6.0 wants a key that the configuration lacks. Its health check never passes."
api=$(id_of metacrypt-api)
edit services/metacrypt.toml metacrypt:v1.5.0 metacrypt:v1.6.0
expect 3 mcp deploy metacrypt
holds "the old container runs again, the very same" "$api" "$(id_of metacrypt-api)"
answers "the answer" 18080/cgi-bin/api "web v1.4.0, api v1.5.0"
run mcp why metacrypt/api

chapter "Back to an older revision"
run mcp deploy metacrypt --rev "${first:0:7}"
answers "the answer" 18080/cgi-bin/api "web v1.4.0, api v1.4.0"
say "What was deployed by an older revision is held there: nothing moves it until it is released."
run mcp list
run mcp release metacrypt

chapter "Somebody else's commit"
say "A revision that alice did not sign gets no further than the node's door."
edit services/metacrypt.toml metacrypt:v1.6.0 metacrypt:v1.5.0
git -c commit.gpgsign=false commit --quiet --all --message "mallory was here"
expect 7 mcp sync
git reset --quiet --soft HEAD~1
git reset --quiet
run mcp sync
run mcp deploy metacrypt

chapter "What happened"
run mcp history metacrypt
run mcp events -q
run mcp status

well "all of it did what it says, in $((SECONDS - started)) s"
if [ -n "${KEEP:-}" ]; then
    cat > "$dir/shell" <<EOF
#!/usr/bin/env bash
# A shell on alice's workstation, in the network of the node.
export HOME=$work XDG_CONFIG_HOME=$XDG_CONFIG_HOME XDG_STATE_HOME=$XDG_STATE_HOME MCP_REPO=$MCP_REPO
export PATH=$PATH
cd $MCP_REPO
exec $engine_sh net $dir/e "\${@:-bash}"
EOF
    cat > "$dir/stop" <<EOF
#!/usr/bin/env bash
kill $agent
$engine_sh stop $dir/e
rm -rf $dir
EOF
    chmod +x "$dir/shell" "$dir/stop"
    touch "$dir/ready"
    chapter "Still running"
    echo "$dir/shell mcp status                         # a command of yours"
    echo "$dir/shell curl 127.0.0.1:18080/cgi-bin/api   # the service"
    echo "$dir/shell                                    # a shell there, in alice's repository"
    echo "$dir/stop                                     # ends it and removes everything"
fi
