//! The `mcp` and `mcp-agent` binaries under test.
//!
//! `MCP_BIN_DIR` names a directory that holds them. Without it they are built once a process, by the
//! cargo and into the target directory of the running test, so that a test never runs a stale binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::engine::run;

/// Paths of the binaries under test.
#[derive(Debug)]
pub struct Binaries {
    /// The command line.
    pub mcp: PathBuf,
    /// The agent.
    pub agent: PathBuf,
}

/// The binaries under test, built where that is needed.
///
/// # Panics
///
/// Where they cannot be built: no end-to-end test means anything without them.
#[must_use]
pub fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES
        .get_or_init(|| locate().unwrap_or_else(|error| panic!("no binaries to test: {error:#}")))
}

fn locate() -> Result<Binaries> {
    let dir = match std::env::var_os("MCP_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => build()?,
    };
    let found = Binaries {
        mcp: dir.join("mcp"),
        agent: dir.join("mcp-agent"),
    };
    for path in [&found.mcp, &found.agent] {
        if !path.is_file() {
            bail!("{} is not there", path.display());
        }
    }
    Ok(found)
}

/// Builds into the profile directory that this test was built into.
fn build() -> Result<PathBuf> {
    // target/PROFILE/deps/TEST-hash
    let test = std::env::current_exe()?;
    let profile_dir = test
        .parent()
        .and_then(Path::parent)
        .context("a test binary lies in target/PROFILE/deps")?;
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args([
            "build",
            "--quiet",
            "--profile",
            profile,
            "--package",
            "mcp",
            "--package",
            "mcp-agent",
            "--bins",
        ]))?;
    Ok(profile_dir.to_owned())
}
