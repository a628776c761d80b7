//! Containers that exist, taken over and let go of: nothing is touched before a deploy that was told of.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bollard::models::ContainerInspectResponse;
use mcp_tests::engine::{BUSYBOX, Engine, Lane};
use mcp_tests::fleet::{Fleet, row, text};
use serde_json::Value;

mcp_tests::lanes!(
    adopted_container_is_not_touched_before_a_deploy_that_was_told_of,
    adopted_container_is_put_back_where_the_new_one_fails,
    adopted_as_it_is_is_deployed_without_a_touch,
    forgotten_container_stays_and_can_be_taken_back,
    what_cannot_be_adopted_is_refused,
    stopped_container_is_adopted_as_stopped,
    restart_policy_of_the_engine_is_not_fought,
    live_value_is_accepted_into_the_definition,
);

/// What tells one run of one container from any other: its id, its process, its start.
type Run = (Option<String>, Option<i64>, Option<String>);

#[track_caller]
fn inspected(engine: &Engine, name: &str) -> ContainerInspectResponse {
    engine
        .inspect(name)
        .unwrap()
        .unwrap_or_else(|| panic!("no container {name}"))
}

#[track_caller]
fn is_running(engine: &Engine, name: &str) -> bool {
    let state = inspected(engine, name).state;
    state.and_then(|state| state.running).unwrap()
}

#[track_caller]
fn run_of(engine: &Engine, name: &str) -> Run {
    let found = inspected(engine, name);
    let state = found.state.unwrap();
    (found.id, state.pid, state.started_at)
}

/// A node and no definition at all.
fn empty(lane: Lane, node: &str) -> Fleet {
    Fleet::with_node(lane, node).unwrap()
}

/// A foreign container, gone with the value.
struct Foreign(&'static Engine, String);

impl Foreign {
    fn run(engine: &'static Engine, name: &str, args: &[&str]) -> Self {
        engine.run_foreign(name, args).unwrap();
        Self(engine, name.to_owned())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.0.remove(&self.1));
    }
}

fn departures(adopted: &Value) -> Vec<String> {
    let changes = adopted["departures"].as_array().unwrap();
    changes
        .iter()
        .map(|change| text(change, "field").to_owned())
        .collect()
}

