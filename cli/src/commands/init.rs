//! `mcp init`: a desired-state repository.

use std::path::{Path, PathBuf};

use mcp_cli::repo::{DesiredRepo, Identity};
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
    let principal = args.name.unwrap_or_else(|| {
        let person = mcp_cli::repo::git_person(DesiredRepo::open(&dir).ok().as_ref());
        user_name(login_name().as_deref(), person.as_ref())
    });
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
    for path in &done.unfit {
        context.out.warn(&format!(
            "{}: no node takes a revision that holds it; remove it before the first sync",
            clean::line(&path.to_string())
        ));
    }
    if !done.key_listed {
        context.out.warn(&format!(
            "{} is not among the signers; an owner adds it: mcp trust add KEY",
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
    let dir = std::path::absolute(&dir).map_err(|error| {
        Failure::usage(format!("{} has no absolute path", dir.display())).because(&error)
    })?;
    // `desired/../other` is told, and kept in the settings, as what it leads to.
    let parent = dir.parent().and_then(|parent| parent.canonicalize().ok());
    Ok(match (dir.canonicalize(), parent, dir.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => parent.join(name),
        _ => dir,
    })
}

/// Who is logged in: the environment's word, else that of the system's own list of users.
fn login_name() -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set("USER").or_else(|| set("LOGNAME")).or_else(|| {
        let users = std::fs::read_to_string("/etc/passwd").ok()?;
        let uid = rustix::process::getuid().as_raw().to_string();
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        })
    })
}

/// The name among the signers: the login's, else, where that says nothing of the person, that of
/// git's own identity.
fn user_name(login: Option<&str>, person: Option<&Identity>) -> String {
    let of_person = person.and_then(|person| {
        let local = person.email.split('@').next().unwrap_or_default();
        [local, person.name.as_str()]
            .into_iter()
            .map(as_principal)
            .find(|name| !name.is_empty())
    });
    let login = login.map(as_principal).filter(|name| !name.is_empty());
    match (login, of_person) {
        (Some(login), _) if login != "root" => login,
        (_, Some(person)) => person,
        (Some(login), None) => login,
        (None, None) => "operator".to_owned(),
    }
}

/// The text with what cannot stand in a signer's name left out, in lower case.
fn as_principal(text: &str) -> String {
    let kept = text.trim().chars().map(|c| if c == ' ' { '-' } else { c });
    kept.filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .collect::<String>()
        .to_ascii_lowercase()
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
    let usual = config::expand_home(Path::new("~/.ssh/id_ed25519"))?;
    if usual.is_file()
        && context.out.confirm(&format!(
            "No key is set up for signing. Sign with {}?",
            usual.display()
        ))
    {
        let source = mcp_cli::sign::KeySource::File(usual);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str, email: &str) -> Identity {
        Identity {
            name: name.to_owned(),
            email: email.to_owned(),
        }
    }

    #[test]
    fn a_signer_is_named_after_the_login_and_root_after_git_s_identity() {
        let alice = person("Alice Anders", "alice@example.net");
        assert_eq!(user_name(Some("ali"), Some(&alice)), "ali");
        assert_eq!(user_name(Some("root"), Some(&alice)), "alice");
        assert_eq!(user_name(None, Some(&person("Bob B. Ö", ""))), "bob-b.-");
        assert_eq!(user_name(Some("root"), None), "root");
        assert_eq!(user_name(None, None), "operator");
    }
}
