//! `mcp secret rm`.

use mcp_spec::name::{SecretName, ServiceName};
use mcp_spec::secret::secret_path;

use super::stored::Secrets;
use crate::commands::repository;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, green};

/// Delete a secret that no definition uses
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp secret rm shop db-password && mcp sync

Older revisions hold the encrypted value still: change it where it is used as well.")]
pub(super) struct Args {
    /// Whose secret it is
    #[arg(add = crate::commands::complete::services(), value_name = "SERVICE")]
    service: ServiceName,
    /// Its name
    #[arg(value_name = "NAME")]
    name: SecretName,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let secrets = Secrets::read(&repo)?;
    let Args { service, name } = args;
    let path = secret_path(service, name);
    let is_there = secrets
        .stored
        .iter()
        .any(|one| one.service == *service && one.name == *name);
    if !is_there {
        return Err(
            Failure::usage(format!("there is no secret {service}/{name}")).hint("mcp secret list"),
        );
    }
    let users = secrets.users(service, name);
    if !users.is_empty() {
        return Err(Failure::usage(format!("{service}/{name} is in use"))
            .cause(format!(
                "services/{service}.toml gives it to {}",
                users.join(", ")
            ))
            .hint("take it out of `secrets` there first"));
    }
    std::fs::remove_file(repo.dir().join(&path))
        .map_err(|error| Failure::failed(format!("{path} cannot be deleted")).because(&error))?;
    context
        .out
        .note(&format!("{} deleted {path}", green(style::GOOD)));
    context.out.hint("mcp sync");
    Ok(Exit::Done)
}
