//! `mcp man`: manual pages.

use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::count;

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp man ~/.local/share/man/man1
  man mcp-deploy")]
pub(crate) struct Args {
    /// The folder, made where it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let failed = |error: &std::io::Error| {
        Failure::failed(format!(
            "the manual pages cannot be written to {}",
            args.dir.display()
        ))
        .because(error)
    };
    std::fs::create_dir_all(&args.dir).map_err(|error| failed(&error))?;
    let command = crate::args::plain_command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir).map_err(|error| failed(&error))?;
    let pages = std::fs::read_dir(&args.dir).map_or(0, |entries| {
        let is_page = |name: &str| name.starts_with("mcp") && name.ends_with(".1");
        entries
            .flatten()
            .filter(|entry| is_page(&entry.file_name().to_string_lossy()))
            .count()
    });
    context.out.note(&format!(
        "{} in {}",
        count(pages, "page"),
        args.dir.display()
    ));
    Ok(Exit::Done)
}
