//! The command `mcp`: reads the command line, carries the command out, tells how it ended.

mod args;
mod client;
mod commands;
mod config;
mod context;
mod error;
mod output;

use std::process::ExitCode;
use std::sync::Arc;

use clap::FromArgMatches as _;
use clap::error::{ContextKind, ErrorKind};

use args::{Cli, Given};
use context::Context;
use error::{Exit, Failure, Outcome};
use output::Printer;

fn main() -> ExitCode {
    // Ends the process where a shell asks for completions.
    clap_complete::CompleteEnv::with_factory(args::command).complete();
    let matches = match args::without_empty_variables(args::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(error),
    };
    let out = Printer::new(&cli.global);
    let exit = match run(cli, &Given::new(matches), out) {
        Ok(exit) => exit,
        Err((out, failure)) => {
            out.failure(&failure);
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

fn run(cli: Cli, given: &Given, out: Printer) -> Result<Exit, (Printer, Failure)> {
    let settings = match config::Settings::load(&cli.global, given) {
        Ok(settings) => settings,
        Err(failure) => return Err((out, failure)),
    };
    let timeout = cli
        .global
        .timeout
        .map(mcp_spec::duration::Span::as_duration);
    let context = Context {
        settings,
        out,
        timeout,
        key: Arc::default(),
    };
    // One thread is enough to wait on a few sockets, and starts in no time.
    let outcome: Outcome = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(cli.command.run(&context)),
        Err(error) => Err(Failure::failed("the process cannot wait for sockets").because(&error)),
    };
    outcome.map_err(|failure| (context.out, failure))
}

/// Tells help, the version, or what is wrong with the command line.
fn usage(mut error: clap::Error) -> ExitCode {
    // It would list every global flag whose variable is set.
    error.remove(ContextKind::Usage);
    // A reader that went away needs no help.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::from(Exit::Done.code()),
        _ => ExitCode::from(Exit::Usage.code()),
    }
}
