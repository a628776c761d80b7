//! Files below a service's folder: they arrive whole, belong to the container's user, come back, and lead nowhere else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::Lane;
use mcp_tests::fleet::{Fleet, Output, text};
use mcp_tests::lanes;
use serde_json::Value;

lanes!(
    files_belong_to_the_container_s_user_and_come_back,
    folders_go_and_come_whole,
    files_take_an_operator_and_its_key,
    what_a_container_puts_in_the_way_leads_nowhere,
    a_push_that_is_killed_leaves_the_old_or_the_new,
    bounds_are_the_owner_s,
);

/// A node with a service of its own name and one beside it, whose containers run as 1000:1000 and see their folders
/// at `/data`.
fn fleet(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    let srv = fleet.node(name).services_dir();
    for own in [name.to_owned(), format!("{name}-other")] {
        let keys = format!(
            "user = \"1000:1000\"\nvolumes = [\"{}/{own}:/data\"]",
            srv.display()
        );
        fleet.write(
            &format!("services/{own}.toml"),
            &service(&own, name, &[component("web", "v1", &keys)]),
        );
    }
    fleet.mcp(&["sync", "-m", "first"]).ok();
    fleet.mcp(&["deploy", "--all", "--yes"]).ok();
    fleet
}

/// A file of the workstation.
fn local(fleet: &Fleet, name: &str, bytes: &[u8], mode: u32) -> String {
    let path: PathBuf = fleet.home().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a command says in a service's container, as its own user.
#[track_caller]
fn inside(lane: Lane, service: &str, command: &str) -> String {
    let container = format!("{service}-web");
    let said = lane
        .shared()
        .cli(&["exec", &container, "sh", "-c", command]);
    said.unwrap().trim().to_owned()
}

fn first(output: &Value) -> Value {
    output["files"][0].clone()
}

fn files_belong_to_the_container_s_user_and_come_back(lane: Lane) {
    let fleet = fleet(lane, "belong");
    // Readable for its owner alone: the container reads it because it owns it.
    let conf = local(&fleet, "app.conf", b"one\n", 0o600);
    let pushed = first(&fleet.mcp_json(&["push", &conf, "belong:etc/app.conf"]));
    assert_eq!(
        (&pushed["uid"], &pushed["gid"]),
        (&1000.into(), &1000.into()),
        "{pushed}"
    );
    assert_eq!(text(&pushed, "mode"), "0600");
    assert_eq!(inside(lane, "belong", "cat /data/etc/app.conf"), "one");
    assert_eq!(
        inside(
            lane,
            "belong",
            "stat -c %u:%g:%a /data/etc /data/etc/app.conf"
        ),
        "1000:1000:755\n1000:1000:600"
    );
    // The container owns its folder, and what it writes for itself alone is pulled all the same.
    inside(lane, "belong", "umask 077; echo mine > /data/etc/own");
    let out = fleet.home().join("own");
    fleet
        .mcp(&["pull", "belong:etc/own", out.to_str().unwrap()])
        .ok();
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine\n");
    // A new version takes the place of the old one, and goes again.
    let conf = local(&fleet, "app.conf", b"two\n", 0o644);
    let pushed = first(&fleet.mcp_json(&["push", &conf, "belong:etc/app.conf"]));
    assert_eq!(pushed["replaced"], true);
    assert_eq!(
        text(&pushed, "mode"),
        "0600",
        "what is there keeps its mode"
    );
    assert_eq!(inside(lane, "belong", "cat /data/etc/app.conf"), "two");
    let undone = fleet.mcp_json(&["push", "--undo", "belong:etc/app.conf"]);
    assert_eq!(undone["removed"], false, "{undone}");
    assert_eq!(inside(lane, "belong", "cat /data/etc/app.conf"), "one");
    fleet.mcp(&["push", "--undo", "belong:etc/app.conf"]).ok();
    assert_eq!(inside(lane, "belong", "cat /data/etc/app.conf"), "two");
    let shown = fleet.mcp(&["pull", "belong:etc/app.conf", "-"]).ok();
    assert_eq!(shown.stdout, "two\n");
    let listed = fleet.mcp_json(&["files", "belong:etc"]);
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|it| text(it, "path"))
        .collect();
    assert_eq!(
        names,
        ["etc/app.conf", "etc/own"],
        "and nothing of the agent's own"
    );
    let events = fleet
        .mcp(&["-o", "jsonl", "events", "belong"])
        .ok()
        .json_lines();
    let reasons: Vec<&str> = events
        .iter()
        .filter(|it| it["kind"] == "file")
        .map(|it| text(it, "reason"))
        .collect();
    assert_eq!(reasons, ["pushed", "pushed", "push-undone", "push-undone"]);
    let audit = fleet.mcp_json(&["events", "--audit"]).to_string();
    for part in ["belong:etc/app.conf sha256:", "belong:etc/own sha256:"] {
        assert!(audit.contains(part), "{part} in {audit}");
    }
}

