//! `mcp service`: the definitions in the work tree.

mod check;
mod edit;
mod export;
mod list;
mod new;
mod remove;
mod show;

use mcp_spec::name::ServiceName;

use crate::context::Context;
use crate::error::{Failure, Outcome};

/// The definitions of services
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service new metacrypt --node rift --image registry.example.net:5000/metacrypt:v1.4.0
  mcp service check
  mcp service show metacrypt   with every default filled in")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    New(new::Args),
    Edit(edit::Args),
    Remove(remove::Args),
    Check(check::Args),
    Export(export::Args),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::List(args) => list::run(context, &args),
        Command::Show(args) => show::run(context, &args),
        Command::New(args) => new::run(context, &args),
        Command::Edit(args) => edit::run(context, &args),
        Command::Remove(args) => remove::run(context, &args),
        Command::Check(args) => check::run(context, &args),
        Command::Export(args) => export::run(context, args).await,
    }
}

/// The failure of a command about a service that has no definition here.
fn undefined(context: &Context, service: &ServiceName) -> Failure {
    Failure::usage(format!(
        "there is no services/{service}.toml in {}",
        context.settings.repo.value.display()
    ))
    .hint(format!("mcp service new {service}, or mcp service list"))
}
