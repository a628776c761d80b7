//! Deployments: cold, no-op, a change of one, stop and removal of all, contenders taking turns.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use mcp_tests::engine::{BUSYBOX, Engine};
use mcp_tests::fleet::Fleet;

use crate::raw::Raw;
use crate::table::{Bar, Row, Table, median, ms};
use crate::{machine, peers};

/// What is measured, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Cold,
    /// What the whole machine spent on a container in a cold deploy.
    ColdCpu,
    /// From an edited definition to the running container: sync and deploy.
    FromGit,
    Noop,
    Change,
    Downtime,
    Stop,
    Remove,
    List,
}

impl Phase {
    const ALL: [Phase; 9] = [
        Phase::Cold,
        Phase::ColdCpu,
        Phase::FromGit,
        Phase::Noop,
        Phase::Change,
        Phase::Downtime,
        Phase::Stop,
        Phase::Remove,
        Phase::List,
    ];

    const fn name(self) -> &'static str {
        match self {
            Phase::Cold => "cold deploy",
            Phase::ColdCpu => "cold deploy: CPU a container, whole machine",
            Phase::FromGit => "git to running: sync and cold deploy",
            Phase::Noop => "no-op (raw: one list)",
            Phase::Change => "change one",
            Phase::Downtime => "downtime of the changed one",
            Phase::Stop => "stop all",
            Phase::Remove => "remove all",
            Phase::List => "list",
        }
    }

    /// What is promised of `mcp`. Ratios are of many containers: with few, the process alone counts.
    fn bar(self, size: usize, floor: f64) -> Option<Bar> {
        let many = size >= 20;
        match self {
            Phase::Cold | Phase::Stop | Phase::Remove => many.then_some(Bar::Ratio(1.15)),
            Phase::Change => many.then_some(Bar::Ratio(1.25)),
            Phase::Downtime => Some(Bar::Ratio(1.15)),
            Phase::Noop => Some(Bar::Most(15.0)),
            Phase::List => Some(Bar::Most(8.0)),
            Phase::FromGit => (size == 1).then_some(Bar::Most(floor + 60.0)),
            Phase::ColdCpu => None,
        }
    }
}

/// Samples by phase, of one contender.
#[derive(Default)]
pub(crate) struct Times(BTreeMap<Phase, Vec<f64>>);

impl Times {
    pub(crate) fn add(&mut self, phase: Phase, time: Duration) {
        self.0.entry(phase).or_default().push(ms(time));
    }

    pub(crate) fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) {
        let (start, busy) = (Instant::now(), machine::busy());
        drop(work());
        self.add(phase, start.elapsed());
        if phase == Phase::Cold {
            self.add(Phase::ColdCpu, machine::busy().saturating_sub(busy));
        }
    }

    fn extend(&mut self, other: Times) {
        for (phase, samples) in other.0 {
            self.0.entry(phase).or_default().extend(samples);
        }
    }
}

/// Everybody's rounds, interleaved, so that what disturbs the machine disturbs all.
pub(crate) fn measure(engine: &'static Engine, size: usize, rounds: usize, table: &mut Table) {
    let name = format!("bench{size}");
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, &name).unwrap();
    let raw = Raw::new(engine, size);
    let peers = peers::installed(engine.lane());
    // The first contender is the floor.
    let mut all: Vec<(&str, Times)> =
        vec![("raw API", Times::default()), ("mcp", Times::default())];
    all.extend(peers.iter().map(|peer| (*peer, Times::default())));
    // The first round fills caches and is not counted.
    for round in 0..=rounds {
        for (contender, times) in &mut all {
            let found = match *contender {
                "raw API" => raw.round(),
                "mcp" => mcp_round(&fleet, &name, size),
                peer => peers::round(engine, peer, size, fleet.home()),
            };
            if round > 0 {
                times.extend(found);
            }
        }
        eprintln!("{} {size}: round {round} of {rounds}", engine.lane().name());
    }
    for phase in Phase::ALL {
        let base = if phase == Phase::FromGit {
            Phase::Cold
        } else {
            phase
        };
        let floor = all[0].1.0.get(&base).map(|found| median(found));
        let scale = if phase == Phase::ColdCpu { size } else { 1 };
        #[expect(clippy::cast_precision_loss, reason = "a few containers")]
        let scale = scale as f64;
        for (contender, times) in &all {
            let Some(samples) = times.0.get(&phase) else {
                continue;
            };
            let is_ours = *contender == "mcp";
            table.add(Row {
                place: engine.lane().name().to_owned(),
                size,
                what: phase.name().to_owned(),
                contender: (*contender).to_owned(),
                unit: "ms",
                samples: samples.iter().map(|sample| sample / scale).collect(),
                floor: floor.map(|floor| floor / scale),
                bar: is_ours
                    .then(|| phase.bar(size, floor.unwrap_or(f64::NAN)))
                    .flatten(),
            });
        }
    }
}

