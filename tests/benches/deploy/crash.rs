//! A container killed from outside: how soon the agent knows, tells, and has it running again.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mcp_tests::engine::Engine;
use mcp_tests::fleet::{Fleet, text};
use serde_json::Value;

use crate::rounds::{definition, mcp};
use crate::table::{Bar, Row, Table, ms};

/// Far above what any answer takes, so that only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills one component a round; each is killed once, so that every start is a first one.
pub(crate) fn measure(engine: &'static Engine, rounds: usize, table: &mut Table) {
    let name = "benchcrash";
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    let source = fleet.node(name).services_dir().join(name);
    let size = rounds.max(20);
    fleet.write(
        &format!("services/{name}.toml"),
        &definition(name, size, "1", &source),
    );
    mcp(&fleet, &["sync", "-q"]);
    mcp(&fleet, &["deploy", name, "--no-sync", "-q"]);
    let followed = Follower::start(&fleet);
    let (mut noticed, mut told, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let component = format!("c{round}");
        let container = format!("{name}-{component}");
        let pid = engine.inspect(&container).unwrap().unwrap();
        let pid = pid.state.and_then(|state| state.pid).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let (at, began) = (Timestamp::now(), Instant::now());
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let (line_at, event) = followed.event(&component, &["died", "exited"]);
        told.push(ms(line_at.duration_since(began)));
        let stamped: Timestamp = text(&event, "at").parse().unwrap();
        noticed.push(ms(since(at, stamped)));
        followed.event(&component, &["restarted"]);
        let live = engine.inspect(&container).unwrap().unwrap();
        let started = live.state.and_then(|state| state.started_at).unwrap();
        again.push(ms(since(at, started.parse().unwrap())));
    }
    let most = |podman: f64, docker: f64| {
        Some(Bar::Most(match engine.lane().engine_kind() {
            "docker" => docker,
            _ => podman,
        }))
    };
    for (what, samples, bar) in [
        ("crash noticed by the agent", noticed, most(5.0, 5.0)),
        ("crash shown by `mcp events -f`", told, most(20.0, 20.0)),
        ("crash to running again", again, most(150.0, 300.0)),
    ] {
        table.add(Row {
            place: engine.lane().name().to_owned(),
            size,
            what: what.to_owned(),
            contender: "mcp".to_owned(),
            unit: "ms",
            samples,
            floor: None,
            bar,
        });
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// A running `mcp events -f`.
struct Follower {
    process: Child,
    lines: Receiver<(Instant, Value)>,
}

impl Follower {
    fn start(fleet: &Fleet) -> Follower {
        let mut process = fleet.mcp_spawn(&["-o", "jsonl", "events", "-f"]).unwrap();
        let output = process.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                let at = Instant::now();
                let event = serde_json::from_str(&line).unwrap();
                if sender.send((at, event)).is_err() {
                    return;
                }
            }
        });
        let follower = Follower { process, lines };
        // What is held already shows that the stream stands.
        drop(follower.lines.recv_timeout(PATIENCE).unwrap());
        follower
    }

    /// The next event of one of these kinds about the component.
    fn event(&self, component: &str, kinds: &[&str]) -> (Instant, Value) {
        loop {
            let (at, event) = self.lines.recv_timeout(PATIENCE).unwrap();
            let is_kind = event["kind"]
                .as_str()
                .is_some_and(|kind| kinds.contains(&kind));
            if is_kind && event["component"] == component {
                return (at, event);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.process.kill().and_then(|()| self.process.wait()));
    }
}
