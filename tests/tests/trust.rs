//! What comes through the door for revisions, and what does not: on one engine, since none is asked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, run};
use mcp_tests::fleet::{Fleet, Output, text};

/// The engine plays no part here, and one lane is enough.
fn fleet(name: &str) -> Fleet {
    let lane = Lane::PodmanRoot;
    lane.shared().enter().unwrap();
    let fleet = Fleet::with_node(lane, name).unwrap();
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, &[component("api", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet
}

/// The head that the agent knows: the newest of the revisions that it accepted.
fn head(fleet: &Fleet) -> String {
    let revisions = fleet.mcp(&["-o", "json", "revisions"]).ok().json();
    text(&revisions[0], "revision").to_owned()
}

/// All that was said: what became of a node is data, and stands on standard output.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// A commit by stock git that changes the definition, with more arguments for `git commit`.
fn commit_by_git(fleet: &Fleet, name: &str, arguments: &[&str]) -> String {
    fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
    fleet.git(&["add", "services"]);
    let mut all = vec!["commit", "--quiet", "--message", "by hand"];
    all.extend(arguments);
    fleet.git(&all);
    fleet.git(&["rev-parse", "HEAD"])
}

#[test]
fn every_commit_verifies_with_stock_git() {
    let fleet = fleet("stockgit");
    for commit in fleet.git(&["rev-list", "HEAD"]).lines() {
        let verified = fleet.try_git(&["verify-commit", "-v", commit]).ok();
        assert!(
            verified.stderr.contains("Good \"git\" signature"),
            "{verified}"
        );
    }
    let log = fleet.git(&["log", "--show-signature", "-1"]);
    assert!(log.contains("Good"), "{log}");
}

#[test]
fn sync_says_what_it_committed_and_repeats_for_nothing() {
    let fleet = fleet("message");
    fleet.edit("services/message.toml", "busybox:v1", "busybox:v2");
    fleet.mcp(&["sync"]).ok();
    let subject = fleet.git(&["log", "-1", "--format=%s"]);
    assert!(subject.contains("message/api: image v1 -> v2"), "{subject}");
    let before = fleet.git(&["rev-parse", "HEAD"]);
    let again = fleet.mcp_json(&["sync"]);
    assert_eq!(again["created"], false);
    assert_eq!(fleet.git(&["rev-parse", "HEAD"]), before);
}

#[test]
fn only_managed_paths_are_committed() {
    let fleet = fleet("managed");
    fleet.write("notes.txt", "mine");
    fleet.write("staged.txt", "mine too");
    fleet.git(&["add", "staged.txt"]);
    fleet.edit("services/managed.toml", "busybox:v1", "busybox:v2");
    fleet.mcp(&["sync"]).ok();
    let changed = fleet.git(&["show", "--name-only", "--format=", "HEAD"]);
    assert_eq!(changed, "services/managed.toml");
    let status = fleet.git(&["status", "--porcelain"]);
    assert_eq!(
        status, "A  staged.txt\n?? notes.txt",
        "what is not ours stays as it was"
    );
}

#[test]
fn commit_signed_by_stock_git_is_taken() {
    let fleet = fleet("bygit");
    let commit = commit_by_git(&fleet, "bygit", &["-S"]);
    fleet.mcp(&["sync"]).ok();
    assert_eq!(head(&fleet), commit);
}

#[test]
fn unsigned_revision_is_refused_by_name() {
    let fleet = fleet("unsigned");
    let before = head(&fleet);
    let commit = commit_by_git(&fleet, "unsigned", &["--no-gpg-sign"]);
    let refused = fleet.mcp(&["sync"]).exits(7);
    assert!(
        said(&refused).contains(&commit[..7]),
        "the commit is named: {refused}"
    );
    assert!(said(&refused).contains("not signed"), "{refused}");
    assert_eq!(head(&fleet), before, "and nothing changed");
}

#[test]
fn revision_of_a_stranger_is_refused_by_name() {
    let fleet = fleet("stranger");
    let before = head(&fleet);
    let key = fleet.home().join("stranger");
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key))
    .unwrap();
    fleet.git(&["config", "gpg.format", "ssh"]);
    fleet.git(&["config", "user.signingkey", key.to_str().unwrap()]);
    let commit = commit_by_git(&fleet, "stranger", &["-S"]);
    // Whoever brings it: the commit counts by its own signer.
    let alice = fleet.key().to_str().unwrap();
    let refused = fleet.mcp(&["--key", alice, "sync"]).exits(7);
    assert!(said(&refused).contains(&commit[..7]), "{refused}");
    assert_eq!(head(&fleet), before);
}

