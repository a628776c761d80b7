//! `mcp alert`: the alerts that nodes send.

mod test;

use crate::context::Context;
use crate::error::Outcome;

/// Try whether a node's alerts arrive
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp alert test               every node
  mcp alert test rift")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Test(test::Args),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Test(args) => test::run(context, args).await,
    }
}
