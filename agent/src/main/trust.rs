//! `mcp-agent trust`: its arguments, and what it tells.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use mcp_agent::trust::{self, Introduction};
use mcp_spec::signature::Signer;

use crate::{ConfigArgs, Failure, err, load, out, runtime, short};

#[derive(Subcommand)]
pub(crate) enum TrustCommand {
    /// Show head, high-water mark, introduction, owners, signers and denied keys; exit 1 where changes are stopped.
    Show(ConfigArgs),
    /// Deny a key: no new revision that it signed is taken. Counts at once, also while the agent runs.
    ///
    /// Revisions that were accepted stay valid to roll back to. The key is to be removed from the repository
    /// too, with `mcp trust remove`.
    Deny(DenyArgs),
    /// Take the repository's head as it is, and let mark and registry go back to it. The agent must not run.
    ///
    /// For what nobody has any more. Where somebody has it, `mcp sync` from there ends the stop by itself.
    Confirm(ConfirmArgs),
    /// Forget the accepted history, and say where the next one begins. The agent must not run.
    ///
    /// For the loss of every owner's key, and for a node that is to follow another repository. Containers go
    /// on running. The old history is moved aside; nothing of it can be rolled back to.
    Reset(ResetArgs),
}

#[derive(Args)]
pub(crate) struct DenyArgs {
    /// The public key, its .pub file, or its SHA256: fingerprint.
    #[arg(value_name = "KEY|FILE")]
    key: String,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Args)]
pub(crate) struct ConfirmArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Confirm; without it the command only tells what would fall.
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The commit that history begins at, or `found`: the oldest of the next push that an owner signed.
    #[arg(long, value_name = "COMMIT|found", value_parser = introduction)]
    introduction: Introduction,
    /// An owner's public key or .pub file, in place of those that are pinned now.
    #[arg(long, value_name = "KEY|FILE")]
    owner: Vec<String>,
    /// Reset; without it the command only tells what would fall.
    #[arg(long)]
    yes: bool,
}

fn introduction(text: &str) -> Result<Introduction, String> {
    if text == "found" {
        return Ok(Introduction::Found);
    }
    let is_whole = text.len() == 40;
    text.parse()
        .ok()
        .filter(|_| is_whole)
        .map(Introduction::At)
        .ok_or_else(|| "write all 40 hexadecimal digits of a commit, or `found`".to_owned())
}

impl TrustCommand {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Show(args) => show(&args.config),
            Self::Deny(args) => deny(&args),
            Self::Confirm(args) => confirm(&args),
            Self::Reset(args) => reset(&args),
        }
    }
}

fn failed(error: trust::TrustError) -> Failure {
    let hint = error.hint();
    Failure::new(error, hint)
}

fn show(file: &Path) -> Result<ExitCode, Failure> {
    let config = load(file)?;
    let state = trust::show(&config).map_err(failed)?;
    let repository = &state.repository;
    let registry = match &state.registry {
        Ok(head) => short(*head),
        Err(reason) => reason.clone(),
    };
    let introduction = repository.introduction.as_ref().map_or_else(
        || match &state.pinned {
            Some(pinned) => format!("none yet; pinned {}", pinned.short()),
            None => "none yet".to_owned(),
        },
        |(commit, signer)| format!("{}, signed {signer}", commit.short()),
    );
    let mut text = format!(
        "head          {}\nmark          {}\nregistry      {registry}\nintroduction  {introduction}\naccepted      {}\n",
        short(repository.head),
        short(repository.mark),
        repository.accepted
    );
    for owner in &state.owners {
        text.push_str(&format!("owner         {owner}\n"));
    }
    for signer in repository.signers.iter().flat_map(|signers| signers.iter()) {
        let denied = state.denied.contains(&signer.fingerprint());
        text.push_str(&format!(
            "signer        {} {} ({}){}\n",
            signer.fingerprint(),
            signer.principal,
            rights(signer),
            if denied { ", DENIED" } else { "" }
        ));
    }
    for denied in &state.denied {
        text.push_str(&format!("denied        {denied}\n"));
    }
    if let Some(trouble) = &repository.trouble {
        text.push_str(&format!(
            "\nchanges are stopped: {trouble}\nmend: {}\n",
            trouble.hint()
        ));
    }
    if let Some(damage) = &repository.damage {
        text.push_str(&format!(
            "\nthe repository is damaged: {damage}\nmend: restore a backup, or move repo.git away, start the agent \
             and push everything anew with mcp sync\n"
        ));
    }
    out(&text);
    Ok(
        if repository.trouble.is_none() && repository.damage.is_none() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        },
    )
}

