//! What podman's storage holds with no container to show for it: debris that the agent's names need is cleared
//! by name, and what another tool works in is left alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Engine, Lane};
use mcp_tests::fleet::{Fleet, text};

/// An engine that nobody else uses, with a node.
fn node(lane: Lane, name: &str) -> Fleet {
    let engine = lane.alone();
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    fleet
}

/// Leaves behind what a create leaves that was killed half way: the storage knows the container, and podman's
/// own database does not.
fn half_make(engine: &Engine, name: &str) -> String {
    engine.kill().unwrap();
    let database = engine.dir().join("root/libpod/bolt_state.db");
    let before = fs::read(&database).unwrap();
    let image = format!("{BUSYBOX}:v1");
    let id = engine
        .cli(&["create", "--name", name, &image, "/bin/pause"])
        .unwrap();
    fs::write(&database, before).unwrap();
    engine.up().unwrap();
    assert!(engine.inspect(name).unwrap().is_none());
    assert!(is_held(engine, name));
    id
}

/// As [`half_make`], and marked as buildah marks the containers that it works in.
fn work_in(engine: &Engine, name: &str) -> String {
    let id = half_make(engine, name);
    let folder = engine
        .dir()
        .join(format!("root/overlay-containers/{id}/userdata"));
    fs::write(folder.join("buildah.json"), "{}").unwrap();
    engine.give(&folder).unwrap();
    id
}

/// Whether the storage holds the name with no container to show for it.
fn is_held(engine: &Engine, name: &str) -> bool {
    let args = [
        "ps",
        "--all",
        "--external",
        "--format",
        "{{.Names}} {{.Status}}",
    ];
    let all = engine.cli(&args).unwrap();
    all.lines().any(|line| line == format!("{name} Storage"))
}

fn half_made_containers_are_cleared_by_name(lane: Lane) {
    let name = "half";
    let mut fleet = node(lane, name);
    let engine = fleet.node(name).engine();
    let unrelated = ["elsewhere", "shop-db2"];
    for other in unrelated {
        half_make(engine, other);
    }
    half_make(engine, "shop-db");
    fleet.write(
        "services/shop.toml",
        &service("shop", name, &[component("db", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "shop"]).ok();
    assert!(!is_held(engine, "shop-db"));

    // The name of the generation that comes next.
    let generation = fleet
        .node(name)
        .engine()
        .inspect("shop-db")
        .unwrap()
        .unwrap()
        .config
        .unwrap()
        .labels
        .unwrap()["mcp.generation"]
        .parse::<u64>()
        .unwrap();
    let next = format!("shop-db.g{}", generation + 1);
    half_make(engine, &next);
    fleet.edit("services/shop.toml", "busybox:v1", "busybox:v2");
    fleet.mcp(&["deploy", "shop"]).ok();
    assert!(!is_held(engine, &next));
    assert_eq!(text(&fleet.list()["shop/db"], "observed_state"), "running");

    // What nobody needs the name of is not looked for, by an agent that begins either.
    fleet.node_mut(name).terminate().unwrap();
    fleet.node_mut(name).serve().unwrap();
    fleet.mcp(&["deploy", "shop", "--force"]).ok();
    for other in unrelated {
        assert!(is_held(engine, other), "{other}");
    }
    assert_eq!(fleet.node(name).containers().unwrap().len(), 1);
}

fn what_another_tool_works_in_is_left_alone(lane: Lane) {
    let name = "tools";
    let mut fleet = node(lane, name);
    let engine = fleet.node(name).engine();
    let id = work_in(engine, "shop-db");
    fleet.write(
        "services/shop.toml",
        &service("shop", name, &[component("db", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    for _ in 0..2 {
        let refused = fleet.mcp(&["deploy", "shop"]);
        assert_ne!(refused.code, Some(0), "{refused}");
        let said = format!("the name shop-db is taken by container {}", &id[..7]);
        assert!(refused.to_string().contains(&said), "{refused}");
        assert!(is_held(engine, "shop-db"));
        fleet.node_mut(name).kill().unwrap();
        fleet.node_mut(name).serve().unwrap();
    }
    // When it is gone the deployment goes on.
    engine.cli(&["rm", "--force", "shop-db"]).unwrap();
    fleet.mcp(&["deploy", "shop"]).ok();
}

/// Docker has no storage beside its containers.
macro_rules! podman {
    ($($lane:ident $module:ident),+) => {
        $(mod $module {
            use super::Lane;

            #[test]
            fn half_made_containers_are_cleared_by_name() {
                super::half_made_containers_are_cleared_by_name(Lane::$lane);
            }

            #[test]
            fn what_another_tool_works_in_is_left_alone() {
                super::what_another_tool_works_in_is_left_alone(Lane::$lane);
            }
        })+
    };
}

podman!(PodmanRoot podman_root, PodmanRootless podman_rootless);
