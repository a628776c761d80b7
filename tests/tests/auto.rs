//! The agent by itself: what it repairs, what it leaves alone, and when it stops fighting.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, text};
use serde_json::Value;

mcp_tests::lanes!(
    what_is_removed_again_and_again_is_contested_and_left_longer_each_time,
    the_last_good_spec_comes_back_and_the_quarantined_is_not_tried_again,
    what_is_held_comes_back_as_it_is_held,
    what_does_not_converge_is_degraded_and_told_once,
    what_is_stopped_by_hand_again_and_again_flaps_over_restarts_of_the_agent,
    a_removal_is_one_event_and_none_of_the_past_can_be_asked_for,
);

/// A window that a test can wait for.
const CALM: u64 = 20;

/// One in which three restarts fit, with the pauses between them, where the engine tells of each end half
/// a minute late.
const LONG: u64 = 60;

/// How long a test waits for what must come.
const WITHIN: Duration = Duration::from_secs(200);

fn is_running(engine: &Engine, name: &str) -> bool {
    engine
        .inspect(name)
        .unwrap()
        .and_then(|found| found.state)
        .and_then(|state| state.running)
        .unwrap_or(false)
}

fn id(engine: &Engine, name: &str) -> Option<String> {
    engine.inspect(name).unwrap().and_then(|found| found.id)
}

fn version(engine: &Engine, name: &str) -> String {
    engine
        .cli(&["exec", name, "cat", "/etc/version"])
        .unwrap_or_default()
}

#[track_caller]
fn comes_back(engine: &Engine, name: &str, within: u64) {
    eventually("it runs again", Duration::from_secs(within), || {
        Ok(is_running(engine, name).then_some(()))
    })
    .unwrap();
}