fn adopted_container_is_not_touched_before_a_deploy_that_was_told_of(lane: Lane) {
    let engine = lane.shared();
    let mut fleet = empty(lane, "adopted");
    let foreign = [
        "--restart",
        "always",
        "-e",
        "GREETING=hello",
        "-e",
        "DB_PASSWORD=x",
        "-v",
        "adopted_data:/data",
        "-v",
        "/anonymous",
        "-p",
        "127.0.0.1:18761:8080",
        "--stop-timeout",
        "3",
    ];
    let _foreign = Foreign::run(engine, "adopted-web", &foreign);
    let before = run_of(engine, "adopted-web");
    for path in ["/data/kept", "/anonymous/kept"] {
        let command = format!("echo mine > {path}");
        engine
            .cli(&["exec", "adopted-web", "sh", "-c", &command])
            .unwrap();
    }
    let unmanaged = |fleet: &Fleet| {
        let status = fleet.mcp_json(&["status"]);
        status["nodes"][0]["unmanaged"]
            .to_string()
            .contains("adopted-web")
    };
    assert!(unmanaged(&fleet));

    // There is a head that a plan can be made upon.
    fleet.mcp(&["sync"]).ok();
    let told = fleet
        .mcp(&["-o", "json", "adopt", "adopted/web", "--dry-run"])
        .ok()
        .json();
    assert_eq!(told["written"], Value::Null);
    assert!(unmanaged(&fleet), "a dry run takes nothing over");

    let reply = fleet
        .mcp(&["-o", "json", "adopt", "adopted/web", "--write"])
        .ok()
        .json();
    let one = &reply["adopted"][0];
    assert_eq!(
        told["plan"], reply["plan"],
        "the dry run tells the plan as it is after the adoption"
    );
    assert_eq!(told["plan"]["blocked"], Value::Array(Vec::new()));
    assert_eq!(text(&reply, "written"), "services/adopted.toml");
    let departing = departures(one);
    assert!(departing.contains(&"restart".to_owned()), "{departing:?}");
    assert!(one["warnings"].to_string().contains("DB_PASSWORD"), "{one}");
    assert_eq!(run_of(engine, "adopted-web"), before, "nothing was touched");
    assert!(!unmanaged(&fleet));
    let listed = fleet.ps()["adopted/web"].clone();
    assert_eq!(listed["adopted"], true, "{listed}");
    assert_eq!(text(&listed, "desired_state"), "running");
    assert_eq!(text(&listed, "observed_state"), "running");
    assert_eq!(listed["drift"], Value::Array(Vec::new()), "{listed}");
    fleet.mcp(&["status", "--exit-code"]).ok();
    fleet.mcp(&["history", "adopted"]).ok();
    fleet.mcp(&["why", "adopted/web"]).ok();

    // It is remembered, and still nobody touches it.
    fleet.node_mut("adopted").kill().unwrap();
    fleet.node_mut("adopted").serve().unwrap();
    fleet.mcp(&["sync"]).ok();
    let plan = fleet.mcp_json(&["plan", "adopted"]);
    let action = row(&plan["nodes"][0]["actions"], "web").clone();
    assert_eq!(text(&action, "action"), "replace", "{plan}");
    for field in &departing {
        assert!(
            action["changes"].to_string().contains(field),
            "{field}: {action}"
        );
    }
    assert_eq!(run_of(engine, "adopted-web"), before);

    fleet.mcp(&["deploy", "adopted"]).ok();
    let after = inspected(engine, "adopted-web");
    assert_ne!(after.id, before.0, "it was replaced, as the plan told");
    assert!(after.state.unwrap().running.unwrap());
    let policy = after.host_config.unwrap().restart_policy.unwrap();
    assert!(
        policy
            .name
            .is_none_or(|name| matches!(name.to_string().as_str(), "" | "no")),
        "the agent starts again"
    );
    let inside = |command: &str| {
        engine
            .cli(&["exec", "adopted-web", "sh", "-c", command])
            .unwrap()
    };
    assert_eq!(inside("cat /data/kept /anonymous/kept"), "mine\nmine");
    assert_eq!(inside("echo $GREETING"), "hello");
    assert_eq!(fleet.list()["adopted/web"]["adopted"], false);
    let again = fleet.mcp_json(&["plan", "adopted"]);
    assert_eq!(
        text(row(&again["nodes"][0]["actions"], "web"), "action"),
        "none",
        "{again}"
    );

    // Data that nobody named outlives the container for good.
    fleet.edit("services/adopted.toml", "hello", "bye");
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "adopted"]).ok();
    assert_eq!(inside("cat /anonymous/kept; echo $GREETING"), "mine\nbye");
}

fn adopted_container_is_put_back_where_the_new_one_fails(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "putback");
    let _foreign = Foreign::run(engine, "old-thing", &["--restart", "always"]);
    let before = inspected(engine, "old-thing").id;
    fleet
        .mcp(&["adopt", "old-thing", "--as", "putback/api", "--write"])
        .ok();
    fleet.edit("services/putback.toml", "/bin/pause", "/bin/false");
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "putback"]).exits(3);
    let after = inspected(engine, "old-thing");
    assert_eq!(after.id, before, "under the name that it came with");
    assert!(after.state.unwrap().running.unwrap());
    assert_eq!(fleet.list()["putback/api"]["adopted"], true);
    assert!(engine.inspect("putback-api").unwrap().is_none());
    fleet.edit("services/putback.toml", "/bin/false", "/bin/pause");
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "putback"]).ok();
    assert!(engine.inspect("old-thing").unwrap().is_none());
    assert!(is_running(engine, "putback-api"));
}

