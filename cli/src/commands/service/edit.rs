//! `mcp service edit`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use mcp_cli::repo::At;
use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::name::ServiceName;

use crate::commands::repository::{self, Lookup};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::diagnostics;
use crate::output::style::{self, count, green};

/// Edit a definition; it is saved once it checks
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service edit metacrypt
  EDITOR=nano mcp service edit metacrypt")]
pub(super) struct Args {
    /// Which
    #[arg(add = crate::commands::complete::services(), value_name = "NAME")]
    name: ServiceName,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let path = repository::definition_path(context, &args.name);
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("{} cannot be edited", path.display())).because(error)
    };
    let before = match std::fs::read(&path) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(super::undefined(context, &args.name));
        }
        Err(error) => return Err(failed(&error)),
    };
    let files = repo
        .files(At::WorkTree)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    let lookup = Lookup::new(&files);
    // Beside nothing else: the repository must not see a half-written definition.
    let mut copy = tempfile::Builder::new()
        .prefix(&format!("{}-", args.name))
        .suffix(".toml")
        .tempfile()
        .map_err(|error| failed(&error))?;
    copy.write_all(&before).map_err(|error| failed(&error))?;
    loop {
        open_editor(context, copy.path())?;
        let after = std::fs::read(copy.path()).map_err(|error| failed(&error))?;
        if after == before {
            context.out.note("nothing was changed");
            return Ok(Exit::Done);
        }
        let relative = format!("services/{}.toml", args.name);
        let (_, errors) = parse_one(
            DefinitionFile {
                path: &relative,
                bytes: &after,
            },
            &|path| lookup.digest(path),
        );
        if errors.is_empty() {
            save(&path, &after).map_err(|error| failed(&error))?;
            context
                .out
                .note(&format!("{} {}", green(style::GOOD), path.display()));
            context.out.hint(&format!("mcp plan {}", args.name));
            return Ok(Exit::Done);
        }
        context
            .out
            .error_text(&diagnostics::definition_errors(&errors));
        // Without a terminal nobody agrees, and the editor would do the same again.
        let again = context.out.confirm(&format!(
            "The definition has {}. Edit again?",
            count(errors.len(), "error")
        ));
        if !again {
            let kept = copy.keep().map_err(|error| failed(&error.error))?.1;
            return Err(Failure::failed("the definition was not saved")
                .hint(format!("the edit is kept in {}", kept.display())));
        }
    }
}

/// Renamed into place, so that a crash leaves either; the mode stays.
fn save(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mode = std::fs::metadata(path)?.permissions();
    let mut file = tempfile::Builder::new()
        .prefix(".mcp-")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn open_editor(context: &Context, path: &Path) -> Result<(), Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let editor = match set("VISUAL").or_else(|| set("EDITOR")) {
        Some(editor) => editor,
        None if context.out.can_ask() => OsString::from("vi"),
        None => {
            return Err(Failure::usage("there is no terminal to edit on")
                .hint("set EDITOR to a command that edits by itself, or change the file"));
        }
    };
    // As git does it: the variable is a line for the shell, the file an argument of its own.
    let mut line = editor.clone();
    line.push(" \"$@\"");
    let failed = || Failure::failed(format!("the editor `{}` failed", editor.to_string_lossy()));
    let status = Command::new("sh")
        .arg("-c")
        .arg(line)
        .arg("sh")
        .arg(path)
        .status()
        .map_err(|error| failed().because(&error))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed()
            .cause(status.to_string())
            .hint("set VISUAL or EDITOR"))
    }
}
