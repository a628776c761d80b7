//! `make faults`: every fault of an engine at every call of a deployment, on real engines.
//!
//! `faults [--call NAME] [--fault NAME] [LANE...]`; everything on every lane where nothing is said. Ends with 1
//! where something was not in order.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mcp_tests::engine::Lane;
use mcp_tests::fault::sweep::sweep;

fn main() -> Result<ExitCode> {
    let (mut lanes, mut call, mut fault) = (Vec::new(), None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--call" => call = Some(words.next().context("--call needs a name")?),
            "--fault" => fault = Some(words.next().context("--fault needs a name")?),
            name => match Lane::ALL.into_iter().find(|lane| lane.name() == name) {
                Some(lane) => lanes.push(lane),
                None => bail!("no lane {name}: podman, podman-rootless and docker are"),
            },
        }
    }
    if lanes.is_empty() {
        lanes = Lane::ALL.to_vec();
    }
    let mut wrong = 0;
    for lane in lanes {
        let (call, fault) = (call.clone(), fault.clone());
        // A thread of its own: it moves into the network of its engine.
        let swept = std::thread::spawn(move || {
            lane.shared().enter()?;
            let picks = |of: &str, what: &str| {
                call.as_deref().is_none_or(|call| call == of)
                    && fault.as_deref().is_none_or(|fault| fault == what)
            };
            sweep(lane, "faults", picks, |cell| {
                println!(
                    "{:<16} {:<8} {:<14} {:<11} after {:>6.1} s, in order {:>5.1} s later, down {:>6} ms{}",
                    lane.name(),
                    cell.call,
                    cell.fault,
                    cell.outcome,
                    cell.took.as_secs_f64(),
                    cell.order.as_secs_f64(),
                    cell.down.as_millis(),
                    if cell.met == 0 { " (never called)" } else { "" },
                );
                for wrong in &cell.wrong {
                    println!("  WRONG: {wrong}");
                }
            })
        });
        match swept.join() {
            Ok(result) => wrong += result.with_context(|| lane.name())?,
            Err(_) => bail!("the driver panicked"),
        }
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
