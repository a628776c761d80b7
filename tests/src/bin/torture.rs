//! `make torture`: kills the agent at random moments of deployments and looks at what is left.
//!
//! `torture [--kills N] [--seed S] [LANE...]`; every lane, 200 kills each and a random seed where nothing is
//! said. Ends with 1 where something was not in order.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mcp_tests::engine::Lane;
use mcp_tests::torture::Torture;

struct Args {
    lanes: Vec<Lane>,
    kills: u64,
    seed: u64,
}

fn args() -> Result<Args> {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut args = Args {
        lanes: Vec::new(),
        kills: 200,
        seed: now.as_secs(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let value = words
                .next()
                .with_context(|| format!("{word} needs a number"))?;
            value.parse().with_context(|| format!("{word} {value}"))
        };
        match word.as_str() {
            "--kills" => args.kills = number()?,
            "--seed" => args.seed = number()?,
            name => match Lane::ALL.into_iter().find(|lane| lane.name() == name) {
                Some(lane) => args.lanes.push(lane),
                None => bail!("no lane {name}: podman, podman-rootless and docker are"),
            },
        }
    }
    if args.lanes.is_empty() {
        args.lanes = Lane::ALL.to_vec();
    }
    Ok(args)
}

fn torture(lane: Lane, kills: u64, seed: u64) -> Result<usize> {
    println!("{}: {kills} kills, seed {seed}", lane.name());
    let mut torture = Torture::new(lane, seed)?;
    let (mut done, mut late, mut engines, mut broken) = (0, 0, 0, 0);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    // Alone, and with the engine.
    let mut down: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    while done < kills {
        let round = torture.round()?;
        if round.in_the_midst {
            done += 1;
        } else {
            late += 1;
        }
        engines += usize::from(round.with_engine);
        *outcomes.entry(round.outcome.clone()).or_default() += 1;
        longest = longest.max(round.took);
        down[usize::from(round.with_engine)].extend(round.down.values());
        println!(
            "{} {done:>4}  {:<8} killed after {:>5} ms{}{}  {:<11} in order after {:.1} s{}",
            lane.name(),
            format!("{:?}", round.op).to_lowercase(),
            round.after.as_millis(),
            if round.in_the_midst { "" } else { " (late)" },
            match (round.with_engine, round.engine_again) {
                (_, true) => " with the engine, which needed another restart",
                (true, _) => " with the engine",
                _ => "",
            },
            round.outcome,
            round.took.as_secs_f64(),
            round
                .down
                .iter()
                .map(|(component, down)| format!(", {component} down {} ms", down.as_millis()))
                .collect::<String>(),
        );
        for wrong in &round.wrong {
            broken += 1;
            println!("  WRONG: {wrong}");
        }
        if !round.wrong.is_empty() {
            println!("{}", round.evidence);
            break;
        }
    }
    if broken == 0 {
        torture.finish()?;
    }
    println!(
        "{}: {done} kills in the midst, {late} after the end, {engines} with the engine; {outcomes:?}; longest {:.1} s; {broken} things wrong; seed {seed}",
        lane.name(),
        longest.as_secs_f64()
    );
    for (killed, down) in ["the agent", "agent and engine"].into_iter().zip(down) {
        println!(
            "{}: nothing ran after a kill of {killed}: {}",
            lane.name(),
            spread(down)
        );
    }
    Ok(broken)
}

/// The times that components were down, in a line.
fn spread(mut down: Vec<Duration>) -> String {
    down.sort();
    let at = |percent: usize| down[(down.len() - 1) * percent / 100].as_millis();
    if down.is_empty() {
        return "never".to_owned();
    }
    format!(
        "{} times; {} ms half of them, {} ms 90 %, {} ms 99 %, {} ms at most",
        down.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    )
}

fn main() -> Result<ExitCode> {
    let Args { lanes, kills, seed } = args()?;
    let mut broken = 0;
    for lane in lanes {
        // A thread of its own: it moves into the network of its engine.
        let lane_is = std::thread::spawn(move || torture(lane, kills, seed));
        match lane_is.join() {
            Ok(result) => broken += result.with_context(|| format!("seed {seed}"))?,
            Err(_) => bail!("the driver panicked; seed {seed}"),
        }
    }
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
