//! Secrets from `mcp secret set` to the file that a container reads, and where their values are not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use attacks::{
    a_lost_identity_is_told_and_comes_back_without_a_restart,
    a_sealed_file_that_was_tampered_with_deploys_nothing,
    a_secret_moves_with_its_service_and_to_no_node_that_was_not_signed,
    a_value_that_a_program_prints_is_hidden_where_the_agent_keeps_or_tells_it,
    a_value_that_will_not_do_leaves_nothing_behind, no_value_is_put_where_others_may_change_it,
    those_who_may_not_neither_read_nor_write_a_secret,
};
use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, run};
use mcp_tests::fleet::{Fleet, text};

mcp_tests::lanes!(
    a_changed_value_redeploys_those_who_use_it_and_no_others,
    secrets_are_delivered_again_after_a_reboot,
    a_rotated_identity_changes_nothing_that_runs,
    a_lost_identity_holds_up_those_who_use_secrets_alone,
    values_stand_nowhere_in_plain_text,
    a_value_that_a_program_prints_is_hidden_where_the_agent_keeps_or_tells_it,
    a_value_that_will_not_do_leaves_nothing_behind,
    a_secret_moves_with_its_service_and_to_no_node_that_was_not_signed,
    a_sealed_file_that_was_tampered_with_deploys_nothing,
    those_who_may_not_neither_read_nor_write_a_secret,
    a_lost_identity_is_told_and_comes_back_without_a_restart,
    no_value_is_put_where_others_may_change_it,
);

/// A node with a service of its name: `api` uses secrets, `web` none.
fn fleet(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    let keys = "secrets = [\"db\", { name = \"tls\", to = \"/etc/tls.key\", mode = \"0400\", owner = \"1000:1000\" }]\n";
    fleet.write(
        &format!("services/{name}.toml"),
        &service(
            name,
            name,
            &[component("api", "v1", keys), component("web", "v1", "")],
        ),
    );
    set(&fleet, name, "db", "first value");
    set(&fleet, name, "tls", "key of tls");
    fleet
}

fn set(fleet: &Fleet, service: &str, name: &str, value: &str) {
    fleet
        .mcp_with(&["secret", "set", service, name], Some(value))
        .unwrap()
        .ok();
}

/// What a program inside the container of a component reads.
fn read(fleet: &Fleet, node: &str, component: &str, path: &str) -> String {
    let engine = fleet.node(node).engine();
    let container = format!("{node}-{component}");
    engine.cli(&["exec", &container, "cat", path]).unwrap()
}

fn id(fleet: &Fleet, node: &str, component: &str) -> String {
    let running = fleet.node(node).running().unwrap();
    running[&format!("{node}-{component}")].0.clone()
}

fn deploy(fleet: &Fleet, service: &str) {
    fleet.mcp(&["deploy", service, "--yes"]).ok();
}

/// What a reboot of the machine leaves of the folders in memory.
fn forget_memory(fleet: &Fleet, node: &str) {
    let folders = fleet.node(node).memory();
    assert!(!folders.is_empty(), "the secrets lie in memory");
    for folder in folders {
        fs::remove_dir_all(folder).unwrap();
    }
}

fn a_changed_value_redeploys_those_who_use_it_and_no_others(lane: Lane) {
    let node = "seca";
    let fleet = fleet(lane, node);
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "first value"
    );
    let engine = fleet.node(node).engine();
    let facts = engine
        .cli(&["exec", "seca-api", "stat", "-c", "%a %u:%g", "/etc/tls.key"])
        .unwrap();
    assert_eq!(facts.trim_end(), "400 1000:1000");
    let mounts = read(&fleet, node, "api", "/proc/mounts");
    let mount = mounts
        .lines()
        .find(|line| line.contains(" /run/secrets/db "))
        .unwrap();
    assert!(mount.contains(" tmpfs ") && mount.contains("ro"), "{mount}");

    let (api, web) = (id(&fleet, node, "api"), id(&fleet, node, "web"));
    set(&fleet, node, "db", "first value");
    fleet.mcp(&["plan", node, "--exit-code"]).exits(0);
    deploy(&fleet, node);
    assert_eq!(
        id(&fleet, node, "api"),
        api,
        "the same value, encrypted anew"
    );

    set(&fleet, node, "db", "other value");
    let plan = fleet.mcp(&["plan", node]).ok();
    assert!(plan.stdout.contains("secrets./run/secrets/db"), "{plan}");
    assert!(plan.stdout.contains("changed"), "{plan}");
    assert!(!format!("{plan}").contains("other value"), "{plan}");
    deploy(&fleet, node);
    assert_ne!(id(&fleet, node, "api"), api);
    assert_eq!(id(&fleet, node, "web"), web);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "other value"
    );
    fleet.mcp(&["status", "--exit-code"]).ok();

    fleet.mcp(&["rollback", node]).ok();
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "first value"
    );

    let refused = fleet.mcp(&["secret", "rm", node, "db"]).exits(64);
    assert!(refused.stderr.contains("is in use"), "{refused}");
}

