//! The inbox: a bare repository on the node that people push into with plain git.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use mcp_tests::engine::{Lane, eventually, run};
use mcp_tests::fleet::{Fleet, text};

use super::{commit_by_git, head, new_key, pushed, reasons, running, said};

/// Below the minute after which the agent looks without an event: a push is noticed, not found.
const SOON: Duration = Duration::from_secs(40);

/// What `mcp node info` says is wrong with the inbox.
fn trouble(fleet: &Fleet) -> Option<String> {
    let info = fleet.mcp_json(&["node", "info"]);
    assert!(text(&info[0], "inbox_path").ends_with("/inbox.git"));
    info[0]["inbox_error"].as_str().map(ToOwned::to_owned)
}

pub(super) fn what_plain_git_pushes_is_taken_at_once_and_a_refusal_is_told_once(lane: Lane) {
    let name = "inbox";
    let mut fleet = pushed(lane, name);
    fleet.mcp(&["deploy", "--all"]).ok();
    let before = running(&fleet, name);
    let good = fleet.git(&["rev-parse", "HEAD"]);
    // A folder that everybody may enter, and the agent may not write to.
    let hosted = fleet.node(name).dir().join("git");
    fs::create_dir(&hosted).unwrap();
    fs::set_permissions(&hosted, fs::Permissions::from_mode(0o755)).unwrap();
    let inbox = hosted.join("inbox.git").display().to_string();
    fleet.node_mut(name).terminate().unwrap();
    let config = fleet.node(name).config();
    let written = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{written}\n[inbox]\npath = \"{inbox}\"\n")).unwrap();
    fleet.node_mut(name).serve().unwrap();

    // It need not be there when the agent starts.
    eventually("a missing inbox is told", SOON, || {
        Ok((reasons(&fleet, "inbox-failed") == ["no-repository"]).then_some(()))
    })
    .unwrap();
    let status = said(&fleet.mcp(&["status"]).ok());
    assert!(status.contains("nothing is taken from the inbox: there is no git repository at"));
    let init = ["init", "--quiet", "--bare", "--initial-branch=main", &inbox];
    fleet.git(&init);
    eventually("the inbox is read", SOON, || {
        Ok((reasons(&fleet, "inbox-back").len() == 1 && trouble(&fleet).is_none()).then_some(()))
    })
    .unwrap();

    // Hooks are the pusher's business, and the agent runs none.
    let hook = hosted.join("inbox.git/hooks/reference-transaction");
    let ran = fleet.home().join("hook-ran");
    fs::write(&hook, format!("#!/bin/sh\nid -u >> {}\n", ran.display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    fleet.git(&["push", "--quiet", &inbox, "HEAD:main"]);
    let runs = || fs::read_to_string(&ran).unwrap().lines().count();
    let by_git = runs();
    let key = fleet.key().to_str().unwrap().to_owned();
    let second = commit_by_git(&fleet, &key, name, "v2");
    fleet.git(&["push", "--quiet", &inbox, "HEAD:main"]);
    let taken = |fleet: &Fleet, commit: &str| {
        eventually("what was pushed is taken", SOON, || {
            Ok((head(fleet, name) == commit).then_some(()))
        })
        .unwrap();
    };
    taken(&fleet, &second);
    assert_eq!(runs(), 2 * by_git, "the agent ran a hook");
    let revisions = fleet.mcp_json(&["revisions"]);
    assert_eq!(revisions[0]["source"], "inbox");

    // Another's, told once, however often it is pushed at.
    let stranger = new_key(&fleet, "stranger");
    commit_by_git(&fleet, &stranger, name, "v1");
    fleet.git(&["push", "--quiet", &inbox, "HEAD:main"]);
    eventually("the refusal is told", SOON, || {
        Ok((!reasons(&fleet, "revision-refused").is_empty()).then_some(()))
    })
    .unwrap();
    let told = trouble(&fleet).unwrap();
    assert!(told.contains("allowed_signers"), "{told}");
    for _ in 0..2 {
        let checked = || fleet.mcp_json(&["node", "info"])[0]["inbox_checked_at"].clone();
        let before = checked();
        // The same once more: an event, and no other verdict.
        let branch = hosted.join("inbox.git/refs/heads/main");
        fs::write(&branch, fs::read(&branch).unwrap()).unwrap();
        eventually("the inbox is looked at again", SOON, || {
            Ok((checked() != before).then_some(()))
        })
        .unwrap();
    }
    assert_eq!(reasons(&fleet, "revision-refused"), ["unknown-signer"]);
    assert_eq!(head(&fleet, name), second);

    // What was pushed while the agent was down is taken at its start; packed, and from anew.
    fleet.git(&["reset", "--quiet", "--hard", &second]);
    let third = commit_by_git(&fleet, &key, name, "v3");
    fleet.node_mut(name).kill().unwrap();
    fleet.git(&["push", "--quiet", "--force", &inbox, "HEAD:main"]);
    run(Command::new("git").args(["-C", &inbox, "gc", "--quiet", "--prune=now"])).unwrap();
    fleet.node_mut(name).serve().unwrap();
    taken(&fleet, &third);
    assert!(trouble(&fleet).is_none());
    assert_eq!(reasons(&fleet, "revision-refused").len(), 1);

    // Set back: history goes forward alone.
    run(Command::new("git").args(["-C", &inbox, "update-ref", "refs/heads/main", &good])).unwrap();
    eventually("the branch that was set back is told", SOON, || {
        Ok((reasons(&fleet, "revision-refused").len() == 2).then_some(()))
    })
    .unwrap();
    assert_eq!(reasons(&fleet, "revision-refused")[1], "older");
    assert_eq!(head(&fleet, name), third);

    // A push past the inbox is none of its troubles, once it is pushed forward again.
    run(Command::new("git").args(["-C", &inbox, "update-ref", "refs/heads/main", &third])).unwrap();
    eventually("the inbox is well", SOON, || {
        Ok(trouble(&fleet).is_none().then_some(()))
    })
    .unwrap();
    assert_eq!(running(&fleet, name), before, "taking in deploys nothing");
    fleet.mcp(&["deploy", "--all"]).ok();
    let image = text(&fleet.mcp_json(&["ps"])[0], "image").to_owned();
    assert!(image.ends_with(":v3") || image.ends_with(":v1"), "{image}");
    assert_ne!(running(&fleet, name), before);
}
