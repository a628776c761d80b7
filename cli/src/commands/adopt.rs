//! `mcp adopt`: takes containers that exist under management.

use mcp_proto::v1;
use mcp_spec::name::{ComponentName, ServiceName, Target};
use serde::Serialize;

use super::definition_text::DefinitionText;
use super::{place, repository, rows};
use crate::client::{self, NodeClient};
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::diagnostics::definition_errors;
use crate::output::style::{self, Style, bold, green, short};
use crate::output::table::{Cell, Table};
use crate::output::{clean, json, plan};

/// Take containers that exist under management; touches none of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp adopt metacrypt                        every container called metacrypt-…
  mcp adopt metacrypt/api --write            the container metacrypt-api, and its definition
  mcp adopt old-redis --as shop/cache        a container of another name
  mcp adopt metacrypt --dry-run              only tell

It prints what was captured, what no definition can say, and what the next deploy would change.")]
pub(crate) struct Args {
    /// A service or component, or with --as a container's name or the start of its id
    #[arg(value_name = "TARGET|CONTAINER")]
    what: String,
    /// The component that the container is to be
    #[arg(long = "as", value_name = "SERVICE/COMPONENT")]
    as_component: Option<Target>,
    /// Write the definition into the work tree, ready for mcp sync
    #[arg(long)]
    write: bool,
    /// Tell, and take nothing over
    #[arg(long, conflicts_with = "write")]
    dry_run: bool,
}

#[derive(Serialize)]
struct Document {
    node: String,
    adopted: Vec<Component>,
    /// What the service's definition says from now on.
    definition: String,
    written: Option<String>,
    dry_run: bool,
    plan: Option<json::NodePlan>,
}

#[derive(Serialize)]
struct Component {
    service: String,
    component: String,
    container: String,
    container_id: String,
    definition: String,
    departures: Vec<json::FieldChange>,
    warnings: Vec<String>,
    refused: Vec<json::Blocked>,
    stopped: bool,
}

/// Everything that one call came to.
struct Report {
    reply: v1::AdoptResponse,
    definition: DefinitionText,
    /// Components that the work tree defines already.
    defined: Vec<String>,
    /// The next deploy, or why it cannot be told.
    next: Result<v1::Plan, Failure>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let (target, container) = wish(&args)?;
    if args.write {
        // Before anything is taken over: there has to be a place to write to.
        repository::open(context)?;
    }
    let node = node(context, &target)?;
    let request = v1::AdoptRequest {
        target: Some(place::wire(&target)),
        container,
        dry_run: args.dry_run,
    };
    let nodes = [node];
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &nodes,
        |node| *node,
        async |client, _| {
            let reply = client.adopt(request.clone()).await?;
            report(context, client, &target.service, reply, args.dry_run).await
        },
    )
    .await;
    for answer in &answers {
        if let Ok(report) = &answer.result {
            let written = args.write && write(report)?;
            if context.out.is_table() {
                show(context, report, &args, written)?;
            } else {
                context.out.json(&document(report, &args, written))?;
            }
        }
    }
    rows::end(context, &answers)
}

/// What is to be taken over, and the container's own name where one is given.
fn wish(args: &Args) -> Result<(Target, String), Failure> {
    let Some(target) = &args.as_component else {
        let target: Target = args.what.parse().map_err(|error| {
            Failure::of(crate::error::Exit::Usage, &error).hint(format!(
                "for a container of another name: mcp adopt {} --as SERVICE/COMPONENT",
                args.what
            ))
        })?;
        return Ok((target, String::new()));
    };
    if target.component.is_none() {
        return Err(Failure::usage(format!(
            "{target} is a service: one container is one component"
        ))
        .hint(format!("mcp adopt {} --as {target}/COMPONENT", args.what)));
    }
    if args.what.is_empty() {
        return Err(Failure::usage("no container is named"));
    }
    Ok((target.clone(), args.what.clone()))
}

