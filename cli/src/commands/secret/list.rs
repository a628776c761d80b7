//! `mcp secret list`.

use mcp_spec::name::ServiceName;
use serde::Serialize;

use super::stored::Secrets;
use crate::commands::repository;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// List the secrets, the nodes that each is encrypted to, and who uses them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp secret list
  mcp secret list shop -o json")]
pub(super) struct Args {
    /// Only those of this service
    #[arg(add = crate::commands::complete::services(), value_name = "SERVICE")]
    service: Option<ServiceName>,
}

#[derive(Serialize)]
struct Document {
    service: String,
    name: String,
    nodes: Vec<String>,
    used_by: Vec<String>,
    state: &'static str,
    reason: Option<String>,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let secrets = Secrets::read(&repo)?;
    let wanted = |service: &ServiceName| args.service.as_ref().is_none_or(|only| only == service);
    let mut documents = Vec::new();
    for one in secrets.stored.iter().filter(|one| wanted(&one.service)) {
        let reason = secrets.stale(one);
        let used_by = secrets.users(&one.service, &one.name);
        documents.push(Document {
            service: one.service.to_string(),
            name: one.name.to_string(),
            nodes: one
                .nodes
                .iter()
                .flat_map(|nodes| nodes.keys().map(ToString::to_string))
                .collect(),
            state: match (&reason, used_by.is_empty()) {
                (Some(_), _) => "stale",
                (None, true) => "unused",
                (None, false) => "good",
            },
            used_by,
            reason,
        });
    }
    for (service, name) in secrets.missing() {
        if wanted(&service) {
            documents.push(Document {
                used_by: secrets.users(&service, &name),
                service: service.to_string(),
                name: name.to_string(),
                nodes: Vec::new(),
                state: "missing",
                reason: Some(format!("mcp secret set {service} {name}")),
            });
        }
    }
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
        return Ok(Exit::Done);
    }
    if documents.is_empty() {
        context.out.note("there is no secret here");
        context.out.hint("mcp secret set SERVICE NAME");
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["SERVICE", "SECRET", "NODES", "USED BY", "STATE"]);
    for document in &documents {
        let dash = |items: &[String]| match items {
            [] => "-".to_owned(),
            items => items.join(", "),
        };
        let (state, style) = match (document.state, &document.reason) {
            ("stale", Some(reason)) => (format!("stale: {reason}"), Style::Warn),
            ("missing", _) => ("missing".to_owned(), Style::Bad),
            (state, _) => (state.to_owned(), Style::Plain),
        };
        table.row([
            Cell::new(&document.service, Style::Bold),
            Cell::from(document.name.as_str()),
            Cell::from(dash(&document.nodes)),
            Cell::from(dash(&document.used_by)),
            Cell::new(&state, style),
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    if documents.iter().any(|document| document.state == "stale") {
        context.out.hint("mcp secret rekey, then mcp sync");
    }
    Ok(Exit::Done)
}
