//! `mcp events`: the agents' logs of what happened, followed without loss or repeats.

mod audit;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use mcp_proto::v1;
use mcp_spec::duration::Span;
use mcp_spec::name::Target;
use tokio::sync::mpsc;

use super::place::{self, Placed};
use super::streams;
use crate::client::NodeClient;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::json;
use crate::output::plan::path;
use crate::output::style::{Style, bold, dim, short};
use crate::output::times;

/// Show what happened, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp events                   the newest hundred
  mcp events -f                follow; a lost connection is taken up where it ended
  mcp events --since 2h metacrypt/api
  mcp events -f -o jsonl | jq -r .message
  mcp events --audit           who asked for what, signed by whom, and what came of it")]
pub(crate) struct Args {
    /// Only about these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
    /// Follow
    #[arg(short, long)]
    follow: bool,
    /// Only since then: 30m, 2h, 7d, or a time such as 2026-11-23T12:00:00Z
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<jiff::Timestamp>,
    /// Only events after this sequence number, of one node
    #[arg(
        long,
        value_name = "SEQ",
        default_value_t = 0,
        hide_default_value = true
    )]
    after: u64,
    /// At most so many before following; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Show the calls that changed something, or tried to, instead
    #[arg(long, conflicts_with_all = ["targets", "follow", "since", "after"])]
    audit: bool,
}

/// Waits between attempts to reach a lost node: soon at first, then every ten seconds.
const BACK_OFF: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// Events that are read ahead of the printer: enough to keep the connection busy.
const READ_AHEAD: usize = 256;

/// Columns of an event's kind; the few longer ones push what follows.
const KIND: usize = 9;

/// A span ago, or a time.
pub(super) fn since(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    if let Some(days) = text
        .strip_suffix('d')
        .and_then(|days| days.parse::<i64>().ok())
    {
        let ago = jiff::SignedDuration::from_hours(days.clamp(0, 36_500) * 24);
        return Ok(jiff::Timestamp::now() - ago);
    }
    let span: Span = text.parse().map_err(|_| {
        format!("`{text}` is neither a span such as 30m nor a time such as 2026-11-23T12:00:00Z")
    })?;
    jiff::Timestamp::now()
        .checked_sub(span.as_duration())
        .map_err(|error| error.to_string())
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    if args.audit {
        return audit::run(context, args.limit).await;
    }
    let placed = place::place(context, &args.targets).await?;
    if args.after > 0 && placed.len() > 1 {
        return Err(
            Failure::usage("--after takes one node, since each counts its own events")
                .hint("mcp events --node NAME --after SEQ"),
        );
    }
    let (sender, mut events) = mpsc::channel(READ_AHEAD);
    let watches: FuturesUnordered<_> = placed
        .iter()
        .map(|placed| {
            let sender = sender.clone();
            let args = &args;
            async move { watch(context, placed, args, &sender).await }
        })
        .collect();
    drop(sender);
    let print = async {
        let mut held = Vec::new();
        while let Some((node, event)) = events.recv().await {
            if args.follow {
                show(context, &node, &event)?;
            } else {
                held.push((node, event));
            }
        }
        let held = merged(held);
        if context.out.is_table() {
            return held
                .iter()
                .try_for_each(|(node, event)| show(context, node, event));
        }
        let documents: Vec<json::Event> = held
            .iter()
            .map(|(node, event)| json::Event::new(node, event))
            .collect();
        if args.follow {
            Ok(())
        } else {
            context.out.json_list(&documents)
        }
    };
    streams::pump(context, watches, print).await
}

/// The logs of several nodes, merged by time, each in its own order: that of its numbers, since a clock may
/// have been set back.
fn merged(mut events: Vec<(String, v1::Event)>) -> Vec<(String, v1::Event)> {
    events.sort_by_key(|(_, event)| event.seq);
    let mut latest: BTreeMap<String, String> = BTreeMap::new();
    let mut keyed: Vec<(String, (String, v1::Event))> = events
        .into_iter()
        .map(|(node, event)| {
            // RFC 3339 in UTC sorts as text.
            let at = latest.entry(node.clone()).or_default();
            if event.at > *at {
                at.clone_from(&event.at);
            }
            (at.clone(), (node, event))
        })
        .collect();
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, event)| event).collect()
}

/// Sends the events of one node until its stream ends; with `-f` until the process does.
async fn watch(
    context: &Context,
    placed: &Placed<'_>,
    args: &Args,
    events: &mpsc::Sender<(String, v1::Event)>,
) -> Result<(), Failure> {
    let name = placed.node.name.to_string();
    let mut request = v1::WatchEventsRequest {
        targets: placed.wire(),
        after: args.after,
        since: args.since.map(|at| at.to_string()).unwrap_or_default(),
        follow: args.follow,
        limit: Some(args.limit),
    };
    let mut attempt = 0;
    let mut connected_once = false;
    loop {
        let lost = match read(
            context,
            placed,
            &mut request,
            events,
            &mut connected_once,
            &mut attempt,
        )
        .await
        {
            Ok(()) if !args.follow => return Ok(()),
            Ok(()) => Failure::new(Exit::Unreachable, format!("{name} ended the stream")),
            Err(failure) => failure,
        };
        // A node that never answered, or that refuses, will not get better by asking again.
        if !args.follow || !connected_once || lost.exit != Exit::Unreachable {
            return Err(lost);
        }
        if attempt == 0 {
            context
                .out
                .note(&dim(&format!("{}; taking it up again", lost.message)));
        }
        tokio::time::sleep(BACK_OFF[attempt.min(BACK_OFF.len() - 1)]).await;
        attempt += 1;
    }
}