/// The node that the containers are on: the target's, the definition's, the only one.
fn node<'c>(context: &'c Context, target: &Target) -> Result<&'c NodeEntry, Failure> {
    let chosen = context.settings.chosen_nodes()?;
    let named = target
        .node
        .clone()
        .or_else(|| place::defined_node(context, &target.service));
    match (named, chosen.as_slice()) {
        (Some(name), _) => {
            context.settings.node(name.as_str())?;
            let found = chosen.into_iter().find(|node| node.name == name);
            found.ok_or_else(|| {
                Failure::usage(format!(
                    "{} belongs to {name}, which --node leaves out",
                    target.service
                ))
            })
        }
        (None, [one]) => Ok(one),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(|node| node.name.as_str()).collect();
            Err(Failure::usage(format!(
                "which of {} it runs on is not known",
                names.join(", ")
            ))
            .hint("give it with --node NAME"))
        }
    }
}

/// Puts the captured components into the service's definition, and asks what a deploy of that would do.
async fn report(
    context: &Context,
    client: &NodeClient,
    service: &ServiceName,
    reply: v1::AdoptResponse,
    dry_run: bool,
) -> Result<Report, Failure> {
    let mut definition = DefinitionText::read(context, service)?;
    let mut defined = Vec::new();
    if definition.exists() {
        let known = definition.spec().ok();
        for one in &reply.adopted {
            let name = component(one);
            let is_known = known.as_ref().is_some_and(|spec| {
                let name: Result<ComponentName, _> = name.parse();
                name.is_ok_and(|name| spec.components.contains_key(&name))
            });
            if is_known {
                defined.push(name.to_owned());
            } else {
                definition.add(&one.definition);
            }
        }
    } else {
        definition.replace(reply.definition.clone());
    }
    let plan = client.get_plan(v1::PlanRequest {
        targets: reply
            .adopted
            .iter()
            .filter_map(|one| one.target.clone())
            .collect(),
        draft: vec![v1::DraftFile {
            path: definition.name.clone(),
            content: Some(definition.text().as_bytes().to_vec()),
        }],
        // What was only tried is not adopted: the next deploy is that after the adoption all the same.
        supposed: if dry_run {
            reply.adopted.iter().map(supposed).collect()
        } else {
            Vec::new()
        },
        ..v1::PlanRequest::default()
    });
    let mut next = plan.await;
    // It goes without saying here: the definition is what was captured a moment ago.
    for action in next.iter_mut().flat_map(|plan| &mut plan.actions) {
        action.uncommitted = false;
    }
    Ok(Report {
        next,
        reply,
        definition,
        defined,
    })
}

fn supposed(one: &v1::Adopted) -> v1::Supposed {
    v1::Supposed {
        target: one.target.clone(),
        container_id: one.container_id.clone(),
    }
}

fn component(one: &v1::Adopted) -> &str {
    one.target.as_ref().map_or("", |target| &target.component)
}

fn service(one: &v1::Adopted) -> &str {
    one.target.as_ref().map_or("", |target| &target.service)
}

/// Writes the definition where there is anything to write. Tells whether it did.
fn write(report: &Report) -> Result<bool, Failure> {
    let definition = &report.definition;
    if !definition.is_changed() {
        return Ok(false);
    }
    if let Err(errors) = definition.spec() {
        return Err(Failure::failed(format!(
            "{} would not be a definition any more; it is left as it is",
            definition.name
        ))
        .cause(definition_errors(&errors))
        .hint("the containers are adopted; add what is printed by hand"));
    }
    definition.save()?;
    Ok(true)
}

