//! A log of millions of events: what appending, reading and pruning cost as it grows.
//!
//! `MCP_BENCH_EVENTS` says how many (200,000; the limit of the agent is 10,000,000). Reads and prunings
//! have to cost the same in a large log as in a small one: both are measured at a tenth of it and at
//! its end. Runs by `make bench`, and writes `bench-retention.json` into the target directory.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what it is for"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mcp_agent::registry::{EventQuery, NewEvent, PruneBounds, Registry};
use mcp_tests::engine::wait;
use serde_json::json;

/// Events of one write; as many as a busy minute brings.
const BATCH: u64 = 5_000;

/// Events of one transaction of a pruning, as the agent takes them.
const CHUNK: u32 = 1_000;

/// Reads of each kind.
const READS: u64 = 21;

fn main() {
    // `cargo test` runs bench targets too, to see that they work; that is `make bench`'s affair.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let events: u64 =
        std::env::var("MCP_BENCH_EVENTS").map_or(200_000, |events| events.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp.db");
    let registry = Registry::open(&file).unwrap();
    let mut rows = Vec::new();
    let mut written = 0;
    let mut appending = Vec::new();
    for stage in [events / 10, events] {
        while written < stage {
            let start = Instant::now();
            let batch = (written..(written + BATCH).min(stage)).map(event).collect();
            wait(registry.append_events(batch)).unwrap();
            appending.push(start.elapsed());
            written = (written + BATCH).min(stage);
        }
        rows.push(row(stage, "append 5,000 events", &appending));
        appending.clear();
        for (what, times) in reads(&registry, stage) {
            rows.push(row(stage, what, &times));
        }
        rows.push(row(
            stage,
            "prune 1,000 of them",
            &prune(&registry, stage, 20),
        ));
    }
    let held = std::fs::metadata(&file).unwrap().len();
    drop(registry);
    let start = Instant::now();
    let registry = Registry::open(&file).unwrap();
    rows.push(row(events, "open", &[start.elapsed()]));
    // All but the newest ten thousand: what a retention that was shortened leaves to do.
    let all = prune(&registry, events, usize::MAX);
    rows.push(row(events, "prune 1,000, all of it", &all));
    let total: Duration = all.iter().sum();
    println!("| events | what | median ms | min | max |\n| --- | --- | --- | --- | --- |");
    for row in &rows {
        println!(
            "| {} | {} | {:.2} | {:.2} | {:.2} |",
            row["events"],
            row["what"].as_str().unwrap(),
            row["median_ms"].as_f64().unwrap(),
            row["min_ms"].as_f64().unwrap(),
            row["max_ms"].as_f64().unwrap(),
        );
    }
    println!(
        "\n{} MiB on disk; all pruned in {:.1} s",
        held >> 20,
        total.as_secs_f64()
    );
    let document = json!({ "events": events, "file_bytes": held, "results": rows, "pruned_s": total.as_secs_f64() });
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).unwrap_or(Path::new("."));
    let file = target.join("bench-retention.json");
    std::fs::write(&file, serde_json::to_string_pretty(&document).unwrap()).unwrap();
    eprintln!("written to {}", file.display());
}

/// The event of this number: one a second, of two hundred components.
fn event(number: u64) -> NewEvent {
    NewEvent {
        at: at(number),
        service: Some(format!("s{}", number % 50).parse().unwrap()),
        component: Some(format!("c{}", number % 4).parse().unwrap()),
        kind: "exited".to_owned(),
        reason: "exit".to_owned(),
        message: "exited with code 1 after 12 s; 3 restarts in the last hour".to_owned(),
        revision: None,
        data: json!({ "exit_code": 1, "restarts": 3, "sample": [1, 2, 3, 4, 5, 6, 7, 8] }),
    }
}

fn at(number: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(number).unwrap()).unwrap()
}

/// What clients ask for.
fn reads(registry: &Registry, events: u64) -> Vec<(&'static str, Vec<Duration>)> {
    let times = |query: &dyn Fn(u64) -> EventQuery| {
        (0..READS)
            .map(|round| {
                let query = query(round);
                let start = Instant::now();
                let found = wait(registry.events(query)).unwrap();
                let took = start.elapsed();
                assert!(!found.is_empty());
                took
            })
            .collect()
    };
    let newest = EventQuery {
        limit: 100,
        newest: true,
        ..EventQuery::default()
    };
    let middle = |round: u64| events / 2 + round * 97;
    vec![
        ("read the newest 100", times(&|_| newest.clone())),
        (
            "read the newest 100 of a component",
            times(&|round| EventQuery {
                targets: vec![
                    format!("s{}/c{}", round * 4 % 50, round * 4 % 50 % 4)
                        .parse()
                        .unwrap(),
                ],
                ..newest.clone()
            }),
        ),
        (
            "read 100 after a number",
            times(&|round| EventQuery {
                after: Some(middle(round)),
                limit: 100,
                ..EventQuery::default()
            }),
        ),
        (
            "read 100 since a time",
            times(&|round| EventQuery {
                since: Some(at(middle(round))),
                limit: 100,
                ..EventQuery::default()
            }),
        ),
        (
            "read 100 of a component since a time",
            times(&|round| EventQuery {
                since: Some(at(middle(round))),
                targets: vec!["s2/c2".parse().unwrap()],
                limit: 100,
                ..EventQuery::default()
            }),
        ),
    ]
}

/// Prunes chunk by chunk, as many as said, and gives the time of each.
fn prune(registry: &Registry, events: u64, chunks: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() < chunks {
        let start = Instant::now();
        let gone = wait(registry.prune(PruneBounds {
            before: at(events),
            keep_newest: 10_000,
            keep_at_most: 10_000_000,
            chunk: CHUNK,
        }))
        .unwrap();
        times.push(start.elapsed());
        if gone == 0 {
            break;
        }
    }
    times
}

fn row(events: u64, what: &str, times: &[Duration]) -> serde_json::Value {
    let mut sorted = times.to_vec();
    sorted.sort();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    json!({
        "events": events, "what": what, "median_ms": ms(sorted.get(sorted.len() / 2)),
        "min_ms": ms(sorted.first()), "max_ms": ms(sorted.last()),
    })
}
