//! Who may sign, and what becomes of keys: added, limited, rotated, stolen, lost. The real binaries, a real
//! engine, and stock git as the other witness.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod change;
mod inbox;
mod runbooks;
mod sharing;
mod upstream;

use std::collections::BTreeMap;
use std::process::Command;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, run};
use mcp_tests::fleet::{Fleet, Output, text};

mcp_tests::lanes!(
    lost_owner_key_is_replaced_out_of_band_and_nothing_stops,
    what_plain_git_pushes_is_taken_at_once_and_a_refusal_is_told_once,
);

fn lost_owner_key_is_replaced_out_of_band_and_nothing_stops(lane: Lane) {
    runbooks::lost_owner_key_is_replaced_out_of_band_and_nothing_stops(lane);
}

fn what_plain_git_pushes_is_taken_at_once_and_a_refusal_is_told_once(lane: Lane) {
    inbox::what_plain_git_pushes_is_taken_at_once_and_a_refusal_is_told_once(lane);
}

/// A node with the services `NAME` and `NAME-b`, of one component each; pushed, not deployed.
fn pushed(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    for service_name in [name.to_owned(), format!("{name}-b")] {
        fleet.write(
            &format!("services/{service_name}.toml"),
            &service(&service_name, name, &[component("api", "v1", "")]),
        );
    }
    fleet.mcp(&["sync"]).ok();
    fleet
}

/// Makes a key on the workstation; gives the private half's path.
fn new_key(fleet: &Fleet, name: &str) -> String {
    let key = fleet.home().join(name);
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
        .arg(&key))
    .unwrap();
    key.to_str().unwrap().to_owned()
}

/// The key's fingerprint, as stock ssh-keygen tells it.
fn fingerprint(key: &str) -> String {
    let told = Command::new("ssh-keygen")
        .args(["-l", "-f", &format!("{key}.pub")])
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    told.split(' ').nth(1).unwrap().to_owned()
}

/// A change of a service's image by stock git, signed with a key; gives the commit.
fn commit_by_git(fleet: &Fleet, key: &str, service: &str, version: &str) -> String {
    let file = format!("services/{service}.toml");
    let held = std::fs::read_to_string(fleet.repo().join(&file)).unwrap();
    let at = held.find("busybox:").unwrap() + "busybox:".len();
    let end = at + held[at..].find('"').unwrap();
    fleet.write(&file, &format!("{}{version}{}", &held[..at], &held[end..]));
    fleet.git(&["add", "services"]);
    let signing = format!("user.signingkey={key}");
    fleet.git(&[
        "-c",
        &signing,
        "commit",
        "--quiet",
        "-S",
        "--message",
        "by hand",
    ]);
    fleet.git(&["rev-parse", "HEAD"])
}

/// The head that a node knows.
fn head(fleet: &Fleet, node: &str) -> String {
    let revisions = fleet
        .mcp(&["-o", "json", "--node", node, "revisions"])
        .ok()
        .json();
    text(&revisions[0], "revision").to_owned()
}

/// The reasons of a node's events of one kind, oldest first.
fn reasons(fleet: &Fleet, kind: &str) -> Vec<String> {
    let events = fleet.mcp(&["-o", "jsonl", "events", "-n", "1000"]).ok();
    events
        .json_lines()
        .iter()
        .filter(|event| event["kind"] == kind)
        .map(|event| text(event, "reason").to_owned())
        .collect()
}

/// All that was said.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// Runs `mcp-agent COMMAND.. --config FILE`.
#[track_caller]
fn agent(fleet: &Fleet, node: &str, args: &[&str]) -> Output {
    let node = fleet.node(node);
    let config = node.config().display().to_string();
    let mut all = args.to_vec();
    all.extend(["--config", &config]);
    node.agent(&all).unwrap()
}

/// Puts a public key where the node's user can read it; gives the path.
fn hand_over(fleet: &Fleet, node: &str, key: &str) -> String {
    let node = fleet.node(node);
    let name = key.rsplit('/').next().unwrap();
    let file = node.dir().join(format!("{name}.pub"));
    std::fs::copy(format!("{key}.pub"), &file).unwrap();
    node.engine().give(node.dir()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The node's containers that run, with the id and the first process of each.
fn running(fleet: &Fleet, node: &str) -> BTreeMap<String, (String, i64)> {
    fleet.node(node).running().unwrap()
}
