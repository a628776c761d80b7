//! `mcp release`: lets a held target go.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::{hold, repository, rows};
use crate::client;
use crate::context::Context;
use crate::error::Outcome;

/// Let a held target go; nothing is deployed by it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp release metacrypt
  mcp release metacrypt/api && mcp deploy metacrypt/api")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let request = v1::ReleaseRequest {
                targets: placed.wire(),
            };
            Ok(client.release_hold(request).await?.components)
        },
    )
    .await;
    hold::tell(context, &answers, "released, runs")?;
    let is_none = |answer: &client::Answer<Vec<v1::Component>>| {
        answer.result.as_ref().is_ok_and(Vec::is_empty)
    };
    if answers.iter().any(is_none) {
        context.out.note("not held: nothing was released");
    }
    rows::end(context, &answers)
}
