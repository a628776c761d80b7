//! A wall clock that is years off, and one that jumps: nothing that runs is touched, nothing waits for years,
//! and tokens fail closed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mcp_tests::engine::{Lane, eventually, run};
use mcp_tests::fleet::Fleet;

use super::{agent, deploy_version, deployed, running};

/// Longer than the first pause of the restart policy takes, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(120);

const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;

/// A wall clock that can be set off for processes that are started with these variables.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn of(fleet: &Fleet, node: &str) -> Clock {
        let dir = fleet.node(node).dir();
        let clock = Clock {
            library: dir.join("clock.so"),
            offset: dir.join("clock"),
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/clock.c");
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&clock.library)
            .arg(source)
            .arg("-ldl"))
        .unwrap();
        clock.set_off(0);
        clock
    }

    fn set_off(&self, seconds: i64) {
        // Whole at any moment: the agent reads it at each look at its clock.
        let new = self.offset.with_extension("new");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(&new, &self.offset).unwrap();
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("MCP_CLOCK_FILE", self.offset.to_str().unwrap()),
        ]
    }
}

/// Ends a component's process from outside, and waits until it runs again.
fn dies_and_comes_back(fleet: &Fleet, node: &str, container: &str) {
    let (_, before) = running(fleet, node)[container].clone();
    let pid = rustix::process::Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    runs_again(fleet, node, container, before);
}

fn runs_again(fleet: &Fleet, node: &str, container: &str, before: i64) {
    eventually("it runs again", PATIENCE, || {
        let now = running(fleet, node);
        let now = now.get(container);
        Ok(now.is_some_and(|(_, pid)| *pid != before).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.node(node).log()));
}

pub(super) fn clock_that_is_years_off_touches_nothing_and_delays_nothing(lane: Lane) {
    let name = "clock";
    let mut fleet = deployed(lane, name);
    let clock = Clock::of(&fleet, name);
    fleet.node_mut(name).terminate().unwrap();
    fleet.node_mut(name).serve_with(&clock.variables()).unwrap();
    let right = fleet.token(name, "alice", "admin").unwrap();

    // Another one each time: the pauses of one series double.
    let turns = [
        (TEN_YEARS, "clock-api", "clock-db"),
        (-TEN_YEARS, "clock-db", "clock-api"),
    ];
    for (off, dies, lives) in turns {
        let before = running(&fleet, name);
        clock.set_off(off);
        // It fails closed, and the refusal names the clock.
        let refused = fleet.mcp(&["list"]);
        assert_ne!(refused.code, Some(0), "{refused}");
        assert!(
            refused.stderr.contains("this node's clock says"),
            "{refused}"
        );
        dies_and_comes_back(&fleet, name, dies);
        assert_eq!(running(&fleet, name)[lives], before[lives]);

        // The agent begins with a clock that is off, in the middle of a pause.
        let (_, first) = running(&fleet, name)[dies].clone();
        let pid = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        fleet.node_mut(name).kill().unwrap();
        clock.set_off(-off);
        fleet.node_mut(name).serve_with(&clock.variables()).unwrap();
        runs_again(&fleet, name, dies, first);
        assert_eq!(running(&fleet, name)[lives], before[lives]);
        clock.set_off(0);
        fleet.mcp(&["list"]).ok();
    }

    // Work goes on at a wrong time, with a token and a request of that time.
    clock.set_off(TEN_YEARS);
    let issued = {
        let node = fleet.node(name);
        let program = node.dir().join("mcp-agent");
        let mut command = node.engine().command_as_user(program);
        command
            .args(["token", "issue", "--subject", "alice", "--role", "admin"])
            .arg("--config")
            .arg(node.config())
            .envs(clock.variables());
        run(&mut command).unwrap()
    };
    let log_in = |token: &str| {
        let args = ["login", "--node", name, "--token-stdin"];
        fleet.mcp_with(&args, Some(token)).unwrap().ok();
    };
    log_in(&issued);
    let before = running(&fleet, name);
    fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
    fleet
        .mcp(&["deploy", name])
        .exits(7)
        .says("compare the clocks");
    assert_eq!(running(&fleet, name), before);
    fleet.mcp_under(&clock.variables(), &["deploy", name]).ok();
    assert!(running(&fleet, name).keys().eq(before.keys()));
    // The order of what happened is that of the events' numbers.
    let after = running(&fleet, name);
    clock.set_off(0);
    log_in(&right);
    deploy_version(&fleet, name, "v2", "v3");
    assert!(running(&fleet, name).keys().eq(after.keys()));
    let events = fleet.mcp(&["events", "-o", "jsonl", "-n", "500"]).ok();
    let numbers: Vec<u64> = events
        .json_lines()
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted(), "{events}");
    let drift = fleet.mcp(&["drift"]).ok();
    assert!(drift.stdout.trim().is_empty(), "{drift}");
    agent(&fleet, name, &["check"]).ok();
}
