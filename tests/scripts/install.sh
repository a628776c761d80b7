#!/usr/bin/env bash
# Builds for release and installs `mcp` and `mcp-agent` (into ~/.cargo/bin, or `--root DIR`).
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo install --locked --path cli "$@"
cargo install --locked --path agent "$@"
