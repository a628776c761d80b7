//! What MCP costs beside the same calls made straight to the engine, beside git, and beside the peers
//! that are installed. Only ratios within one run count.
//!
//! `make bench` builds for release and runs this. It prints a table and writes `bench.json` into the
//! target directory. These variables narrow it:
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `MCP_BENCH_PARTS` | all | of `deploy`, `crash`, `idle`, `sync`, `large`, `pure` |
//! | `MCP_BENCH_LANES` | `podman,docker` | engines; `podman-rootless` is the third |
//! | `MCP_BENCH_ROUNDS` | 7 | rounds that count; one more fills caches |
//! | `MCP_BENCH_SIZES` | `1,5,20` | components of a deployment |
//! | `MCP_BENCH_IDLE_SECONDS` | 60 | how long an idle agent is watched |
//! | `MCP_BENCH_SERVICES`, `MCP_BENCH_COMMITS` | 5000, 20000 | the large repository |

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what it is for"
)]

mod crash;
mod history;
mod idle;
mod machine;
mod peers;
mod proxy;
mod pure;
mod raw;
mod rounds;
mod sync;
mod table;

use mcp_tests::engine::Lane;
use serde_json::json;
use table::Table;

/// How many containers are worked on at once, by the raw client as by the agent.
const CONCURRENCY: usize = 4;

/// The parts of the bench, in the order of the table.
const PARTS: [&str; 6] = ["deploy", "crash", "idle", "sync", "large", "pure"];

fn main() {
    // `cargo test` runs bench targets too, to see that they work; that is `make bench`'s affair.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let parts = variable("MCP_BENCH_PARTS", &PARTS.join(","));
    let has = |part: &str| parts.split(',').any(|name| name == part);
    let rounds: usize = variable("MCP_BENCH_ROUNDS", "7").parse().unwrap();
    let sizes: Vec<usize> = variable("MCP_BENCH_SIZES", "1,5,20")
        .split(',')
        .map(|size| size.parse().unwrap())
        .collect();
    let lanes = variable("MCP_BENCH_LANES", "podman,docker");
    let lanes: Vec<Lane> = Lane::ALL
        .into_iter()
        .filter(|lane| lanes.split(',').any(|name| name == lane.name()))
        .collect();
    let mut table = Table::default();
    for lane in &lanes {
        let engine = lane.shared();
        engine.enter().unwrap();
        if has("deploy") {
            for size in &sizes {
                rounds::measure(engine, *size, rounds, &mut table);
            }
        }
        if has("crash") {
            crash::measure(engine, rounds, &mut table);
        }
        if has("idle") {
            let seconds = variable("MCP_BENCH_IDLE_SECONDS", "60").parse().unwrap();
            idle::measure(engine, seconds, &mut table);
        }
    }
    if let Some(lane) = lanes.first() {
        let engine = lane.shared();
        engine.enter().unwrap();
        let large = has("large").then(|| {
            let services = variable("MCP_BENCH_SERVICES", "5000").parse().unwrap();
            let commits = variable("MCP_BENCH_COMMITS", "20000").parse().unwrap();
            (services, commits)
        });
        if has("sync") || large.is_some() {
            sync::measure(engine, rounds, large, &mut table);
        }
    }
    if has("pure") {
        pure::measure(rounds, &mut table);
    }
    let document = json!({
        "rounds": rounds, "concurrency": CONCURRENCY,
        "machine": machine::describe(&lanes), "results": table.rows(),
    });
    let file = machine::target_dir().join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&document).unwrap()).unwrap();
    println!("{table}");
    eprintln!("written to {}", file.display());
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
