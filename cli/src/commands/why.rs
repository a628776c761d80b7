//! `mcp why`: why it runs what it runs.

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed, wire};
use super::rows;
use crate::client;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::json;
use crate::output::plan::{changes_line, path};
use crate::output::style::{Style, bold, short};
use crate::output::table::{Cell, Table};

/// Tell why a target runs what it runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp why metacrypt/api        the deployment, the revision, its signer, what it changed")]
pub(crate) struct Args {
    /// A service or component, as metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    target: Target,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, std::slice::from_ref(&args.target)).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            client
                .why(v1::WhyRequest {
                    target: placed.targets.first().map(wire),
                })
                .await
        },
    )
    .await;
    let all: Vec<(&str, &v1::Why)> = answers
        .iter()
        .flat_map(|answer| {
            let components = answer
                .result
                .iter()
                .flat_map(|response| &response.components);
            components.map(|why| (answer.node.as_str(), why))
        })
        .collect();
    if context.out.is_table() {
        let single = args.target.component.is_some() && all.len() == 1;
        let mut text = String::new();
        for (node, why) in &all {
            if !single {
                let component = why.component.clone().unwrap_or_default();
                let name = path(&component.service, &component.component);
                text.push_str(&format!("{} on {}\n", bold(&name), bold(node)));
            }
            text.push_str(
                &table(context, why, if single { 0 } else { 2 }).render(context.out.width()),
            );
        }
        context.out.data(&text)?;
    } else {
        let documents: Vec<json::Why> = all
            .iter()
            .map(|(node, why)| json::Why::new(node, why))
            .collect();
        context.out.json_list(&documents)?;
    }
    rows::end(context, &answers)
}

fn table(context: &Context, why: &v1::Why, indent: usize) -> Table {
    let mut table = Table::bare(indent);
    let mut row = |name: &str, value: String| {
        table.row([Cell::new(name, Style::Dim), Cell::from(value)]);
    };
    let component = why.component.clone().unwrap_or_default();
    row("runs", runs(context, &component));
    for trouble in &why.troubles {
        let since = match trouble.since.as_str() {
            "" => String::new(),
            since => format!("{}: ", context.out.time(since)),
        };
        row(&trouble.condition, format!("{since}{}", trouble.message));
        row("mend", trouble.mend.clone());
    }
    // One that another component's failure left alone runs what it ran before: the rest says why.
    if let Some(last) = &why.last
        && !left_alone(last, &component)
    {
        row("because", because(last, &component));
    }
    let mut spec = short(if why.spec_revision.is_empty() {
        &component.revision
    } else {
        &why.spec_revision
    });
    if !why.subject.is_empty() {
        spec.push_str(&format!(" \"{}\"", why.subject));
    }
    if !why.signer.is_empty() {
        spec.push_str(&format!(
            ", signed {} {}",
            why.signer,
            context.out.time(&why.authored_at)
        ));
    }
    if component.adopted && why.spec_revision.is_empty() {
        "captured from the container, in no revision yet".clone_into(&mut spec);
    }
    // What never ran here runs no spec.
    if spec != "-" {
        row("spec", spec);
    }
    if let Some(deployment) = &why.deployment {
        let actor = if deployment.actor.is_empty() {
            "the agent"
        } else {
            &deployment.actor
        };
        row(
            "deployed",
            format!(
                "{} by {actor} {}, {}",
                short(&deployment.deployment_id),
                context.out.time(&deployment.started_at),
                deployment.trigger
            ),
        );
    }
    if !why.changed.is_empty() {
        row("changed", changes_line(&why.changed));
    }
    if let Some(hold) = &component.held {
        row(
            "held",
            format!(
                "at {} by {} {} {}",
                short(&hold.revision),
                hold.by,
                context.out.time(&hold.at),
                hold.reason
            )
            .trim_end()
            .to_owned(),
        );
    }
    if !why.wanted.is_empty() || !why.wanted_reason.is_empty() {
        let mut wanted = short(&why.wanted_revision);
        if !why.wanted_reason.is_empty() {
            wanted.push_str(&format!(", {}", why.wanted_reason));
        }
        if !why.wanted.is_empty() {
            wanted.push_str(&format!(" · {}", changes_line(&why.wanted)));
        }
        row("wanted", wanted);
    }
    table
}

fn runs(context: &Context, component: &v1::Component) -> String {
    if component.container_id.is_empty() {
        return format!("nothing: {}", component.observed_state);
    }
    let state = if component.observed_state == "running" {
        format!("up {}", context.out.since(&component.started_at))
    } else {
        component.observed_state.clone()
    };
    let image = if component.image_digest.is_empty() {
        &component.image_id
    } else {
        &component.image_digest
    };
    format!(
        "{} sha256:{}, container {}, {state}",
        component.version,
        short(image),
        short(&component.container_id)
    )
}

fn left_alone(last: &v1::Deployment, component: &v1::Component) -> bool {
    last.components
        .iter()
        .any(|part| part.component == component.component && part.outcome == "unchanged")
}

fn because(last: &v1::Deployment, component: &v1::Component) -> String {
    let own = last
        .components
        .iter()
        .find(|part| part.component == component.component);
    let id = short(&last.deployment_id);
    let outcome = own.map_or(last.outcome.as_str(), |own| own.outcome.as_str());
    let words = outcome.replace('-', " ");
    let detail = own
        .map(|own| own.error.as_str())
        .filter(|error| !error.is_empty())
        .unwrap_or(&last.error);
    let revision = own.map_or(last.revision.as_str(), |own| own.to_revision.as_str());
    match detail {
        "" => format!("{id} {words} {}", short(revision)),
        detail => format!("{id} {words} {}: {detail}", short(revision)),
    }
}
