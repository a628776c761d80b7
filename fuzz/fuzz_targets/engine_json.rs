//! See `mcp_tests::entries::engine_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcp_tests::entries::engine_json(bytes));
