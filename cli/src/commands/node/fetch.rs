//! `mcp node fetch`.

use mcp_proto::v1;
use mcp_spec::name::NodeName;
use serde::Serialize;

use crate::client;
use crate::commands::{repository, rows};
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json::some;
use crate::output::style::{self, count, green, short};

/// Have a node fetch from its own upstream at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp node fetch rift

The upstream is `[source]` of the agent's configuration.")]
pub(super) struct Args {
    /// Only these
    #[arg(add = crate::commands::complete::nodes(), value_name = "NAME")]
    names: Vec<NodeName>,
}

#[derive(Serialize)]
struct Document {
    node: String,
    previous: Option<String>,
    revision: Option<String>,
    new_commits: u32,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let nodes = super::named(context, &args.names)?;
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &nodes,
        |node| node,
        async |client, _| client.fetch_source(v1::FetchSourceRequest {}).await,
    )
    .await;
    let mut documents = Vec::new();
    for answer in &answers {
        let Ok(fetched) = &answer.result else {
            continue;
        };
        if context.out.is_table() {
            let what = if fetched.new_commits == 0 {
                format!("{}  up to date", short(&fetched.revision))
            } else {
                format!(
                    "{}..{}  {}",
                    short(&fetched.previous),
                    short(&fetched.revision),
                    count(fetched.new_commits as usize, "new commit")
                )
            };
            context
                .out
                .data(&format!("{}  {} {what}", answer.node, green(style::GOOD)))?;
        }
        documents.push(Document {
            node: answer.node.clone(),
            previous: some(&fetched.previous),
            revision: some(&fetched.revision),
            new_commits: fetched.new_commits,
        });
    }
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
    }
    rows::end(context, &answers)
}