/// Runs a whole `mcp` process to its end and gives its time.
pub(crate) fn mcp(fleet: &Fleet, args: &[&str]) -> Duration {
    let start = Instant::now();
    let output = fleet.mcp_spawn(args).unwrap().wait_with_output().unwrap();
    let took = start.elapsed();
    assert!(
        output.status.success(),
        "mcp {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    took
}

/// A service of trivial components, the first of which bears `first`.
pub(crate) fn definition(name: &str, size: usize, first: &str, source: &Path) -> String {
    let mut text = format!("name = \"{name}\"\nnode = \"{name}\"\n");
    for number in 0..size {
        let value = if number == 0 { first } else { "1" };
        text.push_str(&format!(
            "\n[[components]]\nname = \"c{number}\"\nimage = \"{BUSYBOX}:v1\"\ncmd = [\"sleep\", \"infinity\"]\nenv = {{ VALUE = \"{value}\" }}\n\
             stop_signal = \"SIGKILL\"\nnetwork = \"none\"\nready_for = \"0s\"\nvolumes = [\"{}:/data\"]\n",
            source.display()
        ));
    }
    text
}

/// The same components as a definition, deployed by whole `mcp` processes.
fn mcp_round(fleet: &Fleet, name: &str, size: usize) -> Times {
    let source = fleet.node(name).services_dir().join(name);
    let file = format!("services/{name}.toml");
    let mut times = Times::default();
    fleet.write(&file, &definition(name, size, "1", &source));
    let sync = mcp(fleet, &["sync", "-q"]);
    let busy = machine::busy();
    let cold = mcp(fleet, &["deploy", name, "--no-sync", "-q"]);
    times.add(Phase::ColdCpu, machine::busy().saturating_sub(busy));
    times.add(Phase::Cold, cold);
    times.add(Phase::FromGit, sync + cold);
    let noop = mcp(fleet, &["deploy", name, "--no-sync", "-q"]);
    times.add(Phase::Noop, noop);
    times.add(Phase::List, mcp(fleet, &["list", "-q"]));
    fleet.write(&file, &definition(name, size, "2", &source));
    mcp(fleet, &["sync", "-q"]);
    let start = Instant::now();
    let changed = fleet
        .mcp_spawn(&["-o", "json", "deploy", name, "--no-sync", "-q"])
        .unwrap()
        .wait_with_output()
        .unwrap();
    times.add(Phase::Change, start.elapsed());
    let told: serde_json::Value = serde_json::from_slice(&changed.stdout).unwrap();
    let down = first_u64(&told, "downtime_ms").unwrap_or_else(|| panic!("no downtime in {told}"));
    times.add(Phase::Downtime, Duration::from_millis(down));
    times.add(Phase::Stop, mcp(fleet, &["stop", name, "-q"]));
    std::fs::remove_file(fleet.repo().join(&file)).unwrap();
    mcp(fleet, &["sync", "-q"]);
    times.add(Phase::Remove, mcp(fleet, &["purge", name, "--yes", "-q"]));
    times
}

/// The greatest number of that name anywhere in a document: of all components one was down.
fn first_u64(document: &serde_json::Value, name: &str) -> Option<u64> {
    match document {
        serde_json::Value::Object(fields) => fields
            .iter()
            .filter_map(|(key, value)| {
                if key == name {
                    value.as_u64()
                } else {
                    first_u64(value, name)
                }
            })
            .max(),
        serde_json::Value::Array(items) => {
            items.iter().filter_map(|item| first_u64(item, name)).max()
        }
        _ => None,
    }
}
