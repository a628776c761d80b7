//! `mcp init`: a desired-state repository.

use std::path::{Path, PathBuf};

use mcp_cli::repo::DesiredRepo;
use mcp_cli::sign::{SigningKey, generate_key};
use serde::Serialize;

use super::repository;
use crate::config::{self, Origin};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::style::{self, bold, green, short};

/// Make a desired-state repository, or take over a git repository that exists
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp init                     in the default place, with git's own signing key
  mcp init desired --key ~/.ssh/id_ed25519
  mcp init . --name alice      take over the repository of the working directory

The key signs the first commit and stands in .mcp/allowed_signers as its owner.")]
pub(crate) struct Args {
    /// The folder (default: the repository of the settings)
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The name that the key gets among the signers (default: the user's)
    #[arg(long, value_name = "PRINCIPAL")]
    name: Option<String>,
}

#[derive(Serialize)]
struct Document {
    repo: String,
    created: bool,
    branch: String,
    revision: Option<String>,
    principal: String,
    key: String,
    key_listed: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let dir = directory(context, &args)?;
    let principal = args.name.unwrap_or_else(user_name);
    let (key, made) = key(context, &dir, &principal)?;
    let done = DesiredRepo::init(&dir, &key, &principal, None)
        .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))?;
    let recorded = record(context, args.dir.is_some(), done.repo.dir())?;

    if !context.out.is_table() {
        context.out.json(&Document {
            repo: done.repo.dir().display().to_string(),
            created: done.created,
            branch: done.branch.clone(),
            revision: done.commit.map(|id| id.to_string()),
            principal,
            key: key.fingerprint(),
            key_listed: done.key_listed,
        })?;
        return Ok(Exit::Done);
    }
    let sign = green(style::GOOD);
    let folder = clean::line(&done.repo.dir().display().to_string()).into_owned();
    let mut text = match (done.created, done.nothing_to_do()) {
        (true, _) => format!(
            "{sign} made {} on branch {}\n",
            bold(&folder),
            clean::line(&done.branch)
        ),
        (false, true) => format!("{sign} {} is set up already\n", bold(&folder)),
        (false, false) => {
            format!(
                "{sign} took over {} on branch {}\n",
                bold(&folder),
                clean::line(&done.branch)
            )
        }
    };
    if let Some(path) = &made {
        text.push_str(&format!(
            "{sign} made the key {}\n",
            clean::line(&path.display().to_string())
        ));
    }
    if let Some(commit) = done.commit {
        text.push_str(&format!(
            "{sign} {} signed by {} with {}\n",
            bold(&short(&commit.to_string())),
            clean::line(&principal),
            key.fingerprint()
        ));
    }
    for setting in &done.replaced {
        text.push_str(&format!(
            "  {} was {}\n",
            setting.key,
            clean::line(&setting.previous)
        ));
    }
    if recorded {
        text.push_str(&format!(
            "{sign} recorded in {}\n",
            context.settings.config.value.display()
        ));
    }
    context.out.data(&text)?;
    if !done.key_listed {
        context.out.warn(&format!(
            "{} is not among the signers; an owner adds it to .mcp/allowed_signers",
            key.fingerprint()
        ));
    }
    if context.settings.nodes.is_empty() {
        context
            .out
            .hint("mcp node add NAME HOST:PORT --ca FILE, then mcp service new NAME");
    } else {
        context.out.hint("mcp service new NAME, then mcp sync");
    }
    Ok(Exit::Done)
}

fn directory(context: &Context, args: &Args) -> Result<PathBuf, Failure> {
    let dir = match &args.dir {
        Some(dir) => config::expand_home(dir)?,
        None => context.settings.repo.value.clone(),
    };
    std::path::absolute(&dir).map_err(|error| {
        Failure::usage(format!("{} has no absolute path", dir.display())).because(&error)
    })
}

fn user_name() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set("USER")
        .or_else(|| set("LOGNAME"))
        .unwrap_or_else(|| "operator".to_owned())
}

/// The operator's key, or a new one where nobody names one; and where the new one was put.
fn key(
    context: &Context,
    dir: &Path,
    principal: &str,
) -> Result<(SigningKey, Option<PathBuf>), Failure> {
    let existing = DesiredRepo::open(dir).ok();
    if let Some(source) = repository::find(context, existing.as_ref())? {
        return Ok((repository::load(context, &source)?, None));
    }
    let path = config::new_key_path()?;
    if path.exists() {
        let source = mcp_cli::sign::KeySource::File(path);
        return Ok((repository::load(context, &source)?, None));
    }
    let key = generate_key(&path, principal)
        .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))?;
    Ok((key, Some(path)))
}

/// Has `mcp.toml` name the repository, where it names none and nothing else would lead there.
fn record(context: &Context, named: bool, dir: &Path) -> Result<bool, Failure> {
    let settings = &context.settings;
    let elsewhere = match settings.repo.origin {
        Origin::File => false,
        Origin::Default => settings.repo.value != dir,
        Origin::Flag | Origin::Variable(_) | Origin::WorkingDirectory => {
            named && settings.repo.value != dir
        }
    };
    if settings.repo.origin == Origin::File && settings.repo.value != dir {
        context.out.note(&format!(
            "mcp.toml names {}; use --repo {} for this one",
            settings.repo.value.display(),
            dir.display()
        ));
    }
    if !elsewhere || matches!(settings.repo.origin, Origin::Flag | Origin::Variable(_)) {
        return Ok(false);
    }
    config::set_string(
        &settings.config.value,
        None,
        "repo",
        &dir.display().to_string(),
    )
    .map_err(|error| error.failure())?;
    Ok(true)
}
