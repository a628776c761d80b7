//! `mcp trust add`: one key more.

use mcp_spec::name::ServiceName;
use mcp_spec::signature::{Grant, fingerprint};

use super::change::{self, Committed};
use super::{edit_failure, public_key};
use crate::commands::{push, repository, sync};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{bold, short};

/// Add a key: an owner's, one for some services, or one for everything but .mcp/
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp trust add bob.pub --principal bob@example.net
  mcp trust add bob.pub --service metacrypt --service shop
  mcp trust add \"ssh-ed25519 AAAA…\" --principal carol --owner

Without --principal the key's comment is its name.")]
pub(super) struct Args {
    /// The public key, or its file
    // Not `key`: that is the global flag of the key that signs.
    #[arg(value_name = "KEY|FILE")]
    public: String,
    /// Whose it is
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// May change .mcp/ too
    #[arg(long, conflicts_with = "service")]
    owner: bool,
    /// Only for this service; more than once for several
    #[arg(long, value_name = "SERVICE", add = crate::commands::complete::services())]
    service: Vec<ServiceName>,
    /// After the loss of every owner's key: sign with the new key, and push nothing
    #[arg(long, requires = "owner")]
    introduce: bool,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let key = public_key(&args.public)?;
    let principal = args
        .principal
        .clone()
        .unwrap_or_else(|| key.comment().trim().to_owned());
    if principal.is_empty() {
        return Err(Failure::usage("the key has no comment to be named after")
            .hint("give --principal a name such as bob@example.net"));
    }
    let grant = match (args.owner, args.service.is_empty()) {
        (true, _) => Grant::Owner,
        (false, true) => Grant::Everything,
        (false, false) => Grant::Services(args.service.iter().cloned().collect()),
    };
    let signers = Committed::open(context)?;
    let set = signers.definitions(context)?;
    for service in &args.service {
        if !set.services.contains_key(service) {
            context
                .out
                .warn(&format!("there is no service {service} yet"));
        }
    }
    let signing = repository::key(context, Some(&signers.repo))?;
    if args.introduce {
        let after = signers
            .text
            .with_in_place(&principal, &key, &grant)
            .map_err(|error| edit_failure(&error))?;
        return introduce(context, &args, &signers, &after, &key, &signing);
    }
    let after = signers
        .text
        .with(&principal, &key, &grant)
        .map_err(|error| edit_failure(&error))?;
    repository::require_owner(signers.text.signers(), after.signers(), &signing)?;
    let nodes = sync::nodes_for(context, &set)?;
    let standings = push::standings(context, &nodes, Some(signers.head)).await;
    push::require_fast_forward(&signers.repo, &signers.changes, &standings).await?;
    change::carry_out(
        context,
        &signers,
        &after,
        (Some(&key), None),
        &signing,
        standings,
    )
    .await
}

/// A commit that no signer of its parent made: it counts where the nodes are told so, and nowhere else.
fn introduce(
    context: &Context,
    args: &Args,
    signers: &Committed,
    after: &mcp_spec::signature::SignersText,
    key: &mcp_spec::signature::PublicKey,
    signing: &mcp_cli::sign::SigningKey,
) -> Outcome {
    if signing.public().key_data() != key.key_data() {
        return Err(Failure::usage(format!(
            "{} is to introduce itself, and {} would sign",
            fingerprint(key),
            signing.fingerprint()
        ))
        .hint(format!(
            "sign with the new key: --key {}",
            args.public.trim_end_matches(".pub")
        )));
    }
    let subject = format!("trust: begun anew by {}", fingerprint(key));
    let revision = signers.commit(after, signing, &subject)?;
    if context.out.is_table() {
        context.out.data(&format!(
            "committed  {} {subject}",
            bold(&short(&revision.to_string()))
        ))?;
        context.out.hint(&format!(
            "on each node: mcp-agent trust reset --introduction {revision} --owner {} --yes --config FILE; then mcp sync",
            args.public
        ));
    } else {
        context.out.json(&serde_json::json!({
            "revision": revision.to_string(),
            "added": change::changed(after, key),
            "removed": [],
            "nodes": [],
        }))?;
    }
    Ok(Exit::Done)
}
