//! See `mcp_tests::entries::definition`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcp_tests::entries::definition(bytes));
