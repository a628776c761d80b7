//! `mcp-agent backup` and `restore`.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use mcp_tests::engine::Lane;
use mcp_tests::fleet::text;

use super::{agent, deploy_version, deployed, names, refused_start, running};

pub(super) fn old_backup_neither_stops_nor_doubles_what_runs(lane: Lane) {
    let name = "aged";
    let mut fleet = deployed(lane, name);
    let first = fleet.git(&["rev-parse", "HEAD"]);
    let archive = fleet.node(name).dir().join("backup.tar");
    let archive = archive.to_str().unwrap();
    agent(&fleet, name, &["backup", archive]).ok();
    let mode = fs::metadata(archive).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds private keys");
    agent(&fleet, name, &["backup", archive]).exits(1);
    deploy_version(&fleet, name, "v1", "v2");
    let newest = deploy_version(&fleet, name, "v2", "v3");
    let before = running(&fleet, name);
    assert_eq!(names(&before), ["aged-api", "aged-db"]);

    agent(&fleet, name, &["restore", archive, "--force"])
        .exits(1)
        .says("another agent");
    fleet.node_mut(name).kill().unwrap();
    agent(&fleet, name, &["restore", archive])
        .exits(1)
        .says("not empty");
    let restored = agent(&fleet, name, &["restore", archive, "--force"]).ok();
    assert!(restored.stdout.contains(&newest[..7]), "{restored}");
    agent(&fleet, name, &["check"]).exits(1);
    agent(&fleet, name, &["trust", "show"]).exits(1);
    fleet.node_mut(name).serve().unwrap();

    // What the registry does not know is told, and left alone.
    assert_eq!(text(&fleet.list()["aged/api"], "revision"), first);
    let status = fleet.mcp(&["status"]);
    assert!(status.stdout.contains("does not know"), "{status}");
    fleet
        .mcp(&["deploy", name, "--no-sync"])
        .exits(1)
        .says("does not know");
    drop(fleet.mcp(&["restart", name]));
    assert_eq!(running(&fleet, name), before);

    // The push brings what it lacks: it is known again, and still the same processes.
    fleet.mcp(&["sync"]).ok();
    assert_eq!(text(&fleet.list()["aged/api"], "revision"), newest);
    let again = fleet.mcp(&["deploy", name]).ok();
    assert!(again.stdout.contains("nothing to do"), "{again}");
    assert_eq!(running(&fleet, name), before);
    agent(&fleet, name, &["check"]).ok();
    deploy_version(&fleet, name, "v3", "v1");
    let after = running(&fleet, name);
    assert_eq!(names(&after), ["aged-api", "aged-db"], "one generation");
    assert!(after.iter().all(|(name, new)| before[name].0 != new.0));
    assert_eq!(
        fleet.node(name).containers().unwrap().len(),
        2,
        "and nothing is left"
    );
}

#[test]
fn damaged_backup_is_refused_and_nothing_changes() {
    Lane::PodmanRoot.run(|lane| {
        let name = "bent";
        let mut fleet = deployed(lane, name);
        let dir = fleet.node(name).dir().to_owned();
        let good = dir.join("good.tar");
        agent(&fleet, name, &["backup", good.to_str().unwrap()]).ok();
        let left: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|entry| entry.starts_with("good.tar."))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        fleet.node_mut(name).terminate().unwrap();
        let database = fleet.node(name).data_dir().join("mcp.db");
        let untouched = fs::read(&database).unwrap();
        let length = fs::metadata(&good).unwrap().len();
        for (bad, says) in [
            (dir.join("short.tar"), "was cut off"),
            (dir.join("flipped.tar"), "is damaged"),
            (dir.join("text.tar"), "is refused"),
        ] {
            fs::copy(&good, &bad).unwrap();
            let mut file = fs::File::options()
                .read(true)
                .write(true)
                .open(&bad)
                .unwrap();
            match says {
                "was cut off" => file.set_len(length / 2 / 512 * 512).unwrap(),
                "is damaged" => {
                    let mut byte = [0];
                    file.seek(SeekFrom::Start(4096)).unwrap();
                    file.read_exact(&mut byte).unwrap();
                    file.seek(SeekFrom::Start(4096)).unwrap();
                    file.write_all(&[byte[0] ^ 1]).unwrap();
                }
                _ => fs::write(&bad, "no archive at all\n").unwrap(),
            }
            agent(&fleet, name, &["restore", bad.to_str().unwrap(), "--force"])
                .exits(1)
                .says(says);
            assert_eq!(fs::read(&database).unwrap(), untouched);
        }
        // A restore that was cut off is made again before anything runs.
        let marker = fleet.node(name).data_dir().join(".restore-under-way");
        fs::write(&marker, "bent").unwrap();
        assert!(refused_start(&fleet, name).contains("a restore was cut off"));
        agent(
            &fleet,
            name,
            &["restore", good.to_str().unwrap(), "--force"],
        )
        .ok();
        fleet.node_mut(name).serve().unwrap();
        assert_eq!(names(&running(&fleet, name)), ["bent-api", "bent-db"]);
        fleet.mcp(&["deploy", name]).ok();
    });
}

#[test]
fn node_whose_data_directory_is_gone_is_the_same_again_after_a_restore() {
    Lane::PodmanRoot.run(|lane| {
        let name = "reborn";
        let mut fleet = deployed(lane, name);
        let dir = fleet.node(name).dir().to_owned();
        let archive = dir.join("backup.tar");
        agent(&fleet, name, &["backup", archive.to_str().unwrap()]).ok();
        let before = running(&fleet, name);
        fleet.node_mut(name).kill().unwrap();
        fs::remove_dir_all(fleet.node(name).data_dir()).unwrap();
        fleet
            .node(name)
            .agent(&["restore", archive.to_str().unwrap()])
            .unwrap()
            .ok();
        fleet.node_mut(name).serve().unwrap();
        let again = fleet.mcp(&["deploy", name]).ok();
        assert!(again.stdout.contains("nothing to do"), "{again}");
        assert_eq!(running(&fleet, name), before);
        deploy_version(&fleet, name, "v1", "v2");
    });
}
