//! `mcp rollback`: back to the previous successful different spec.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::carry_out::{self, Job};
use super::{place, repository};
use crate::client::follow::{Work, new_request_id};
use crate::context::Context;
use crate::error::Outcome;

/// Go back to what ran before; again goes further back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp rollback metacrypt/api
  mcp rollback metacrypt --to 3f2a9c1")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// To what ran at this revision
    #[arg(long, value_name = "REV")]
    to: Option<String>,
    /// Run jobs again, too
    #[arg(long)]
    jobs: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let to_revision = match &args.to {
        Some(rev) => repository::revision_id(context, rev)?,
        None => String::new(),
    };
    let jobs: Vec<Job<'_>> = placed
        .iter()
        .map(|placed| Job {
            node: placed.node,
            work: Work::Rollback(v1::RollbackRequest {
                targets: placed.wire(),
                to_revision: to_revision.clone(),
                jobs: args.jobs,
                request_id: new_request_id(),
            }),
        })
        .collect();
    carry_out::run(
        context,
        &jobs,
        &carry_out::Manner {
            detach: args.detach,
            ..Default::default()
        },
    )
    .await
}
