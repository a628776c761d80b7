//! Hostile objects against the real agent: pushed by a client that checks nothing, and lying in an upstream or in
//! the inbox.
//!
//! `agent/src/revisions/tests` has every case in process. Here stands one of each family, at each entry, for what
//! only the whole agent shows: the name in answer and audit, one row each, no file left, a head that stays, and
//! memory and time that hold. The engine plays no part in that; the main path runs on each of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod objects;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::{Fleet, text};

use client::Client;
use objects::Hostile;

mcp_tests::lanes!(hostile_objects_that_are_pushed_are_refused_by_name_and_leave_nothing);

/// Far above what any look takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Most that the refusals of all bombs may add to the agent's memory. Without the bounds the folders alone took
/// gigabytes.
const MOST_MEMORY_KIB: u64 = 700 * 1024;

/// A node with a head, under which the services of its repository stand.
fn fleet(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, &[component("api", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet
}

fn head(fleet: &Fleet) -> String {
    let revisions = fleet.mcp_json(&["revisions"]);
    text(&revisions[0], "revision").to_owned()
}

/// All files below the data directory with their lengths, but for the registry and what it writes beside itself.
fn files(fleet: &Fleet, node: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![fleet.node(node).data_dir()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                waiting.push(path);
            } else if !name.contains(".db") {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }
    found
}

fn assert_same_files(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(before),
        names(after),
        "a file is left behind, or gone"
    );
    for (path, bytes) in before {
        assert!(after[path] == *bytes, "{} has changed", path.display());
    }
}

/// The results of all calls of this method, oldest first.
fn audited(fleet: &Fleet, method: &str) -> Vec<String> {
    let rows = fleet.mcp_json(&["events", "--audit", "-n", "1000"]);
    rows.as_array()
        .unwrap()
        .iter()
        .filter(|row| text(row, "method").ends_with(method))
        .map(|row| text(row, "result").to_owned())
        .collect()
}

fn hostile_objects_that_are_pushed_are_refused_by_name_and_leave_nothing(lane: Lane) {
    let name = "hostile";
    let fleet = fleet(lane, name);
    let client = Client::of(&fleet, name);
    let first = head(&fleet);
    let before = files(&fleet, name);
    let told = audited(&fleet, "PushPack").len();
    let mut names = Vec::new();
    for case in objects::all(&fleet) {
        let refused = client.push(&first, &case.commit, &case.pack()).unwrap_err();
        assert_eq!(refused.reason, case.name, "{}", refused.message);
        assert!(!refused.hint.is_empty(), "{}", case.name);
        assert!(
            !refused.message.chars().any(char::is_control),
            "{}",
            refused.message
        );
        names.push(case.name.to_owned());
    }
    assert!(names.len() >= 20);
    // One row a push, with the name of its refusal.
    assert_eq!(audited(&fleet, "PushPack")[told..], names);
    assert_same_files(&before, &files(&fleet, name));
    assert_eq!(head(&fleet), first);
    // And the door is as open as before.
    fleet.edit(&format!("services/{name}.toml"), "v1", "v2");
    fleet.mcp(&["sync", "-m", "v2"]).ok();
    assert_ne!(head(&fleet), first);
}

#[test]
fn hostile_objects_in_an_upstream_are_refused_by_name_and_leave_nothing() {
    Lane::PodmanRoot.run(|lane| {
        hostile_objects_in_a_repository(lane, "hosted", "source", "Poll", |at| {
            format!("[source]\nurl = \"{at}\"\npoll = \"1s\"\n")
        });
    });
}

#[test]
fn hostile_objects_in_the_inbox_are_refused_by_name_and_leave_nothing() {
    Lane::PodmanRoot.run(|lane| {
        hostile_objects_in_a_repository(lane, "pushed-into", "inbox", "Inbox", |at| {
            format!("[inbox]\npath = \"{at}\"\n")
        });
    });
}

/// `section` is what the agent's configuration says of the repository, `place` how `mcp node info` names it, and
/// `method` what its audit calls a look.
fn hostile_objects_in_a_repository(
    lane: Lane,
    name: &str,
    place: &str,
    method: &str,
    section: impl Fn(std::path::Display<'_>) -> String,
) {
    let mut fleet = fleet(lane, name);
    let first = head(&fleet);
    let cases: Vec<Hostile> = objects::all(&fleet)
        .into_iter()
        .filter(|case| case.is_in_objects)
        .collect();
    assert!(cases.len() >= 12);
    let repository = fleet.home().join("repository.git");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(fleet.repo().join(".git"))
        .arg(&repository)
        .status();
    assert!(copied.unwrap().success());
    point(&repository, &first);
    fleet.node_mut(name).terminate().unwrap();
    let config = fleet.node(name).config();
    let written = fs::read_to_string(&config).unwrap();
    let section = section(repository.display());
    fs::write(&config, format!("{written}\n{section}")).unwrap();
    fleet.node_mut(name).serve().unwrap();
    let before = files(&fleet, name);
    let mut names: Vec<String> = Vec::new();
    for case in &cases {
        point(&repository, &case.commit);
        names.push(case.name.to_owned());
        eventually(case.name, PATIENCE, || {
            Ok((audited(&fleet, method).len() >= names.len()).then_some(()))
        })
        .unwrap();
        assert_eq!(
            audited(&fleet, method),
            names,
            "each is told, and told once"
        );
        assert_eq!(head(&fleet), first);
    }
    // Back at the head there is nothing to say, and nothing under way.
    point(&repository, &first);
    eventually("the repository is looked at again", PATIENCE, || {
        let info = fleet.mcp_json(&["node", "info"]);
        Ok(info[0][format!("{place}_error")]
            .as_str()
            .is_none_or(str::is_empty)
            .then_some(()))
    })
    .unwrap();
    assert_same_files(&before, &files(&fleet, name));
}

/// Has a repository's branch stand at this commit, whatever it is.
fn point(repository: &Path, commit: &str) {
    let _ = fs::remove_file(repository.join("packed-refs"));
    let aside = repository.join("refs/heads/main.new");
    fs::write(&aside, format!("{commit}\n")).unwrap();
    fs::rename(aside, repository.join("refs/heads/main")).unwrap();
}

#[test]
fn bombs_cost_neither_memory_nor_time() {
    Lane::PodmanRoot.run(|lane| {
        let name = "bombs";
        let fleet = fleet(lane, name);
        let client = Client::of(&fleet, name);
        let first = head(&fleet);
        let before = files(&fleet, name);
        let began_with = peak_kib(&fleet, name);
        for case in objects::bombs(&fleet) {
            let pack = case.pack();
            let began = Instant::now();
            let refused = client.push(&first, &case.commit, &pack).unwrap_err();
            assert_eq!(refused.reason, case.name, "{}", refused.message);
            // The door's own deadline is two minutes, and it ended none of them.
            assert!(began.elapsed() < Duration::from_secs(110), "{}", case.name);
        }
        let grown = peak_kib(&fleet, name) - began_with;
        assert!(grown < MOST_MEMORY_KIB, "the agent grew by {grown} KiB");
        assert_same_files(&before, &files(&fleet, name));
        assert_eq!(head(&fleet), first);
    });
}

/// The most memory that the agent ever had, in KiB.
fn peak_kib(fleet: &Fleet, node: &str) -> u64 {
    let pid = fleet.node(node).pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
