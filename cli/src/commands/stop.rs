//! `mcp stop`: whole services.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::carry_out::{self, Job, Manner};
use super::place;
use crate::client::follow::{Work, new_request_id};
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
    place::require_whole(&args.targets, "stop")?;
    let placed = place::place(context, &args.targets).await?;
    let jobs: Vec<Job<'_>> = placed
        .iter()
        .map(|placed| Job {
            node: placed.node,
            work: Work::Stop(v1::LifecycleRequest {
                targets: placed.wire(),
                request_id: new_request_id(),
            }),
        })
        .collect();
    carry_out::run(context, &jobs, &MANNER).await
}
