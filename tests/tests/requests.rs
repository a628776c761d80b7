//! A token alone changes nothing: a key that the node trusts stands behind every change.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::Command;

use mcp_tests::engine::Lane;
use mcp_tests::fleet::{Fleet, Output};
use mcp_tests::lanes;

lanes!(
    a_token_alone_changes_nothing,
    a_key_reaches_as_far_as_its_line_says,
);

const SERVICE: &str = "[[components]]\nname = \"web\"\nimage = \"localhost/mcp-test/busybox:v1\"\ncmd = [\"/bin/sh\", \"-c\", \"sleep 3600\"]\n";

/// A node with the services `shop` and `wiki`, both running.
fn fleet(lane: Lane, node: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, node).unwrap();
    for service in ["shop", "wiki"] {
        let service = format!("{node}-{service}");
        let text = format!("name = \"{service}\"\nnode = \"{node}\"\n{SERVICE}");
        fleet.write(&format!("services/{service}.toml"), &text);
    }
    fleet.mcp(&["sync", "-m", "first"]).ok();
    fleet.mcp(&["deploy", "--all", "--yes"]).ok();
    fleet
}

/// A new key pair on the workstation: the private half's path, and the public half.
fn key_of(fleet: &Fleet, name: &str) -> (PathBuf, String) {
    let path = fleet.home().join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    (path, public)
}

fn refused(output: Output, says: &str) {
    output.exits(7).says(says);
}

fn state(fleet: &Fleet, component: &str) -> String {
    let state = &fleet.ps()[component]["observed_state"];
    state.as_str().unwrap_or_default().to_owned()
}

fn a_token_alone_changes_nothing(lane: Lane) {
    let fleet = fleet(lane, "thief");
    let head = fleet.git(&["rev-parse", "HEAD"]);
    // Nobody names a key any more: what is left is the token.
    let key = fleet.git(&["config", "user.signingkey"]);
    fleet.git(&["config", "--unset", "user.signingkey"]);
    let web = "thief-shop/web";
    fleet.edit("services/thief-shop.toml", "3600", "3601");
    for command in [
        &["stop", "thief-shop"][..],
        &["start", "thief-shop"],
        &["restart", "thief-shop"],
        &["deploy", "thief-shop", "--rev", head.trim()],
        &["rollback", "thief-shop"],
        &["hold", "thief-shop"],
        &["release", "thief-shop"],
        &["purge", "--yes"],
        &["forget", web],
        &["alert", "test"],
        &["node", "fetch"],
    ] {
        refused(fleet.mcp(command), "request that is signed");
    }
    assert_eq!(state(&fleet, web), "running");
    assert_eq!(fleet.mcp(&["plan"]).code, Some(0), "looking takes a token");
    // With a key that nobody trusts it is no better.
    let (other, _) = key_of(&fleet, "mallory");
    let other = other.to_str().unwrap();
    refused(
        fleet.mcp(&["--key", other, "stop", "thief-shop"]),
        "not among the signers",
    );
    // Nor with one person's token and another's key, which `login` tells beforehand.
    let bob = fleet.token("thief", "bob", "operator").unwrap();
    let login = ["login", "--node", "thief", "--token-stdin"];
    fleet
        .mcp_with(&login, Some(&bob))
        .unwrap()
        .ok()
        .says("is called bob: they are alice");
    refused(
        fleet.mcp(&["--key", key.trim(), "stop", "thief-shop"]),
        "the token is bob's",
    );
    fleet.log_in("thief", "alice", "operator").unwrap();
    fleet.mcp(&["--key", key.trim(), "stop", "thief-shop"]).ok();
    assert_eq!(state(&fleet, web), "stopped");

    let audit = fleet.mcp_json(&["events", "--audit", "-n", "4"]);
    let told: Vec<(&str, &str, &str)> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let signer = text("signer").split(' ').next().unwrap_or_default();
            (text("who"), text("result"), signer)
        })
        .collect();
    assert_eq!(
        told[1..],
        [
            ("alice", "request-unknown-key", ""),
            ("bob", "request-subject", ""),
            ("alice", "ok", "alice"),
        ],
        "{audit:#}"
    );
}

