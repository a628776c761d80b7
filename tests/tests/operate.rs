//! What an operator does between deployments, and what the agent does by itself: stop, hold, watch, restart.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, BUSYBOX_VERSIONS, Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, row, text};

mcp_tests::lanes!(
    stopped_component_is_not_started_until_told,
    older_revision_is_held_until_released,
    rollback_goes_to_the_last_different_spec,
    stale_plan_is_refused,
    inactive_service_is_stopped,
    crashed_component_is_restarted_with_back_off,
    stop_ends_a_crash_loop,
    removed_container_is_drift_and_deploy_repairs_it,
    container_stopped_by_hand_is_started_again,
    unmanaged_containers_are_shown_and_not_touched,
    events_are_followed_and_resumed,
    logs_are_shown_by_component,
    alert_reaches_the_command_and_so_does_its_end,
    lost_registry_is_rebuilt_from_repository_and_engine,
    history_and_why_tell_the_deployment,
    list_answers_with_the_engine_away,
    containers_come_back_after_the_engine,
    killed_agent_leaves_containers_running,
    killed_agent_comes_to_a_defined_state,
);

#[track_caller]
fn container(engine: &Engine, name: &str) -> ContainerInspectResponse {
    let found = engine.inspect(name).unwrap();
    found.unwrap_or_else(|| {
        panic!(
            "no container {name}: {}",
            engine.cli(&["ps", "-a"]).unwrap_or_default()
        )
    })
}

fn is_running(engine: &Engine, name: &str) -> bool {
    engine
        .inspect(name)
        .unwrap()
        .and_then(|found| found.state)
        .and_then(|state| state.running)
        .unwrap_or(false)
}

/// One component `api` at `v1`, deployed, with keys of its own.
fn one_on(engine: &'static Engine, name: &str, keys: &str) -> Fleet {
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, &[component("api", "v1", keys)]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    fleet
}

fn one(lane: Lane, name: &str, keys: &str) -> Fleet {
    one_on(lane.shared(), name, keys)
}

