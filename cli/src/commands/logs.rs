//! `mcp logs`: what the containers say, a prefix and a colour each.

use std::collections::BTreeMap;

use futures_util::stream::FuturesUnordered;
use mcp_proto::v1;
use mcp_spec::name::Target;
use tokio::sync::mpsc;

use super::events::{local_time, since};
use super::place::{self, Placed};
use super::streams;
use crate::client::NodeClient;
use crate::context::Context;
use crate::error::{Failure, Outcome};
use crate::output::clean;
use crate::output::json;
use crate::output::plan::path;
use crate::output::style::{dim, nth_colour};

/// Show what containers write
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp logs metacrypt -n 50     the last 50 lines of each component
  mcp logs metacrypt/api -f    follow
  mcp logs metacrypt/api --deployment 51c07af
                               what was kept of a container that failed its gate")]
pub(crate) struct Args {
    /// Whose
    #[arg(add = super::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Follow
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(short = 'n', long = "lines", value_name = "N")]
    lines: Option<u32>,
    /// Only since then: 30m, 2h, 7d, or a time such as 2026-11-23T12:00:00Z
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<jiff::Timestamp>,
    /// The lines that were kept with this deployment
    #[arg(long, value_name = "ID", conflicts_with_all = ["follow", "since"])]
    deployment: Option<String>,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
}

/// Lines that are read ahead of the printer.
const READ_AHEAD: usize = 1024;

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let (sender, mut lines) = mpsc::channel(READ_AHEAD);
    let reads: FuturesUnordered<_> = placed
        .iter()
        .map(|placed| {
            let sender = sender.clone();
            let args = &args;
            async move { read(context, placed, args, &sender).await }
        })
        .collect();
    drop(sender);
    let print = async {
        let mut prefixes = Prefixes::new(placed.len() > 1, &args);
        while let Some((node, line)) = lines.recv().await {
            show(context, &args, &mut prefixes, &node, &line)?;
        }
        Ok(())
    };
    streams::pump(context, reads, print).await
}

async fn read(
    context: &Context,
    placed: &Placed<'_>,
    args: &Args,
    lines: &mpsc::Sender<(String, v1::LogLine)>,
) -> Result<(), Failure> {
    let client = NodeClient::connect(context, placed.node).await?;
    let request = v1::LogsRequest {
        targets: placed.wire(),
        follow: args.follow,
        tail: args.lines,
        since: args.since.map(|at| at.to_string()).unwrap_or_default(),
        deployment_id: args.deployment.clone().unwrap_or_default(),
    };
    let mut stream = client.logs(request).await?;
    while let Some(line) = stream.next().await? {
        // The printer is gone, and with it the reason to read on.
        if lines.send((client.name().to_owned(), line)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The prefixes of components, in the order of their first lines.
struct Prefixes {
    with_node: bool,
    /// One component was asked for: its name on every line says nothing.
    bare: bool,
    widest: usize,
    numbers: BTreeMap<String, usize>,
}

impl Prefixes {
    fn new(with_node: bool, args: &Args) -> Self {
        let bare = matches!(args.targets.as_slice(), [target] if target.component.is_some());
        Self {
            with_node,
            bare: bare && !with_node,
            widest: 0,
            numbers: BTreeMap::new(),
        }
    }

    fn of(&mut self, node: &str, line: &v1::LogLine) -> String {
        if self.bare {
            return String::new();
        }
        let mut name = path(&line.service, &line.component);
        if self.with_node {
            name = format!("{node}/{name}");
        }
        let next = self.numbers.len();
        let number = *self.numbers.entry(name.clone()).or_insert(next);
        self.widest = self.widest.max(name.chars().count());
        format!(
            "{} | ",
            nth_colour(number, &format!("{name:<width$}", width = self.widest))
        )
    }
}

fn show(
    context: &Context,
    args: &Args,
    prefixes: &mut Prefixes,
    node: &str,
    line: &v1::LogLine,
) -> Result<(), Failure> {
    if !context.out.is_table() {
        return context.out.json_line(&json::LogLine::new(node, line));
    }
    let mut text = prefixes.of(node, line);
    if args.timestamps {
        let at: Option<jiff::Timestamp> = line.at.parse().ok();
        text.push_str(&format!(
            "{} ",
            dim(&at.map_or_else(|| "-".to_owned(), |at| local_time(&at)))
        ));
    }
    if context.out.width().is_some() {
        text.push_str(&clean::log_line(&line.line));
        return context.out.data(&text);
    }
    // Off a terminal a log is data: its bytes go through as they are.
    let mut bytes = anstream::adapter::strip_str(&text).to_string().into_bytes();
    bytes.extend_from_slice(&line.line);
    bytes.push(b'\n');
    context.out.bytes(&bytes)
}
