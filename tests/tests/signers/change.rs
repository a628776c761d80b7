//! `mcp trust list|add|remove|rotate`.

use mcp_tests::engine::Lane;
use mcp_tests::fleet::text;

use super::{commit_by_git, fingerprint, head, new_key, pushed, said};

const SIGNERS: &str = ".mcp/allowed_signers";

#[test]
fn signer_of_one_service_signs_for_it_and_for_nothing_else() {
    Lane::PodmanRoot.run(|lane| {
        let name = "limit";
        let fleet = pushed(lane, name);
        let bob = new_key(&fleet, "bob");
        let added = fleet
            .mcp(&[
                "trust",
                "add",
                &format!("{bob}.pub"),
                "--principal",
                "bob@example.net",
                "--service",
                name,
            ])
            .ok();
        assert!(added.stdout.contains("bob@example.net may sign"), "{added}");
        assert_eq!(head(&fleet, name), fleet.git(&["rev-parse", "HEAD"]));
        let changed = fleet.git(&["show", "--name-only", "--format=", "HEAD"]);
        assert_eq!(changed, SIGNERS);

        // Bob's own service, through the command and through git, which verifies it with the same file.
        fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
        fleet.log_in(name, "bob", "operator").unwrap();
        fleet.mcp(&["--key", &bob, "sync"]).ok();
        fleet.log_in(name, "alice", "admin").unwrap();
        let commit = commit_by_git(&fleet, &bob, name, "v3");
        fleet.mcp(&["sync"]).ok();
        assert_eq!(head(&fleet, name), commit);
        let verified = fleet.try_git(&["verify-commit", "-v", &commit]).ok();
        assert!(
            verified.stderr.contains("for bob@example.net"),
            "{verified}"
        );

        // Another service: not even committed by the command, and refused by the node where git did it.
        let other = format!("services/{name}-b.toml");
        fleet.edit(&other, "busybox:v1", "busybox:v2");
        let refused = fleet.mcp(&["--key", &bob, "sync"]).exits(7);
        assert!(refused.stderr.contains("nothing is committed"), "{refused}");
        assert_eq!(fleet.git(&["rev-parse", "HEAD"]), commit);
        commit_by_git(&fleet, &bob, &format!("{name}-b"), "v2");
        let refused = fleet.mcp(&["sync"]).exits(7);
        assert!(said(&refused).contains(&other), "{refused}");
        assert_eq!(head(&fleet, name), commit);
        // Nor may he change the signers.
        fleet.git(&["reset", "--quiet", "--hard", &commit]);
        let eve = format!("{}.pub", new_key(&fleet, "eve"));
        fleet
            .mcp(&["--key", &bob, "trust", "add", &eve])
            .exits(7)
            .says("nothing is committed");
        assert_eq!(fleet.git(&["status", "--porcelain", ".mcp"]), "");
    });
}

#[test]
fn signers_are_listed_with_what_they_may() {
    Lane::PodmanRoot.run(|lane| {
        let fleet = pushed(lane, "signers");
        let (bob, carol) = (new_key(&fleet, "bob"), new_key(&fleet, "carol"));
        fleet
            .mcp(&["trust", "add", &format!("{bob}.pub"), "--owner"])
            .ok();
        let line = std::fs::read_to_string(format!("{carol}.pub")).unwrap();
        fleet
            .mcp(&["trust", "add", line.trim(), "--service", "signers"])
            .ok();
        let listed = fleet.mcp_json(&["trust", "list"]);
        let names: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|row| text(row, "principal"))
            .collect();
        assert_eq!(names, ["alice", "bob", "carol"]);
        assert_eq!(listed[0]["own"], true);
        assert_eq!(listed[1]["owner"], true);
        assert_eq!(text(&listed[1], "fingerprint"), fingerprint(&bob));
        assert_eq!(listed[2]["services"][0], "signers");
        assert_eq!(listed[2]["owner"], false);
        let shown = fleet.mcp(&["trust", "list"]).ok();
        assert!(shown.stdout.contains("alice (you)"), "{shown}");

        // A key has one line, and a broken file is told with the line.
        fleet
            .mcp(&["trust", "add", &format!("{bob}.pub"), "--principal", "eve"])
            .exits(64)
            .says("is there already, as bob's");
        fleet
            .mcp(&["trust", "add", &carol])
            .exits(64)
            .says("is a private key");
        let held = std::fs::read_to_string(fleet.repo().join(SIGNERS)).unwrap();
        fleet.write(SIGNERS, &format!("{held}eve ssh-ed25519 AAAA\n"));
        fleet.mcp(&["trust", "list"]).exits(1).says("line 4");
        fleet
            .mcp(&["trust", "remove", "bob"])
            .exits(1)
            .says("not committed");
    });
}

