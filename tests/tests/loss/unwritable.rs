//! Folders that can be read and not written.

use std::path::{Path, PathBuf};
use std::process::Command;

use mcp_tests::engine::{Lane, run};

use super::{agent, deploy_version, deployed, names, refused_start, running};

/// A folder that is mounted read-only over itself. What was open before stays open.
struct ReadOnly {
    at: PathBuf,
}

impl ReadOnly {
    fn over(folder: &Path) -> ReadOnly {
        run(Command::new("mount").arg("--bind").arg(folder).arg(folder)).unwrap();
        let this = ReadOnly {
            at: folder.to_owned(),
        };
        run(Command::new("mount")
            .args(["-o", "remount,ro,bind"])
            .arg(folder))
        .unwrap();
        this
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.at).status());
    }
}

const SAID: &str = "Read-only file system";

#[test]
fn data_directory_that_cannot_be_written_is_named_and_nothing_stops() {
    Lane::PodmanRoot.run(|lane| {
        let name = "rodata";
        let mut fleet = deployed(lane, name);
        let before = running(&fleet, name);
        let data = fleet.node(name).data_dir();

        // While the agent runs.
        let mount = ReadOnly::over(&data);
        fleet.edit("services/rodata.toml", "busybox:v1", "busybox:v2");
        let refused = fleet.mcp(&["sync"]).exits(1);
        assert!(refused.stderr.contains(SAID), "{refused}");
        assert!(refused.stderr.contains("mcp-agent check"), "{refused}");
        let checked = agent(&fleet, name, &["check"]).exits(1);
        assert!(checked.to_string().contains(SAID), "{checked}");
        assert_eq!(running(&fleet, name), before);

        // At its start.
        fleet.node_mut(name).terminate().unwrap();
        let said = refused_start(&fleet, name);
        assert!(said.contains(SAID), "{said}");
        assert!(said.contains(data.to_str().unwrap()), "{said}");
        assert!(said.contains("hint:"), "{said}");
        assert_eq!(running(&fleet, name), before);
        fleet.mcp(&["list"]).exits(8);

        drop(mount);
        fleet.node_mut(name).serve().unwrap();
        assert_eq!(running(&fleet, name), before);
        fleet.mcp(&["sync"]).ok();
        fleet.mcp(&["deploy", name]).ok();
        assert_eq!(names(&running(&fleet, name)), ["rodata-api", "rodata-db"]);
        agent(&fleet, name, &["check"]).ok();
    });
}

#[test]
fn services_directory_that_cannot_be_written_stops_nothing() {
    Lane::PodmanRoot.run(|lane| {
        let name = "rosrv";
        let mut fleet = deployed(lane, name);
        let before = running(&fleet, name);
        let services = fleet.node(name).services_dir();
        let mount = ReadOnly::over(&services);
        let bound = format!(
            "busybox:v1\"\nvolumes = [\"{}/rosrv:/data\"]\n",
            services.display()
        );
        fleet.edit("services/rosrv.toml", "busybox:v1\"\n", &bound);
        let refused = fleet.mcp(&["deploy", name]).exits(1);
        assert!(refused.stderr.contains(SAID), "{refused}");
        assert!(refused.stderr.contains("/rosrv"), "{refused}");
        assert_eq!(running(&fleet, name), before);
        let checked = agent(&fleet, name, &["check"]);
        assert!(checked.stdout.contains("services"), "{checked}");

        // Nothing of it is needed by what asks for nothing there.
        fleet.edit("services/rosrv.toml", &bound, "busybox:v1\"\n");
        deploy_version(&fleet, name, "v1", "v2");
        fleet.node_mut(name).terminate().unwrap();
        let before = running(&fleet, name);
        fleet.node_mut(name).serve().unwrap();
        assert_eq!(running(&fleet, name), before);
        drop(mount);
        fleet.edit("services/rosrv.toml", "busybox:v2\"\n", &bound);
        fleet.mcp(&["deploy", name]).ok();
        assert_eq!(names(&running(&fleet, name)), ["rosrv-api", "rosrv-db"]);
    });
}
