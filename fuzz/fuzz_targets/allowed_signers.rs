//! See `mcp_tests::entries::allowed_signers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcp_tests::entries::allowed_signers(bytes));
