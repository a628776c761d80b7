//! `mcp logout`: has MCIAS take tokens back, and forgets them.

use std::path::{Path, PathBuf};

use crate::client::{mcias, token};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Forget the bearer tokens, all or those of --node
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tokens of MCIAS do not count any more afterwards. Where it is away, they are forgotten here all the same.

Examples:
  mcp logout
  mcp logout --node rift"
)]
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
        tell_mcias(context, &path).await;
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

/// Has MCIAS take the token in `path` back, where it made it. What fails is told, and the token forgotten all the same.
async fn tell_mcias(context: &Context, path: &Path) {
    let Some(server) = &context.settings.issuer else {
        return;
    };
    let Ok(Some(held)) = token::read(path) else {
        return;
    };
    let Some(claims) = held.claims().filter(token::is_of_mcias) else {
        return;
    };
    match mcias::logout(server, &held).await {
        Ok(()) => context
            .out
            .note(&format!("{} took the token back", server.server_url)),
        Err(failure) => {
            let until = claims
                .exp
                .and_then(|at| jiff::Timestamp::from_second(at).ok())
                .map(|at| format!(" until {at}"))
                .unwrap_or_default();
            let cause = failure
                .causes
                .first()
                .map(|cause| format!(" ({cause})"))
                .unwrap_or_default();
            context.out.warn(&format!(
                "{}{cause}: whoever has a copy of the token can use it{until}",
                failure.message
            ));
        }
    }
}