fn secrets_are_delivered_again_after_a_reboot(lane: Lane) {
    let node = "secb";
    let mut fleet = fleet(lane, node);
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let api = id(&fleet, node, "api");
    let engine = fleet.node(node).engine();
    fleet.node_mut(node).kill().unwrap();
    engine.cli(&["kill", "secb-api"]).unwrap();
    forget_memory(&fleet, node);
    fleet.node_mut(node).serve().unwrap();
    mcp_tests::engine::eventually(
        "the agent starts it again",
        std::time::Duration::from_secs(60),
        || {
            let running = fleet.node(node).running()?;
            Ok(running.contains_key("secb-api").then_some(()))
        },
    )
    .unwrap();
    assert_eq!(id(&fleet, node, "api"), api, "the same container");
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "first value"
    );
    forget_memory(&fleet, node);
    fleet.mcp(&["restart", node]).ok();
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "first value"
    );
}

fn a_rotated_identity_changes_nothing_that_runs(lane: Lane) {
    let node = "secc";
    let fleet = fleet(lane, node);
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let api = id(&fleet, node, "api");
    let first = fleet.git(&["rev-parse", "HEAD"]);
    let config = fleet.node(node).config();
    let config = config.to_str().unwrap();
    fleet
        .node(node)
        .agent(&["identity", "rotate", "--config", config])
        .unwrap()
        .ok();
    // Whoever answers with another recipient than the signed one is not believed without a word.
    let refused = fleet
        .mcp_with(&["secret", "set", node, "db"], Some("for somebody else"))
        .unwrap()
        .exits(7);
    assert!(refused.stderr.contains("another recipient"), "{refused}");

    fleet.mcp(&["secret", "rekey", "--accept", node]).ok();
    // What is one service's leaves the recipients out; that is told with the mend.
    let refused = fleet.mcp(&["deploy", node, "--yes"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(
        format!("{refused}").contains("mcp sync, which commits it"),
        "{refused}"
    );
    let list = fleet.mcp_json(&["secret", "list"]);
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .all(|one| text(one, "state") == "good"),
        "{list}"
    );
    fleet.mcp(&["sync"]).ok();
    fleet
        .node(node)
        .agent(&["identity", "forget-old", "--yes", "--config", config])
        .unwrap()
        .ok();
    fleet.mcp(&["plan", node, "--exit-code"]).exits(0);
    // What was deployed at a revision that opens no more is delivered from the head's file.
    forget_memory(&fleet, node);
    fleet.mcp(&["restart", node]).ok();
    assert_eq!(id(&fleet, node, "api"), api);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "first value"
    );

    set(&fleet, node, "db", "second value");
    deploy(&fleet, node);
    let back = fleet.mcp(&["deploy", node, "--rev", &first, "--yes"]);
    assert_ne!(back.code, Some(0), "{back}");
    assert!(
        format!("{back}").contains("not encrypted to this node's identity"),
        "{back}"
    );
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "second value"
    );
}

fn a_lost_identity_holds_up_those_who_use_secrets_alone(lane: Lane) {
    let node = "secd";
    let mut fleet = fleet(lane, node);
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let (api, web) = (id(&fleet, node, "api"), id(&fleet, node, "web"));
    fs::remove_file(fleet.node(node).data_dir().join("age.key")).unwrap();
    fleet.node_mut(node).terminate().unwrap();
    fleet.node_mut(node).serve().unwrap();
    assert!(
        !fleet.node(node).data_dir().join("age.key").exists(),
        "it may come back"
    );
    fleet.edit(&format!("services/{node}.toml"), "busybox:v1", "busybox:v2");
    let plan = fleet.mcp(&["plan", node]);
    assert!(format!("{plan}").contains("age.key is gone"), "{plan}");
    let deployed = fleet.mcp(&["deploy", &format!("{node}/api"), "--yes"]);
    assert_ne!(deployed.code, Some(0), "{deployed}");
    assert_eq!(id(&fleet, node, "api"), api);
    fleet.mcp(&["deploy", &format!("{node}/web"), "--yes"]).ok();
    assert_ne!(id(&fleet, node, "web"), web);
}

