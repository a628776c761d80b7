//! `mcp trust`: who may sign revisions, in `.mcp/allowed_signers`.

mod add;
mod change;
mod list;
mod remove;
mod rotate;

use std::path::Path;

use mcp_spec::signature::{PublicKey, Signer, SignersEditError, parse_public_key};

use crate::config;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Who may sign revisions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp trust list
  mcp trust add bob.pub --principal bob@example.net --service metacrypt
  mcp trust remove bob@example.net
  mcp trust rotate new.pub     the key that signs is replaced by another

Each change is a commit of .mcp/allowed_signers alone, signed by an owner and pushed to the nodes.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Add(add::Args),
    Remove(remove::Args),
    Rotate(rotate::Args),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::List(args) => list::run(context, &args),
        Command::Add(args) => add::run(context, args).await,
        Command::Remove(args) => remove::run(context, args).await,
        Command::Rotate(args) => rotate::run(context, args).await,
    }
}

/// A public key as it is given: the key itself, or a file that holds it.
fn public_key(given: &str) -> Result<PublicKey, Failure> {
    let text = given.trim();
    let is_key = ["ssh-", "sk-", "ecdsa-"]
        .iter()
        .any(|start| text.starts_with(start))
        && text.contains(' ');
    let text = if is_key {
        text.to_owned()
    } else {
        let path = config::expand_home(Path::new(given))?;
        let bytes = std::fs::read(&path).map_err(|error| {
            Failure::usage(format!("cannot read the public key {}", path.display()))
                .because(&error)
                .hint("give a .pub file, or the key itself in quotes")
        })?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains("PRIVATE KEY-----") {
            return Err(
                Failure::usage(format!("{} is a private key", path.display()))
                    .hint(format!("give the public half: {}.pub", path.display())),
            );
        }
        text
    };
    parse_public_key(&text).map_err(|fault| {
        Failure::usage(format!("`{given}` is refused"))
            .cause(fault.to_string())
            .hint("make one with: ssh-keygen -t ed25519, and give its .pub file")
    })
}

/// Why the signers cannot be changed as it was asked, and how the command ends.
fn edit_failure(error: &SignersEditError) -> Failure {
    let exit = match error {
        SignersEditError::NoOwnerLeft => Exit::Refused,
        SignersEditError::Refused(_) => Exit::Failed,
        _ => Exit::Usage,
    };
    let hint = match error {
        SignersEditError::AlreadyThere { .. } => {
            "mcp trust list; to change what it may, remove it first"
        }
        SignersEditError::Unknown { .. } => "mcp trust list",
        SignersEditError::Ambiguous { .. } => "give the key's fingerprint",
        SignersEditError::NoOwnerLeft => "add another owner first: mcp trust add KEY --owner",
        SignersEditError::Principal { .. } => "give --principal a name such as bob@example.net",
        SignersEditError::Refused(_) => "mcp trust list",
    };
    Failure::of(exit, error).hint(hint)
}

/// What a signer may do, in words.
fn rights(signer: &Signer) -> String {
    let mut words = Vec::new();
    match (&signer.services, signer.is_owner(), signer.may_sign()) {
        (_, true, _) => words.push("owner".to_owned()),
        (None, false, true) => words.push("everything but .mcp/".to_owned()),
        (Some(services), false, true) => {
            let names: Vec<&str> = services.iter().map(|service| service.as_str()).collect();
            words.push(names.join(", "));
        }
        (_, false, false) => words.push("signs no revisions".to_owned()),
    }
    if signer.may_request() && !signer.is_owner() {
        words.push("requests".to_owned());
    }
    words.join("; ")
}
