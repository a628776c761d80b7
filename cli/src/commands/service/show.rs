//! `mcp service show`.

use mcp_cli::repo::At;
use mcp_spec::component::ServiceSpec;
use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::name::ServiceName;
use serde_json::json;

use crate::commands::repository::{self, CheckError, Files as _, Lookup};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{Style, bold, dim};
use crate::output::table::{Cell, Table};

/// Show a definition as it resolves, with every default filled in
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service show metacrypt
  mcp service show metacrypt --rev HEAD~2
  mcp service show metacrypt -o json | jq .components.api.image")]
pub(super) struct Args {
    /// Which
    #[arg(add = crate::commands::complete::services(), value_name = "NAME")]
    name: ServiceName,
    /// As it was at this revision
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let at = match &args.rev {
        Some(rev) => At::Commit(
            repo.resolve(rev)
                .map_err(|error| Failure::of(Exit::Usage, &error).hint(error.hint()))?,
        ),
        None => At::WorkTree,
    };
    let files = repo
        .files(at)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    let path = format!("services/{}.toml", args.name);
    let bytes = files
        .bytes(&path)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
        .ok_or_else(|| super::undefined(context, &args.name))?;
    let lookup = Lookup::new(&files);
    let (spec, errors) = parse_one(
        DefinitionFile {
            path: &path,
            bytes: &bytes,
        },
        &|path| lookup.digest(path),
    );
    let Some(spec) = spec else {
        return Err(CheckError::Definitions(errors).tell(context));
    };
    if context.out.is_table() {
        context.out.data(&text(&spec, context.out.width()))?;
    } else {
        let mut document = serde_json::to_value(&spec).map_err(|error| {
            Failure::failed("the definition cannot be written as JSON").because(&error)
        })?;
        // The digests are what plans and drift compare.
        document["digests"] = spec
            .components
            .iter()
            .map(|(name, component)| (name.to_string(), json!(component.digest().to_string())))
            .collect();
        context.out.json(&document)?;
    }
    Ok(Exit::Done)
}

fn text(spec: &ServiceSpec, width: Option<usize>) -> String {
    let mut head = Table::bare(0);
    let mut row = |name: &str, value: &str| {
        head.row([Cell::new(name, Style::Dim), Cell::from(value)]);
    };
    row("name", spec.name.as_str());
    row("node", spec.node.as_str());
    row("active", if spec.active { "true" } else { "false" });
    if let Some(description) = &spec.description {
        row("description", description);
    }
    row("alert", if spec.alert { "true" } else { "false" });
    row("deadline", &spec.deadline.to_string());
    row(
        "reconcile",
        match spec.reconcile {
            mcp_spec::component::Reconcile::Manual => "manual",
            mcp_spec::component::Reconcile::Auto => "auto",
        },
    );
    row(
        "on_failure",
        match spec.on_failure {
            mcp_spec::component::OnFailure::KeepOld => "keep-old",
            mcp_spec::component::OnFailure::Leave => "leave",
        },
    );
    let mut text = head.render(width);
    for (name, component) in &spec.components {
        text.push_str(&format!(
            "\n{}  {}\n",
            bold(name.as_str()),
            dim(&component.digest().to_string())
        ));
        let mut table = Table::bare(2);
        for (field, value) in component.fields() {
            table.row([Cell::new(&field, Style::Dim), Cell::from(value)]);
        }
        text.push_str(&table.render(width));
    }
    text
}