fn folders_go_and_come_whole(lane: Lane) {
    let fleet = fleet(lane, "folders");
    local(&fleet, "site/index.html", b"<html>", 0o644);
    local(&fleet, "site/img/logo.svg", b"<svg>", 0o644);
    let script = local(&fleet, "site/bin/run", b"#!/bin/sh\necho ran\n", 0o755);
    let site = fleet.home().join("site");
    let site = site.to_str().unwrap();
    let pushed = fleet.mcp_json(&["push", "-r", site, "folders"]);
    assert_eq!(pushed["files"].as_array().unwrap().len(), 3, "{pushed}");
    assert_eq!(inside(lane, "folders", "/data/site/bin/run"), "ran");
    let back = fleet.home().join("back");
    fleet
        .mcp(&["pull", "-r", "folders:site", back.to_str().unwrap()])
        .ok();
    assert_eq!(
        fs::read_to_string(back.join("img/logo.svg")).unwrap(),
        "<svg>"
    );
    let mode = fs::metadata(back.join("bin/run"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o755);
    // A folder with anything but files and folders is not begun.
    std::os::unix::fs::symlink("/etc/passwd", fleet.home().join("site/passwd")).unwrap();
    fs::remove_file(script).unwrap();
    fleet
        .mcp(&["push", "-r", site, "folders:again"])
        .exits(64)
        .says("neither file nor folder");
    fleet
        .mcp(&["files", "folders:again"])
        .exits(1)
        .says("is not there");
}

fn files_take_an_operator_and_its_key(lane: Lane) {
    let fleet = fleet(lane, "roles");
    let file = local(&fleet, "file", b"x", 0o644);
    let push = |to: &str| fleet.mcp(&["push", &file, to]);
    push("roles:kept").ok();
    let refused = |output: Output, says: &str| {
        output.exits(7).says(says);
    };
    // Paths that are none, and services that are none.
    for bad in [
        "roles:../roles-other/x",
        "roles:/etc/passwd",
        "roles:a/../b",
        "roles:a//b",
        "roles:a\nb",
    ] {
        push(bad).exits(64);
    }
    push("mcp:x").exits(64);
    push("nowhere:x").exits(1).says("nowhere");
    fleet.log_in("roles", "alice", "viewer").unwrap();
    refused(push("roles:x"), "takes operator");
    refused(fleet.mcp(&["pull", "roles:kept", "-"]), "takes operator");
    refused(fleet.mcp(&["files", "roles"]), "takes operator");
    refused(
        fleet.mcp(&["push", "--undo", "roles:kept"]),
        "takes operator",
    );
    let node = fleet.node("roles");
    let config = node.config();
    let narrowed = node
        .agent(&[
            "token",
            "issue",
            "--config",
            config.to_str().unwrap(),
            "--subject",
            "alice",
            "--role",
            "operator",
            "--service",
            "roles-other",
        ])
        .unwrap()
        .ok()
        .stdout;
    fleet
        .mcp_with(
            &["login", "--node", "roles", "--token-stdin"],
            Some(&narrowed),
        )
        .unwrap()
        .ok();
    refused(push("roles:x"), "does not cover service roles");
    refused(
        fleet.mcp(&["pull", "roles:kept", "-"]),
        "does not cover service roles",
    );
    push("roles-other:x").ok();
    // Without a key a token reads no files either.
    fleet.log_in("roles", "alice", "admin").unwrap();
    fleet.git(&["config", "--unset", "user.signingkey"]);
    for command in [
        &["push", file.as_str(), "roles:x"][..],
        &["pull", "roles:kept", "-"],
        &["files", "roles"],
        &["push", "--undo", "roles:kept"],
    ] {
        refused(fleet.mcp(command), "request that is signed");
    }
}

fn what_a_container_puts_in_the_way_leads_nowhere(lane: Lane) {
    let fleet = fleet(lane, "hostile");
    let file = local(&fleet, "file", b"evil", 0o644);
    let secret = local(&fleet, "secret", b"the other's", 0o644);
    fleet
        .mcp(&["push", &secret, "hostile-other:in/secret"])
        .ok();
    // A folder that the container owns.
    fleet.mcp(&["push", &file, "hostile:own/first"]).ok();
    let srv = fleet.node("hostile").services_dir();
    let other = srv.join("hostile-other/in");
    inside(
        lane,
        "hostile",
        &format!(
            "cd /data/own && ln -s {0} out && ln -s ../../hostile-other/in up && ln -s {0}/secret file && \
             ln -s /proc/self/root root && mkfifo fifo && echo x > one && ln one two",
            other.display()
        ),
    );
    for (path, says) in [
        ("own/out/secret", "symlink"),
        ("own/up/secret", "symlink"),
        ("own/file", "symlink"),
        ("own/root/etc/passwd", "symlink"),
        ("own/fifo", "fifo"),
        ("own/one", "2 names"),
    ] {
        let place = format!("hostile:{path}");
        fleet.mcp(&["push", &file, &place]).exits(1).says(says);
        fleet.mcp(&["pull", &place, "-"]).exits(1).says(says);
    }
    assert_eq!(
        inside(lane, "hostile-other", "ls /data/in; cat /data/in/secret"),
        "secret\nthe other's"
    );
    let listed = fleet.mcp_json(&["files", "-r", "hostile"]);
    let kinds: Vec<(&str, &str)> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (text(it, "path"), text(it, "kind")))
        .collect();
    assert!(
        kinds.contains(&("own/fifo", "fifo")) && kinds.contains(&("own/out", "symlink")),
        "{kinds:?}"
    );
}

