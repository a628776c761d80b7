//! `mcp trust list`: the signers of the work tree.

use mcp_cli::repo::At;
use mcp_spec::signature::{ALLOWED_SIGNERS_PATH, SignersText};
use serde::Serialize;

use super::rights;
use crate::commands::repository;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// List who may sign what, and check the file
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Serialize)]
struct Document {
    principal: String,
    fingerprint: String,
    key: String,
    namespaces: Vec<String>,
    owner: bool,
    signs: bool,
    services: Option<Vec<String>>,
    own: bool,
}

/// Carries it out.
pub(super) fn run(context: &Context, _: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let bytes = repo
        .files(At::WorkTree)
        .and_then(|files| files.read(ALLOWED_SIGNERS_PATH))
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
        .ok_or_else(|| {
            Failure::failed(format!("the repository has no {ALLOWED_SIGNERS_PATH}"))
                .hint("mcp init")
        })?;
    let text = SignersText::parse(&bytes).map_err(|error| {
        Failure::failed(format!("{ALLOWED_SIGNERS_PATH} is broken"))
            .cause(error.to_string())
            .hint(format!(
                "mend the line, or: git checkout HEAD -- {ALLOWED_SIGNERS_PATH}"
            ))
    })?;
    // Which of them is one's own is told where the public half is at hand; no passphrase is asked for.
    let own = repository::find(context, Some(&repo))
        .ok()
        .flatten()
        .and_then(|source| repository::public_half(&source));
    let documents: Vec<Document> = text
        .in_order()
        .into_iter()
        .map(|signer| Document {
            principal: signer.principal.clone(),
            fingerprint: signer.fingerprint(),
            key: signer
                .key
                .to_openssh()
                .unwrap_or_default()
                .split(' ')
                .take(2)
                .collect::<Vec<_>>()
                .join(" "),
            namespaces: signer.namespaces(),
            owner: signer.is_owner(),
            signs: signer.may_sign(),
            services: signer
                .services
                .as_ref()
                .map(|services| services.iter().map(ToString::to_string).collect()),
            own: own
                .as_ref()
                .is_some_and(|own| own.key_data() == signer.key.key_data()),
        })
        .collect();
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
    } else {
        let mut table = Table::with_header(&["PRINCIPAL", "MAY SIGN", "KEY"]);
        for (document, signer) in documents.iter().zip(text.in_order()) {
            let name = match document.own {
                true => format!("{} (you)", document.principal),
                false => document.principal.clone(),
            };
            table.row([
                Cell::new(&name, Style::Bold),
                Cell::from(rights(signer)),
                Cell::from(document.fingerprint.as_str()).whole(),
            ]);
        }
        context.out.data(&table.render(context.out.width()))?;
    }
    if !text.signers().has_owner() {
        return Err(Failure::failed(format!(
            "no key in {ALLOWED_SIGNERS_PATH} is an owner's: every node refuses it"
        ))
        .hint(format!("git checkout HEAD -- {ALLOWED_SIGNERS_PATH}")));
    }
    Ok(Exit::Done)
}