#[test]
fn older_revision_does_not_replace_a_newer() {
    let fleet = fleet("older");
    fleet.edit("services/older.toml", "busybox:v1", "busybox:v2");
    fleet.mcp(&["sync"]).ok();
    let newest = head(&fleet);
    fleet.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    let refused = fleet.mcp(&["sync"]).exits(5);
    assert!(
        refused.stderr.contains(&newest[..7]),
        "the node's head is named: {refused}"
    );
    assert_eq!(head(&fleet), newest);
    // Diverged: another child of the same parent.
    fleet.edit("services/older.toml", "busybox:v1", "busybox:v3");
    fleet.mcp(&["sync"]).exits(5);
    assert_eq!(head(&fleet), newest);
}

#[test]
fn unrelated_history_is_refused() {
    let fleet = fleet("unrelated");
    let before = head(&fleet);
    fleet.git(&["checkout", "--quiet", "--orphan", "other"]);
    fleet.git(&["commit", "--quiet", "-S", "--message", "another beginning"]);
    fleet.git(&["branch", "--quiet", "-M", "main"]);
    fleet.mcp(&["sync"]).exits(7);
    assert_eq!(head(&fleet), before);
}

#[test]
fn wrong_definition_is_refused_with_its_place() {
    let fleet = fleet("typo");
    fleet.edit("services/typo.toml", "image =", "imgae =");
    let checked = fleet.mcp(&["service", "check"]);
    assert_ne!(checked.code, Some(0));
    let shown = format!("{}{}", checked.stdout, checked.stderr);
    assert!(shown.contains("services/typo.toml:6:1"), "{shown}");
    assert!(shown.contains("did you mean `image`"), "{shown}");
    let before = fleet.git(&["rev-parse", "HEAD"]);
    assert_ne!(fleet.mcp(&["sync"]).code, Some(0));
    assert_eq!(
        fleet.git(&["rev-parse", "HEAD"]),
        before,
        "nothing was committed"
    );
    let json = fleet.mcp_json(&["service", "check"]);
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"][0]["line"], 6);
}

#[test]
fn viewer_looks_and_changes_nothing() {
    let fleet = fleet("viewer");
    fleet.log_in("viewer", "bob", "viewer").unwrap();
    fleet.mcp(&["list"]).ok();
    fleet.mcp(&["plan", "viewer"]).ok();
    fleet.mcp(&["deploy", "viewer"]).exits(7);
    fleet.edit("services/viewer.toml", "busybox:v1", "busybox:v2");
    fleet.mcp(&["sync"]).exits(7);
    assert!(fleet.node("viewer").containers().unwrap().is_empty());
}

#[test]
fn bad_token_is_refused() {
    let fleet = fleet("badtoken");
    // Of the form of a token, with nothing in it, and signed by nobody.
    drop(fleet.mcp_with(
        &["login", "--node", "badtoken", "--token-stdin"],
        Some("e30.e30.c2ln"),
    ));
    let refused = fleet.mcp(&["list"]).exits(7);
    assert!(refused.stderr.contains("hint:"), "{refused}");
}

#[test]
fn unreachable_node_exits_8() {
    let mut fleet = fleet("offline");
    fleet.node_mut("offline").kill().unwrap();
    let failed = fleet.mcp(&["--timeout", "3s", "list"]).exits(8);
    assert!(failed.stderr.contains("offline"), "{failed}");
}