#[test]
fn change_of_the_signers_takes_nothing_else_along() {
    Lane::PodmanRoot.run(|lane| {
        let name = "alone";
        let fleet = pushed(lane, name);
        let bob = new_key(&fleet, "bob");
        fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
        fleet.write("staged.txt", "mine");
        fleet.git(&["add", "staged.txt"]);
        let held = std::fs::read_to_string(fleet.repo().join(SIGNERS)).unwrap();
        let with_comment = format!("# who signs here\n{held}");
        fleet.write(SIGNERS, &with_comment);
        fleet.git(&["add", SIGNERS]);
        fleet.git(&["commit", "--quiet", "-S", "-m", "a comment", "--", SIGNERS]);
        fleet.mcp(&["trust", "add", &format!("{bob}.pub")]).ok();
        let status = fleet.git(&["status", "--porcelain"]);
        assert_eq!(status, format!(" M services/{name}.toml\nA  staged.txt"));
        let held = std::fs::read_to_string(fleet.repo().join(SIGNERS)).unwrap();
        assert!(held.starts_with(&with_comment), "{held}");
        fleet.mcp(&["trust", "remove", "bob"]).ok();
        let held = std::fs::read_to_string(fleet.repo().join(SIGNERS)).unwrap();
        assert_eq!(held, with_comment);
        assert_eq!(head(&fleet, name), fleet.git(&["rev-parse", "HEAD"]));
    });
}

#[test]
fn neither_the_last_owner_nor_ones_own_key_is_removed_unawares() {
    Lane::PodmanRoot.run(|lane| {
        let name = "last";
        let fleet = pushed(lane, name);
        let before = fleet.git(&["rev-parse", "HEAD"]);
        fleet
            .mcp(&["trust", "remove", "alice", "--own-key"])
            .exits(7)
            .says("no owner");
        assert_eq!(fleet.git(&["rev-parse", "HEAD"]), before);
        let bob = new_key(&fleet, "bob");
        fleet
            .mcp(&["trust", "add", &format!("{bob}.pub"), "--owner"])
            .ok();
        fleet
            .mcp(&["trust", "remove", "alice"])
            .exits(64)
            .says("signs this change");
        fleet.mcp(&["trust", "remove", "nobody"]).exits(64);
        fleet.mcp(&["trust", "remove", "alice", "--own-key"]).ok();
        let listed = fleet.mcp_json(&["trust", "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 1);
        // From now on alice signs nothing, and bob everything.
        fleet.edit(&format!("services/{name}.toml"), "busybox:v1", "busybox:v2");
        fleet.mcp(&["sync"]).exits(7);
        fleet.log_in(name, "bob", "operator").unwrap();
        fleet.mcp(&["--key", &bob, "sync"]).ok();
        assert_eq!(head(&fleet, name), fleet.git(&["rev-parse", "HEAD"]));
    });
}

#[test]
fn rotation_waits_for_every_node() {
    Lane::PodmanRoot.run(|lane| {
        let (one, two) = ("rotone", "rottwo");
        let mut fleet = pushed(lane, one);
        fleet.add_node(lane.shared(), two).unwrap();
        let old = fleet.key().to_str().unwrap().to_owned();
        let new = new_key(&fleet, "alice-2");
        let public = format!("{new}.pub");
        let before = fleet.git(&["rev-parse", "HEAD"]);

        // The new node has nothing yet; then it is away; then it is behind.
        fleet
            .mcp(&["trust", "rotate", &public])
            .exits(5)
            .says("is behind");
        fleet.mcp(&["sync"]).ok();
        fleet.node_mut(two).kill().unwrap();
        fleet
            .mcp(&["--timeout", "10s", "trust", "rotate", &public])
            .exits(8)
            .says(two);
        assert_eq!(fleet.git(&["rev-parse", "HEAD"]), before);
        assert_eq!(fleet.git(&["status", "--porcelain"]), "");
        fleet.edit(&format!("services/{one}.toml"), "busybox:v1", "busybox:v2");
        fleet.mcp(&["--timeout", "10s", "sync"]).exits(6);
        fleet.node_mut(two).serve().unwrap();
        fleet
            .mcp(&["trust", "rotate", &public])
            .exits(5)
            .says("is behind");
        fleet
            .mcp(&["--node", one, "trust", "rotate", &public])
            .exits(64)
            .says("every node");
        fleet.mcp(&["sync"]).ok();

        let rotated = fleet.mcp(&["trust", "rotate", &public]).ok();
        assert!(rotated.stderr.contains("signs with"), "{rotated}");
        for node in [one, two] {
            assert_eq!(head(&fleet, node), fleet.git(&["rev-parse", "HEAD"]));
        }
        let listed = fleet.mcp_json(&["trust", "list"]);
        assert_eq!(text(&listed[0], "fingerprint"), fingerprint(&new));
        assert_eq!(listed[0]["owner"], true);
        assert_eq!(listed[0]["own"], true);
        // The workstation signs with the new key from now on, stock git too; the old one counts no more.
        fleet.edit(&format!("services/{one}.toml"), "busybox:v2", "busybox:v3");
        fleet.mcp(&["sync"]).ok();
        fleet.git(&["commit", "--quiet", "-S", "--allow-empty", "-m", "by git"]);
        fleet.mcp(&["sync"]).ok();
        let good = fleet.git(&["rev-parse", "HEAD"]);
        commit_by_git(&fleet, &old, one, "v1");
        let refused = fleet.mcp(&["sync"]).exits(7);
        assert!(said(&refused).contains("does not name"), "{refused}");
        assert_eq!(head(&fleet, one), good);
    });
}
