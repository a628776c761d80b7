#!/usr/bin/env bash
# Every test, on every engine. Arguments go to `cargo test`.
#
# An end-to-end test that fails is run once more, when nothing else runs: a real engine on a busy machine
# has bad moments. What passes then is named as unsteady at the end, and is a defect to look into; what
# fails twice, more than three that fail, and any other test that fails end the run with 1.
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

output=$(mktemp)
trap 'rm -f "$output"' EXIT
cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$output" && exit 0

# At the end cargo names each target that failed: `-p mcp-tests --test loss`.
mapfile -t targets < <(sed -n 's/^    `\(-p .*\)`$/\1/p' "$output" | sort -u)
mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$output" | sort -u)
for target in "${targets[@]}"; do
    [[ $target == "-p mcp-tests --test "* ]] || exit 1
done
if (( ${#targets[@]} == 0 || ${#failed[@]} == 0 || ${#failed[@]} > 3 )); then
    exit 1
fi
printf '\nonce more, alone: %s\n' "${failed[*]}"
names=()
for target in "${targets[@]}"; do names+=(--test "${target##* }"); done
RUST_TEST_THREADS=1 cargo test --workspace --no-fail-fast "${names[@]}" -- --exact "${failed[@]}" 2>&1 | tee "$output"
# Each of them was really run.
passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$output" | awk '{ n += $1 } END { print n + 0 }')
if (( passed < ${#failed[@]} )); then
    echo "error: ${#failed[@]} tests failed, and $passed passed when run again" >&2
    exit 1
fi
printf '\nUNSTEADY (failed once, passed alone): %s\n' "${failed[*]}"
