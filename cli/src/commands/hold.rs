//! `mcp hold`: keeps a target at what it runs.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::{repository, rows};
use crate::client::{self, Answer};
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::json;
use crate::output::plan::path;
use crate::output::style::{self, bold, green, short};

/// Hold a target at the spec that it runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp hold metacrypt/api -m \"waiting for the migration\"
  mcp release metacrypt/api    let go again")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Why
    #[arg(
        short,
        long,
        value_name = "WHY",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let request = v1::HoldRequest {
                targets: placed.wire(),
                reason: args.message.clone(),
            };
            Ok(client.set_hold(request).await?.components)
        },
    )
    .await;
    tell(context, &answers, "held at")?;
    rows::end(context, &answers)
}

/// A line a component, or the components as JSON.
pub(super) fn tell(
    context: &Context,
    answers: &[Answer<Vec<v1::Component>>],
    what: &str,
) -> Result<(), Failure> {
    let all = answers.iter().flat_map(|answer| {
        answer
            .result
            .iter()
            .flatten()
            .map(|component| (answer.node.as_str(), component))
    });
    if !context.out.is_table() {
        let documents: Vec<json::Component> = all
            .map(|(node, component)| json::Component::new(node, component))
            .collect();
        return context.out.json_list(&documents);
    }
    let mut lines = String::new();
    for (node, component) in all {
        let behind = match component.behind {
            0 => String::new(),
            behind => format!(", {behind} behind"),
        };
        lines.push_str(&format!(
            "{}  {} {} {what} {}{behind}\n",
            crate::output::clean::line(node),
            green(style::GOOD),
            bold(&path(&component.service, &component.component)),
            short(&component.revision),
        ));
    }
    context.out.data(&lines)
}
