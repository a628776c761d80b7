//! `mcp restart`: whole services.

use mcp_spec::name::Target;

use super::lifecycle;
use crate::client::follow::Work;
use crate::context::Context;
use crate::error::Outcome;

/// Stop and start services as they are
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp restart metacrypt        the same containers; nothing is deployed")]
pub(crate) struct Args {
    /// Which
    #[arg(add = super::complete::services(), value_name = "SERVICE", required = true)]
    targets: Vec<Target>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    lifecycle::run(context, &args.targets, "restart", Work::Restart).await
}
