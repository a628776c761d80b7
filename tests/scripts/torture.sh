#!/usr/bin/env bash
# torture: kills the agent at random moments of deployments and looks at what is left: [--kills N] [--seed S] [LANE...].
# faults: every fault of an engine at every call of a deployment: [--call NAME] [--fault NAME] [LANE...].
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/scripts/install-deps.sh all
if [ "$(id -u)" != 0 ]; then
    echo "error: two of the three engines are run by root" >&2
    echo "hint: sudo env \"PATH=\$PATH\" make ${1:-torture}" >&2
    exit 1
fi
cargo build --quiet --locked --package mcp --package mcp-agent --package mcp-tests --bins
MCP_BIN_DIR=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/debug
export MCP_BIN_DIR
exec "$MCP_BIN_DIR/${1:-torture}" "${@:2}"
