//! `mcp service check`.

use mcp_cli::repo::{At, ManagedFiles, RefusedPath};
use mcp_spec::definition::{DefinitionError, DefinitionFile, parse_one};
use mcp_spec::name::ServiceName;
use serde::Serialize;

use crate::commands::repository::{self, CheckError, Files as _, Lookup};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::diagnostics;
use crate::output::style::{self, count, green};

/// Check definitions, and tell all errors of all files at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service check            every definition, against each other too
  mcp service check metacrypt  one alone
  mcp service check -o json    {ok, errors: [{file, line, column, message, hint}]}")]
pub(super) struct Args {
    /// Only these, each by itself
    #[arg(add = crate::commands::complete::services(), value_name = "NAME")]
    names: Vec<ServiceName>,
}

#[derive(Serialize)]
struct Document {
    ok: bool,
    errors: Vec<Error>,
}

#[derive(Serialize)]
struct Error {
    file: String,
    line: usize,
    column: usize,
    message: String,
    hint: Option<String>,
    kind: String,
}

impl From<&DefinitionError> for Error {
    fn from(error: &DefinitionError) -> Self {
        Self {
            file: error.file.clone(),
            line: error.line,
            column: error.column,
            message: error.message.clone(),
            hint: error.hint.clone(),
            kind: error.kind.to_string(),
        }
    }
}

impl From<&RefusedPath> for Error {
    fn from(refused: &RefusedPath) -> Self {
        Self {
            file: refused.path.clone(),
            line: 0,
            column: 0,
            message: refused.reason.to_string(),
            hint: None,
            kind: "refused".to_owned(),
        }
    }
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let read =
        |error: mcp_cli::repo::ReadError| Failure::of(Exit::Failed, &error).hint(error.hint());
    let files = repo.files(At::WorkTree).map_err(read)?;
    let (checked, errors) = if args.names.is_empty() {
        match repository::check(&files) {
            Ok(set) => (set.services.len(), Vec::new()),
            Err(CheckError::Definitions(errors)) => (0, errors),
            Err(CheckError::Read(failure)) => return Err(failure),
        }
    } else {
        (args.names.len(), alone(context, &files, &args.names)?)
    };
    // Symlinks and the like are refused unread, so no definition error tells of them.
    let refused = match args.names.is_empty() {
        true => {
            repo.changes()
                .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
                .refused
        }
        false => Vec::new(),
    };
    if args.names.is_empty() {
        repository::warn_of_overlooked(context, &repo, &files);
    }
    let total = errors.len() + refused.len();
    if !context.out.is_table() {
        let errors = errors
            .iter()
            .map(Error::from)
            .chain(refused.iter().map(Error::from))
            .collect();
        context.out.json(&Document {
            ok: total == 0,
            errors,
        })?;
        return if total == 0 {
            Ok(Exit::Done)
        } else {
            Err(Failure::told(Exit::Failed))
        };
    }
    if total == 0 {
        context.out.data(&format!(
            "{} {}",
            green(style::GOOD),
            count(checked, "service")
        ))?;
        return Ok(Exit::Done);
    }
    context
        .out
        .error_text(&diagnostics::definition_errors(&errors));
    for refused in &refused {
        context.out.failure(&Failure::failed(refused.to_string()));
    }
    Err(Failure::failed(format!(
        "the definitions have {}",
        count(total, "error")
    )))
}

fn alone(
    context: &Context,
    files: &ManagedFiles<'_>,
    names: &[ServiceName],
) -> Result<Vec<DefinitionError>, Failure> {
    let lookup = Lookup::new(files);
    let mut all = Vec::new();
    for name in names {
        let path = format!("services/{name}.toml");
        let bytes = files
            .bytes(&path)
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
            .ok_or_else(|| super::undefined(context, name))?;
        let file = DefinitionFile {
            path: &path,
            bytes: &bytes,
        };
        all.extend(parse_one(file, &|path| lookup.digest(path)).1);
    }
    Ok(all)
}
