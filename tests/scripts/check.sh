#!/usr/bin/env bash
# What CI holds every change to, short of running it: format, lints, documentation, dependencies, shell.
set -euo pipefail
cd "$(dirname "$0")/../.."
step() { echo "==> $*" >&2; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- --deny warnings
# The fuzz targets stand outside the workspace. They are checked with its lock file, which lacks the fuzzer alone, and never linked.
trap 'rm -f fuzz/Cargo.lock' EXIT
cp Cargo.lock fuzz/Cargo.lock
CUSTOM_LIBFUZZER_PATH=/never/linked.a step cargo check --manifest-path fuzz/Cargo.toml --target-dir target --quiet
RUSTDOCFLAGS="--deny warnings --allow rustdoc::private_intra_doc_links" step cargo doc --workspace --no-deps --document-private-items --locked --quiet
if ! cargo deny --version > /dev/null 2>&1; then
    # Built once, into cargo's own bin directory.
    step cargo install --quiet --locked cargo-deny
fi
# Advisories need a database from the network; a release checks them, a change does not.
step cargo deny --log-level error --all-features check bans licenses sources
for script in tests/*.sh tests/scripts/*.sh .ci/run; do
    [ ! -e "$script" ] || step bash -n "$script"
done
