//! The runbooks of docs/operations.md on keys, from end to end.

use std::fs;

use mcp_tests::engine::Lane;
use mcp_tests::fleet::text;

use super::{agent, commit_by_git, fingerprint, hand_over, head, new_key, pushed, running, said};

#[test]
fn stolen_key_is_denied_at_once_and_its_past_can_be_rolled_back_to() {
    Lane::PodmanRoot.run(|lane| {
        let name = "stolen";
        let mut fleet = pushed(lane, name);
        let bob = new_key(&fleet, "bob");
        fleet.mcp(&["trust", "add", &format!("{bob}.pub")]).ok();
        let past = commit_by_git(&fleet, &bob, name, "v2");
        fleet.mcp(&["sync"]).ok();
        fleet.mcp(&["deploy", name]).ok();
        fleet.edit(&format!("services/{name}.toml"), "busybox:v2", "busybox:v3");
        fleet.mcp(&["deploy", name]).ok();
        let good = fleet.git(&["rev-parse", "HEAD"]);

        // On the node, while the agent runs; by fingerprint, and again.
        let print = fingerprint(&bob);
        let denied = agent(&fleet, name, &["trust", "deny", &print]).ok();
        assert!(denied.stdout.contains("from now on"), "{denied}");
        assert!(denied.stdout.contains("stay valid: 1"), "{denied}");
        assert!(denied.stderr.contains("mcp trust remove"), "{denied}");
        let again = agent(&fleet, name, &["trust", "deny", &print]).ok();
        assert!(again.stdout.contains("denied already"), "{again}");
        let list = fs::read_to_string(fleet.node(name).data_dir().join("denied_keys")).unwrap();
        assert_eq!(list.matches(&print).count(), 1, "{list}");
        let shown = agent(&fleet, name, &["trust", "show"]).ok();
        assert!(
            shown.stdout.contains(&format!("denied        {print}")),
            "{shown}"
        );
        assert!(shown.stdout.contains("DENIED"), "{shown}");

        commit_by_git(&fleet, &bob, name, "v1");
        let refused = fleet.mcp(&["sync"]).exits(7);
        assert!(said(&refused).contains("denied key"), "{refused}");
        assert_eq!(head(&fleet, name), good);
        fleet.git(&["reset", "--quiet", "--hard", &good]);
        fleet.mcp(&["trust", "remove", "bob"]).ok();

        // What was accepted stays, over a restart too.
        fleet.node_mut(name).kill().unwrap();
        fleet.node_mut(name).serve().unwrap();
        agent(&fleet, name, &["check"]).ok();
        fleet.mcp(&["deploy", name, "--rev", &past]).ok();
        assert_eq!(text(&fleet.list()[&format!("{name}/api")], "version"), "v2");
    });
}

