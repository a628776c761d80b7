//! `mcp node info`.

use mcp_proto::v1;
use mcp_spec::name::NodeName;
use serde::Serialize;

use crate::client::{self, Answer};
use crate::commands::rows;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::json::{Cpu, Engine, Usage, some};
use crate::output::style::{Style, bytes, short};
use crate::output::table::{Cell, Table};

/// Show a node's agent, engine, disk, memory and CPU
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp node info                every node
  mcp node info rift -o json")]
pub(super) struct Args {
    /// Only these
    #[arg(add = crate::commands::complete::nodes(), value_name = "NAME")]
    names: Vec<NodeName>,
}

#[derive(Serialize)]
struct Document {
    node: String,
    version: Option<String>,
    engine: Option<Engine>,
    disk: Option<Usage>,
    memory: Option<Usage>,
    cpu: Cpu,
    head_revision: Option<String>,
    started_at: Option<String>,
    now: Option<String>,
    services: u32,
    components: u32,
    source_url: Option<String>,
    source_checked_at: Option<String>,
    source_error: Option<String>,
    inbox_path: Option<String>,
    inbox_checked_at: Option<String>,
    inbox_error: Option<String>,
    os: Option<String>,
    kernel: Option<String>,
    architecture: Option<String>,
    age_recipient: Option<String>,
}

impl Document {
    fn new(node: &str, info: &v1::InfoResponse) -> Self {
        Self {
            node: node.to_owned(),
            version: some(&info.version),
            engine: info.engine.as_ref().map(Engine::from),
            disk: info.disk.as_ref().map(Usage::from),
            memory: info.memory.as_ref().map(Usage::from),
            cpu: Cpu::new(info.cpus, info.load_millis),
            head_revision: some(&info.head_revision),
            started_at: some(&info.started_at),
            now: some(&info.now),
            services: info.services,
            components: info.components,
            source_url: some(&info.source_url),
            source_checked_at: some(&info.source_checked_at),
            source_error: some(&info.source_error),
            inbox_path: some(&info.inbox_path),
            inbox_checked_at: some(&info.inbox_checked_at),
            inbox_error: some(&info.inbox_error),
            os: some(&info.os),
            kernel: some(&info.kernel),
            architecture: some(&info.architecture),
            age_recipient: some(&info.age_recipient),
        }
    }
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let nodes = super::named(context, &args.names)?;
    let answers = client::ask(
        context,
        &nodes,
        |node| node,
        async |client, _| client.info(v1::InfoRequest {}).await,
    )
    .await;
    show(context, &answers)?;
    rows::end(context, &answers)
}

fn show(context: &Context, answers: &[Answer<v1::InfoResponse>]) -> Result<(), Failure> {
    let answered: Vec<(&str, &v1::InfoResponse)> = answers
        .iter()
        .filter_map(|answer| Some((answer.node.as_str(), answer.result.as_ref().ok()?)))
        .collect();
    if !context.out.is_table() {
        let documents: Vec<Document> = answered
            .iter()
            .map(|(node, info)| Document::new(node, info))
            .collect();
        return context.out.json_list(&documents);
    }
    let mut text = String::new();
    for (node, info) in answered {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(context, node, info).render(context.out.width()));
    }
    context.out.data(&text)
}

fn table(context: &Context, node: &str, info: &v1::InfoResponse) -> Table {
    let mut table = Table::bare(0);
    let mut row = |name: &str, value: String, style: Style| {
        table.row([Cell::new(name, Style::Dim), Cell::new(&value, style)]);
    };
    row("node", node.to_owned(), Style::Bold);
    let up = context.out.since(&info.started_at);
    row("agent", format!("{}, up {up}", info.version), Style::Plain);
    match &info.engine {
        Some(engine) if engine.reachable => {
            let rootless = if engine.rootless { ", rootless" } else { "" };
            row(
                "engine",
                format!(
                    "{} {}{rootless}, {}",
                    engine.name, engine.version, engine.socket
                ),
                Style::Good,
            );
        }
        Some(engine) => {
            row(
                "engine",
                format!("{} unreachable: {}", engine.name, engine.error),
                Style::Bad,
            );
        }
        None => row("engine", "unknown".to_owned(), Style::Warn),
    }
    for (name, usage) in [("disk", &info.disk), ("memory", &info.memory)] {
        if let Some(usage) = usage {
            row(name, of_total(usage), Style::Plain);
        }
    }
    let load = f64::from(info.load_millis) / 1000.0;
    row(
        "cpu",
        format!("{} cores, load {load:.2}", info.cpus),
        Style::Plain,
    );
    row("head", short(&info.head_revision), Style::Plain);
    row(
        "services",
        format!("{} with {} components", info.services, info.components),
        Style::Plain,
    );
    for (name, place, checked_at, error) in [
        (
            "source",
            &info.source_url,
            &info.source_checked_at,
            &info.source_error,
        ),
        (
            "inbox",
            &info.inbox_path,
            &info.inbox_checked_at,
            &info.inbox_error,
        ),
    ] {
        if place.is_empty() {
            continue;
        }
        let checked = context.out.time(checked_at);
        row(name, format!("{place}, checked {checked}"), Style::Plain);
        if !error.is_empty() {
            row("", error.clone(), Style::Bad);
        }
    }
    let system: Vec<&str> = [&info.os, &info.kernel, &info.architecture]
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    match (&info.age_recipient, &info.age_error) {
        (recipient, _) if !recipient.is_empty() => row("secrets", recipient.clone(), Style::Plain),
        (_, error) if !error.is_empty() => row("secrets", error.clone(), Style::Bad),
        _ => {}
    }
    if !system.is_empty() {
        row("system", system.join(", "), Style::Plain);
    }
    table
}

fn of_total(usage: &v1::Usage) -> String {
    let percent = (u128::from(usage.used_bytes) * 100).checked_div(u128::from(usage.total_bytes));
    format!(
        "{} of {} ({}%)",
        bytes(usage.used_bytes),
        bytes(usage.total_bytes),
        percent.unwrap_or(0)
    )
}
