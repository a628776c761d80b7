//! `mcp secret`: values that the repository holds encrypted to nodes.

mod list;
mod recipients;
mod rekey;
mod remove;
mod set;
mod stored;

use crate::context::Context;
use crate::error::Outcome;

/// Values that the repository holds encrypted
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp secret set shop db-password < password.txt
  mcp secret list
  mcp secret rekey shop       after the service has moved, or its node has a new identity
  mcp secret rm shop db-password

A definition uses it with secrets = [\"db-password\"]: a file /run/secrets/db-password in memory.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Set(set::Args),
    List(list::Args),
    Rm(remove::Args),
    Rekey(rekey::Args),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Set(args) => set::run(context, args).await,
        Command::List(args) => list::run(context, &args),
        Command::Rm(args) => remove::run(context, &args),
        Command::Rekey(args) => rekey::run(context, args).await,
    }
}
