//! `mcp start`: whole services.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::carry_out::{self, Job, Manner};
use super::place;
use crate::client::follow::{Work, new_request_id};
use crate::context::Context;
use crate::error::Outcome;

/// Start services that were stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp start metacrypt          clears the stop that mcp stop recorded")]
pub(crate) struct Args {
    /// Which
    #[arg(add = super::complete::services(), value_name = "SERVICE", required = true)]
    targets: Vec<Target>,
}

/// What is done is what was asked for.
const MANNER: Manner = Manner {
    detach: false,
    plain: true,
    dry_run: false,
    at_once: None,
    keep_going: false,
};

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    place::require_whole(&args.targets, "start")?;
    let placed = place::place(context, &args.targets).await?;
    let jobs: Vec<Job<'_>> = placed
        .iter()
        .map(|placed| Job {
            node: placed.node,
            work: Work::Start(v1::LifecycleRequest {
                targets: placed.wire(),
                request_id: new_request_id(),
            }),
        })
        .collect();
    carry_out::run(context, &jobs, &MANNER).await
}
