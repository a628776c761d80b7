//! The wire contract: the generated messages and services of package `mcp.v1`.
//!
//! `convert` turns messages into domain types and back, and is the only place that trusts nothing.

pub mod convert;

/// The generated code of package `mcp.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    reason = "generated from the .proto files, which carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("mcp.v1");
}

/// The encoded `FileDescriptorSet` of package `mcp.v1`, for reflection and for tests.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