fn show(context: &Context, report: &Report, args: &Args, written: bool) -> Result<(), Failure> {
    let reply = &report.reply;
    let mut text = String::new();
    for one in &reply.adopted {
        let said = match (args.dry_run, one.stopped) {
            (true, _) => "would be adopted",
            (false, true) => "adopted, stopped as it is",
            (false, false) => "adopted, not touched",
        };
        text.push_str(&format!(
            "{}  {} {}  container {} {}  {said}\n",
            clean::line(&reply.node),
            green(style::GOOD),
            bold(&plan::path(service(one), component(one))),
            clean::line(&one.container),
            short(&one.container_id),
        ));
    }
    for one in &reply.adopted {
        let name = component(one);
        if report.defined.iter().any(|defined| defined == name) {
            continue;
        }
        text.push_str(&format!("\n{}\n", bold(&format!("captured of {name}"))));
        for line in one.definition.lines() {
            text.push_str(&format!("    {}\n", clean::line(line)).replace("    \n", "\n"));
        }
    }
    let mut lost = Table::bare(4);
    for one in &reply.adopted {
        for change in one.departures.iter().filter(|change| change.to.is_none()) {
            lost.row([
                Cell::new(component(one), Style::Plain),
                Cell::from(change.field.as_str()),
                Cell::from(change.from.as_deref().unwrap_or_default()),
            ]);
        }
    }
    if !lost.is_empty() {
        text.push_str(&format!("\n{}\n", bold("no definition can say")));
        text.push_str(&lost.render(context.out.width()));
    }
    text.push_str(&format!("\n{}\n", bold("the next deploy")));
    match &report.next {
        Ok(next) => {
            text.push_str(&plan::render(
                next,
                |_| String::new(),
                true,
                context.out.width(),
            ));
        }
        Err(failure) => {
            let mut table = Table::bare(4);
            for one in &reply.adopted {
                for change in &one.departures {
                    table.row([
                        Cell::new(component(one), Style::Plain),
                        Cell::from(change.field.as_str()),
                        Cell::from(plan::sides(change)),
                    ]);
                }
            }
            text.push_str(&table.render(context.out.width()));
            text.push_str(&format!(
                "    (not planned: {})\n",
                clean::line(&failure.message)
            ));
        }
    }
    context.out.data(&text)?;
    remarks(context, report, args, written);
    Ok(())
}

/// Warnings, and what comes next.
fn remarks(context: &Context, report: &Report, args: &Args, written: bool) {
    let reply = &report.reply;
    for one in &reply.adopted {
        for warning in &one.warnings {
            let text = format!("{}: {warning}", component(one));
            context.out.warn(&clean::line(&text));
        }
        // A plan that was made says it itself.
        for refused in one.refused.iter().filter(|_| report.next.is_err()) {
            context.out.warn(&clean::line(&format!(
                "{}: the next deploy is blocked: {} ({})",
                component(one),
                refused.reason,
                refused.hint
            )));
        }
    }
    let definition = &report.definition;
    for name in &report.defined {
        context.out.note(&format!(
            "{} defines {name} already; it is left as it is",
            definition.name
        ));
    }
    let first = reply.adopted.first().map_or("", service);
    if written {
        context.out.note(&format!(
            "{} {} {}",
            green(style::GOOD),
            definition.name,
            if definition.exists() {
                "added to"
            } else {
                "written"
            }
        ));
        context
            .out
            .hint(&format!("mcp sync, then: mcp plan {first}"));
    } else if args.dry_run {
        context
            .out
            .hint("take it over with the same command without --dry-run");
    } else if !report.defined.is_empty() && report.defined.len() == reply.adopted.len() {
        context.out.hint(&format!("mcp plan {first}"));
    } else if definition.exists() {
        context.out.hint(&format!(
            "add what was captured to {}, then: mcp sync",
            definition.name
        ));
    } else {
        context.out.hint(&format!(
            "mcp service export {first} > {}, then: mcp sync",
            definition.name
        ));
    }
}

fn document(report: &Report, args: &Args, written: bool) -> Document {
    let reply = &report.reply;
    Document {
        node: reply.node.clone(),
        adopted: reply
            .adopted
            .iter()
            .map(|one| Component {
                service: service(one).to_owned(),
                component: component(one).to_owned(),
                container: one.container.clone(),
                container_id: one.container_id.clone(),
                definition: one.definition.clone(),
                departures: one.departures.iter().map(json::FieldChange::from).collect(),
                warnings: one.warnings.clone(),
                refused: one.refused.iter().map(json::Blocked::from).collect(),
                stopped: one.stopped,
            })
            .collect(),
        definition: report.definition.text().to_owned(),
        written: written.then(|| report.definition.name.clone()),
        dry_run: args.dry_run,
        plan: report.next.as_ref().ok().map(json::NodePlan::from),
    }
}
