//! Where binds may not lead, on a real disk.

use std::fs;
use std::os::unix::fs::symlink;

use mcp_spec::component::ComponentSpec;
use mcp_spec::definition::{DefinitionFile, compile};
use mcp_spec::name::ComponentKey;
use mcp_spec::policy::Policy;
use tempfile::TempDir;

use super::*;

/// A node's disk: `srv/` for the services, `srv/mcp` for the agent, `etc/` for what is nobody's.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for path in ["srv/web/data", "srv/mcp/repo.git", "etc/keys"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, below: &str) -> String {
        self.folder.path().join(below).display().to_string()
    }

    fn policy(&self) -> Policy {
        Policy::default_for(&self.path("srv"))
    }

    /// The components of the service `web`, each with the binds that it asks for.
    fn specs(&self, components: &[(&str, &[&str])]) -> Vec<(ComponentKey, ComponentSpec)> {
        let mut text = "name = \"web\"\nnode = \"rift\"\n".to_owned();
        for (name, binds) in components {
            let binds: Vec<String> = binds
                .iter()
                .enumerate()
                .map(|(at, bind)| {
                    let (path, mode) = bind.split_once(':').unwrap_or((bind, "rw"));
                    format!("\"{}:/mnt/{at}:{mode}\"", self.path(path))
                })
                .collect();
            text.push_str(&format!(
                "[[components]]\nname = \"{name}\"\nimage = \"localhost/bb:v1\"\nvolumes = [{}]\n",
                binds.join(", ")
            ));
        }
        let file = DefinitionFile {
            path: "services/web.toml",
            bytes: text.as_bytes(),
        };
        let set = compile(&[file], &|_| None).unwrap();
        set.services
            .values()
            .flat_map(|service| {
                service.components.iter().map(|(name, spec)| {
                    (
                        ComponentKey::new(service.name.clone(), name.clone()),
                        spec.clone(),
                    )
                })
            })
            .collect()
    }

    /// What stands in the way of each component, in order.
    fn obstacles(&self, policy: &Policy, components: &[(&str, &[&str])]) -> Vec<String> {
        let specs = self.specs(components);
        let data_dir = self.folder.path().join("srv/mcp");
        let binds = Binds::of(
            policy,
            &data_dir,
            specs.iter().map(|(key, spec)| (key, spec)),
        );
        let own = self.folder.path().join("srv/web");
        specs
            .iter()
            .flat_map(|(key, spec)| binds.obstacles(key, spec, &own))
            .map(|obstacle| {
                let root = format!("{}/", self.folder.path().display());
                obstacle.reason.replace(&root, "")
            })
            .collect()
    }
}

#[test]
fn folders_side_by_side_and_single_files_are_no_obstacle() {
    let disk = Disk::new();
    fs::create_dir(disk.path("srv/web/certs")).unwrap();
    fs::write(disk.path("srv/web/web.key"), "").unwrap();
    let components: &[(&str, &[&str])] = &[
        (
            "api",
            &["srv/web/data", "srv/web/certs:ro", "srv/web/web.key:ro"],
        ),
        ("db", &["srv/web/data"]),
    ];
    assert!(disk.obstacles(&disk.policy(), components).is_empty());
}

#[test]
fn folder_of_the_service_need_not_exist_and_others_must() {
    let disk = Disk::new();
    fs::remove_dir_all(disk.path("srv/web")).unwrap();
    assert!(
        disk.obstacles(&disk.policy(), &[("api", &["srv/web"])])
            .is_empty()
    );
    assert_eq!(
        disk.obstacles(&disk.policy(), &[("api", &["srv/web/data"])]),
        ["bind source srv/web/data does not exist"]
    );
}

#[test]
fn symbolic_links_beneath_what_is_allowed_are_refused() {
    let disk = Disk::new();
    symlink(disk.path("etc"), disk.path("srv/web/link")).unwrap();
    for source in ["srv/web/link", "srv/web/link/keys"] {
        assert_eq!(
            disk.obstacles(&disk.policy(), &[("api", &[source])]),
            [format!(
                "bind {source} goes through the symbolic link srv/web/link"
            )]
        );
    }
    // What the owner put in the place of the allowed folder itself is the owner's word.
    fs::rename(disk.path("srv/web"), disk.path("srv/large")).unwrap();
    symlink(disk.path("srv/large"), disk.path("srv/web")).unwrap();
    assert!(
        disk.obstacles(&disk.policy(), &[("api", &["srv/web/data"])])
            .is_empty()
    );
}

#[test]
fn agents_folder_under_another_name_is_refused() {
    let disk = Disk::new();
    fs::remove_dir_all(disk.path("srv/web")).unwrap();
    symlink(disk.path("srv/mcp"), disk.path("srv/web")).unwrap();
    let found = disk.obstacles(&disk.policy(), &[("api", &["srv/web/repo.git"])]);
    assert_eq!(
        found,
        ["bind srv/web/repo.git leads to the agent's data directory srv/mcp"]
    );
}

#[test]
fn source_beneath_what_a_container_writes_is_refused_from_both_sides() {
    let disk = Disk::new();
    let policy = disk.policy();
    let found = disk.obstacles(&policy, &[("api", &["srv/web"]), ("db", &["srv/web/data"])]);
    assert_eq!(
        found,
        [
            "bind srv/web can be written, and srv/web/data of web/db lies in it",
            "bind srv/web/data lies in srv/web, which web/api can write",
        ]
    );
    let reading: &[(&str, &[&str])] = &[("api", &["srv/web:ro"]), ("db", &["srv/web/data"])];
    assert!(disk.obstacles(&policy, reading).is_empty());
    let own: &[(&str, &[&str])] = &[("api", &["srv/web", "srv/web/data:ro"])];
    assert_eq!(disk.obstacles(&policy, own).len(), 2);
    let trusting = Policy {
        nested_binds: vec![disk.path("srv/{service}")],
        ..policy
    };
    assert!(disk.obstacles(&trusting, own).is_empty());
    // A name that only begins alike lies beside.
    fs::create_dir(disk.path("srv/web/data-2")).unwrap();
    let beside: &[(&str, &[&str])] = &[("api", &["srv/web/data"]), ("db", &["srv/web/data-2"])];
    assert!(disk.obstacles(&disk.policy(), beside).is_empty());
}