fn adopted_as_it_is_is_deployed_without_a_touch(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "same");
    engine.cli(&["network", "create", "same"]).unwrap();
    let _foreign = Foreign::run(
        engine,
        "same-api",
        &[
            "--network",
            "same",
            "--network-alias",
            "api",
            "--network-alias",
            "same-api",
            "--security-opt",
            "no-new-privileges",
            "--cap-drop",
            "NET_RAW",
            "--cap-drop",
            "MKNOD",
            "--pids-limit",
            "2048",
        ],
    );
    let before = run_of(engine, "same-api");
    let reply = fleet
        .mcp(&["-o", "json", "adopt", "same", "--write"])
        .ok()
        .json();
    assert_eq!(
        departures(&reply["adopted"][0]),
        Vec::<String>::new(),
        "{reply}"
    );
    fleet.mcp(&["sync"]).ok();
    let plan = fleet.mcp_json(&["plan", "same"]);
    let action = row(&plan["nodes"][0]["actions"], "api");
    assert_eq!(text(action, "action"), "none", "{plan}");
    assert_eq!(text(action, "reason"), "adopted as it is");
    fleet.mcp(&["deploy", "same"]).ok();
    assert_eq!(run_of(engine, "same-api"), before);
    let head = fleet.git(&["rev-parse", "HEAD"]);
    assert_eq!(text(&fleet.list()["same/api"], "revision"), head);
    // From then on it is deployed as any other.
    fleet.edit(
        "services/same.toml",
        &format!("{BUSYBOX}:v1"),
        &format!("{BUSYBOX}:v2"),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "same"]).ok();
    assert_eq!(
        engine
            .cli(&["exec", "same-api", "cat", "/etc/version"])
            .unwrap(),
        "v2"
    );
    fleet.mcp(&["rollback", "same"]).ok();
    assert_eq!(
        engine
            .cli(&["exec", "same-api", "cat", "/etc/version"])
            .unwrap(),
        "v1"
    );
}

fn forgotten_container_stays_and_can_be_taken_back(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "letgo");
    let _foreign = Foreign::run(engine, "letgo-api", &[]);
    fleet.mcp(&["adopt", "letgo"]).ok();
    let before = run_of(engine, "letgo-api");
    fleet.mcp(&["forget", "letgo/api"]).ok();
    assert_eq!(run_of(engine, "letgo-api"), before);
    assert!(fleet.list().is_empty());
    let status = fleet.mcp_json(&["status"]);
    assert!(
        status["nodes"][0]["unmanaged"]
            .to_string()
            .contains("letgo-api"),
        "{status}"
    );
    fleet.mcp(&["forget", "letgo/api"]).exits(1);

    // One that the agent made is let go of and taken back as what it is.
    fleet.mcp(&["adopt", "letgo", "--write"]).ok();
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "letgo"]).ok();
    let made = run_of(engine, "letgo-api");
    fleet.mcp(&["forget", "letgo"]).exits(64).says("--yes");
    fleet.mcp(&["forget", "letgo", "--yes"]).ok();
    let status = fleet.mcp_json(&["status"]);
    assert!(
        status["nodes"][0]["unmanaged"]
            .to_string()
            .contains("letgo-api"),
        "{status}"
    );
    let blocked = fleet.mcp(&["deploy", "letgo"]);
    assert_ne!(blocked.code, Some(0), "{blocked}");
    assert!(
        blocked.to_string().contains("mcp adopt letgo/api"),
        "{blocked}"
    );
    assert_eq!(
        run_of(engine, "letgo-api"),
        made,
        "what was let go of is nobody's debris"
    );
    fleet.mcp(&["adopt", "letgo"]).ok();
    assert_eq!(fleet.list()["letgo/api"]["adopted"], false);
    fleet.mcp(&["deploy", "letgo"]).ok();
    assert_eq!(run_of(engine, "letgo-api"), made);
}

fn what_cannot_be_adopted_is_refused(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "refused");
    let _api = Foreign::run(engine, "refused-api", &[]);
    let _other = Foreign::run(engine, "refused-other", &["--label", "mcp.node=elsewhere"]);
    fleet
        .mcp(&["adopt", "refused/nobody"])
        .exits(1)
        .says("no container refused-nobody");
    fleet
        .mcp(&["adopt", "nobody-at-all", "--as", "refused/api"])
        .exits(1);
    fleet
        .mcp(&["adopt", "refused-other", "--as", "refused/other"])
        .exits(1)
        .says("elsewhere");
    fleet
        .mcp(&["adopt", "refused-api", "--as", "refused"])
        .exits(64);
    fleet.mcp(&["adopt", "Not A Name"]).exits(64);
    fleet.mcp(&["adopt", "refused"]).ok();
    fleet
        .mcp(&["adopt", "refused"])
        .exits(1)
        .says("managed already");
    fleet
        .mcp(&["adopt", "refused-api", "--as", "other/api"])
        .exits(1)
        .says("refused/api");
    let _second = Foreign::run(engine, "second", &[]);
    fleet
        .mcp(&["adopt", "second", "--as", "refused/api"])
        .exits(1)
        .says("refused-api");
    // Nothing that no definition ever had is removed.
    fleet.mcp(&["purge", "--yes"]).code.unwrap();
    assert!(engine.inspect("refused-api").unwrap().is_some());
    fleet.log_in("refused", "bob", "viewer").unwrap();
    fleet
        .mcp(&["adopt", "second", "--as", "refused/second"])
        .exits(7);
    fleet.mcp(&["forget", "refused"]).exits(7);
}

