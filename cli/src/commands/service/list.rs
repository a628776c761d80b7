//! `mcp service list`.

use mcp_cli::repo::At;
use mcp_spec::definition::{DefinitionFile, parse_one};
use serde::Serialize;

use crate::commands::repository::{self, Files as _, Lookup};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{Style, count};
use crate::output::table::{Cell, Table};

/// List the services that are defined here
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service list
  mcp service list --node rift")]
pub(super) struct Args {}

#[derive(Serialize)]
struct Document {
    service: String,
    node: Option<String>,
    active: Option<bool>,
    reconcile: Option<String>,
    components: Vec<Component>,
    description: Option<String>,
    errors: usize,
    file: String,
}

#[derive(Serialize)]
struct Component {
    component: String,
    image: String,
}

/// Carries it out.
pub(super) fn run(context: &Context, _: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let files = repo
        .files(At::WorkTree)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    let lookup = Lookup::new(&files);
    let chosen = &context.settings.selected.value;
    let mut documents = Vec::new();
    for path in repository::Files::definitions(&files) {
        let bytes = files
            .bytes(&path)
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
            .unwrap_or_default();
        let (spec, errors) = parse_one(
            DefinitionFile {
                path: &path,
                bytes: &bytes,
            },
            &|path| lookup.digest(path),
        );
        let document = Document::new(&path, spec.as_ref(), errors.len());
        let wanted = document
            .node
            .as_ref()
            .is_none_or(|node| chosen.contains(node));
        if chosen.is_empty() || wanted {
            documents.push(document);
        }
    }
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
        return Ok(Exit::Done);
    }
    if documents.is_empty() {
        context.out.note("no service is defined here");
        context.out.hint("mcp service new NAME");
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["SERVICE", "NODE", "COMPONENTS", "DESCRIPTION", ""]);
    for document in &documents {
        let components: Vec<&str> = document
            .components
            .iter()
            .map(|component| component.component.as_str())
            .collect();
        let (remark, style) = match (document.errors, document.active) {
            (0, Some(false)) => ("inactive".to_owned(), Style::Dim),
            (0, _) => (String::new(), Style::Plain),
            (errors, _) => (count(errors, "error"), Style::Bad),
        };
        table.row([
            Cell::new(&document.service, Style::Bold),
            Cell::from(document.node.as_deref().unwrap_or("-")),
            Cell::from(components.join(", ")),
            Cell::from(document.description.as_deref().unwrap_or_default()),
            Cell::new(&remark, style),
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    Ok(Exit::Done)
}

impl Document {
    fn new(path: &str, spec: Option<&mcp_spec::component::ServiceSpec>, errors: usize) -> Self {
        let stem = path
            .trim_start_matches("services/")
            .trim_end_matches(".toml");
        Self {
            service: stem.to_owned(),
            node: spec.map(|spec| spec.node.to_string()),
            active: spec.map(|spec| spec.active),
            reconcile: spec.map(|spec| {
                match spec.reconcile {
                    mcp_spec::component::Reconcile::Manual => "manual",
                    mcp_spec::component::Reconcile::Auto => "auto",
                }
                .to_owned()
            }),
            components: spec
                .iter()
                .flat_map(|spec| &spec.components)
                .map(|(name, component)| Component {
                    component: name.to_string(),
                    image: component.image.to_string(),
                })
                .collect(),
            description: spec.and_then(|spec| spec.description.clone()),
            errors,
            file: path.to_owned(),
        }
    }
}
