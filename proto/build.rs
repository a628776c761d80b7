//! Compiles `mcp/v1/*.proto` without `protoc`, and keeps the descriptors for reflection and tests.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

const FILES: [&str; 8] = [
    "mcp/v1/types.proto",
    "mcp/v1/revisions.proto",
    "mcp/v1/deployments.proto",
    "mcp/v1/registry.proto",
    "mcp/v1/workloads.proto",
    "mcp/v1/node.proto",
    "mcp/v1/files.proto",
    "mcp/v1/secrets.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=mcp");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_fds(descriptors)?;
    Ok(())
}
