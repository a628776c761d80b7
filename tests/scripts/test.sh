#!/usr/bin/env bash
# Every test, on every engine. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/scripts/install-deps.sh all
if [ "$(id -u)" != 0 ]; then
    echo "error: two of the three engines are run by root, and so are their tests" >&2
    echo "hint: sudo env \"PATH=\$PATH\" make test" >&2
    exit 1
fi
# What a test waits for is an engine more often than the processor.
: "${RUST_TEST_THREADS:=$(( $(nproc) * 2 ))}"
export RUST_TEST_THREADS
cargo build --workspace --bins
MCP_BIN_DIR=$(cargo metadata --format-version 1 --no-deps | jq -r .target_directory)/debug
export MCP_BIN_DIR
exec cargo test --workspace "$@"