fn stopped_container_is_adopted_as_stopped(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "asleep");
    let _foreign = Foreign::run(engine, "asleep-api", &["--stop-timeout", "2"]);
    engine.cli(&["stop", "asleep-api"]).unwrap();
    fleet.mcp(&["adopt", "asleep"]).ok();
    let listed = fleet.ps()["asleep/api"].clone();
    assert_eq!(text(&listed, "desired_state"), "stopped", "{listed}");
    assert_eq!(text(&listed, "observed_state"), "stopped");
    fleet.mcp(&["status", "--exit-code"]).ok();
    assert!(!is_running(engine, "asleep-api"));
}

fn restart_policy_of_the_engine_is_not_fought(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "policy");
    let _foreign = Foreign::run(
        engine,
        "policy-api",
        &["--restart", "unless-stopped", "--stop-timeout", "2"],
    );
    fleet.mcp(&["adopt", "policy"]).ok();
    engine.cli(&["stop", "policy-api"]).unwrap();
    // Its engine leaves it down, and so does the agent: that is drift.
    let listed = fleet.ps()["policy/api"].clone();
    assert!(listed["drift"].to_string().contains("state"), "{listed}");
    fleet.mcp(&["status", "--exit-code"]).exits(2);
    fleet.mcp(&["drift", "accept", "policy"]).exits(1);
    assert!(!is_running(engine, "policy-api"));
}

fn live_value_is_accepted_into_the_definition(lane: Lane) {
    let engine = lane.shared();
    let fleet = empty(lane, "taken");
    let shop = format!(
        "# kept\nname = \"taken\"\nnode = \"taken\"\n\n[[components]]\nname      = \"api\"   # and this\n\
         image     = \"{BUSYBOX}:v1\"\ncmd       = [\"/bin/pause\"]\nready_for = \"0s\"\n\
         resources = {{ memory = \"256MiB\" }} # how much\n"
    );
    fleet.write("services/taken.toml", &shop);
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "taken"]).ok();
    let before = run_of(engine, "taken-api");
    fleet
        .mcp(&["drift", "accept", "taken"])
        .ok()
        .says("no drift");
    let mut expected = shop.clone();
    // Podman 4.3 changes no limits of a container that its inspect then tells of.
    if lane == Lane::Docker {
        engine
            .cli(&[
                "update",
                "--memory",
                "512m",
                "--memory-swap",
                "1g",
                "taken-api",
            ])
            .unwrap();
        expected = expected.replace("256MiB", "512MiB");
    }
    engine.cli(&["network", "create", "extra"]).unwrap();
    engine
        .cli(&["network", "connect", "extra", "taken-api"])
        .unwrap();
    expected.push_str("networks = [\"taken\", \"extra\"]\n");
    let drift = fleet.mcp(&["-o", "json", "drift", "taken"]).ok().json();
    assert!(drift.to_string().contains("network.extra"), "{drift}");
    fleet.mcp(&["drift", "accept", "taken/api"]).ok();
    let written = std::fs::read_to_string(fleet.repo().join("services/taken.toml")).unwrap();
    assert_eq!(written, expected);
    fleet.mcp(&["sync"]).ok();
    let plan = fleet.mcp_json(&["plan", "taken"]);
    assert_eq!(
        text(row(&plan["nodes"][0]["actions"], "api"), "action"),
        "none",
        "{plan}"
    );
    fleet.mcp(&["deploy", "taken"]).ok();
    assert_eq!(run_of(engine, "taken-api"), before, "it is what is wanted");
    fleet.mcp(&["drift", "taken", "--exit-code"]).ok();
    let listed = fleet.ps()["taken/api"].clone();
    assert_eq!(listed["drift"], Value::Array(Vec::new()), "{listed}");
    assert_eq!(listed["behind"], 0);
}
