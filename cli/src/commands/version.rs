//! `mcp version`: the release.

use serde::Serialize;

use crate::context::Context;
use crate::error::{Exit, Outcome};

/// Print the release
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    version: &'static str,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    if context.out.is_table() {
        context.out.data(&format!("mcp {version}"))?;
    } else {
        context.out.json(&Document { version })?;
    }
    Ok(Exit::Done)
}
