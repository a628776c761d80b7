//! `mcp ps`: what the engines say now.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::{list, rows};
use crate::client::{self, Answer};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{Style, short};
use crate::output::table::{Cell, Table};

/// Ask the engines what runs, and for how long
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp ps                       every component of every node
  mcp ps metacrypt/api         one component
  mcp ps -o json | jq -r '.[].container_id'")]
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
                .ps(v1::ListRequest {
                    targets: placed.wire(),
                })
                .await
        },
    )
    .await;
    show(context, &answers)?;
    rows::end_with(context, &answers, |list| {
        if list.engine_error.is_empty() {
            Exit::Done
        } else {
            Exit::Failed
        }
    })
}

fn show(context: &Context, answers: &[Answer<v1::ListResponse>]) -> Result<(), Failure> {
    for answer in answers {
        if let Ok(list) = &answer.result
            && !list.engine_error.is_empty()
        {
            context.out.failure(
                &Failure::failed(format!("the engine of {} does not answer", answer.node))
                    .cause(list.engine_error.clone())
                    .hint(format!("mcp node info {}", answer.node)),
            );
        }
    }
    if !context.out.is_table() {
        return list::documents(context, answers);
    }
    let mut table = Table::with_header(&[
        "NODE",
        "SERVICE",
        "COMPONENT",
        "CONTAINER",
        "OBSERVED",
        "HEALTH",
        "UP",
        "IMAGE",
        "REVISION",
    ]);
    for answer in answers {
        for component in answer.result.iter().flat_map(|list| &list.components) {
            let up = if component.observed_state == "running" {
                context.out.since(&component.started_at)
            } else {
                "-".to_owned()
            };
            table.row([
                Cell::from(answer.node.as_str()),
                Cell::new(&component.service, Style::Bold),
                Cell::from(component.component.as_str()),
                Cell::from(short(&component.container_id)).whole(),
                rows::state(component),
                rows::health(component),
                Cell::from(up).whole(),
                Cell::from(component.image.as_str()).keep_end(),
                rows::revision(component),
            ]);
        }
    }
    if table.is_empty() {
        if answers.iter().all(|answer| answer.result.is_ok()) {
            context.out.note("nothing runs here that mcp manages");
        }
        return Ok(());
    }
    context.out.data(&table.render(context.out.width()))
}