fn set_version(fleet: &Fleet, name: &str, from: &str, to: &str) -> String {
    fleet.edit(
        &format!("services/{name}.toml"),
        &format!("{BUSYBOX}:{from}"),
        &format!("{BUSYBOX}:{to}"),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.git(&["rev-parse", "HEAD"])
}

fn stopped_component_is_not_started_until_told(lane: Lane) {
    let mut fleet = one(lane, "stop", "restart = \"always\"\n");
    let engine = lane.shared();
    fleet.mcp(&["stop", "stop"]).ok();
    assert!(!is_running(engine, "stop-api"));
    assert_eq!(text(&fleet.list()["stop/api"], "desired_state"), "stopped");
    // The engine may say for a moment that what it stopped still runs.
    eventually("it is seen stopped", Duration::from_secs(10), || {
        let listed = fleet.list();
        Ok((listed["stop/api"]["observed_state"] == "stopped").then_some(()))
    })
    .unwrap();
    // It survives the agent.
    fleet.node_mut("stop").kill().unwrap();
    fleet.node_mut("stop").serve().unwrap();
    fleet.mcp(&["ps"]).ok();
    assert!(!is_running(engine, "stop-api"));
    assert_eq!(
        fleet.mcp(&["status", "--exit-code"]).code,
        Some(0),
        "stopped as told is no drift"
    );
    fleet.mcp(&["start", "stop"]).ok();
    assert!(is_running(engine, "stop-api"));
    // A deploy that names it starts it as well, and the plan says so.
    fleet.mcp(&["stop", "stop"]).ok();
    let plan = fleet.mcp_json(&["plan", "stop"]);
    assert_eq!(
        text(row(&plan["nodes"][0]["actions"], "api"), "action"),
        "start"
    );
    fleet.mcp(&["deploy", "stop"]).ok();
    assert!(is_running(engine, "stop-api"));
}

fn older_revision_is_held_until_released(lane: Lane) {
    let fleet = one(lane, "hold", "");
    let engine = lane.shared();
    let first = fleet.git(&["rev-parse", "HEAD"]);
    let second = set_version(&fleet, "hold", "v1", "v2");
    fleet.mcp(&["deploy", "hold"]).ok();
    fleet.mcp(&["deploy", "hold", "--rev", &first]).ok();
    let listed = fleet.list()["hold/api"].clone();
    assert_eq!(text(&listed, "revision"), first);
    assert_eq!(text(&listed, "head_revision"), second);
    assert_eq!(text(&listed["held"], "revision"), first, "{listed}");
    assert_eq!(listed["behind"], 1);
    assert_eq!(
        engine
            .cli(&["exec", "hold-api", "cat", "/etc/version"])
            .unwrap(),
        "v1"
    );
    // A later revision does not move it.
    set_version(&fleet, "hold", "v2", "v3");
    assert_eq!(text(&fleet.list()["hold/api"]["held"], "revision"), first);
    assert_eq!(fleet.list()["hold/api"]["behind"], 2);
    fleet.mcp(&["release", "hold"]).ok();
    assert!(fleet.list()["hold/api"]["held"].is_null());
    assert_eq!(
        engine
            .cli(&["exec", "hold-api", "cat", "/etc/version"])
            .unwrap(),
        "v1",
        "to release is not to deploy"
    );
    fleet.mcp(&["hold", "hold", "-m", "audit"]).ok();
    assert!(!fleet.list()["hold/api"]["held"].is_null());
    fleet.mcp(&["deploy", "hold"]).ok();
    assert!(
        fleet.list()["hold/api"]["held"].is_null(),
        "a deploy of the head releases"
    );
    assert_eq!(
        engine
            .cli(&["exec", "hold-api", "cat", "/etc/version"])
            .unwrap(),
        "v3"
    );
}

fn rollback_goes_to_the_last_different_spec(lane: Lane) {
    let fleet = one(lane, "back", "");
    let engine = lane.shared();
    let version = || {
        engine
            .cli(&["exec", "back-api", "cat", "/etc/version"])
            .unwrap()
    };
    for (from, to) in [("v1", "v2"), ("v2", "v3")] {
        set_version(&fleet, "back", from, to);
        fleet.mcp(&["deploy", "back"]).ok();
        fleet.mcp(&["deploy", "back"]).ok();
    }
    assert_eq!(version(), "v3");
    fleet.mcp(&["rollback", "back"]).ok();
    assert_eq!(version(), "v2");
    fleet.mcp(&["rollback", "back"]).ok();
    assert_eq!(version(), "v1", "again goes further back");
}

fn stale_plan_is_refused(lane: Lane) {
    let fleet = one(lane, "stale", "");
    set_version(&fleet, "stale", "v1", "v2");
    let plan = fleet.mcp_json(&["plan", "stale"]);
    let plan = text(&plan, "plan_id").to_owned();
    set_version(&fleet, "stale", "v2", "v3");
    fleet.mcp(&["deploy", "stale", "--plan", &plan]).exits(5);
    assert_eq!(text(&fleet.list()["stale/api"], "version"), "v1");
    let plan = fleet.mcp_json(&["plan", "stale"]);
    fleet
        .mcp(&["deploy", "stale", "--plan", text(&plan, "plan_id")])
        .ok();
    assert_eq!(text(&fleet.list()["stale/api"], "version"), "v3");
}

fn inactive_service_is_stopped(lane: Lane) {
    let fleet = one(lane, "inactive", "");
    fleet.edit("services/inactive.toml", "node =", "active = false\nnode =");
    fleet.mcp(&["deploy", "inactive", "--yes"]).ok();
    assert!(!is_running(lane.shared(), "inactive-api"));
    let refused = fleet.mcp(&["start", "inactive"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(refused.stderr.contains("active"), "{refused}");
}

fn crashed_component_is_restarted_with_back_off(lane: Lane) {
    let fleet = one(lane, "crash", "");
    let engine = lane.shared();
    let before = container(engine, "crash-api");
    engine
        .cli(&["kill", "--signal", "KILL", "crash-api"])
        .unwrap();
    let after = eventually("it runs again", Duration::from_secs(10), || {
        Ok(Some(container(engine, "crash-api")).filter(|now| {
            let state = now.state.as_ref().unwrap();
            state.running == Some(true)
                && state.started_at != before.state.as_ref().unwrap().started_at
        }))
    })
    .unwrap();
    assert_eq!(after.id, before.id, "the same container, started again");
    assert_eq!(
        after
            .host_config
            .unwrap()
            .restart_policy
            .unwrap()
            .name
            .unwrap()
            .to_string(),
        "no",
        "the agent restarts, not the engine"
    );
    eventually("the restart is counted", Duration::from_secs(10), || {
        Ok((fleet.list()["crash/api"]["restarts"] == 1).then_some(()))
    })
    .unwrap();
    // The second crash waits.
    engine
        .cli(&["kill", "--signal", "KILL", "crash-api"])
        .unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        !is_running(engine, "crash-api"),
        "the second restart comes after a pause"
    );
    fleet.mcp(&["start", "crash"]).ok();
    assert!(is_running(engine, "crash-api"));
}

fn stop_ends_a_crash_loop(lane: Lane) {
    let engine = lane.shared();
    let keys = "restart = \"always\"\nready_for = \"500ms\"\ncmd = [\"sh\", \"-c\", \"sleep 1; exit 1\"]\n";
    let fleet = one(lane, "loop", keys);
    eventually("it crashed", Duration::from_secs(15), || {
        Ok((!is_running(engine, "loop-api")).then_some(()))
    })
    .unwrap();
    fleet.mcp(&["stop", "loop"]).ok();
    let stopped = container(engine, "loop-api").state.unwrap();
    // Longer than the first pause of the back-off.
    std::thread::sleep(Duration::from_secs(12));
    let later = container(engine, "loop-api").state.unwrap();
    assert_eq!(
        (later.running, &later.started_at),
        (Some(false), &stopped.started_at),
        "stopped is stopped"
    );
}

fn removed_container_is_drift_and_deploy_repairs_it(lane: Lane) {
    let fleet = one(lane, "gone", "restart = \"no\"\n");
    let engine = lane.shared();
    engine.remove("gone-api").unwrap();
    let seen = fleet.mcp(&["status", "--exit-code"]).exits(2);
    assert!(seen.stdout.contains("DRIFT"), "{seen}");
    assert_eq!(text(&fleet.ps()["gone/api"], "observed_state"), "absent");
    let plan = fleet.mcp_json(&["plan", "gone"]);
    assert_eq!(
        text(row(&plan["nodes"][0]["actions"], "api"), "action"),
        "create"
    );
    fleet.mcp(&["deploy", "gone"]).ok();
    assert!(is_running(engine, "gone-api"));
    fleet.mcp(&["status", "--exit-code"]).exits(0);
}

fn container_stopped_by_hand_is_started_again(lane: Lane) {
    let fleet = one(lane, "byhand", "restart = \"always\"\n");
    let engine = lane.shared();
    let before = container(engine, "byhand-api").id;
    engine.cli(&["stop", "byhand-api"]).unwrap();
    eventually("it runs again", Duration::from_secs(10), || {
        Ok(is_running(engine, "byhand-api").then_some(()))
    })
    .unwrap();
    assert_eq!(
        container(engine, "byhand-api").id,
        before,
        "started, not made anew"
    );
    eventually("and it is told", Duration::from_secs(10), || {
        let events = fleet.mcp(&["events", "byhand"]).ok();
        Ok(events.stdout.contains("restarted").then_some(()))
    })
    .unwrap();
}

fn unmanaged_containers_are_shown_and_not_touched(lane: Lane) {
    let engine = lane.shared();
    engine.run_foreign("old-redis", &[]).unwrap();
    let before = container(engine, "old-redis");
    let fleet = one(lane, "beside", "");
    let status = fleet.mcp_json(&["status"]);
    assert!(
        status["nodes"][0]["unmanaged"]
            .to_string()
            .contains("old-redis"),
        "{status}"
    );
    assert_eq!(
        fleet.mcp(&["status", "--exit-code"]).code,
        Some(0),
        "it is no drift"
    );
    fleet.mcp(&["purge", "--yes"]).ok();
    let after = container(engine, "old-redis");
    assert_eq!(
        (after.id, after.state.unwrap().started_at),
        (before.id, before.state.unwrap().started_at)
    );
    engine.remove("old-redis").unwrap();
}

fn events_are_followed_and_resumed(lane: Lane) {
    let mut fleet = one(lane, "events", "restart = \"no\"\n");
    let mut following = fleet.mcp_spawn(&["-o", "jsonl", "events", "-f"]).unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    // A follower that has begun is not cut off by an agent that goes and comes back.
    let first: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let mut numbers = vec![first["seq"].as_u64().unwrap()];
    fleet.node_mut("events").kill().unwrap();
    fleet.node_mut("events").serve().unwrap();
    lane.shared().remove("events-api").unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let Ok(line) = receive.recv_timeout(left) else {
            panic!("no event of the removal came; seen {numbers:?}");
        };
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        numbers.push(event["seq"].as_u64().unwrap());
        if event["component"] == "api" && event.to_string().contains("absent") {
            break;
        }
    }
    following.kill().unwrap();
    following.wait().unwrap();
    let mut sorted = numbers.clone();
    sorted.dedup();
    assert_eq!(numbers, sorted, "no repeats");
    let all = fleet.mcp(&["-o", "jsonl", "events"]).ok().json_lines();
    assert!(all.len() >= numbers.len());
}

fn logs_are_shown_by_component(lane: Lane) {
    let fleet = one(
        lane,
        "logs",
        "cmd = [\"sh\", \"-c\", \"echo one; echo two >&2; exec /bin/pause\"]\n",
    );
    let logs = eventually("the lines are there", Duration::from_secs(10), || {
        let logs = fleet.mcp(&["logs", "logs/api"]).ok();
        Ok(logs.stdout.contains("pause v1").then_some(logs.stdout))
    })
    .unwrap();
    assert!(logs.contains("one") && logs.contains("two"), "{logs}");
    let last = fleet.mcp(&["logs", "logs", "-n", "1"]).ok().stdout;
    // The engine reads the two streams side by side, so the last line may be of either; it is never the first of its own stream.
    assert_eq!(last.lines().count(), 1, "{last}");
    assert!(!last.contains("one"), "{last}");
}

fn alert_reaches_the_command_and_so_does_its_end(lane: Lane) {
    let mut fleet = one(lane, "alert", "");
    let engine = lane.shared();
    let unset = fleet.mcp(&["alert", "test"]).exits(1);
    assert!(unset.stderr.contains("[alert] command"), "{}", unset.stderr);
    let node = fleet.node_mut("alert");
    let got = node.data_dir().join("alerts.jsonl");
    let script = format!("cat >> '{}'; echo delivered", got.display());
    let mut config = std::fs::read_to_string(node.config()).unwrap();
    config.push_str(&format!(
        "\n[alert]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n"
    ));
    std::fs::write(node.config(), config).unwrap();
    node.kill().unwrap();
    node.serve().unwrap();
    let tested = fleet.mcp_json(&["alert", "test"]);
    assert_eq!(text(&tested[0], "output"), "delivered");
    engine.cli(&["rm", "-f", "alert-api"]).unwrap();
    let alerts = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&got).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let state = |state: &'static str| {
        eventually(state, Duration::from_secs(30), || {
            Ok(alerts()
                .into_iter()
                .find(|alert| alert["condition"] == "drift" && alert["state"] == state))
        })
        .unwrap()
    };
    let firing = state("firing");
    assert_eq!(text(&firing, "component"), "api");
    // An engine that removes by force may be seen half way, with the container stopped and still there.
    assert!(text(&firing, "cause").starts_with("state="), "{firing}");
    fleet.mcp(&["deploy", "alert"]).ok();
    state("recovered");
}

