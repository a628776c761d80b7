//! `mcp events --audit`: who asked the nodes for what, and what came of it.

use mcp_proto::v1;
use serde::Serialize;

use super::local_time;
use crate::client;
use crate::commands::place::{self, Placed};
use crate::commands::rows;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::clean;
use crate::output::json::some;
use crate::output::style::{Style, bold, dim};

/// One line in `-o json`.
#[derive(Debug, Serialize)]
struct Entry {
    node: String,
    seq: u64,
    at: String,
    who: String,
    token: Option<String>,
    signer: Option<String>,
    method: String,
    target: Option<String>,
    from: Option<String>,
    request_id: Option<String>,
    result: String,
}

impl Entry {
    fn new(node: &str, entry: v1::AuditEntry) -> Self {
        Self {
            node: node.to_owned(),
            seq: entry.seq,
            at: entry.at,
            who: entry.who,
            token: some(&entry.token),
            signer: some(&entry.signer),
            method: entry.method,
            target: some(&entry.target),
            from: some(&entry.from),
            request_id: some(&entry.request_id),
            result: entry.result,
        }
    }

    fn line(&self, nodes: usize) -> String {
        let at: Option<jiff::Timestamp> = self.at.parse().ok();
        let at = at.map_or_else(|| "-".to_owned(), |at| local_time(&at));
        let style = if self.result == "ok" {
            Style::Good
        } else {
            Style::Bad
        };
        // The fingerprint is in the JSON: a line has to fit.
        let signer = self.signer.as_deref().and_then(|by| by.split(' ').next());
        let signed = match signer {
            Some(signer) => format!("signed {}", clean::line(signer)),
            None => "not signed".to_owned(),
        };
        let from = self.from.as_deref().unwrap_or("-");
        format!(
            "{}  {:nodes$}  {}  {:11}  {}  {}  {}",
            dim(&at),
            clean::line(&self.node),
            bold(&clean::line(&self.who)),
            clean::line(&self.method),
            clean::line(self.target.as_deref().unwrap_or("-")),
            style.paint(&clean::line(&self.result)),
            dim(&format!("({signed}, from {})", clean::line(from))),
        )
    }
}

/// Carries it out: the newest `limit` of each node, oldest first.
pub(super) async fn run(context: &Context, limit: u32) -> Outcome {
    if limit == 0 {
        return Ok(Exit::Done);
    }
    let placed = place::place(context, &[]).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, _| Ok(client.audit(v1::AuditRequest { limit }).await?.entries),
    )
    .await;
    let mut entries: Vec<Entry> = answers
        .iter()
        .flat_map(|answer| {
            let entries = answer.result.iter().flatten();
            entries.map(|entry| Entry::new(&answer.node, entry.clone()))
        })
        .collect();
    // RFC 3339 in UTC sorts as text.
    entries.sort_by(|a, b| (&a.at, a.seq).cmp(&(&b.at, b.seq)));
    if context.out.is_table() {
        let nodes = entries.iter().map(|entry| entry.node.len()).max();
        for entry in &entries {
            context.out.data(&entry.line(nodes.unwrap_or_default()))?;
        }
    } else {
        context.out.json_list(&entries)?;
    }
    rows::end(context, &answers)
}
