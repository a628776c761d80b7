//! `mcp trust rotate`: another key in the place of one, once every node has what the old one signed.

use std::path::{Path, PathBuf};

use mcp_spec::definition::DesiredSet;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::fingerprint;

use super::change::{self, Committed};
use super::{edit_failure, public_key};
use crate::client::Answer;
use crate::commands::push::{self, Standing};
use crate::commands::repository;
use crate::config::{self, NodeEntry, Origin};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::short;

/// Replace a key by another with the same rights; the old key signs the change
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp trust rotate ~/.ssh/new.pub            the key that signs is replaced
  mcp trust rotate new.pub --old bob@example.net

Every node is asked first: one that lacks something the old key signed could not take it any more once
the old key is denied there. A node that is behind or away ends the command before anything is changed.")]
pub(super) struct Args {
    /// The new public key, or its file
    // Not `key`: that is the global flag of the key that signs.
    #[arg(value_name = "KEY|FILE")]
    public: String,
    /// The signer whose key it replaces, by name or fingerprint (default: the key that signs)
    #[arg(long, value_name = "NAME|KEY")]
    old: Option<String>,
    /// Also where nodes are behind or away
    #[arg(long)]
    even_behind: bool,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    if !context.settings.selected.value.is_empty() {
        return Err(
            Failure::usage("a rotation is about every node, and --node names some")
                .hint("leave --node out"),
        );
    }
    let new = public_key(&args.public)?;
    let signers = Committed::open(context)?;
    let set = signers.definitions(context)?;
    let signing = repository::key(context, Some(&signers.repo))?;
    let wanted = args.old.clone().unwrap_or_else(|| signing.fingerprint());
    let old = signers
        .text
        .find(&wanted)
        .map_err(|error| edit_failure(&error))?
        .key
        .clone();
    let after = signers
        .text
        .replaced(&old, &new)
        .map_err(|error| edit_failure(&error))?;
    repository::require_owner(signers.text.signers(), after.signers(), &signing)?;
    let is_own = old.key_data() == signing.public().key_data();
    let nodes: Vec<&NodeEntry> = context.settings.nodes.iter().collect();
    let standings = {
        let progress = context.out.progress();
        let _spinner = progress.spin("asking every node for its head");
        push::standings(context, &nodes, Some(signers.head)).await
    };
    push::require_fast_forward(&signers.repo, &signers.changes, &standings).await?;
    if !args.even_behind {
        require_all(context, &set, signers.head, &standings)?;
    }
    let exit = change::carry_out(
        context,
        &signers,
        &after,
        (Some(&new), Some(&old)),
        &signing,
        standings,
    )
    .await?;
    if is_own {
        take_up(context, &signers, &args.public)?;
    }
    context.out.hint(&format!(
        "where a node pins the old key, put the new one in its owners.pub; deny the old one there: mcp-agent trust deny {} --config FILE",
        fingerprint(&old)
    ));
    Ok(exit)
}

/// Every node, configured here or named by a definition, stands at the head.
fn require_all(
    context: &Context,
    set: &DesiredSet,
    head: CommitId,
    standings: &[Answer<Standing>],
) -> Result<(), Failure> {
    const GO_ON: &str = "or go on without: --even-behind";
    for service in set.services.values() {
        if let Err(failure) = context.settings.node(service.node.as_str()) {
            return Err(failure
                .with_exit(Exit::Failed)
                .cause(format!("services/{}.toml names it", service.name))
                .hint(format!("mcp node add {}, {GO_ON}", service.node)));
        }
    }
    for answer in standings {
        let node = &answer.node;
        match &answer.result {
            Ok(standing) if standing.head == Some(head) => {}
            Ok(standing) => {
                let at = standing
                    .head
                    .map_or_else(|| "nothing".to_owned(), |head| short(&head.to_string()));
                return Err(Failure::new(
                    Exit::Stale,
                    format!(
                        "{node} is behind: at {at}, HEAD at {}",
                        short(&head.to_string())
                    ),
                )
                .hint(format!("mcp sync first, {GO_ON}")));
            }
            Err(failure) => {
                let mut failure = failure.clone();
                failure.hint = Some(format!("bring {node} back first, {GO_ON}"));
                return Err(failure.cause("a rotation asks every node"));
            }
        }
    }
    Ok(())
}

/// Has this workstation sign with the new key, where its private half lies beside the public one.
fn take_up(context: &Context, signers: &Committed, given: &str) -> Result<(), Failure> {
    let Some(private) = private_half(given) else {
        context
            .out
            .hint("sign with the new key from now on: [sign] key in mcp.toml, or git config user.signingkey");
        return Ok(());
    };
    let shown = private.display().to_string();
    match &context.settings.key {
        Some(key) if key.origin == Origin::File => {
            config::set_string(&context.settings.config.value, Some("sign"), "key", &shown)
                .map_err(|error| error.failure())?;
            context
                .out
                .note(&format!("signs with {shown} from now on, as mcp.toml says"));
        }
        Some(key) => context.out.hint(&format!(
            "the {} names the old key: give {shown} from now on",
            key.origin
        )),
        None => {
            signers
                .repo
                .sign_with(&shown)
                .map_err(|error| Failure::of(Exit::Failed, &error))?;
            context.out.note(&format!(
                "signs with {shown} from now on, as git's user.signingkey says"
            ));
        }
    }
    Ok(())
}

/// The private key's file, where the public one's was given and both are there.
fn private_half(given: &str) -> Option<PathBuf> {
    let path = config::expand_home(Path::new(given)).ok()?;
    let private = path.with_extension("");
    let is_public = path.extension().is_some_and(|end| end == "pub");
    if !is_public || !private.is_file() {
        return None;
    }
    std::path::absolute(private).ok()
}
