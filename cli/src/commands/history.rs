//! `mcp history`: deployments, newest first.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed, wire};
use super::rows;
use crate::client;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::json;
use crate::output::plan::path;
use crate::output::style::{Style, short};
use crate::output::table::{Cell, Table};

/// List deployments, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp history                  every node
  mcp history metacrypt/api    one component
  mcp history metacrypt -o json | jq -r '.[0].revision'")]
pub(crate) struct Args {
    /// Only of this
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    target: Option<Target>,
    /// At most so many of each node
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
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
                .history(v1::HistoryRequest {
                    target,
                    limit: args.limit,
                })
                .await
        },
    )
    .await;
    let mut all: Vec<(&str, &v1::Deployment)> = answers
        .iter()
        .flat_map(|answer| {
            let deployments = answer
                .result
                .iter()
                .flat_map(|history| &history.deployments);
            deployments.map(|deployment| (answer.node.as_str(), deployment))
        })
        .collect();
    // A node's own order is kept where two began in the same instant.
    all.sort_by(|(_, a), (_, b)| b.started_at.cmp(&a.started_at));
    if context.out.is_table() {
        let whole = answers.iter().all(|answer| answer.result.is_ok());
        table(context, &all, whole)?;
    } else {
        let documents: Vec<json::HistoryEntry> = all
            .iter()
            .map(|(node, deployment)| json::HistoryEntry::new(node, deployment))
            .collect();
        context.out.json_list(&documents)?;
    }
    rows::end(context, &answers)
}

/// `whole` says that every node has answered.
fn table(context: &Context, all: &[(&str, &v1::Deployment)], whole: bool) -> Result<(), Failure> {
    if all.is_empty() {
        if whole {
            context.out.note("nothing was deployed yet");
        }
        return Ok(());
    }
    let mut table = Table::with_header(&[
        "ID",
        "WHEN",
        "NODE",
        "TARGET",
        "REVISION",
        "SIGNED",
        "BY",
        "TRIGGER",
        "OUTCOME",
        "COMPONENTS",
    ]);
    for (node, deployment) in all {
        let components: Vec<String> = deployment
            .components
            .iter()
            .filter(|component| component.action != "none")
            .map(|component| format!("{} {}", component.component, component.action))
            .collect();
        table.row([
            Cell::new(&short(&deployment.deployment_id), Style::Bold).whole(),
            Cell::from(context.out.time(&deployment.started_at)).whole(),
            Cell::from(*node),
            Cell::from(path(&deployment.service, &deployment.component)),
            Cell::from(short(&deployment.revision)).whole(),
            Cell::from(or_dash(&deployment.signer)),
            Cell::from(or_dash(&deployment.actor)),
            Cell::from(deployment.trigger.as_str()),
            Cell::new(outcome(deployment), outcome_style(&deployment.outcome)),
            Cell::from(components.join(", ")),
        ]);
    }
    context.out.data(&table.render(context.out.width()))
}

/// The text, or a dash for none.
pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// The outcome in the words of what was asked for: a stop that went well has stopped.
fn outcome(deployment: &v1::Deployment) -> &str {
    match (deployment.outcome.as_str(), deployment.trigger.as_str()) {
        ("deployed", "stop") => "stopped",
        ("deployed", "start") => "started",
        ("deployed", "restart") => "restarted",
        ("deployed", "purge") => "purged",
        (outcome, _) => outcome,
    }
}

/// How an outcome looks.
pub(super) fn outcome_style(outcome: &str) -> Style {
    match outcome {
        "deployed" => Style::Good,
        "failed" | "degraded" => Style::Bad,
        "rolled-back" | "aborted" | "superseded" => Style::Warn,
        _ => Style::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_went_well_has_stopped() {
        let of = |outcome: &str, trigger: &str| {
            let deployment = v1::Deployment {
                outcome: outcome.to_owned(),
                trigger: trigger.to_owned(),
                ..v1::Deployment::default()
            };
            super::outcome(&deployment).to_owned()
        };
        assert_eq!(of("deployed", "stop"), "stopped");
        assert_eq!(of("failed", "stop"), "failed");
        assert_eq!(of("deployed", "rollback"), "deployed");
    }
}
