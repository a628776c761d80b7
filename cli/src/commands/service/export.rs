//! `mcp service export`.

use clap::ValueEnum;
use mcp_proto::v1;
use mcp_spec::name::{ServiceName, Target};
use serde::Serialize;

use crate::client;
use crate::commands::place::{self, Placed};
use crate::commands::rows;
use crate::context::Context;
use crate::error::{Failure, Outcome};

/// Write a deployed service's definition back from the agent's registry
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service export metacrypt > services/metacrypt.toml")]
pub(super) struct Args {
    /// Which
    #[arg(add = crate::commands::complete::services(), value_name = "NAME")]
    name: ServiceName,
    /// In which format
    #[arg(long, value_name = "FORMAT", default_value = "toml")]
    format: ExportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// A definition of MCP's own
    Toml,
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    definition: String,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let ExportFormat::Toml = args.format;
    let target = Target {
        node: None,
        service: args.name.clone(),
        component: None,
    };
    let placed = place::place(context, &[target]).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, _| {
            client
                .export(v1::ExportRequest {
                    service: args.name.to_string(),
                })
                .await
        },
    )
    .await;
    let found: Vec<Document> = answers
        .iter()
        .filter_map(|answer| {
            Some(Document {
                node: answer.node.clone(),
                service: args.name.to_string(),
                definition: answer.result.as_ref().ok()?.definition.clone(),
            })
        })
        .collect();
    if !context.out.is_table() {
        context.out.json_list(&found)?;
    } else if let [one] = found.as_slice() {
        context.out.data(&one.definition)?;
    } else if found.len() > 1 {
        let nodes: Vec<&str> = found.iter().map(|one| one.node.as_str()).collect();
        return Err(
            Failure::usage(format!("{} runs on {}", args.name, nodes.join(", "))).hint(format!(
                "mcp service export {} --node {}",
                args.name, nodes[0]
            )),
        );
    }
    rows::end(context, &answers)
}