fn lost_registry_is_rebuilt_from_repository_and_engine(lane: Lane) {
    let mut fleet = one(lane, "lost", "");
    let engine = lane.shared();
    let kept = container(engine, "lost-api").id;
    let revision = fleet.git(&["rev-parse", "HEAD"]);
    // Somebody's container that claims to be the agent's, with a spec that no revision gives.
    let image = format!("{BUSYBOX}:v1");
    let digest = format!("mcp.spec=sha256:{}", "0".repeat(64));
    let commit = format!("mcp.revision={revision}");
    let mut forged = vec!["create", "--name", "lost-fake", "--network", "none"];
    for label in [
        "mcp.node=lost",
        "mcp.service=lost",
        "mcp.component=fake",
        "mcp.generation=1",
        &commit,
        &digest,
    ] {
        forged.extend(["--label", label]);
    }
    forged.extend([image.as_str(), "/bin/pause"]);
    engine.cli(&forged).unwrap();
    let node = fleet.node_mut("lost");
    let config = node.config().display().to_string();
    let refused = node.agent(&["rebuild", "--config", &config]).unwrap();
    assert_ne!(refused.code, Some(0), "an agent runs: {refused}");
    node.kill().unwrap();
    for file in ["mcp.db", "mcp.db-wal", "mcp.db-shm"] {
        let file = node.data_dir().join(file);
        if file.exists() {
            std::fs::remove_file(file).unwrap();
        }
    }
    let rebuilt = node.agent(&["rebuild", "--config", &config]).unwrap().ok();
    assert!(rebuilt.stdout.contains("✓ lost-api"), "{rebuilt}");
    assert!(rebuilt.stdout.contains("! lost-fake"), "{rebuilt}");
    node.serve().unwrap();
    let listed = &fleet.list()["lost/api"];
    assert_eq!(text(listed, "revision"), revision);
    assert_eq!(listed["drift"], serde_json::json!([]));
    let again = fleet.mcp(&["deploy", "lost"]).ok();
    assert!(again.stdout.contains("nothing to do"), "{again}");
    assert_eq!(container(engine, "lost-api").id, kept);
    set_version(&fleet, "lost", "v1", "v2");
    fleet.mcp(&["deploy", "lost"]).ok();
    assert_ne!(container(engine, "lost-api").id, kept);
    engine.cli(&["rm", "-f", "lost-fake"]).unwrap();
}