async fn read(
    context: &Context,
    placed: &Placed<'_>,
    request: &mut v1::WatchEventsRequest,
    events: &mpsc::Sender<(String, v1::Event)>,
    connected_once: &mut bool,
    attempt: &mut usize,
) -> Result<(), Failure> {
    let client = NodeClient::connect(context, placed.node).await?;
    let mut stream = client.watch_events(request.clone()).await?;
    *connected_once = true;
    *attempt = 0;
    while let Some(response) = stream.next().await? {
        let Some(event) = response.event else {
            continue;
        };
        // The agent resumes after what was seen; what it sends again all the same is left out.
        if event.seq <= request.after {
            continue;
        }
        request.after = event.seq;
        request.since.clear();
        // From here on nothing may be left out, however long the connection was away.
        request.limit = Some(10_000);
        if events
            .send((client.name().to_owned(), event))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

fn show(context: &Context, node: &str, event: &v1::Event) -> Result<(), Failure> {
    if !context.out.is_table() {
        return context.out.json_line(&json::Event::new(node, event));
    }
    let style = match event.kind.as_str() {
        kind if kind.contains("fail") || kind.contains("unhealthy") || kind.contains("crash") => {
            Style::Bad
        }
        kind if kind.contains("drift") || kind.contains("rolled") || kind.contains("flap") => {
            Style::Warn
        }
        _ => Style::Plain,
    };
    let at = if context.out.width().is_some() {
        let at: Option<jiff::Timestamp> = event.at.parse().ok();
        at.map_or_else(|| "-".to_owned(), |at| local_time(&at))
    } else {
        times::to_the_second(&event.at)
    };
    // A stream knows no widest entry: nodes are known beforehand, and most kinds fit.
    let nodes = &context.settings.nodes;
    let widest = nodes.iter().map(|node| node.name.as_str().len()).max();
    let mut line = format!(
        "{}  {:nodes$}  {}",
        dim(&at),
        clean::line(node),
        style.paint(&format!("{:KIND$}", clean::line(&event.kind))),
        nodes = widest.unwrap_or(0),
    );
    let who = path(&event.service, &event.component);
    if !who.is_empty() {
        line.push_str(&format!("  {}", bold(&who)));
    }
    let what = words(event);
    if !event.revision.is_empty() && !what.starts_with(&short(&event.revision)) {
        line.push_str(&format!("  {}", short(&event.revision)));
    }
    let repeated = what.strip_prefix(event.kind.as_str());
    let what = repeated.map_or(what, |rest| rest.trim_start_matches([' ', ':', ';']));
    if !what.is_empty() && what != event.kind {
        line.push_str(&format!("  {}", clean::line(what)));
    }
    let said = event.reason == event.message || what.contains(&event.reason);
    if !event.reason.is_empty() && !said {
        line.push_str(&format!("  {}", dim(&format!("({})", event.reason))));
    }
    context.out.data(&line)
}

/// What happened, without the name of whom it happened to, which stands beside it.
pub(super) fn words(event: &v1::Event) -> &str {
    let who = path(&event.service, &event.component);
    let said = event
        .message
        .strip_prefix(&who)
        .map(|rest| rest.trim_start_matches([' ', ':']))
        .filter(|rest| !rest.is_empty() && !who.is_empty())
        .unwrap_or(&event.message);
    if said.is_empty() { &event.kind } else { said }
}

/// To the second, in UTC: the machine's zone would need a database of zones.
pub(super) fn local_time(at: &jiff::Timestamp) -> String {
    let text = jiff::Timestamp::from_second(at.as_second())
        .unwrap_or(*at)
        .to_string();
    text.replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_spans_days_and_times() {
        assert!(since("30m").unwrap() < jiff::Timestamp::now());
        assert!(since("7d").unwrap() < since("2h").unwrap());
        assert_eq!(
            since("2026-11-23T12:00:00Z").unwrap().to_string(),
            "2026-11-23T12:00:00Z"
        );
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_reorder_a_log() {
        let event = |node: &str, seq, at: &str| {
            let event = v1::Event {
                seq,
                at: at.to_owned(),
                ..v1::Event::default()
            };
            (node.to_owned(), event)
        };
        let shown = merged(vec![
            event("rift", 1, "2026-11-23T10:00:00Z"),
            event("rift", 2, "2036-11-23T10:00:01Z"),
            event("rift", 3, "2026-11-23T10:00:02Z"),
            event("quill", 7, "2026-11-23T10:00:01Z"),
        ]);
        let order: Vec<(&str, u64)> = shown
            .iter()
            .map(|(node, event)| (node.as_str(), event.seq))
            .collect();
        assert_eq!(order, [("rift", 1), ("quill", 7), ("rift", 2), ("rift", 3)]);
    }
}
