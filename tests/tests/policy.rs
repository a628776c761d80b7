//! What a node's owner allows, whatever a signer signs: told at the sync, refused at the deploy with the key that would
//! allow it, and done once the owner has allowed it. What ordinary images do needs no such key.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Lane};
use mcp_tests::fleet::{Fleet, text};

mcp_tests::lanes!(
    refusals_name_the_key_that_allows_them,
    binds_lead_where_the_owner_allowed,
    what_ordinary_images_do_needs_no_key,
);

fn refusals_name_the_key_that_allows_them(lane: Lane) {
    let name = "strict";
    let mut fleet = Fleet::with_node(lane, name).unwrap();
    let outside = fleet.node(name).dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fleet.node(name).engine().give(&outside).unwrap();
    let outside = outside.display();
    let asks = [
        (
            "api",
            format!("volumes = [\"{outside}:/data\"]"),
            "host_paths",
        ),
        (
            "bridge",
            "network = \"bridge\"".to_owned(),
            "bridge_network",
        ),
        (
            "cap",
            "cap_add = [\"NET_ADMIN\"]".to_owned(),
            "capabilities",
        ),
        (
            "device",
            "devices = [\"/dev/null:/dev/nothing\"]".to_owned(),
            "devices",
        ),
        ("host", "network = \"host\"".to_owned(), "host_network"),
        (
            "log",
            "log = { driver = \"passthrough\" }".to_owned(),
            "log_drivers",
        ),
        (
            "loose",
            "security_opt = [\"no-new-privileges=false\"]".to_owned(),
            "security_opt",
        ),
        (
            "port",
            "ports = [\"127.0.0.1:1023:80\"]".to_owned(),
            "ports",
        ),
    ];
    fleet
        .set_policy(
            name,
            "[policy]\nbridge_network = false\nregistries = [\"registry.example.net:5000\"]",
        )
        .unwrap();
    let mut components: Vec<String> = asks
        .iter()
        .map(|(component_name, keys, _)| component(component_name, "v1", &format!("{keys}\n")))
        .collect();
    components.push(
        "[[components]]\nname = \"image\"\nimage = \"docker.io/library/nothing:v1\"\n".to_owned(),
    );
    fleet.write("services/strict.toml", &service(name, name, &components));

    // A sync takes it in and tells; nothing is deployed, and the exit code is that of a refusal.
    let synced = fleet.mcp(&["sync"]).ok();
    let planned = fleet.mcp(&["plan", name]).exits(7);
    let refused = fleet.mcp(&["deploy", name]).exits(7);
    let document = fleet.mcp(&["-o", "json", "plan", name]).exits(7).json();
    for key in asks.iter().map(|(_, _, key)| *key).chain(["registries"]) {
        let named = format!("policy.{key}");
        assert!(synced.stdout.contains(&named), "{named}: {synced}");
        assert!(planned.stdout.contains(&named), "{named}: {planned}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(&named), "{named}: {refused}");
        let told = document["nodes"][0]["blocked"]
            .as_array()
            .unwrap()
            .iter()
            .any(|blocked| {
                text(blocked, "reason").contains(&named)
                    && text(blocked, "hint").contains(key)
                    && blocked["policy"] == true
            });
        assert!(told, "{named}: {document}");
    }
    assert!(fleet.node(name).containers().unwrap().is_empty());

    // What the hints say, written down: only what no image or driver of this machine can do is left out.
    let rest: Vec<String> = components
        .iter()
        .filter(|component| {
            !["\"image\"", "\"log\"", "\"port\""]
                .iter()
                .any(|left| component.contains(left))
        })
        .cloned()
        .collect();
    fleet.write("services/strict.toml", &service(name, name, &rest));
    fleet
        .set_policy(
            name,
            &format!(
                "[policy]\nhost_paths = [\"{outside}\"]\ncapabilities = [\"NET_ADMIN\"]\ndevices = [\"/dev/null\"]\n\
                 host_network = true\nsecurity_opt = [\"no-new-privileges=false\"]"
            ),
        )
        .unwrap();
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    assert_eq!(fleet.node(name).running().unwrap().len(), rest.len());
}

fn binds_lead_where_the_owner_allowed(lane: Lane) {
    let name = "binds";
    let mut fleet = Fleet::with_node(lane, name).unwrap();
    let engine = fleet.node(name).engine();
    let folder = fleet.node(name).services_dir().join(name);
    let data_dir = fleet.node(name).data_dir();
    fs::create_dir_all(folder.join("data/inner")).unwrap();
    std::os::unix::fs::symlink("/etc", folder.join("link")).unwrap();
    std::os::unix::fs::symlink(&data_dir, folder.join("agent")).unwrap();
    engine.give(&folder).unwrap();
    let bind = |source: &str, mode: &str| {
        format!(
            "volumes = [\"{}:/data:{mode}\"]\n",
            folder.join(source).display()
        )
    };
    let deploy = |fleet: &Fleet, components: &[(&str, String)]| {
        let components: Vec<String> = components
            .iter()
            .map(|(component_name, keys)| component(component_name, "v1", keys))
            .collect();
        fleet.write("services/binds.toml", &service(name, name, &components));
        fleet.mcp(&["sync"]).ok();
        fleet.mcp(&["deploy", name])
    };
    for (source, reason) in [
        ("link", "goes through the symbolic link"),
        ("link/ssl", "goes through the symbolic link"),
        ("agent/repo.git", "goes through the symbolic link"),
    ] {
        let refused = deploy(&fleet, &[("api", bind(source, "ro"))]).exits(7);
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(reason), "{source}: {refused}");
    }
    let nested = [
        ("api", bind("data", "rw")),
        ("db", bind("data/inner", "rw")),
    ];
    let refused = deploy(&fleet, &nested).exits(7);
    assert!(
        refused.stdout.contains("which binds/api can write"),
        "{refused}"
    );
    assert!(fleet.node(name).containers().unwrap().is_empty());

    // One that runs already counts as much as one of the same plan.
    deploy(&fleet, &nested[..1]).ok();
    let before = fleet.node(name).running().unwrap();
    let refused = deploy(&fleet, &nested).exits(7);
    assert!(
        refused.stdout.contains("which binds/api can write"),
        "{refused}"
    );
    assert_eq!(fleet.node(name).running().unwrap(), before);

    fleet
        .set_policy(
            name,
            &format!(
                "[policy]\nnested_binds = [\"{}/{{service}}/data\"]",
                fleet.node(name).services_dir().display()
            ),
        )
        .unwrap();
    fleet.mcp(&["deploy", name]).ok();
    assert_eq!(fleet.node(name).running().unwrap().len(), 2);
}

