//! `mcp-agent identity`: its arguments, and what it tells.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use mcp_agent::secrets::{KeyError, Keyring};

use crate::{ConfigArgs, Failure, load, out};

#[derive(Subcommand)]
pub(crate) enum IdentityCommand {
    /// Print the recipient that secrets of this node are encrypted to.
    Show(ConfigArgs),
    /// Make a new identity. The old ones go on opening what was encrypted to them. Counts at once.
    ///
    /// Then, on a workstation: mcp secret rekey --accept NODE, mcp sync; and here, once that has arrived:
    /// mcp-agent identity forget-old.
    Rotate(ConfigArgs),
    /// Remove all identities but the newest.
    ///
    /// Secrets of older revisions that were encrypted to them open no more: those cannot be rolled back to.
    ForgetOld(ForgetArgs),
}

#[derive(Args)]
pub(crate) struct ForgetArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Confirm; without it the command only tells what would fall.
    #[arg(long)]
    yes: bool,
}

fn failed(error: KeyError) -> Failure {
    Failure {
        hint: error.hint(),
        error: error.into(),
    }
}

impl IdentityCommand {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Show(args) => {
                let config = load(&args.config)?;
                let recipient = Keyring::new(&config.data_dir).recipient().map_err(failed)?;
                out(&format!("{recipient}\n"));
            }
            Self::Rotate(args) => {
                let config = load(&args.config)?;
                let recipient = Keyring::rotate(&config.data_dir).map_err(failed)?;
                // One that lost both keys needs the other as well.
                Keyring::ensure(&config.data_dir).map_err(failed)?;
                out(&format!(
                    "{recipient}\n\nnext, on a workstation:\n  mcp secret rekey --accept {0}\n  mcp sync\nthen here: \
                     mcp-agent identity forget-old --yes --config {1}\n",
                    config.node,
                    config.file.display()
                ));
            }
            Self::ForgetOld(args) => {
                let config = load(&args.config.config)?;
                if !args.yes {
                    out(
                        "the identities before the newest would be removed: what is encrypted to them alone opens no \
                         more; agree with --yes\n",
                    );
                    return Ok(ExitCode::FAILURE);
                }
                let forgotten = Keyring::forget_old(&config.data_dir).map_err(failed)?;
                out(&format!("{forgotten} forgotten\n"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
