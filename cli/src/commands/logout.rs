//! `mcp logout`: forgets tokens.

use std::path::PathBuf;

use crate::client::token;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Forget the bearer tokens, all or those of --node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp logout
  mcp logout --node rift")]
pub(crate) struct Args {}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let settings = &context.settings;
    let paths: Vec<PathBuf> = if let Some(file) = &settings.token_file {
        vec![file.value.clone()]
    } else if settings.selected.value.is_empty() {
        let own = settings
            .nodes
            .iter()
            .map(|node| token::file_for(settings, Some(node.name.as_str())));
        std::iter::once(token::file_for(settings, None))
            .chain(own)
            .collect()
    } else {
        settings
            .selected
            .value
            .iter()
            .map(|name| token::file_for(settings, Some(name)))
            .collect()
    };
    let mut any = false;
    for path in paths {
        match std::fs::remove_file(&path) {
            Ok(()) => {
                any = true;
                context.out.note(&format!("removed {}", path.display()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(
                    Failure::failed(format!("{} cannot be removed", path.display()))
                        .because(&error),
                );
            }
        }
    }
    if !any {
        context.out.note("no token was kept");
    }
    Ok(Exit::Done)
}
