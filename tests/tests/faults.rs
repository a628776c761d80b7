//! An engine on a bad day: what an operator is told meanwhile, and what the node comes to afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Lane, eventually};
use mcp_tests::fault::bed::Bed;
use mcp_tests::fault::sweep::{CALLS, FAULTS, cell};
use mcp_tests::fault::{Fault, Rule};
use mcp_tests::fleet::Fleet;

mcp_tests::lanes!(
    a_fault_at_a_call_leaves_a_node_in_order,
    an_engine_that_is_missing_is_told_and_comes_back,
    an_engine_that_hangs_is_told_and_comes_back,
    events_that_never_come_are_made_up_for,
    events_that_come_twice_are_told_once,
    a_name_that_is_taken_in_between_stops_nothing,
    a_registry_that_stalls_stops_nothing,
    memory_that_runs_out_is_told,
);

/// How long the agent may take to notice something.
const NOTICE: Duration = Duration::from_secs(60);

fn a_fault_at_a_call_leaves_a_node_in_order(lane: Lane) {
    let mut bed = Bed::new(lane, "cells").unwrap();
    // One fault of a kind; `make faults` goes through all of them.
    for (call, fault) in [
        ("create", "answer-lost"),
        ("start", "refused"),
        ("start", "answer-held"),
        ("stop", "half-answer"),
        ("rename", "garbage"),
        ("remove", "closed"),
        ("inspect", "half-document"),
        ("network", "drip"),
    ] {
        let at = CALLS.into_iter().find(|at| at.name == call).unwrap();
        let (name, what) = FAULTS.into_iter().find(|(name, _)| *name == fault).unwrap();
        let cell = cell(&mut bed, at, name, what, 1).unwrap();
        assert!(cell.wrong.is_empty(), "{lane:?} {cell:#?}");
        assert!(cell.met > 0, "the call was never made: {cell:?}");
    }
}

/// Kinds of the events about the engine, oldest first.
fn engine_events(fleet: &Fleet) -> Vec<String> {
    fleet
        .mcp_json(&["events", "-n", "100"])
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["kind"].as_str())
        .filter(|kind| kind.starts_with("engine-"))
        .map(str::to_owned)
        .collect()
}

/// What an operator is told while the engine cannot be spoken to: at once or after one deadline of a call,
/// never as if nothing ran, and nothing is begun.
fn is_told(bed: &mut Bed) {
    let name = bed.name().to_owned();
    eventually("the agent notices", NOTICE, || {
        let status = bed.fleet.mcp(&["-o", "json", "status"]);
        Ok(status.stdout.contains("engine").then_some(()))
    })
    .unwrap();
    let listed = bed.fleet.list();
    assert_eq!(listed.len(), 3, "what is deployed is known all the same");
    let api = &listed[&format!("{name}/api")];
    assert_eq!(api["desired_state"], "running");
    assert_ne!(api["observed_state"], "absent", "nobody could look: {api}");
    bed.change(&["api"]);
    for command in [["plan", &name], ["deploy", &name]] {
        let began = Instant::now();
        let output = bed.fleet.mcp(&command);
        assert_ne!(output.code, Some(0), "{output}");
        assert!(
            format!("{}{}", output.stdout, output.stderr).contains("engine"),
            "it says what is the matter: {output}"
        );
        assert!(began.elapsed() < Duration::from_secs(45), "{output}");
    }
}

fn an_engine_that_is_missing_is_told_and_comes_back(lane: Lane) {
    let mut bed = Bed::new(lane, "missing").unwrap();
    let before = bed.look().unwrap();
    let pids: Vec<i64> = ["api", "web", "worker"]
        .map(|name| bed.pid(name).unwrap())
        .into();
    bed.proxy.vanish();
    is_told(&mut bed);
    // An agent that is started meanwhile waits for it.
    bed.fleet.node_mut("missing").kill().unwrap();
    bed.fleet.node_mut("missing").serve().unwrap();
    is_told(&mut bed);
    bed.proxy.listen().unwrap();
    eventually("the engine is back", NOTICE, || {
        Ok(
            (engine_events(&bed.fleet).last().map(String::as_str) == Some("engine-back"))
                .then_some(()),
        )
    })
    .unwrap();
    bed.in_order(&before).unwrap();
    let after: Vec<i64> = ["api", "web", "worker"]
        .map(|name| bed.pid(name).unwrap())
        .into();
    assert_eq!(after, pids, "nothing was touched");
    bed.fleet.mcp(&["deploy", "missing"]).ok();
    bed.in_order(&before).unwrap();
}

