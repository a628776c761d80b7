//! The accepted revisions: deleted, damaged, set back; and the mark that remembers how far they had come.

use std::fs;

use mcp_tests::engine::Lane;
use mcp_tests::fleet::text;

use super::{agent, deploy_version, deployed, refused_start, remove, running};

#[test]
fn repository_that_is_gone_or_damaged_is_brought_back_by_a_push() {
    Lane::PodmanRoot.run(|lane| {
        let name = "bare";
        let mut fleet = deployed(lane, name);
        let newest = deploy_version(&fleet, name, "v1", "v2");
        let before = running(&fleet, name);
        let repo = fleet.node(name).data_dir().join("repo.git");

        fleet.node_mut(name).kill().unwrap();
        remove(&repo);
        fleet.node_mut(name).serve().unwrap();
        let status = fleet.mcp(&["status"]);
        assert!(status.stdout.contains("no changes are taken"), "{status}");
        assert_eq!(text(&fleet.list()["bare/api"], "observed_state"), "running");
        // Another history is refused, its own is taken.
        let shown = agent(&fleet, name, &["trust", "show"]).exits(1);
        assert!(shown.stdout.contains(&newest[..7]), "{shown}");
        fleet.mcp(&["sync"]).ok();
        agent(&fleet, name, &["check"]).ok();
        let again = fleet.mcp(&["deploy", name]).ok();
        assert!(again.stdout.contains("nothing to do"), "{again}");

        fleet.node_mut(name).kill().unwrap();
        for entry in fs::read_dir(repo.join("objects/pack")).unwrap() {
            let pack = entry.unwrap().path();
            if pack.extension().is_some_and(|end| end == "pack") {
                let mut bytes = fs::read(&pack).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle..middle + 64].fill(0);
                remove(&pack);
                fs::write(&pack, bytes).unwrap();
            }
        }
        let checked = agent(&fleet, name, &["check"]).exits(1);
        assert!(checked.stdout.contains("✗ repository"), "{checked}");
        fs::rename(&repo, repo.with_extension("damaged")).unwrap();
        fleet.node_mut(name).serve().unwrap();
        fleet.mcp(&["sync"]).ok();
        agent(&fleet, name, &["check"]).ok();
        assert_eq!(running(&fleet, name), before);
        deploy_version(&fleet, name, "v2", "v3");
    });
}

#[test]
fn head_is_read_from_the_mark_and_a_lost_mark_is_confirmed() {
    Lane::PodmanRoot.run(|lane| {
        let name = "mark";
        let mut fleet = deployed(lane, name);
        let before = running(&fleet, name);
        let data = fleet.node(name).data_dir();
        let head = data.join("repo.git/refs/mcp/head");
        for garbage in [None, Some("garbage\n"), Some("")] {
            fleet.node_mut(name).kill().unwrap();
            match garbage {
                None => remove(&head),
                Some(garbage) => fs::write(&head, garbage).unwrap(),
            }
            fleet.node_mut(name).serve().unwrap();
            fleet.mcp(&["sync"]).ok();
            agent(&fleet, name, &["check"]).ok();
        }
        for garbage in [None, Some("garbage\n")] {
            fleet.node_mut(name).kill().unwrap();
            match garbage {
                None => remove(&data.join("high-water")),
                Some(garbage) => fs::write(data.join("high-water"), garbage).unwrap(),
            }
            fleet.node_mut(name).serve().unwrap();
            fleet.write("services/new.toml", "name = \"new\"\nnode = \"mark\"\n[[components]]\nname = \"a\"\nimage = \"localhost/none:v1\"\n");
            fleet.mcp(&["sync"]).exits(1).says("changes are stopped");
            agent(&fleet, name, &["trust", "confirm", "--yes"])
                .exits(1)
                .says("another agent");
            fleet.node_mut(name).terminate().unwrap();
            agent(&fleet, name, &["trust", "confirm"]).exits(64);
            agent(&fleet, name, &["trust", "confirm", "--yes"]).ok();
            agent(&fleet, name, &["trust", "show"]).ok();
            fleet.node_mut(name).serve().unwrap();
            fleet.mcp(&["sync"]).ok();
            remove(&fleet.repo().join("services/new.toml"));
            fleet.mcp(&["sync"]).ok();
        }
        assert_eq!(running(&fleet, name), before);
    });
}

#[test]
fn data_directory_that_cannot_be_used_is_refused_by_name() {
    Lane::PodmanRoot.run(|lane| {
        let name = "shut";
        let mut fleet = deployed(lane, name);
        let before = running(&fleet, name);
        let second = agent(&fleet, name, &["serve"]).exits(1);
        assert!(second.stderr.contains("another agent"), "{second}");
        fleet.node_mut(name).terminate().unwrap();
        let denied = fleet.node(name).data_dir().join("denied_keys");
        let kept = fs::read(&denied).unwrap();
        remove(&denied);
        let said = refused_start(&fleet, name);
        assert!(said.contains("denied_keys"), "{said}");
        fs::write(&denied, kept).unwrap();
        fleet.node_mut(name).serve().unwrap();
        assert_eq!(running(&fleet, name), before);
    });
}
