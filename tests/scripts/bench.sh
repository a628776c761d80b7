#!/usr/bin/env bash
# Measures deployments beside the engine's raw API and beside installed peers, synchronising beside git,
# and the log of events as it grows; arguments go to the benches.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/scripts/install-deps.sh all
[ "$(id -u)" = 0 ] || { echo "hint: sudo env \"PATH=\$PATH\" make bench" >&2; exit 1; }
cargo build --quiet --release --locked --package mcp --package mcp-agent --bins
MCP_BIN_DIR=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/release
export MCP_BIN_DIR
cargo bench --quiet --locked --package mcp-tests --bench deploy -- "$@"
exec cargo bench --quiet --locked --package mcp-tests --bench retention -- "$@"