fn an_engine_that_hangs_is_told_and_comes_back(lane: Lane) {
    let mut bed = Bed::new(lane, "hanging").unwrap();
    let before = bed.look().unwrap();
    let worker = bed.pid("worker").unwrap();
    bed.proxy.befall(Rule::new("", "", Fault::Hang));
    // Started anew, so that no stream is open that tells of the engine.
    bed.fleet.node_mut("hanging").kill().unwrap();
    bed.fleet.node_mut("hanging").serve().unwrap();
    is_told(&mut bed);
    bed.proxy.lift();
    bed.in_order(&before).unwrap();
    assert_eq!(bed.pid("worker").unwrap(), worker, "nothing was touched");
    eventually("a deploy goes through", NOTICE, || {
        Ok((bed.fleet.mcp(&["deploy", "hanging"]).code == Some(0)).then_some(()))
    })
    .unwrap();
    bed.in_order(&before).unwrap();
}

fn events_that_never_come_are_made_up_for(lane: Lane) {
    let mut bed = Bed::new(lane, "silent").unwrap();
    bed.proxy.befall(Rule::new("GET", "/events", Fault::Silent));
    let config = bed.fleet.node("silent").config();
    let text = std::fs::read_to_string(&config).unwrap();
    let quick: String = text
        .lines()
        .map(|line| {
            if line.trim_start().starts_with("resync") {
                "resync = \"2s\"\n".to_owned()
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    assert!(quick.contains("\"2s\""), "the template has a resync");
    std::fs::write(&config, quick).unwrap();
    bed.fleet.mcp(&["stop", "silent"]).ok();
    bed.fleet.node_mut("silent").kill().unwrap();
    bed.fleet.node_mut("silent").serve().unwrap();
    let proxy = &bed.proxy;
    eventually(
        "the agent opened the stream that tells nothing",
        NOTICE,
        || Ok((!proxy.met().is_empty()).then_some(())),
    )
    .unwrap();
    bed.engine().cli(&["start", "silent-worker"]).unwrap();
    eventually("the resync finds it", NOTICE, || {
        let worker = bed.fleet.list()["silent/worker"].clone();
        Ok(
            (worker["observed_state"] == "running" && worker["desired_state"] == "stopped")
                .then_some(()),
        )
    })
    .unwrap();
}

fn events_that_come_twice_are_told_once(lane: Lane) {
    let mut bed = Bed::new(lane, "twice").unwrap();
    bed.proxy
        .befall(Rule::new("GET", "/events", Fault::Doubled));
    bed.fleet.node_mut("twice").kill().unwrap();
    bed.fleet.node_mut("twice").serve().unwrap();
    let before = bed.look().unwrap();
    let pid = bed.pid("worker").unwrap();
    bed.engine()
        .cli(&["kill", "--signal", "KILL", "twice-worker"])
        .unwrap();
    eventually("it is started again", NOTICE, || {
        let now = bed.pid("worker")?;
        Ok((now != 0 && now != pid).then_some(()))
    })
    .unwrap();
    bed.in_order(&before).unwrap();
    let events = bed.fleet.mcp_json(&["events", "twice/worker", "-n", "100"]);
    for kind in ["exited", "restarted"] {
        let all = events.as_array().into_iter().flatten();
        let told = all.filter(|event| event["kind"] == kind).count();
        assert_eq!(told, 1, "{kind}: {events:#?}");
    }
}

fn a_name_that_is_taken_in_between_stops_nothing(lane: Lane) {
    let bed = Bed::new(lane, "taken").unwrap();
    let before = bed.look().unwrap();
    let file = "services/taken.toml";
    let text = std::fs::read_to_string(bed.fleet.repo().join(file)).unwrap();
    let more = component("extra", "v1", "");
    bed.fleet.write(file, &format!("{text}\n{more}"));
    bed.fleet.mcp(&["sync"]).ok();
    let began = Instant::now();
    // The plan is made, and the create on its way.
    bed.proxy.befall(
        Rule::new(
            "POST",
            "/containers/create",
            Fault::Delay(Duration::from_secs(3)),
        )
        .times(1),
    );
    let mut deploy = bed.fleet.mcp_spawn(&["deploy", "taken"]).unwrap();
    eventually("the create is on its way", NOTICE, || {
        Ok((!bed.proxy.met().is_empty()).then_some(()))
    })
    .unwrap();
    let foreign = bed.engine().run_foreign("taken-extra", &[]).unwrap();
    let code = deploy.wait().unwrap().code();
    bed.proxy.lift();
    assert_eq!(code, Some(1));
    assert_eq!(bed.last_outcome(), "aborted");
    let found = bed.engine().inspect("taken-extra").unwrap().unwrap();
    assert_eq!(found.id.as_deref(), Some(foreign.trim()));
    assert_eq!(found.state.unwrap().running, Some(true));
    bed.in_order(&before).unwrap();
    assert!(bed.down(began).is_empty(), "nothing stopped");
    bed.engine().remove("taken-extra").unwrap();
    bed.fleet.mcp(&["deploy", "taken"]).ok();
    bed.in_order(&before).unwrap();
}

fn a_registry_that_stalls_stops_nothing(lane: Lane) {
    let mut bed = Bed::new(lane, "stalls").unwrap();
    let before = bed.look().unwrap();
    // It takes connections, and never says a word.
    let registry = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let image = format!(
        "127.0.0.1:{}/stalled:v1",
        registry.local_addr().unwrap().port()
    );
    let file = "services/stalls.toml";
    let good = std::fs::read_to_string(bed.fleet.repo().join(file)).unwrap();
    let began = Instant::now();
    let stalled = service(
        "stalls",
        "stalls",
        &[component("api", "v1", "").replace(&format!("{BUSYBOX}:v1"), &image)],
    );
    let rest = good.split_once("[[components]]\nname = \"web\"").unwrap().1;
    bed.fleet.write(
        file,
        &format!("{stalled}\n[[components]]\nname = \"web\"{rest}"),
    );
    bed.fleet.mcp(&["sync"]).ok();
    let mut deploy = bed.fleet.mcp_spawn(&["deploy", "stalls"]).unwrap();
    let pulls = |bed: &Bed| {
        let rows = bed.fleet.mcp_json(&["history", "stalls", "-n", "1"]);
        let outcome = rows[0]["outcome"].as_str().unwrap_or_default().to_owned();
        outcome.is_empty() || outcome == "running"
    };
    eventually("the deployment waits for its image", NOTICE, || {
        Ok(pulls(&bed).then_some(()))
    })
    .unwrap();
    // The agent goes away and comes back: nothing was touched, nothing is left.
    bed.fleet.node_mut("stalls").kill().unwrap();
    bed.fleet.node_mut("stalls").serve().unwrap();
    deploy.wait().unwrap();
    bed.in_order(&before).unwrap();
    assert_eq!(bed.last_outcome(), "aborted");
    // A newer deployment takes the place of one that waits.
    let mut deploy = bed.fleet.mcp_spawn(&["deploy", "stalls"]).unwrap();
    eventually("the deployment waits for its image", NOTICE, || {
        Ok(pulls(&bed).then_some(()))
    })
    .unwrap();
    assert!(bed.down(began).is_empty(), "nothing stopped");
    bed.fleet.write(file, &good);
    bed.change(&["api"]);
    bed.fleet.mcp(&["deploy", "stalls"]).ok();
    deploy.wait().unwrap();
    bed.in_order(&before).unwrap();
}

fn memory_that_runs_out_is_told(lane: Lane) {
    let fleet = Fleet::with_node(lane, "starved").unwrap();
    let eats = "cmd = [\"sh\", \"-c\", \"sleep 1; exec tail /dev/zero\"]\nresources.memory = \"24MiB\"\nrestart = \"on-failure:1\"\n";
    fleet.write(
        "services/starved.toml",
        &service("starved", "starved", &[component("api", "v1", eats)]),
    );
    fleet.mcp(&["sync"]).ok();
    let deployed = fleet.mcp(&["deploy", "starved"]);
    if lane == Lane::PodmanRootless && deployed.code != Some(0) {
        // Without cgroups of its own a rootless engine cannot keep a limit, and the plan says so.
        assert!(deployed.stderr.contains("memory"), "{deployed}");
        return;
    }
    deployed.ok();
    let exited = eventually("it is told", NOTICE, || {
        let events = fleet.mcp_json(&["events", "starved/api", "-n", "100"]);
        let mut all = events.as_array().into_iter().flatten();
        Ok(all.find(|event| event["kind"] == "exited").cloned())
    });
    if lane == Lane::PodmanRootless {
        return;
    }
    let exited = exited.unwrap();
    assert_eq!(exited["data"]["exit_code"], 137, "{exited}");
    assert_eq!(exited["data"]["oom"], true, "{exited}");
    assert!(
        exited["message"]
            .as_str()
            .unwrap()
            .contains("out of memory"),
        "{exited}"
    );
}
