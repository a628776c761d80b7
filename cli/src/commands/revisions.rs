//! `mcp revisions`: what the nodes have accepted.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::history::or_dash;
use super::place::{self, Placed, wire};
use super::rows;
use crate::client;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json;
use crate::output::style::{Style, short};
use crate::output::table::{Cell, Table};

/// List the revisions that nodes have accepted, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp revisions                every revision
  mcp revisions metacrypt/api  those that changed this component
  mcp deploy metacrypt --rev 3f2a9c1")]
pub(crate) struct Args {
    /// Only those that change this
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    target: Option<Target>,
    /// At most so many of each node
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let targets: Vec<Target> = args.target.iter().cloned().collect();
    let placed = place::place(context, &targets).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let target = placed.targets.first().map(wire);
            client
                .list_revisions(v1::ListRevisionsRequest {
                    target,
                    limit: args.limit,
                })
                .await
        },
    )
    .await;
    if !context.out.is_table() {
        let documents: Vec<json::Revision> = answers
            .iter()
            .flat_map(|answer| {
                let revisions = answer.result.iter().flat_map(|list| &list.revisions);
                revisions.map(|revision| json::Revision::new(&answer.node, revision))
            })
            .collect();
        context.out.json_list(&documents)?;
        return rows::end(context, &answers);
    }
    let mut table = Table::with_header(&[
        "NODE", "REVISION", "RECEIVED", "SIGNED", "BY", "VIA", "SUBJECT",
    ]);
    for answer in &answers {
        for revision in answer.result.iter().flat_map(|list| &list.revisions) {
            table.row([
                Cell::from(answer.node.as_str()),
                Cell::new(&short(&revision.revision), Style::Bold).whole(),
                Cell::from(context.out.time(&revision.received_at)).whole(),
                Cell::from(or_dash(&revision.signer)),
                Cell::from(or_dash(&revision.received_by)),
                Cell::from(or_dash(&revision.source)),
                Cell::from(revision.subject.as_str()),
            ]);
        }
    }
    if table.is_empty() {
        if answers.iter().all(|answer| answer.result.is_ok()) {
            context
                .out
                .note("no revision was accepted yet; mcp sync pushes one");
        }
    } else {
        context.out.data(&table.render(context.out.width()))?;
    }
    rows::end(context, &answers)
}