fn history_and_why_tell_the_deployment(lane: Lane) {
    let fleet = one(lane, "why", "");
    let second = set_version(&fleet, "why", "v1", "v2");
    let deployed = fleet.mcp_json(&["deploy", "why"]);
    let deployment = text(&deployed["deployments"][0], "deployment_id").to_owned();
    let history = fleet.mcp_json(&["history", "why"]);
    assert_eq!(history.as_array().unwrap().len(), 2, "{history}");
    assert_eq!(
        text(&history[0], "deployment_id"),
        deployment,
        "newest first"
    );
    assert_eq!(text(&history[0], "revision"), second);
    assert_eq!(text(&history[0], "outcome"), "deployed");
    assert_eq!(text(&history[0], "actor"), "alice");
    let why = fleet.mcp(&["why", "why/api"]).ok().stdout;
    for expected in [&second[..7], &deployment[..7], "v1", "v2", "alice"] {
        assert!(why.contains(expected), "{expected} in\n{why}");
    }
}

/// An engine that nobody shares, for tests that break it.
fn own_engine(lane: Lane) -> &'static Engine {
    let engine = Engine::start(lane).unwrap();
    for version in BUSYBOX_VERSIONS {
        engine
            .import_version(&format!("{BUSYBOX}:{version}"), version, "busybox", &[])
            .unwrap();
    }
    engine.enter().unwrap();
    // Lives as long as the process; the reaper takes it away after that.
    Box::leak(Box::new(engine))
}