#[test]
fn list_of_denied_keys_is_never_left_broken() {
    Lane::PodmanRoot.run(|lane| {
        let name = "denylist";
        let fleet = pushed(lane, name);
        let file = fleet.node(name).data_dir().join("denied_keys");
        let before = fs::read_to_string(&file).unwrap();
        let key = fleet.key().to_str().unwrap().to_owned();
        for given in ["SHA256:short", "/nowhere", &key, "ssh-rsa AAAA"] {
            let refused = agent(&fleet, name, &["trust", "deny", given]).exits(1);
            assert!(refused.stderr.contains("hint:"), "{refused}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        // A list that is broken by hand takes no revisions, and says so.
        fs::write(&file, "nonsense\n").unwrap();
        fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
        let refused = fleet.mcp(&["sync"]);
        assert!(
            refused.code != Some(0) && said(&refused).contains("denied_keys"),
            "{refused}"
        );
        agent(&fleet, name, &["trust", "deny", &format!("{key}.pub")])
            .exits(1)
            .says("denied_keys is refused");
        fs::write(&file, before).unwrap();
        fleet.mcp(&["sync"]).ok();
        // The last owner: told, and done all the same.
        let public = hand_over(&fleet, name, &key);
        agent(&fleet, name, &["trust", "deny", &public])
            .ok()
            .says("no other owner is left");
    });
}

#[test]
fn old_backup_gives_no_denied_key_back() {
    Lane::PodmanRoot.run(|lane| {
        let name = "olddeny";
        let mut fleet = pushed(lane, name);
        let (bob, eve) = (new_key(&fleet, "bob"), new_key(&fleet, "eve"));
        fleet.mcp(&["trust", "add", &format!("{bob}.pub")]).ok();
        agent(&fleet, name, &["trust", "deny", &fingerprint(&eve)]).ok();
        let backup = fleet.node(name).dir().join("backup.tar");
        agent(&fleet, name, &["backup", backup.to_str().unwrap()]).ok();
        agent(&fleet, name, &["trust", "deny", &fingerprint(&bob)]).ok();
        fleet.node_mut(name).terminate().unwrap();
        agent(
            &fleet,
            name,
            &["restore", backup.to_str().unwrap(), "--force"],
        )
        .ok();
        fleet.node_mut(name).serve().unwrap();
        let shown = agent(&fleet, name, &["trust", "show"]).ok();
        for key in [&bob, &eve] {
            let line = format!("denied        {}", fingerprint(key));
            assert!(shown.stdout.contains(&line), "{shown}");
        }
        commit_by_git(&fleet, &bob, name, "v2");
        let refused = fleet.mcp(&["sync"]).exits(7);
        assert!(said(&refused).contains("denied key"), "{refused}");
    });
}

#[test]
fn new_node_after_a_revocation_begins_after_it() {
    Lane::PodmanRoot.run(|lane| {
        let (old, new) = ("revold", "revnew");
        let mut fleet = pushed(lane, old);
        let bob = new_key(&fleet, "bob");
        fleet.mcp(&["trust", "add", &format!("{bob}.pub")]).ok();
        commit_by_git(&fleet, &bob, old, "v2");
        fleet.mcp(&["sync"]).ok();
        agent(&fleet, old, &["trust", "deny", &fingerprint(&bob)]).ok();
        fleet.mcp(&["trust", "remove", "bob"]).ok();
        let later = fleet.git(&["rev-parse", "HEAD"]);

        fleet.add_node(lane.shared(), new).unwrap();
        agent(&fleet, new, &["trust", "deny", &fingerprint(&bob)]).ok();
        let refused = fleet.mcp(&["sync"]).exits(6);
        assert!(said(&refused).contains("denied key"), "{refused}");
        fleet.node_mut(new).terminate().unwrap();
        let reset = ["trust", "reset", "--introduction", &later, "--yes"];
        agent(&fleet, new, &reset).ok();
        fleet.node_mut(new).serve().unwrap();
        fleet.mcp(&["sync"]).ok();
        assert_eq!(head(&fleet, new), later);
        let shown = agent(&fleet, new, &["trust", "show"]).ok();
        let line = format!("introduction  {}", &later[..7]);
        assert!(shown.stdout.contains(&line), "{shown}");
        agent(&fleet, new, &["check"]).ok();
        // Both follow the same history from here on.
        fleet.edit(&format!("services/{old}.toml"), "busybox:v2", "busybox:v3");
        fleet.mcp(&["sync"]).ok();
        assert_eq!(head(&fleet, new), head(&fleet, old));
    });
}

/// Run on every engine, since containers are to go on running.
pub(super) fn lost_owner_key_is_replaced_out_of_band_and_nothing_stops(lane: Lane) {
    let name = "lostkey";
    let mut fleet = pushed(lane, name);
    fleet.mcp(&["deploy", name]).ok();
    let before = running(&fleet, name);
    assert_eq!(before.len(), 1);
    let old_head = head(&fleet, name);
    // The only owner's key is gone.
    fs::remove_file(fleet.key()).unwrap();
    let new = new_key(&fleet, "alice-new");
    let public = format!("{new}.pub");
    fleet.git(&["config", "user.signingkey", &new]);
    fleet
        .mcp(&["--key", &new, "trust", "add", &public, "--owner"])
        .exits(7);
    let begun = fleet.mcp(&[
        "-o",
        "json",
        "--key",
        &new,
        "trust",
        "add",
        &public,
        "--principal",
        "alice-new",
        "--owner",
        "--introduce",
    ]);
    let begun = text(&begun.ok().json(), "revision").to_owned();
    // Nobody takes it merely because it is there.
    let refused = fleet.mcp(&["sync"]).exits(7);
    assert!(
        said(&refused).contains("not among the signers"),
        "{refused}"
    );
    assert_eq!(head(&fleet, name), old_head);

    let handed = hand_over(&fleet, name, &new);
    let reset = [
        "trust",
        "reset",
        "--introduction",
        &begun,
        "--owner",
        &handed,
    ];
    let with_consent = [&reset[..], &["--yes"]].concat();
    agent(&fleet, name, &with_consent)
        .exits(1)
        .says("another agent");
    fleet.node_mut(name).terminate().unwrap();
    agent(&fleet, name, &reset).exits(64).says("--yes");
    agent(&fleet, name, &["trust", "show"]).ok();
    let done = agent(&fleet, name, &with_consent).ok();
    assert!(done.stdout.contains("before-reset-"), "{done}");
    fleet.node_mut(name).serve().unwrap();
    assert_eq!(running(&fleet, name), before);
    fleet.mcp(&["sync"]).ok();
    assert_eq!(head(&fleet, name), begun);
    // From here on the request's signer is one of the head's, and the token has to be the same person's.
    fleet.log_in(name, "alice-new", "admin").unwrap();
    let shown = agent(&fleet, name, &["trust", "show"]).ok();
    assert!(shown.stdout.contains(&fingerprint(&new)), "{shown}");
    agent(&fleet, name, &["check"]).ok();

    // The node goes on as before, under the new owner alone.
    let again = fleet.mcp(&["deploy", name]).ok();
    assert!(again.stdout.contains("nothing to do"), "{again}");
    assert_eq!(running(&fleet, name), before);
    fleet.mcp(&["--key", &new, "trust", "remove", "alice"]).ok();
    fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
    fleet.mcp(&["--key", &new, "deploy", name]).ok();
    assert_eq!(text(&fleet.list()[&format!("{name}/api")], "version"), "v2");
    fleet.mcp(&["rollback", &format!("{name}/api")]).ok();
    assert_eq!(text(&fleet.list()[&format!("{name}/api")], "version"), "v1");
    let events = fleet.mcp(&["events", "-n", "100"]).ok();
    assert!(events.stdout.contains("trust-reset"), "{events}");
}
