#!/usr/bin/env bash
# Makes the agent wrong in each way that tests/mutations knows, and tells which test fails of it: [--seeds N] [NAME...].
set -euo pipefail
cd "$(dirname "$0")/../.."
exec cargo run --quiet --locked --package mcp-tests --bin mutants -- "$@"
