//! `mcp stop`: whole services.

use mcp_spec::name::Target;

use super::lifecycle;
use crate::client::follow::Work;
use crate::context::Context;
use crate::error::Outcome;

/// Stop services until they are started again
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp stop metacrypt           stays stopped over restarts of agent and host
  mcp start metacrypt          starts it again")]
pub(crate) struct Args {
    /// Which
    #[arg(add = super::complete::services(), value_name = "SERVICE", required = true)]
    targets: Vec<Target>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    lifecycle::run(context, &args.targets, "stop", Work::Stop).await
}
