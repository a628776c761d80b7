//! `mcp list`: what the agents' registries hold.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::rows;
use crate::client::{self, Answer};
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::json;
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// List components from the registry, without asking the engine
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp list                     every component of every node
  mcp list metacrypt           one service
  mcp list --node rift -o json as JSON, for scripts")]
pub(crate) struct Args {
    /// Only these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            client
                .list(v1::ListRequest {
                    targets: placed.wire(),
                })
                .await
        },
    )
    .await;
    show(context, &answers)?;
    rows::end(context, &answers)
}

fn show(context: &Context, answers: &[Answer<v1::ListResponse>]) -> Result<(), Failure> {
    if !context.out.is_table() {
        return documents(context, answers);
    }
    let mut table = Table::with_header(&[
        "NODE",
        "SERVICE",
        "COMPONENT",
        "VERSION",
        "DESIRED",
        "OBSERVED",
        "HEALTH",
        "REVISION",
    ]);
    for answer in answers {
        for component in answer.result.iter().flat_map(|list| &list.components) {
            table.row([
                Cell::from(answer.node.as_str()),
                Cell::new(&component.service, Style::Bold),
                Cell::from(component.component.as_str()),
                Cell::from(component.version.as_str()),
                Cell::from(component.desired_state.as_str()),
                rows::state(component),
                rows::health(component),
                rows::revision(component),
            ]);
        }
    }
    if table.is_empty() {
        if answers.iter().all(|answer| answer.result.is_ok()) {
            context
                .out
                .note("nothing is deployed; mcp plan shows what could be");
        }
        return Ok(());
    }
    context.out.data(&table.render(context.out.width()))
}

/// The components of all nodes as JSON.
pub(super) fn documents(
    context: &Context,
    answers: &[Answer<v1::ListResponse>],
) -> Result<(), Failure> {
    let documents: Vec<json::Component> = answers
        .iter()
        .flat_map(|answer| {
            let components = answer.result.iter().flat_map(|list| &list.components);
            components.map(|component| json::Component::new(&answer.node, component))
        })
        .collect();
    context.out.json_list(&documents)
}