/// What a signer may sign, in words.
fn rights(signer: &Signer) -> String {
    match &signer.services {
        _ if signer.is_owner() => "owner".to_owned(),
        _ if !signer.may_sign() => "no revisions".to_owned(),
        Some(services) => {
            let names: Vec<&str> = services.iter().map(|service| service.as_str()).collect();
            names.join(", ")
        }
        None => "everything but .mcp/".to_owned(),
    }
}

fn deny(args: &DenyArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.config.config)?;
    let done = trust::deny(&config, &args.key).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    let mut text = if done.already {
        format!("{} is denied already; nothing changed\n", done.fingerprint)
    } else {
        format!(
            "{} is denied from now on, in {}\n",
            done.fingerprint,
            config.trust.denied_keys.display()
        )
    };
    if done.accepted > 0 {
        text.push_str(&format!(
            "accepted revisions that it signed stay valid: {}\n",
            done.accepted
        ));
    }
    out(&text);
    if let Some(signer) = &done.signer {
        err(&format!(
            "the repository still lets it sign, as {signer}: mcp trust remove {}\n",
            done.fingerprint
        ));
    }
    if done.is_pinned {
        err(&format!(
            "it is pinned as an owner's: take its line out of {}\n",
            config.trust.owners.display()
        ));
    }
    if done.last_owner {
        err(
            "no other owner is left in the repository: nobody can change its signers any more, but by mcp-agent trust reset\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn confirm(args: &ConfirmArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.config.config)?;
    if !args.yes {
        let state = trust::show(&config).map_err(failed)?;
        let Some(trouble) = state.repository.trouble else {
            out("nothing is to be confirmed\n");
            return Ok(ExitCode::SUCCESS);
        };
        err(&format!(
            "changes are stopped: {trouble}\nconfirming takes {} as the head, and whatever came after it is forgotten\n\n\
             hint: where somebody has it, mcp sync brings it back; else: mcp-agent trust confirm --yes --config {}\n",
            short(state.repository.head),
            config.file.display()
        ));
        return Ok(ExitCode::from(64));
    }
    let done = runtime()?
        .block_on(trust::confirm(&config))
        .map_err(failed)?;
    let Some(trouble) = done.trouble else {
        out("nothing is to be confirmed\n");
        return Ok(ExitCode::SUCCESS);
    };
    let mut text = format!("confirmed: {trouble}\nthe head is {}", short(done.head));
    if done.head.is_none() {
        text.push_str(": the next push introduces a history, signed by an owner");
    }
    text.push('\n');
    for commit in &done.forgotten {
        text.push_str(&format!("forgotten: {commit}\n"));
    }
    out(&text);
    Ok(ExitCode::SUCCESS)
}

fn reset(args: &ResetArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.config.config)?;
    let begins = match args.introduction {
        Introduction::At(commit) => format!("at {commit}"),
        Introduction::Found => {
            "with the oldest commit of the next push that an owner signed".to_owned()
        }
    };
    if !args.yes {
        let state = trust::show(&config).map_err(failed)?;
        err(&format!(
            "a reset forgets {} accepted revisions, the head {} among them; the next history begins {begins}\n\
             containers go on running, and nothing of the old history can be rolled back to\n\n\
             hint: to go on, repeat it with --yes\n",
            state.repository.accepted,
            short(state.repository.head),
        ));
        return Ok(ExitCode::from(64));
    }
    let done = runtime()?
        .block_on(trust::reset(
            &config,
            args.introduction,
            &args.owner,
            Timestamp::now(),
        ))
        .map_err(|error| {
            let hint = error.hint();
            Failure::new(error, hint)
        })?;
    let mut text = format!(
        "the history was reset: {} revisions are forgotten\nthe next one begins {begins}\n",
        done.forgotten
    );
    for owner in &done.owners {
        text.push_str(&format!("owner         {owner}\n"));
    }
    if let Some(aside) = &done.aside {
        text.push_str(&format!("the old one is in {}\n", aside.display()));
    }
    text.push_str(&format!(
        "\nnext: start the agent, then, on the workstation:\n  mcp sync\nand look at it with:\n  mcp-agent trust show --config {}\n",
        config.file.display()
    ));
    out(&text);
    Ok(ExitCode::SUCCESS)
}