fn a_push_that_is_killed_leaves_the_old_or_the_new(lane: Lane) {
    let mut fleet = fleet(lane, "killed");
    let old = vec![b'o'; 1 << 20];
    let new = fleet.home().join("new");
    let sparse = fs::File::create(&new).unwrap();
    sparse.write_all_at(b"n", (48 << 20) - 1).unwrap();
    let old_file = local(&fleet, "old", &old, 0o644);
    for pause in [0, 40, 120, 300, 800] {
        fleet.mcp(&["push", &old_file, "killed:data/file"]).ok();
        let mut pushing = fleet
            .mcp_spawn(&["push", new.to_str().unwrap(), "killed:data/file"])
            .unwrap();
        // Wherever that is in the transfer: each moment has the same two ends.
        std::thread::sleep(Duration::from_millis(pause));
        fleet.node_mut("killed").kill().unwrap();
        pushing.wait().unwrap();
        fleet.node_mut("killed").serve().unwrap();
        let out = fleet.home().join("out");
        fleet
            .mcp(&["pull", "killed:data/file", out.to_str().unwrap()])
            .ok();
        let found = fs::metadata(&out).unwrap().len();
        assert!(
            found == 1 << 20 || found == 48 << 20,
            "{found} bytes after {pause} ms"
        );
        assert_eq!(inside(lane, "killed", "ls -A /data/data"), "file");
    }
}

fn bounds_are_the_owner_s(lane: Lane) {
    let mut fleet = fleet(lane, "bounds");
    let config = fleet.node("bounds").config();
    let text = fs::read_to_string(&config).unwrap();
    let bounded = text
        .replace("\"4GiB\"", "\"8MiB\"")
        .replace("\"64GiB\"", "\"12MiB\"");
    assert_ne!(text, bounded);
    fs::write(&config, bounded).unwrap();
    fleet.node_mut("bounds").terminate().unwrap();
    fleet.node_mut("bounds").serve().unwrap();
    // Refused by its header, while the rest is still on its way.
    let huge = fleet.home().join("huge");
    fs::File::create(&huge).unwrap().set_len(200 << 20).unwrap();
    fleet
        .mcp(&["push", huge.to_str().unwrap(), "bounds:huge"])
        .exits(1)
        .says("takes 8388608 at most");
    let large = local(&fleet, "large", &vec![1; 7 << 20], 0o644);
    fleet.mcp(&["push", &large, "bounds:one"]).ok();
    fleet
        .mcp(&["push", &large, "bounds:two"])
        .exits(1)
        .says("exceeds its quota");
    fleet.mcp(&["push", &large, "bounds:one"]).ok();
    // What the container wrote itself counts as well.
    inside(lane, "bounds-other", "true");
    let made = local(&fleet, "made", b"x", 0o644);
    fleet.mcp(&["push", &made, "bounds-other:own/made"]).ok();
    inside(
        lane,
        "bounds-other",
        "head -c 6000000 /dev/zero > /data/own/written",
    );
    fleet
        .mcp(&["push", &large, "bounds-other:own/pushed"])
        .exits(1)
        .says("exceeds its quota");
    let listed = fleet.mcp_json(&["files", "-r", "bounds-other"]);
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
}
