//! `mcp service remove`.

use mcp_spec::name::ServiceName;

use crate::commands::repository;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, green};

/// Delete a definition; what runs stays until it is purged
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service remove old-service && mcp sync && mcp purge old-service
  mcp service remove old-service --files --yes")]
pub(super) struct Args {
    /// Which
    #[arg(add = crate::commands::complete::services(), value_name = "NAME")]
    name: ServiceName,
    /// Its files below files/NAME, too
    #[arg(long)]
    files: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let definition = repository::definition_path(context, &args.name);
    if definition.symlink_metadata().is_err() {
        return Err(super::undefined(context, &args.name));
    }
    let folder = repo.dir().join(format!("files/{}", args.name));
    let with_folder = args.files && folder.symlink_metadata().is_ok_and(|data| data.is_dir());
    let what = if with_folder {
        format!("{} and {}", definition.display(), folder.display())
    } else {
        definition.display().to_string()
    };
    if !args.yes {
        if !context.out.can_ask() {
            return Err(Failure::usage(format!("this deletes {what}"))
                .cause("there is no terminal to ask on")
                .hint("agree with --yes"));
        }
        if !context.out.confirm(&format!("Delete {what}?")) {
            context.out.note("nothing was done");
            return Err(Failure::told(Exit::Usage));
        }
    }
    let failed = |path: &std::path::Path, error: &std::io::Error| {
        Failure::failed(format!("{} cannot be deleted", path.display())).because(error)
    };
    std::fs::remove_file(&definition).map_err(|error| failed(&definition, &error))?;
    if with_folder {
        std::fs::remove_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    }
    context
        .out
        .note(&format!("{} deleted {what}", green(style::GOOD)));
    context
        .out
        .hint(&format!("mcp sync && mcp purge {}", args.name));
    Ok(Exit::Done)
}
