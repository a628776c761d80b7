//! `mcp purge`: removes what no definition wants.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::carry_out::{self, Job};
use super::place;
use crate::client::follow::{Work, new_request_id};
use crate::context::Context;
use crate::error::Outcome;

/// Remove what no definition at the synced revision wants
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp purge --dry-run          what would go
  mcp purge old-service --yes
  mcp purge old-service --volumes --yes    its volumes and their data, too (admin)")]
pub(crate) struct Args {
    /// Only these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
    /// Remove volumes and their data, too
    #[arg(long)]
    volumes: bool,
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let jobs = |dry_run: bool, yes: bool| -> Vec<Job<'_>> {
        placed
            .iter()
            .map(|placed| Job {
                node: placed.node,
                work: Work::Purge(v1::PurgeRequest {
                    targets: placed.wire(),
                    volumes: args.volumes,
                    dry_run,
                    yes,
                    request_id: new_request_id(),
                }),
            })
            .collect()
    };
    if args.dry_run {
        let manner = carry_out::Manner {
            dry_run: true,
            ..Default::default()
        };
        return carry_out::run(context, &jobs(true, false), &manner).await;
    }
    if !args.yes {
        let plans = carry_out::plans(context, &jobs(true, false)).await?;
        if !carry_out::consent(context, &plans)? {
            return carry_out::declined(context);
        }
    }
    carry_out::run(context, &jobs(false, true), &carry_out::Manner::default()).await
}
