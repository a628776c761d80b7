//! A disk that is full, and one that loses what it was told to keep.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mcp_tests::engine::{Lane, eventually, run};
use mcp_tests::fleet::Fleet;

use super::{agent, deploy_version, deployed, names, running};

/// A small file system in place of a folder, with what the folder held.
struct Small {
    at: PathBuf,
}

impl Small {
    /// `options` as for `mount -o`.
    fn over(folder: &Path, options: &str) -> Small {
        let aside = folder.with_extension("aside");
        fs::rename(folder, &aside).unwrap();
        fs::create_dir(folder).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder))
        .unwrap();
        run(Command::new("cp")
            .arg("-a")
            .arg(format!("{}/.", aside.display()))
            .arg(folder))
        .unwrap();
        Small {
            at: folder.to_owned(),
        }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let filler = self.at.join("filler");
        let mut size = 1 << 20;
        while size > 0 {
            use std::io::Write as _;
            let mut file = fs::File::options()
                .create(true)
                .append(true)
                .open(&filler)
                .unwrap();
            if file.write_all(&vec![0; size]).is_err() {
                size /= 4;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.at.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // An agent may still have files open there.
        drop(Command::new("umount").arg("--lazy").arg(&self.at).status());
    }
}

#[test]
fn full_data_directory_loses_nothing_and_is_told() {
    Lane::PodmanRoot.run(|lane| {
        let name = "full";
        let mut fleet = deployed(lane, name);
        fleet.node_mut(name).terminate().unwrap();
        let small = Small::over(&fleet.node(name).data_dir(), "size=8m,mode=700");
        fleet.node_mut(name).serve().unwrap();
        let pid = fleet.node(name).pid();
        deploy_version(&fleet, name, "v1", "v2");
        let before = running(&fleet, name);
        small.fill();
        fleet.edit("services/full.toml", "busybox:v2", "busybox:v3");
        // Whichever is written first: that the request was signed, or the pack.
        fleet.mcp(&["sync"]).exits(1).says("o space left");
        for args in [
            &["deploy", name, "--no-sync", "--force"][..],
            &["stop", name],
            &["hold", name],
        ] {
            let refused = fleet.mcp(args);
            assert_ne!(refused.code, Some(0), "{refused}");
            assert!(refused.stderr.contains("o space left"), "{refused}");
        }
        assert_eq!(running(&fleet, name), before);
        let status = fleet.mcp(&["status"]);
        assert!(status.stdout.contains("disk full at"), "{status}");
        let archive = fleet.node(name).data_dir().join("backup.tar");
        agent(&fleet, name, &["backup", archive.to_str().unwrap()]).exits(1);
        assert!(!archive.exists());
        // What dies is started again all the same.
        fleet
            .node(name)
            .engine()
            .cli(&["kill", "full-api"])
            .unwrap();
        eventually("it runs again", Duration::from_secs(30), || {
            Ok((names(&running(&fleet, name)) == ["full-api", "full-db"]).then_some(()))
        })
        .unwrap();
        small.free();
        fleet.mcp(&["sync"]).ok();
        fleet.mcp(&["deploy", name]).ok();
        assert_eq!(
            fleet.node(name).pid(),
            pid,
            "the agent was never started again"
        );
        agent(&fleet, name, &["check"]).ok();
        assert_eq!(names(&running(&fleet, name)), ["full-api", "full-db"]);
        fleet.node_mut(name).terminate().unwrap();
        drop(small);
    });
}

#[test]
fn full_services_directory_blocks_before_anything_stops() {
    Lane::PodmanRoot.run(|lane| {
        let name = "srv";
        let fleet = deployed(lane, name);
        let services = fleet.node(name).services_dir();
        // Inodes: the folder itself takes the only one.
        let _small = Small::over(&services, "size=64k,nr_inodes=1");
        let before = running(&fleet, name);
        fleet.edit(
            "services/srv.toml",
            "busybox:v1\"\n",
            &format!(
                "busybox:v2\"\nvolumes = [\"{}/srv:/data\"]\n",
                services.display()
            ),
        );
        let refused = fleet.mcp(&["deploy", name]).exits(1);
        assert!(refused.stderr.contains("No space left"), "{refused}");
        assert_eq!(running(&fleet, name), before);
    });
}