fn a_key_reaches_as_far_as_its_line_says(lane: Lane) {
    let fleet = fleet(lane, "limits");
    let (key, public) = key_of(&fleet, "bob");
    let key = key.to_str().unwrap();
    let signers = fleet.repo().join(".mcp/allowed_signers");
    let before = std::fs::read_to_string(&signers).unwrap();
    let with = |namespaces: &str| {
        let line = format!("bob namespaces=\"{namespaces}\" {public}");
        std::fs::write(&signers, format!("{before}{line}")).unwrap();
        fleet.mcp(&["sync", "-m", "bob's line"]).ok();
    };
    with("git");
    fleet.log_in("limits", "bob", "operator").unwrap();
    let stop = |service: &str| fleet.mcp(&["--key", key, "stop", service]);
    refused(stop("limits-shop"), "no `mcp-request` namespace");
    fleet.log_in("limits", "alice", "operator").unwrap();
    with("git,mcp-request,mcp-service-limits-shop");
    fleet.log_in("limits", "bob", "operator").unwrap();
    refused(stop("limits-wiki"), "limits-wiki");
    stop("limits-shop").ok();
    assert_eq!(state(&fleet, "limits-shop/web"), "stopped");
    assert_eq!(state(&fleet, "limits-wiki/web"), "running");
    // A key that the node's owner denies counts for nothing from now on.
    let denied = fleet.node("limits").data_dir().join("denied_keys");
    std::fs::write(denied, &public).unwrap();
    refused(
        fleet.mcp(&["--key", key, "start", "limits-shop"]),
        "denied on this node",
    );
}

/// Has the workstation ask a script of this text for tokens.
fn ask(fleet: &Fleet, script: &str) {
    let path = fleet.home().join("give-token");
    std::fs::write(&path, script).unwrap();
    let config = fleet.home().join(".config/mcp/mcp.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    if text.contains("token_command") {
        return;
    }
    let line = format!(
        "token_command = [\"/bin/sh\", \"{}\", \"{{node}}\"]\n",
        path.display()
    );
    let text = match text.contains("[auth]\n") {
        true => text.replacen("[auth]\n", &format!("[auth]\n{line}"), 1),
        false => format!("{text}\n[auth]\n{line}"),
    };
    std::fs::write(&config, text).unwrap();
}

#[test]
fn a_command_gives_the_token_where_none_is_held() {
    let fleet = Fleet::with_node(Lane::PodmanRoot, "giver").unwrap();
    let token = fleet.token("giver", "alice", "operator").unwrap();
    std::fs::write(fleet.home().join("held"), token).unwrap();
    fleet.mcp(&["logout"]).ok();
    fleet.mcp(&["ps"]).exits(7).says("mcp login");
    for (script, says) in [
        ("echo no access >&2; exit 3", "exit status: 3"),
        ("true", "its output is no token"),
        ("echo two words", "its output is no token"),
        ("yes | head -c 1000000", "longer than 16384 bytes"),
    ] {
        ask(&fleet, script);
        let output = fleet.mcp(&["ps"]).exits(7).says(says);
        output.says("gave no token").says("try it by hand: /bin/sh");
    }
    // What it gives is kept, for as long as it is good.
    ask(&fleet, "echo \"$1\" >> ~/asked; cat ~/held");
    fleet.mcp(&["ps"]).ok();
    fleet.mcp(&["ps"]).ok();
    let asked = || std::fs::read_to_string(fleet.home().join("asked")).unwrap();
    assert_eq!(asked(), "giver\n");
    let whoami = fleet.mcp_json(&["whoami"]);
    assert!(whoami.to_string().contains("alice"), "{whoami}");
    fleet.mcp(&["logout"]).ok();
    fleet.mcp(&["ps"]).ok();
    assert_eq!(asked(), "giver\ngiver\n");
}
