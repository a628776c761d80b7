//! The whole agent under a seeded simulation.
//!
//! The agent's own code (planner, deployer, watch, restart policy, reconciling, recovery, registry on a
//! real SQLite file, repository of signed revisions) runs over a model of an engine and a clock that
//! goes as fast as the work allows. Everything that may go wrong does, by the seed: see `world.rs`. A
//! reference model (`model.rs`) judges every step.
//!
//! ```text
//! cargo test -p mcp-tests --test simulation                           2,000 seeds
//! MCP_SIM_SEEDS=100000 cargo test -p mcp-tests --test simulation      any number
//! MCP_SIM_SEED=17 cargo test -p mcp-tests --test simulation           one, told line by line
//! ```
//!
//! The same seed is the same run: nothing here, or in the agent under a simulation, depends on threads,
//! the time of day or the process's own randomness.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a simulation states its expectations by panicking"
)]

mod clock;
mod dice;
mod engine;
mod hands;
mod history;
mod life;
mod model;
mod node;
mod operators;
mod power;
mod profile;
mod trace;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Seeds of one run where nothing else is asked for.
const SEEDS: u64 = 2000;

/// Failures after which a run ends: one is enough to work on, a few tell whether they are the same.
const FAILURES: usize = 5;

/// Lines of a failed seed's trace that are shown.
const SHOWN: usize = 120;

/// The commit that is tested, where git knows it.
fn commit() -> String {
    let git = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .output();
    git.map_or_else(
        |_| "unknown".to_owned(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[test]
fn every_rule_holds_whatever_happens() {
    if let Some(seed) = number("MCP_SIM_SEED") {
        let (_, broken) = world::run(seed, true);
        assert_eq!(broken, None, "seed {seed}");
        return;
    }
    let seeds = number("MCP_SIM_SEEDS").unwrap_or(SEEDS);
    let failures = number("MCP_SIM_FAILURES").map_or(FAILURES, |n| usize::try_from(n).unwrap());
    let first = number("MCP_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let failed: Mutex<Vec<(u64, String, Vec<String>)>> = Mutex::default();
    let began = Instant::now();
    history::library();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().unwrap().len() < failures {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let run = std::panic::catch_unwind(|| world::run(seed, false));
                    let (lines, broken) = run.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.unwrap_or_default();
                        (Vec::new(), Some(format!("it panicked: {text}")))
                    });
                    if let Some(rule) = broken {
                        failed.lock().unwrap().push((seed, rule, lines));
                    }
                }
            });
        }
    });
    println!("{seeds} seeds in {:.1} s", began.elapsed().as_secs_f64());
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    for (_, _, lines) in failed.iter().take(1) {
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("{line}");
        }
    }
    let told: Vec<String> = failed
        .iter()
        .map(|(seed, rule, _)| {
            format!("seed {seed}: {rule}\n    MCP_SIM_SEED={seed} cargo test -p mcp-tests --test simulation -- --nocapture")
        })
        .collect();
    assert!(
        told.is_empty(),
        "at commit {}\n{}",
        commit(),
        told.join("\n")
    );
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..12 {
        let (first, _) = world::run(seed, false);
        let (second, _) = world::run(seed, false);
        let differs = first.iter().zip(&second).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!(
                "seed {seed} differs at line {at}:\n{}\n{}\nafter\n{}",
                first[at],
                second[at],
                first[at.saturating_sub(10)..at].join("\n")
            );
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
