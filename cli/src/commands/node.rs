//! `mcp node`: the nodes that this workstation knows.

mod add;
mod fetch;
mod info;
mod list;
mod remove;

use crate::context::Context;
use crate::error::Outcome;

/// The nodes that this workstation knows
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp node add rift rift.example.net:9444 --ca rift-ca.pem
  mcp node info rift
  mcp node fetch rift")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Add(add::Args),
    Remove(remove::Args),
    Info(info::Args),
    Fetch(fetch::Args),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::List(args) => list::run(context, &args),
        Command::Add(args) => add::run(context, &args),
        Command::Remove(args) => remove::run(context, &args),
        Command::Info(args) => info::run(context, args).await,
        Command::Fetch(args) => fetch::run(context, args).await,
    }
}

/// The nodes named on the command line, else the chosen ones.
pub(crate) fn named<'a>(
    context: &'a Context,
    names: &[mcp_spec::name::NodeName],
) -> Result<Vec<&'a crate::config::NodeEntry>, crate::error::Failure> {
    if names.is_empty() {
        return context.settings.chosen_nodes();
    }
    names
        .iter()
        .map(|name| context.settings.node(name.as_str()))
        .collect()
}