#[test]
fn push_onto_a_full_disk_leaves_the_old_file() {
    Lane::PodmanRoot.run(|lane| {
        let name = "fullpush";
        let mut fleet = deployed(lane, name);
        fleet.node_mut(name).terminate().unwrap();
        let config = fleet.node(name).config();
        let text = fs::read_to_string(&config).unwrap();
        let reserve = text.replace("\"256MiB\"", "\"1MiB\"");
        assert_ne!(text, reserve);
        fs::write(&config, reserve).unwrap();
        let services = fleet.node(name).services_dir();
        let small = Small::over(&services, "size=16m,nr_inodes=32,mode=755");
        fleet.node_mut(name).serve().unwrap();
        let local = |file: &str, bytes: &[u8]| {
            let path = fleet.home().join(file);
            fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (old, new) = (vec![1; 4 << 20], vec![2; 12 << 20]);
        let target = format!("{name}:etc/data");
        fleet.mcp(&["push", &local("old", &old), &target]).ok();
        // Told by what is free, before any byte is on its way.
        fleet
            .mcp(&["push", &local("new", &new), &target])
            .exits(1)
            .says("bytes left")
            .says("make room on the disk of the node");
        // No room that anybody can count: every name is taken.
        let taken: Vec<PathBuf> = (0..64)
            .map(|number| services.join(format!("taken{number}")))
            .take_while(|path| fs::File::create(path).is_ok())
            .collect();
        assert!(taken.len() < 64);
        let other = local("other", b"other");
        for place in [&target, &format!("{name}:etc/new")] {
            fleet
                .mcp(&["push", &other, place])
                .exits(1)
                .says("o space left");
        }
        let held = || fs::read(services.join(name).join("etc/data")).unwrap();
        assert!(held() == old);
        for path in taken {
            fs::remove_file(path).unwrap();
        }
        let listed = fleet.mcp_json(&["files", "-r", name]);
        assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
        fleet.mcp(&["push", &other, &target]).ok();
        assert!(held() == b"other");
        fleet.mcp(&["push", "--undo", &target]).ok();
        assert!(held() == old);
        fleet.node_mut(name).terminate().unwrap();
        drop(small);
    });
}

/// A library that makes flushes fail for a process that is started with it.
fn faulty_flushes(fleet: &Fleet, node: &str) -> (PathBuf, PathBuf) {
    let dir = fleet.node(node).dir();
    let library = dir.join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/flush.c");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl"))
    .unwrap();
    (library, dir.join("fault"))
}

#[test]
fn flush_that_fails_ends_the_agent_and_the_next_start_goes_on() {
    Lane::PodmanRoot.run(|lane| {
        let name = "flush";
        let mut fleet = deployed(lane, name);
        let (library, fault) = faulty_flushes(&fleet, name);
        let variables = [
            ("LD_PRELOAD", library.display().to_string()),
            ("MCP_FAULT_FILE", fault.display().to_string()),
        ];
        let variables = variables
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        fleet.node_mut(name).terminate().unwrap();
        fleet.node_mut(name).serve_with(&variables).unwrap();
        let mut version = 1;
        for place in [
            "mcp.db",
            "high-water",
            "refs/mcp/head",
            "accepted-commits",
            "objects/pack",
        ] {
            let next = version % 3 + 1;
            fleet.edit(
                "services/flush.toml",
                &format!("busybox:v{version}"),
                &format!("busybox:v{next}"),
            );
            version = next;
            let before = running(&fleet, name);
            fs::write(&fault, place).unwrap();
            let refused = fleet.mcp(&["sync"]);
            // What the repository took counts, also where the registry could not write it down.
            assert!(
                refused.code != Some(0) || place == "mcp.db",
                "{place}: {refused}"
            );
            fleet.node_mut(name).ends(Duration::from_secs(20)).unwrap();
            assert_eq!(running(&fleet, name), before, "{place}");
            fs::remove_file(&fault).unwrap();
            fleet.node_mut(name).serve_with(&variables).unwrap();
            fleet.mcp(&["deploy", name]).ok();
            agent(&fleet, name, &["check"]).ok();
            assert_eq!(names(&running(&fleet, name)), ["flush-api", "flush-db"]);
        }
    });
}
