//! `mcp trust remove`: one key less.

use super::change::{self, Committed};
use super::edit_failure;
use crate::commands::{push, repository, sync};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Remove a key: what it signs from then on is refused
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp trust remove bob@example.net
  mcp trust remove SHA256:CzOF…

A key that was stolen is also to be denied on each node, with mcp-agent trust deny.")]
pub(super) struct Args {
    /// The signer's name, or the key's fingerprint
    #[arg(value_name = "NAME|KEY")]
    signer: String,
    /// Also where it is the key that signs this very change
    #[arg(long)]
    own_key: bool,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let signers = Committed::open(context)?;
    let set = signers.definitions(context)?;
    let signing = repository::key(context, Some(&signers.repo))?;
    let signer = signers
        .text
        .find(&args.signer)
        .map_err(|error| edit_failure(&error))?;
    let removed = signer.key.clone();
    let after = signers
        .text
        .without(&removed)
        .map_err(|error| edit_failure(&error))?;
    if removed.key_data() == signing.public().key_data() && !args.own_key {
        return Err(Failure::usage(format!(
            "{} is the key that signs this change, and could sign nothing after it",
            signing.fingerprint()
        ))
        .hint("to replace it: mcp trust rotate NEW; to go on: --own-key"));
    }
    repository::require_owner(signers.text.signers(), after.signers(), &signing)?;
    let nodes = sync::nodes_for(context, &set)?;
    let standings = push::standings(context, &nodes, Some(signers.head)).await;
    push::require_fast_forward(&signers.repo, &signers.changes, &standings).await?;
    let exit = change::carry_out(
        context,
        &signers,
        &after,
        (None, Some(&removed)),
        &signing,
        standings,
    )
    .await?;
    if exit == Exit::Done || exit == Exit::SomeNodes {
        context.out.hint(&format!(
            "where it was stolen, on each node: mcp-agent trust deny {} --config FILE",
            mcp_spec::signature::fingerprint(&removed)
        ));
    }
    Ok(exit)
}
