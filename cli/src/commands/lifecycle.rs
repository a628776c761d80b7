//! What `start`, `stop` and `restart` have in common: whole services, and nothing to ask.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::carry_out::{self, Job, Manner};
use super::place;
use crate::client::follow::{Work, new_request_id};
use crate::context::Context;
use crate::error::Outcome;

/// What is done is what was asked for.
const MANNER: Manner = Manner {
    detach: false,
    plain: true,
    dry_run: false,
    at_once: None,
    keep_going: false,
};

/// Carries out the command called `name` for `targets`; `work` says which work it is.
pub(super) async fn run(
    context: &Context,
    targets: &[Target],
    name: &str,
    work: fn(v1::LifecycleRequest) -> Work,
) -> Outcome {
    place::require_whole(targets, name)?;
    let placed = place::place(context, targets).await?;
    let jobs: Vec<Job<'_>> = placed
        .iter()
        .map(|placed| Job {
            node: placed.node,
            work: work(v1::LifecycleRequest {
                targets: placed.wire(),
                request_id: new_request_id(),
            }),
        })
        .collect();
    carry_out::run(context, &jobs, &MANNER).await
}