/// Somebody who does the same to the engine again and again, until dropped.
struct Hand {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hand {
    fn moves(engine: &'static Engine, what: impl Fn(&Engine) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                what(engine);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// One service that the agent reconciles by itself, on a node of its own with an alert command.
struct Auto {
    fleet: Fleet,
    name: &'static str,
    engine: &'static Engine,
    alerts: PathBuf,
}

impl Auto {
    /// `api` at `v1` with these keys, deployed.
    fn new(lane: Lane, name: &'static str, keys: &str) -> Self {
        Self::with_window(lane, name, keys, CALM)
    }

    fn with_window(lane: Lane, name: &'static str, keys: &str, window: u64) -> Self {
        let engine = lane.shared();
        let mut fleet = Fleet::workstation().unwrap();
        let node = fleet.add_node(engine, name).unwrap();
        let alerts = node.data_dir().join("alerts.jsonl");
        let config = std::fs::read_to_string(node.config()).unwrap();
        let script = format!("cat >> '{}'", alerts.display());
        let lines: Vec<String> = config
            .lines()
            .filter(|line| !line.starts_with("flap_window"))
            .map(|line| match line {
                "[watch]" => format!("[watch]\nflap_window = \"{window}s\""),
                line => line.to_owned(),
            })
            .collect();
        let config = format!(
            "{}\n[alert]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n",
            lines.join("\n")
        );
        std::fs::write(node.config(), config).unwrap();
        node.kill().unwrap();
        node.serve().unwrap();
        let auto = Self {
            fleet,
            name,
            engine,
            alerts,
        };
        auto.writes("v1", keys);
        auto.fleet.mcp(&["sync"]).ok();
        comes_back(engine, &auto.container(), 60);
        auto.event("deployed");
        auto
    }

    fn file(&self) -> String {
        format!("services/{}.toml", self.name)
    }

    fn writes(&self, tag: &str, keys: &str) {
        let text = service(self.name, self.name, &[component("api", tag, keys)]);
        let text = text.replacen("\nnode", "\nreconcile = \"auto\"\nnode", 1);
        self.fleet.write(&self.file(), &text);
    }

    fn container(&self) -> String {
        format!("{}-api", self.name)
    }

    fn target(&self) -> String {
        format!("{}/api", self.name)
    }

    fn restart_agent(&mut self) {
        let node = self.fleet.node_mut(self.name);
        node.kill().unwrap();
        node.serve().unwrap();
    }

    fn events(&self) -> Vec<Value> {
        self.fleet
            .mcp(&["-o", "jsonl", "events", "-n", "1000"])
            .ok()
            .json_lines()
    }

    fn count(&self, kind: &str) -> usize {
        let events = self.events();
        events.iter().filter(|event| event["kind"] == kind).count()
    }

    #[track_caller]
    fn event(&self, kind: &str) -> Value {
        let found = eventually(kind, WITHIN, || {
            let mut events = self.events().into_iter();
            Ok(events.find(|event| event["kind"] == kind))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {:#?}", self.events()))
    }

    /// The states that the alert command was told of a condition, in order.
    fn told(&self, condition: &str) -> Vec<String> {
        std::fs::read_to_string(&self.alerts)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|alert| alert["condition"] == condition)
            .map(|alert| text(&alert, "state").to_owned())
            .collect()
    }

    #[track_caller]
    fn is_told(&self, condition: &str, states: &[&str]) {
        eventually(condition, WITHIN, || {
            Ok((self.told(condition) == states).then_some(()))
        })
        .unwrap_or_else(|error| {
            let got = std::fs::read_to_string(&self.alerts).unwrap_or_default();
            panic!("{error:#}: {got}")
        });
    }

    fn listed(&self) -> Value {
        self.fleet.list()[&self.target()].clone()
    }
}

fn what_is_removed_again_and_again_is_contested_and_left_longer_each_time(lane: Lane) {
    let mut auto = Auto::new(lane, "contest", "");
    let name = auto.container();
    for _ in 0..3 {
        let before = id(auto.engine, &name);
        auto.engine.remove(&name).unwrap();
        comes_back(auto.engine, &name, 60);
        assert_ne!(id(auto.engine, &name), before);
    }
    let contested = auto.event("contested");
    assert_eq!(text(&contested, "reason"), "container missing");
    auto.is_told("contested", &["firing"]);
    let listed = auto.listed();
    assert_eq!(text(&listed, "contested"), "container missing", "{listed}");
    assert!(!listed["next_repair_at"].is_null(), "{listed}");
    let status = auto.fleet.mcp(&["status"]).ok().stdout;
    assert!(status.contains("contested: container missing"), "{status}");
    let shown = auto.fleet.mcp(&["list"]).ok().stdout;
    assert!(shown.contains("CONTESTED"), "{shown}");
    let why = auto.fleet.mcp(&["why", &auto.target()]).ok().stdout;
    assert!(why.contains("contested"), "{why}");
    // The next repair waits at least ten seconds after the last one, over a restart of the agent too.
    auto.engine.remove(&name).unwrap();
    let removed = std::time::Instant::now();
    auto.restart_agent();
    std::thread::sleep(Duration::from_secs(6).saturating_sub(removed.elapsed()));
    assert!(!is_running(auto.engine, &name), "it backs off");
    comes_back(auto.engine, &name, 60);
    // Left alone for the window it is over, and both ends are told once.
    let over = auto.event("contested-over");
    assert_eq!(text(&over, "reason"), "left-alone");
    auto.is_told("contested", &["firing", "recovered"]);
    assert!(auto.listed()["contested"].is_null());
    assert_eq!(
        (auto.count("contested"), auto.count("contested-over")),
        (1, 1)
    );
}

fn the_last_good_spec_comes_back_and_the_quarantined_is_not_tried_again(lane: Lane) {
    let auto = Auto::new(lane, "lastgood", "ready_for = \"1s\"\n");
    let name = auto.container();
    auto.writes(
        "v2",
        "ready_for = \"1s\"\ncmd = [\"sh\", \"-c\", \"exit 3\"]\n",
    );
    auto.fleet.mcp(&["sync"]).ok();
    auto.event("rolled-back");
    comes_back(auto.engine, &name, 30);
    // Another revision with the same spec, a resync and a container that is gone: it is not tried again.
    auto.fleet.edit(
        &auto.file(),
        "name = \"lastgood\"",
        "# again\nname = \"lastgood\"",
    );
    auto.fleet.mcp(&["sync"]).ok();
    auto.engine.remove(&name).unwrap();
    comes_back(auto.engine, &name, 60);
    assert_eq!(version(auto.engine, &name), "v1");
    assert_eq!(auto.listed()["quarantined"], true);
    assert_eq!(auto.count("rolled-back"), 1, "{:#?}", auto.events());
    assert_eq!(auto.count("failed"), 0);
    // What came back is a deployment that succeeded, and what the head asks for still cannot be deployed.
    auto.is_told("deployment", &["firing"]);
    auto.writes("v3", "ready_for = \"1s\"\n");
    auto.fleet.mcp(&["sync"]).ok();
    auto.is_told("deployment", &["firing", "recovered"]);
    eventually("the next spec runs", Duration::from_secs(60), || {
        let runs = is_running(auto.engine, &name) && version(auto.engine, &name) == "v3";
        Ok(runs.then_some(()))
    })
    .unwrap();
}

fn what_is_held_comes_back_as_it_is_held(lane: Lane) {
    let auto = Auto::new(lane, "holds", "");
    let name = auto.container();
    auto.fleet.mcp(&["hold", "holds"]).ok();
    auto.writes("v2", "");
    auto.fleet.mcp(&["sync"]).ok();
    auto.engine.remove(&name).unwrap();
    comes_back(auto.engine, &name, 60);
    assert_eq!(version(auto.engine, &name), "v1");
    let listed = auto.listed();
    assert!(!listed["held"].is_null(), "{listed}");
    assert_eq!(listed["behind"], 1);
    // What is stopped stays away.
    auto.fleet.mcp(&["stop", "holds"]).ok();
    auto.engine.remove(&name).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert!(!is_running(auto.engine, &name));
    // Released it moves on.
    auto.fleet.mcp(&["release", "holds"]).ok();
    auto.fleet.mcp(&["start", "holds"]).ok();
    let head = eventually("the head runs", Duration::from_secs(60), || {
        let runs = is_running(auto.engine, &name) && version(auto.engine, &name) == "v2";
        Ok(runs.then_some(()))
    });
    assert!(head.is_ok(), "{:#}\n{:#?}", auto.listed(), auto.events());
}

fn what_does_not_converge_is_degraded_and_told_once(lane: Lane) {
    let auto = Auto::new(lane, "norest", "ready_for = \"3s\"\n");
    let name = auto.container();
    auto.engine
        .cli(&["network", "create", "norest-extra"])
        .unwrap();
    // Whatever is made joins another network while it stands at its gate.
    let touched = name.clone();
    let hand = Hand::moves(auto.engine, move |engine| {
        drop(engine.cli(&["network", "connect", "norest-extra", &touched]));
    });
    auto.writes("v2", "ready_for = \"3s\"\n");
    auto.fleet.mcp(&["sync"]).ok();
    let degraded = auto.event("deployment-degraded");
    assert!(
        text(&degraded, "message").contains("not converged"),
        "{degraded}"
    );
    let made = id(auto.engine, &name);
    // Longer than any of the agent's rounds: nothing is tried again.
    std::thread::sleep(Duration::from_secs(8));
    auto.is_told("deployment", &["firing"]);
    assert_eq!(
        auto.told("drift"),
        Vec::<String>::new(),
        "one alert, not two"
    );
    assert_eq!(id(auto.engine, &name), made);
    assert_eq!(auto.count("deployment-degraded"), 1);
    let listed = auto.listed();
    assert_eq!(listed["unconverged"], true, "{listed}");
    assert!(!listed["drift"].as_array().unwrap().is_empty(), "{listed}");
    let status = auto.fleet.mcp(&["status"]).ok().stdout;
    assert!(status.contains("did not converge"), "{status}");
    let history = auto.fleet.mcp_json(&["history", "norest"]);
    assert!(history.to_string().contains("\"degraded\""), "{history}");
    // An operator who tries is told at once, and so it ends once it is left alone.
    auto.fleet.mcp(&["deploy", "norest"]).exits(1);
    drop(hand);
    auto.fleet.mcp(&["deploy", "norest"]).ok();
    auto.is_told("deployment", &["firing", "recovered"]);
    assert_eq!(auto.listed()["unconverged"], false);
    auto.fleet.mcp(&["status", "--exit-code"]).exits(0);
    auto.engine.remove(&name).unwrap();
    drop(auto.engine.cli(&["network", "rm", "norest-extra"]));
}

fn what_is_stopped_by_hand_again_and_again_flaps_over_restarts_of_the_agent(lane: Lane) {
    let mut auto = Auto::with_window(lane, "stopper", "restart = \"always\"\n", LONG);
    let name = auto.container();
    let touched = name.clone();
    let began = std::time::Instant::now();
    let hand = Hand::moves(auto.engine, move |engine| {
        drop(engine.cli(&["stop", "-t", "5", &touched]));
    });
    auto.event("flapping");
    drop(hand);
    let restarts = auto.count("restarted");
    let most = 3 + began.elapsed().as_secs() / 20;
    assert!(
        restarts as u64 <= most,
        "{restarts} in {:?}",
        began.elapsed()
    );
    assert_eq!(auto.listed()["flapping"], true);
    auto.restart_agent();
    auto.is_told("flapping", &["firing"]);
    comes_back(auto.engine, &name, 60);
    auto.restart_agent();
    auto.event("flapping-over");
    auto.is_told("flapping", &["firing", "recovered"]);
    assert_eq!(
        (auto.count("flapping"), auto.count("flapping-over")),
        (1, 1)
    );
    assert_eq!(auto.listed()["flapping"], false);
}

fn a_removal_is_one_event_and_none_of_the_past_can_be_asked_for(lane: Lane) {
    let auto = Auto::new(lane, "onefact", "restart = \"no\"\n");
    auto.engine.cli(&["rm", "-f", &auto.container()]).unwrap();
    auto.event("removed");
    // An engine that takes its time tells of the end before the removal: then both are told.
    let events = auto.events();
    let at = |kind: &str| -> Vec<jiff::Timestamp> {
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        of_kind
            .map(|event| event["at"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    let (ends, removals) = (at("exited"), at("removed"));
    assert!(ends.len() <= 1, "{events:#?}");
    for (end, removal) in ends.iter().zip(&removals) {
        let apart = removal.duration_since(*end);
        assert!(apart.as_millis() >= 200, "{events:#?}");
    }
    assert_eq!(auto.count("removed"), 1);
    let none = auto.fleet.mcp(&["-o", "jsonl", "events", "-n", "0"]).ok();
    assert_eq!(none.stdout, "");
    // What is not held is not released.
    drop(auto.fleet.mcp(&["release", "onefact"]));
    assert_eq!(auto.count("released"), 0);
}
