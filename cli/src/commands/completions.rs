//! `mcp completions`: a shell's completion script.

use clap_complete::Shell;

use crate::context::Context;
use crate::error::{Exit, Outcome};

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp completions bash > ~/.local/share/bash-completion/completions/mcp
  mcp completions zsh > ~/.zfunc/_mcp
  mcp completions fish > ~/.config/fish/completions/mcp.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::command(), "mcp", &mut script);
    context.out.bytes(&script)?;
    Ok(Exit::Done)
}
