//! The agent's program, replaced while it runs: nothing that runs notices.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use mcp_tests::engine::{BUSYBOX, Lane, eventually};
use mcp_tests::fleet::{Fleet, text};

use super::{agent, deployed, names, running};

const PATIENCE: Duration = Duration::from_secs(120);

/// Puts another program in place of the agent's, as an upgrade does: beside it, and renamed.
fn replace_program(fleet: &Fleet, node: &str) {
    let program = fleet.node(node).dir().join("mcp-agent");
    let new = program.with_extension("new");
    fs::copy(&program, &new).unwrap();
    let mut file = File::options().append(true).open(&new).unwrap();
    // What follows the end of a program is not read: the same agent in another file.
    file.write_all(b"another release").unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, &program).unwrap();
}

pub(super) fn replaced_program_touches_nothing_that_runs(lane: Lane) {
    let name = "upgrade";
    let mut fleet = deployed(lane, name);
    let before = running(&fleet, name);
    assert_eq!(names(&before), ["upgrade-api", "upgrade-db"]);
    for graceful in [true, false] {
        replace_program(&fleet, name);
        // The old one goes on as if nothing had happened.
        fleet.mcp(&["list"]).ok();
        if graceful {
            fleet.node_mut(name).terminate().unwrap();
        } else {
            fleet.node_mut(name).kill().unwrap();
        }
        fleet.node_mut(name).serve().unwrap();
        fleet.mcp(&["list"]).ok();
        assert_eq!(running(&fleet, name), before);
    }

    // In the middle of a deployment of one of them: the new one waits at its gate.
    fleet.edit(
        "services/upgrade.toml",
        &format!(
            "image = \"{BUSYBOX}:v1\"\ncmd = [\"/bin/pause\"]\nready_for = \"0s\"\ndepends_on"
        ),
        &format!(
            "image = \"{BUSYBOX}:v2\"\ncmd = [\"/bin/pause\"]\nready_for = \"20s\"\ndepends_on"
        ),
    );
    fleet.mcp(&["sync"]).ok();
    let mut client = fleet.mcp_spawn(&["deploy", "upgrade/api"]).unwrap();
    eventually("the new one runs", PATIENCE, || {
        let now = running(&fleet, name);
        let api = now.get("upgrade-api");
        Ok(api
            .is_some_and(|api| *api != before["upgrade-api"])
            .then_some(()))
    })
    .unwrap();
    replace_program(&fleet, name);
    fleet.node_mut(name).terminate().unwrap();
    fleet.node_mut(name).serve().unwrap();
    drop(client.kill());
    client.wait().unwrap();
    // Whatever it came to: one of each runs, the other was left alone, and the deployment has ended.
    eventually("the deployment has ended", PATIENCE, || {
        let history = fleet.mcp_json(&["history", "upgrade", "-n", "1"]);
        let ended = history.to_string().contains("\"outcome\":\"");
        Ok(ended.then_some(()))
    })
    .unwrap();
    let after = running(&fleet, name);
    assert_eq!(names(&after), ["upgrade-api", "upgrade-db"]);
    assert_eq!(after["upgrade-db"], before["upgrade-db"]);
    fleet.edit("services/upgrade.toml", "\"20s\"", "\"0s\"");
    fleet.mcp(&["deploy", "upgrade"]).ok();
    let version = &fleet.list()["upgrade/api"]["version"];
    assert_eq!(version, "v2");
    assert_eq!(fleet.node(name).containers().unwrap().len(), 2);
    assert_eq!(running(&fleet, name)["upgrade-db"], before["upgrade-db"]);
    assert_eq!(
        text(&fleet.list()["upgrade/api"], "observed_state"),
        "running"
    );
    agent(&fleet, name, &["check"]).ok();
}