fn what_ordinary_images_do_needs_no_key(lane: Lane) {
    let name = "plain";
    let fleet = Fleet::with_node(lane, name).unwrap();
    let engine = fleet.node(name).engine();
    // As images of databases and web servers begin: root makes its folder, gives it away, takes a low port
    // and goes on as somebody else.
    let begin = "mkdir -p /data/db /run/app && chown app:app /data/db /run/app && chmod 700 /data/db && \
                 ln -sf /dev/stdout /tmp/access.log && httpd -p 80 -h /www && \
                 exec su app -s /bin/sh -c 'touch /data/db/lock && echo $$ > /run/app/pid && exec /bin/pause'";
    let keys = format!(
        "entrypoint = [\"/bin/sh\", \"-c\"]\ncmd = [\"{begin}\"]\nvolumes = [\"db:/data\"]\nports = [\"127.0.0.1:{}:80\"]\n\
         [components.health]\nhttp = \"http://:80/version\"\ninterval = \"1s\"\n",
        mcp_tests::registry::free_port().unwrap()
    );
    let plain = format!("[[components]]\nname = \"db\"\nimage = \"{BUSYBOX}:v1\"\n{keys}");
    fleet.write("services/plain.toml", &service(name, name, &[plain]));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    let owner = engine
        .cli(&[
            "exec",
            "plain-db",
            "stat",
            "-c",
            "%U %a",
            "/data/db",
            "/data/db/lock",
        ])
        .unwrap();
    assert!(owner.starts_with("app 700\napp "), "{owner}");
    let status = engine
        .cli(&["exec", "plain-db", "cat", "/proc/self/status"])
        .unwrap();
    assert!(
        status
            .lines()
            .any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"])),
        "{status}"
    );
}
