//! `mcp alert test`.

use mcp_proto::v1;
use mcp_spec::name::NodeName;
use serde::Serialize;

use crate::client;
use crate::commands::{node, repository, rows};
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json::some;
use crate::output::style::{self, green};

/// Have a node run its alert command with a test alert, and wait for its end
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp alert test               every node
  mcp alert test rift

The command is `[alert] command` of the agent's configuration. It gets the alert as one line of
JSON on standard input, with \"state\": \"test\", and in MCP_* variables.")]
pub(super) struct Args {
    /// Only these
    #[arg(add = crate::commands::complete::nodes(), value_name = "NAME")]
    names: Vec<NodeName>,
}

#[derive(Serialize)]
struct Document {
    node: String,
    output: Option<String>,
    duration_ms: u64,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let nodes = node::named(context, &args.names)?;
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &nodes,
        |node| node,
        async |client, _| client.test_alert(v1::TestAlertRequest {}).await,
    )
    .await;
    let mut documents = Vec::new();
    for answer in &answers {
        let Ok(delivered) = &answer.result else {
            continue;
        };
        if context.out.is_table() {
            context.out.data(&format!(
                "{}  {} delivered in {} ms",
                answer.node,
                green(style::GOOD),
                delivered.duration_ms
            ))?;
            for line in delivered.output.lines() {
                context.out.data(&format!("      | {line}"))?;
            }
        }
        documents.push(Document {
            node: answer.node.clone(),
            output: some(&delivered.output),
            duration_ms: delivered.duration_ms,
        });
    }
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
    }
    rows::end(context, &answers)
}
