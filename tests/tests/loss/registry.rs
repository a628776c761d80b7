//! The registry's file: deleted, cut short, garbled, of a newer agent, set back.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use mcp_tests::engine::{Lane, eventually, run};
use mcp_tests::fleet::{Fleet, text};

use super::{agent, deploy_version, deployed, names, refused_start, remove, running};

const FILES: [&str; 3] = ["mcp.db", "mcp.db-wal", "mcp.db-shm"];

pub(super) fn lost_registry_is_made_anew_and_nothing_stops(lane: Lane) {
    let name = "gone";
    let mut fleet = deployed(lane, name);
    let newest = deploy_version(&fleet, name, "v1", "v2");
    let before = running(&fleet, name);
    // Deleted, and cut to nothing with a write-ahead log beside it.
    for is_cut in [false, true] {
        fleet.node_mut(name).kill().unwrap();
        let data = fleet.node(name).data_dir();
        for file in FILES {
            if !is_cut {
                remove(&data.join(file));
            }
        }
        if is_cut {
            fs::File::options()
                .write(true)
                .open(data.join("mcp.db"))
                .unwrap()
                .set_len(0)
                .unwrap();
        }
        fleet.node_mut(name).serve().unwrap();
        let listed = fleet.list();
        assert_eq!(text(&listed["gone/api"], "revision"), newest);
        assert_eq!(text(&listed["gone/api"], "observed_state"), "running");
        let again = fleet.mcp(&["deploy", name]).ok();
        assert!(again.stdout.contains("nothing to do"), "{again}");
        assert_eq!(running(&fleet, name), before);
    }
    deploy_version(&fleet, name, "v2", "v3");
    assert_eq!(names(&running(&fleet, name)), ["gone-api", "gone-db"]);
    assert_eq!(fleet.node(name).containers().unwrap().len(), 2);
}

/// Damages the registry of a stopped agent in one way.
fn damage(fleet: &Fleet, name: &str, how: &str) {
    let database = fleet.node(name).data_dir().join("mcp.db");
    let file = fs::File::options().write(true).open(&database).unwrap();
    let length = file.metadata().unwrap().len();
    match how {
        "half" => file.set_len(length / 2).unwrap(),
        "page" => {
            // Every page but the first two, so that the one that matters is among them.
            for page in 2..length / 4096 {
                file.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
            }
        }
        "header" => file.write_all_at(b"no database here", 0).unwrap(),
        "newer" => {
            run(Command::new("sqlite3")
                .arg(&database)
                .arg("PRAGMA user_version = 9999"))
            .unwrap();
        }
        _ => unreachable!("the test names only these"),
    }
}

#[test]
fn damaged_registry_is_refused_by_name_and_rebuilt_on_demand() {
    Lane::PodmanRoot.run(|lane| {
        let name = "hurt";
        let mut fleet = deployed(lane, name);
        let before = running(&fleet, name);
        for (how, says, mend) in [
            ("half", "is damaged", "rebuild"),
            ("page", "is damaged", "rebuild"),
            ("header", "is damaged", "rebuild"),
            ("newer", "has schema 9999", "newer agent"),
        ] {
            fleet.node_mut(name).terminate().unwrap();
            let database = fleet.node(name).data_dir().join("mcp.db");
            // What a write-ahead log has more recently would mend the file.
            run(Command::new("sqlite3")
                .arg(&database)
                .arg("PRAGMA wal_checkpoint(TRUNCATE)"))
            .unwrap();
            let good = fs::read(&database).unwrap();
            damage(&fleet, name, how);
            let found = fs::read(&database).unwrap();
            let said = refused_start(&fleet, name);
            assert!(said.contains(says) && said.contains(mend), "{how}: {said}");
            let checked = agent(&fleet, name, &["check"]).exits(1);
            assert!(checked.stdout.contains("✗ registry"), "{how}: {checked}");
            assert_eq!(fs::read(&database).unwrap(), found, "{how}: left as it is");
            assert_eq!(running(&fleet, name), before);
            if how == "newer" {
                // The newer agent's file is whole; here it stands for going back to that agent.
                fs::write(&database, good).unwrap();
            } else {
                let rebuilt = agent(&fleet, name, &["rebuild"]).ok();
                assert!(rebuilt.stdout.contains("2 of 2 containers"), "{rebuilt}");
            }
            fleet.node_mut(name).serve().unwrap();
            let again = fleet.mcp(&["deploy", name]).ok();
            assert!(again.stdout.contains("nothing to do"), "{again}");
            assert_eq!(running(&fleet, name), before);
        }
    });
}

#[test]
fn registry_that_was_set_back_takes_over_what_runs() {
    Lane::PodmanRoot.run(|lane| {
        let name = "back";
        let mut fleet = deployed(lane, name);
        fleet.node_mut(name).terminate().unwrap();
        let data = fleet.node(name).data_dir();
        // A stopped agent's registry is whole in its one file.
        let log = fs::metadata(data.join("mcp.db-wal")).map_or(0, |log| log.len());
        assert_eq!(
            log, 0,
            "the write-ahead log has nothing that the file lacks"
        );
        let old = fs::read(data.join("mcp.db")).unwrap();
        fleet.node_mut(name).serve().unwrap();
        deploy_version(&fleet, name, "v1", "v2");
        let newest = deploy_version(&fleet, name, "v2", "v3");
        let before = running(&fleet, name);
        // An old file put back; and with the log's newest pages lost or garbled.
        for how in ["old", "no log", "garbled log"] {
            fleet.node_mut(name).kill().unwrap();
            match how {
                "old" => {
                    for file in FILES {
                        remove(&data.join(file));
                    }
                    fs::write(data.join("mcp.db"), &old).unwrap();
                }
                "no log" => remove(&data.join("mcp.db-wal")),
                _ => fs::write(data.join("mcp.db-wal"), [0xa5; 100_000]).unwrap(),
            }
            fleet.node_mut(name).serve().unwrap();
            eventually("it is taken over", Duration::from_secs(20), || {
                Ok((fleet.list()["back/api"]["revision"] == newest).then_some(()))
            })
            .unwrap();
            let again = fleet.mcp(&["deploy", name]).ok();
            assert!(again.stdout.contains("nothing to do"), "{how}: {again}");
            assert_eq!(running(&fleet, name), before, "{how}");
        }
        deploy_version(&fleet, name, "v3", "v1");
        assert_eq!(names(&running(&fleet, name)), ["back-api", "back-db"]);
        assert_eq!(fleet.node(name).containers().unwrap().len(), 2);
    });
}