/// Every file below a folder in which the text stands.
fn files_with(folder: &Path, canary: &str) -> String {
    let found = Command::new("grep")
        .args(["-rlaF", "--", canary])
        .arg(folder)
        .output()
        .unwrap();
    String::from_utf8(found.stdout).unwrap()
}

fn values_stand_nowhere_in_plain_text(lane: Lane) {
    const CANARY: &str = "canary-7f3a9c-of-the-mine";
    const VARIABLE: &str = "canary-5be2d1-in-the-air";
    let node = "sece";
    let mut fleet = Fleet::with_node(lane, node).unwrap();
    fleet.node_mut(node).terminate().unwrap();
    fleet
        .node_mut(node)
        .serve_with(&[("RUST_LOG", "trace")])
        .unwrap();
    let keys = "secrets = [\"db\", { name = \"air\", env = \"AIR\" }]\n";
    let alone = "secrets = [\"db\"]\n";
    fleet.write(
        &format!("services/{node}.toml"),
        &service(
            node,
            node,
            &[component("api", "v1", keys), component("web", "v1", alone)],
        ),
    );
    set(&fleet, node, "db", CANARY);
    set(&fleet, node, "air", VARIABLE);
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    // More than one revision, a stop, a restart, a failed deployment, a rollback.
    set(&fleet, node, "db", &format!("{CANARY} again"));
    deploy(&fleet, node);
    fleet.mcp(&["stop", node]).ok();
    fleet.mcp(&["start", node]).ok();
    fleet.mcp(&["rollback", &format!("{node}/web")]).ok();
    assert_eq!(
        read(&fleet, node, "web", "/run/secrets/db").trim_end(),
        CANARY
    );
    let environment = read(&fleet, node, "api", "/proc/1/environ");
    assert!(environment.contains(VARIABLE), "{environment}");

    let told = [
        vec!["plan"],
        vec!["events"],
        vec!["history"],
        vec!["why", "sece/api"],
        vec!["diff", "HEAD~1", "HEAD"],
        vec!["drift"],
        vec!["list"],
        vec!["ps"],
        vec!["status"],
        vec!["secret", "list"],
        vec!["node", "info"],
        vec!["events", "--audit"],
        vec!["service", "export", node],
        vec!["service", "show", node],
    ];
    for args in told {
        for format in ["table", "json"] {
            let mut all = args.clone();
            all.extend(["-o", format]);
            let said = fleet.mcp(&all).to_string();
            assert!(!said.contains(CANARY) && !said.contains(VARIABLE), "{said}");
        }
    }
    let engine = fleet.node(node).engine();
    let inspected = engine.cli(&["inspect", "sece-api", "sece-web"]).unwrap();
    assert!(!inspected.contains(CANARY), "{inspected}");
    assert!(
        inspected.contains(VARIABLE),
        "a variable was asked for, and shows: {inspected}"
    );

    let backup = fleet.node(node).dir().join("backup.tar");
    let config = fleet.node(node).config();
    fleet
        .node(node)
        .agent(&[
            "backup",
            backup.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ])
        .unwrap()
        .ok();
    // The whole of the engine, which holds the node's folder with data, services, log and backup, too.
    assert_eq!(files_with(engine.dir(), CANARY), "");
    assert_eq!(files_with(fleet.home(), CANARY), "");
    for folder in [fleet.node(node).dir().to_owned(), fleet.home().to_owned()] {
        assert_eq!(files_with(&folder, VARIABLE), "");
    }
    // Git's objects are compressed: all of them, of both repositories, as git reads them.
    for repository in [
        fleet.repo().to_owned(),
        fleet.node(node).data_dir().join("repo.git"),
    ] {
        let objects = run(Command::new("git")
            .args(["-c", "safe.directory=*", "-C"])
            .arg(&repository)
            .args(["cat-file", "--batch-all-objects", "--batch"])
            .env("LC_ALL", "C"));
        let objects = match objects {
            Ok(objects) => objects,
            Err(error) => format!("{error:#}"),
        };
        assert!(!objects.contains(CANARY) && !objects.contains(VARIABLE));
        assert!(
            objects.contains("age-encryption.org"),
            "the objects were read"
        );
    }
    for folder in fleet.node(node).memory() {
        assert!(mcp_agent::secrets::memory::is_memory(&folder));
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert!(
            !files_with(&folder, CANARY).is_empty(),
            "the test can find it"
        );
    }
    let pid = fleet.node(node).pid().unwrap();
    for name in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("canary"));
    }
}