fn list_answers_with_the_engine_away(lane: Lane) {
    let engine = own_engine(lane);
    let fleet = one_on(engine, "away", "");
    engine.kill().unwrap();
    let listed = fleet.list();
    assert_eq!(text(&listed["away/api"], "version"), "v1");
    assert_eq!(text(&listed["away/api"], "desired_state"), "running");
    fleet.mcp(&["history", "away"]).ok();
    let unseen = fleet.mcp(&["deploy", "away"]).exits(1);
    assert!(
        !unseen.stdout.contains("nothing to do") && unseen.to_string().contains("unknown"),
        "what cannot be seen is not said to be up to date: {unseen}"
    );
    set_version(&fleet, "away", "v1", "v2");
    let failed = fleet.mcp(&["deploy", "away"]).exits(1);
    assert!(
        failed.stderr.contains("engine") || failed.stderr.contains(engine.url()),
        "{failed}"
    );
    engine.up().unwrap();
    eventually("the engine is seen again", Duration::from_secs(20), || {
        Ok((fleet.mcp(&["deploy", "away"]).code == Some(0)).then_some(()))
    })
    .unwrap();
    assert_eq!(text(&fleet.list()["away/api"], "version"), "v2");
    engine.remove("away-api").unwrap();
}

fn containers_come_back_after_the_engine(lane: Lane) {
    let engine = own_engine(lane);
    let fleet = one_on(engine, "reboot", "restart = \"always\"\n");
    engine.kill().unwrap();
    engine.up().unwrap();
    // With podman they never stopped; with docker they ended with the daemon, and the agent starts them.
    eventually("it runs", Duration::from_secs(45), || {
        Ok(is_running(engine, "reboot-api").then_some(()))
    })
    .unwrap();
    eventually("and is seen running", Duration::from_secs(45), || {
        Ok((text(&fleet.list()["reboot/api"], "observed_state") == "running").then_some(()))
    })
    .unwrap();
    // What the engine lost altogether is made again, from the registry.
    fleet.mcp(&["stop", "reboot"]).ok();
}

