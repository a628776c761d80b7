//! `mcp node list`.

use serde::Serialize;

use crate::client::token;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// List the configured nodes
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Serialize)]
struct Document {
    node: String,
    address: String,
    ca_cert: Option<String>,
    fingerprint: Option<String>,
    server_name: Option<String>,
    token_file: Option<String>,
}

/// Carries it out.
pub(super) fn run(context: &Context, _: &Args) -> Outcome {
    let settings = &context.settings;
    let documents: Vec<Document> = settings
        .nodes
        .iter()
        .map(|node| {
            let token = token::source_for(settings, node.name.as_str());
            Document {
                node: node.name.to_string(),
                address: node.address.clone(),
                ca_cert: node.ca_cert.as_ref().map(|path| path.display().to_string()),
                fingerprint: node.fingerprint.clone(),
                server_name: node.server_name.clone(),
                token_file: token.exists().then(|| token.display().to_string()),
            }
        })
        .collect();
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
        return Ok(Exit::Done);
    }
    if documents.is_empty() {
        context.out.note("no node is configured");
        context.out.hint("mcp node add NAME HOST:PORT --ca FILE");
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["NODE", "ADDRESS", "TRUST", "TOKEN"]);
    for document in &documents {
        let trust = document.ca_cert.as_ref().or(document.fingerprint.as_ref());
        table.row([
            Cell::new(&document.node, Style::Bold),
            Cell::from(document.address.as_str()),
            Cell::from(trust.map_or("-", String::as_str)).keep_end(),
            match &document.token_file {
                Some(file) => Cell::from(file.as_str()).keep_end(),
                None => Cell::new("none", Style::Warn),
            },
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    Ok(Exit::Done)
}
