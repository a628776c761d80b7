//! See `mcp_tests::entries::sshsig`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcp_tests::entries::sshsig(bytes));
