//! `mcp secret rekey`: the same values for other recipients. A node that can open them does it: no value comes here.

use std::collections::BTreeMap;

use mcp_proto::v1;
use mcp_spec::name::{NodeName, SecretName, ServiceName};
use mcp_spec::secret::secret_path;

use super::recipients;
use super::stored::{Secrets, Stored, write};
use crate::client;
use crate::commands::repository;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, count, green};

/// Encrypt anew what is stale: after a service has moved, or a node has a new identity
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp secret rekey                    whatever is stale
  mcp secret rekey --accept rift      after mcp-agent identity rotate on rift
  mcp secret rekey shop db-password

A node that can open the old file encrypts the value anew; no value comes to the workstation. Nothing is deployed
by it: the value is the same. mcp sync commits the files.")]
pub(super) struct Args {
    /// Only those of this service
    #[arg(add = crate::commands::complete::services(), value_name = "SERVICE")]
    service: Option<ServiceName>,
    /// Only this one
    #[arg(value_name = "NAME")]
    name: Option<SecretName>,
    /// Take the recipient that this node tells now in place of the signed one
    #[arg(long, value_name = "NODE", add = crate::commands::complete::nodes())]
    accept: Vec<NodeName>,
    /// Not only what is stale
    #[arg(long)]
    all: bool,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let repo = repository::open(context)?;
    repository::open_key(context)?;
    let mut secrets = Secrets::read(&repo)?;
    for node in &args.accept {
        recipients::of(context, &repo, &mut secrets, node, true).await?;
    }
    let chosen: Vec<usize> = secrets
        .stored
        .iter()
        .enumerate()
        .filter(|(_, one)| args.service.as_ref().is_none_or(|it| *it == one.service))
        .filter(|(_, one)| args.name.as_ref().is_none_or(|it| *it == one.name))
        .filter(|(_, one)| args.all || secrets.stale(one).is_some())
        .map(|(index, _)| index)
        .collect();
    if args.name.is_some() && chosen.is_empty() {
        context
            .out
            .note("nothing to do: it is not stale; --all encrypts it anew all the same");
    }
    let mut failures = Vec::new();
    let mut done = 0;
    for index in chosen {
        let (service, name) = {
            let one = &secrets.stored[index];
            (one.service.clone(), one.name.clone())
        };
        let Some(node) = secrets.node_of(&service).cloned() else {
            context.out.warn(&format!(
                "{service}/{name}: no definition says which node it is for"
            ));
            continue;
        };
        let recipient = recipients::of(context, &repo, &mut secrets, &node, false).await?;
        let nodes = BTreeMap::from([(node.clone(), recipient)]);
        match reseal(context, &secrets.stored[index], &node, &nodes).await {
            Ok(sealed) => {
                write(&repo.dir().join(secret_path(&service, &name)), &sealed)?;
                context.out.note(&format!(
                    "{} {service}/{name}, encrypted to {node}",
                    green(style::GOOD)
                ));
                done += 1;
            }
            Err(failure) => failures.push((format!("{service}/{name}"), failure)),
        }
    }
    if context.out.is_table() {
        context
            .out
            .data(&format!("{} encrypted anew", count(done, "secret")))?;
    } else {
        let failed: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
        context
            .out
            .json(&serde_json::json!({ "rekeyed": done, "failed": failed }))?;
    }
    if done > 0 || !args.accept.is_empty() {
        context.out.hint("mcp sync");
    }
    let count = failures.len();
    for (name, failure) in failures {
        context.out.error_text(&format!("{name}:\n"));
        context.out.failure(&failure);
    }
    if count > 0 {
        return Err(Failure::told(Exit::Failed));
    }
    Ok(Exit::Done)
}

/// Asks the nodes that the file is for, and the one that it will be for, until one has done it.
async fn reseal(
    context: &Context,
    secret: &Stored,
    node: &NodeName,
    nodes: &BTreeMap<NodeName, String>,
) -> Result<Vec<u8>, Failure> {
    let lost = |cause: String| {
        Failure::failed("no node could open it")
            .cause(cause)
            .hint(format!("mcp secret set {} {}", secret.service, secret.name))
    };
    let holders = secret.nodes.iter().flat_map(BTreeMap::keys);
    let mut failure = None;
    for holder in holders.chain(std::iter::once(node)) {
        let Ok(entry) = context.settings.node(holder.as_str()) else {
            failure.get_or_insert(lost(format!("{holder} is not in mcp.toml")));
            continue;
        };
        let request = v1::ResealRequest {
            service: secret.service.to_string(),
            name: secret.name.to_string(),
            sealed: secret.sealed.clone(),
            nodes: nodes
                .iter()
                .map(|(node, recipient)| v1::NodeRecipient {
                    node: node.to_string(),
                    recipient: recipient.clone(),
                })
                .collect(),
        };
        let entries = [entry];
        let mut answers = client::ask(
            context,
            &entries,
            |entry| entry,
            async |client, _| client.reseal(request.clone()).await,
        )
        .await;
        match answers.pop().map(|answer| answer.result) {
            Some(Ok(resealed)) => {
                // A node that answers with something else is not believed.
                return match mcp_seal::recipients_of(&resealed.sealed) {
                    Ok(told) if told == *nodes => Ok(resealed.sealed),
                    _ => Err(Failure::failed(format!("{holder} encrypted it to others"))),
                };
            }
            Some(Err(error)) => drop(failure.get_or_insert(error)),
            None => {}
        }
    }
    Err(failure.unwrap_or_else(|| lost("it says of no node that it is for it".to_owned())))
}
