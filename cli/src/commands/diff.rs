//! `mcp diff`: two states of the definitions, field by field. No node is asked.

use mcp_cli::repo::{At, DesiredRepo};
use mcp_proto::v1;
use mcp_spec::definition::DesiredSet;
use mcp_spec::diff::{Change, ComponentChange, FieldChange, ServiceChange, set_diff};
use serde::Serialize;

use super::repository;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::plan::sides;
use crate::output::style::{Style, bold};
use crate::output::table::{Cell, Table};

/// Compare definitions field by field: the work tree, or two revisions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp diff                     HEAD and the work tree
  mcp diff HEAD~2              an older revision and the work tree
  mcp diff v1 main             two revisions

Comments and the order of keys are no difference; see git diff for those.")]
pub(crate) struct Args {
    /// From this revision (default HEAD)
    #[arg(value_name = "REV")]
    from: Option<String>,
    /// To this one (default the work tree)
    #[arg(value_name = "REV")]
    to: Option<String>,
    /// End with 2 where they differ
    #[arg(long)]
    exit_code: bool,
}

#[derive(Serialize)]
struct Field {
    field: String,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct Document {
    service: String,
    component: Option<String>,
    change: &'static str,
    changes: Vec<Field>,
}

fn fields(changes: &[FieldChange]) -> Vec<Field> {
    changes
        .iter()
        .map(|change| Field {
            field: change.field.clone(),
            from: change.from.clone(),
            to: change.to.clone(),
        })
        .collect()
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let repo = repository::open(context)?;
    let from = match &args.from {
        Some(rev) => At::Commit(resolve(&repo, rev)?),
        None => match repo
            .head()
            .map_err(|error| repository::history_failure(&error))?
        {
            Some(head) => At::Commit(head),
            None => {
                return Err(Failure::usage("this repository has no commit yet").hint("mcp sync"));
            }
        },
    };
    let to = match &args.to {
        Some(rev) => At::Commit(resolve(&repo, rev)?),
        None => At::WorkTree,
    };
    let before = set(context, &repo, from)?;
    let after = set(context, &repo, to)?;
    let changes = set_diff(&before, &after);
    let documents: Vec<Document> = changes.iter().flat_map(documents).collect();
    if context.out.is_table() {
        if documents.is_empty() {
            context.out.note("no difference");
        }
        let mut text = String::new();
        for document in &documents {
            draw(&mut text, document, context.out.width());
        }
        context.out.data(&text)?;
    } else {
        context.out.json_list(&documents)?;
    }
    Ok(if args.exit_code && !documents.is_empty() {
        Exit::Changes
    } else {
        Exit::Done
    })
}

fn resolve(repo: &DesiredRepo, rev: &str) -> Result<mcp_spec::revision::CommitId, Failure> {
    repo.resolve(rev)
        .map_err(|error| Failure::of(Exit::Usage, &error).hint(error.hint()))
}

fn set(context: &Context, repo: &DesiredRepo, at: At) -> Result<DesiredSet, Failure> {
    let files = repo
        .files(at)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    repository::check(&files).map_err(|error| error.tell(context))
}

fn documents(change: &ServiceChange) -> Vec<Document> {
    let of = |component: Option<&str>, change_word, changes| Document {
        service: change.service.to_string(),
        component: component.map(ToOwned::to_owned),
        change: change_word,
        changes,
    };
    match &change.change {
        Change::Added { components } => components
            .iter()
            .map(|(name, version)| of(Some(name.as_str()), "added", vec![version_field(version)]))
            .collect(),
        Change::Removed => vec![of(None, "removed", Vec::new())],
        Change::Changed {
            fields: own,
            components,
        } => {
            let mut all = Vec::new();
            if !own.is_empty() {
                all.push(of(None, "changed", fields(own)));
            }
            for (name, component) in components {
                let name = Some(name.as_str());
                all.push(match component {
                    ComponentChange::Added { version } => {
                        of(name, "added", vec![version_field(version)])
                    }
                    ComponentChange::Removed => of(name, "removed", Vec::new()),
                    ComponentChange::Changed { fields: own } => of(name, "changed", fields(own)),
                });
            }
            all
        }
    }
}

fn version_field(version: &str) -> Field {
    Field {
        field: "image".to_owned(),
        from: None,
        to: Some(version.to_owned()),
    }
}

fn draw(text: &mut String, document: &Document, width: Option<usize>) {
    let name = crate::output::plan::path(
        &document.service,
        document.component.as_deref().unwrap_or_default(),
    );
    let (sign, style) = match document.change {
        "added" => ("+", Style::Good),
        "removed" => ("-", Style::Bad),
        _ => ("~", Style::Warn),
    };
    text.push_str(&format!(
        "{} {}  {}\n",
        style.paint(sign),
        bold(&name),
        style.paint(document.change)
    ));
    let mut table = Table::bare(4);
    for field in &document.changes {
        let change = v1::FieldChange {
            field: field.field.clone(),
            from: field.from.clone(),
            to: field.to.clone(),
        };
        table.row([Cell::from(field.field.as_str()), Cell::from(sides(&change))]);
    }
    text.push_str(&table.render(width));
}
