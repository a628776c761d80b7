//! `mcp drift`: what runs otherwise than it was deployed, field by field.

mod accept;

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::rows;
use crate::client::{self, Answer};
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::plan::path;
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// Show what differs from what was deployed, field by field
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  mcp drift                    every node
  mcp drift metacrypt/api      one component
  mcp drift --exit-code        2 where there is drift

Repair it with: mcp deploy SERVICE
Keep it with: mcp drift accept TARGET"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
    /// End with 2 where there is drift
    #[arg(long)]
    exit_code: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Accept(accept::Args),
}

/// What differs, a node at a time.
async fn drifted(context: &Context, placed: &[Placed<'_>]) -> Vec<Answer<v1::ListResponse>> {
    client::ask(
        context,
        placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let mut list = client
                .get_drift(v1::DriftRequest {
                    targets: placed.wire(),
                })
                .await?;
            list.components
                .retain(|component| !component.drift.is_empty());
            Ok(list)
        },
    )
    .await
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    if let Some(Command::Accept(args)) = args.command {
        return accept::run(context, args).await;
    }
    let placed = place::place(context, &args.targets).await?;
    let answers = drifted(context, &placed).await;
    if context.out.is_table() {
        let mut table = Table::with_header(&[
            "NODE",
            "COMPONENT",
            "FIELD",
            "DEPLOYED",
            "LIVE",
            "WANTED",
            "SINCE",
        ]);
        for answer in &answers {
            for component in answer.result.iter().flat_map(|list| &list.components) {
                for drift in &component.drift {
                    table.row([
                        Cell::from(answer.node.as_str()),
                        Cell::new(&path(&component.service, &component.component), Style::Bold),
                        Cell::from(drift.field.as_str()),
                        Cell::from(drift.baseline.as_str()),
                        Cell::new(&drift.live, Style::Warn),
                        Cell::from(drift.wanted.as_str()),
                        Cell::from(context.out.time(&drift.since)),
                    ]);
                }
            }
        }
        if table.is_empty() {
            if answers.iter().all(|answer| answer.result.is_ok()) {
                context.out.note("no drift");
            }
        } else {
            context.out.data(&table.render(context.out.width()))?;
        }
    } else {
        super::list::documents(context, &answers)?;
    }
    let drifted = |list: &v1::ListResponse| {
        if args.exit_code && !list.components.is_empty() {
            Exit::Changes
        } else {
            Exit::Done
        }
    };
    rows::end_with(context, &answers, drifted)
}
