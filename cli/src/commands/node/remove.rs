//! `mcp node remove`.

use mcp_spec::name::NodeName;

use crate::config;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::style::{self, green};

/// Forget a node; what runs on it stays
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp node remove rift")]
pub(super) struct Args {
    /// Its name
    #[arg(add = crate::commands::complete::nodes(), value_name = "NAME")]
    name: NodeName,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let settings = &context.settings;
    settings.node(args.name.as_str())?;
    config::remove_node(&settings.config.value, args.name.as_str())
        .map_err(|error| error.failure())?;
    context
        .out
        .note(&format!("{} {} forgotten", green(style::GOOD), args.name));
    Ok(Exit::Done)
}