fn killed_agent_leaves_containers_running(lane: Lane) {
    let mut fleet = one(lane, "restarted", "");
    let engine = lane.shared();
    let before = container(engine, "restarted-api");
    fleet.node_mut("restarted").kill().unwrap();
    assert!(is_running(engine, "restarted-api"));
    fleet.node_mut("restarted").serve().unwrap();
    assert_eq!(
        text(&fleet.ps()["restarted/api"], "observed_state"),
        "running"
    );
    let answer = fleet.mcp_json(&["deploy", "restarted"]);
    assert_eq!(text(&answer["deployments"][0], "outcome"), "unchanged");
    let after = container(engine, "restarted-api");
    assert_eq!(
        (after.id, after.state.unwrap().started_at),
        (before.id, before.state.unwrap().started_at)
    );
    assert_eq!(
        fleet.node_mut("restarted").terminate().unwrap(),
        Some(0),
        "SIGTERM ends it well"
    );
    assert!(is_running(engine, "restarted-api"));
}

fn killed_agent_comes_to_a_defined_state(lane: Lane) {
    let mut fleet = Fleet::with_node(lane, "torn").unwrap();
    let engine = lane.shared();
    let definition = |version| {
        service(
            "torn",
            "torn",
            &["api", "web", "db"].map(|name| component(name, version, "")),
        )
    };
    fleet.write("services/torn.toml", &definition("v1"));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "torn"]).ok();
    // A deployment of three takes some hundred milliseconds: let the blow fall all over it.
    for (turn, delay_ms) in [5, 40, 90, 150, 230, 330, 450, 650].into_iter().enumerate() {
        let version = if turn % 2 == 0 { "v2" } else { "v1" };
        fleet.write("services/torn.toml", &definition(version));
        fleet.mcp(&["sync"]).ok();
        let mut deploy = fleet.mcp_spawn(&["deploy", "torn"]).unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        fleet.node_mut("torn").kill().unwrap();
        fleet.node_mut("torn").serve().unwrap();
        deploy.kill().unwrap();
        deploy.wait().unwrap();
        // Settled: no deployment is under way, and every component is there once and runs.
        eventually(
            &format!("a defined state after {delay_ms} ms"),
            Duration::from_secs(60),
            || {
                let history = fleet.mcp_json(&["history", "torn"]);
                let settled =
                    history[0]["outcome"] != "running" && !history[0]["finished_at"].is_null();
                let containers = fleet.node("torn").containers()?;
                let running = ["api", "web", "db"]
                    .iter()
                    .all(|name| is_running(engine, &format!("torn-{name}")));
                Ok((settled && running && containers.len() == 3).then_some(()))
            },
        )
        .unwrap();
        let versions: Vec<String> = ["api", "web", "db"]
            .map(|name| {
                engine
                    .cli(&["exec", &format!("torn-{name}"), "cat", "/etc/version"])
                    .unwrap()
            })
            .into();
        assert!(
            versions.iter().all(|version| *version == versions[0]),
            "all or nothing: {versions:?} after {delay_ms} ms"
        );
        fleet.mcp(&["deploy", "torn"]).ok();
        for name in ["api", "web", "db"] {
            assert_eq!(
                engine
                    .cli(&["exec", &format!("torn-{name}"), "cat", "/etc/version"])
                    .unwrap(),
                version
            );
        }
        assert_eq!(
            fleet.node("torn").containers().unwrap().len(),
            3,
            "nothing is left over"
        );
    }
}
