//! `mcp completions`: a shell's completion script.

use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Services, components and nodes are completed too, from the repository and mcp.toml.

Examples:
  mcp completions bash > ~/.local/share/bash-completion/completions/mcp
  mcp completions zsh > ~/.zfunc/_mcp
  mcp completions fish > ~/.config/fish/completions/mcp.fish"
)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let name = args.shell.to_string();
    let mut script = Vec::new();
    Shells::builtins()
        .completer(&name)
        .ok_or_else(|| Failure::usage(format!("there are no completions for {name}")))?
        // The script asks the command itself what there is to complete, through this variable.
        .write_registration("COMPLETE", "mcp", "mcp", "mcp", &mut script)
        .map_err(|error| Failure::failed("the script cannot be written").because(&error))?;
    context.out.bytes(&script)?;
    Ok(Exit::Done)
}
