//! Ways in which a value could come out, or a wrong one in, and what happens instead.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::Fleet;

use crate::{deploy, files_with, forget_memory, id, read, set};

/// A node with a service of its name, whose one component has this command and the secret `db`.
fn fleet(lane: Lane, node: &str, value: &str, keys: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, node).unwrap();
    let keys = format!("secrets = [\"db\"]\n{keys}");
    fleet.write(
        &format!("services/{node}.toml"),
        &service(node, node, &[component("api", "v1", &keys)]),
    );
    set(&fleet, node, "db", value);
    fleet
}

fn config(fleet: &mut Fleet, node: &str, table: &str) {
    let node = fleet.node_mut(node);
    node.terminate().unwrap();
    let mut config = fs::read_to_string(node.config()).unwrap();
    config.push_str(table);
    fs::write(node.config(), config).unwrap();
    node.serve().unwrap();
}

/// A program that prints its password as it fails, and one whose check prints it.
pub(crate) fn a_value_that_a_program_prints_is_hidden_where_the_agent_keeps_or_tells_it(
    lane: Lane,
) {
    const CANARY: &str = "canary-91d0b7-of-the-loud";
    let node = "secf";
    let loud = "cmd = [\"/bin/sh\", \"-c\", \"echo using $(cat /run/secrets/db); cat /run/secrets/db >&2; exit 3\"]\nready_for = \"2s\"\nrestart = \"no\"\n";
    let mut fleet = fleet(lane, node, CANARY, loud);
    let got = fleet.node(node).dir().join("data/alerts.jsonl");
    let script = format!("cat >> '{}'; env >> '{}'", got.display(), got.display());
    config(
        &mut fleet,
        node,
        &format!("\n[alert]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n"),
    );
    fleet.mcp(&["sync"]).ok();
    let failed = fleet.mcp(&["deploy", node, "--yes"]);
    assert_ne!(failed.code, Some(0), "{failed}");
    assert!(!format!("{failed}").contains(CANARY), "{failed}");
    assert!(
        format!("{failed}").contains("(secret)"),
        "its last lines are told: {failed}"
    );
    // The same by a check that fails.
    fleet.write(
        &format!("services/{node}.toml"),
        &service(
            node,
            node,
            &[component(
                "api",
                "v1",
                "secrets = [\"db\"]\n[components.health]\ncmd = [\"/bin/sh\", \"-c\", \"cat /run/secrets/db; exit 1\"]\ninterval = \"1s\"\nretries = 1\n",
            )],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    let failed = fleet.mcp(&["deploy", node, "--yes"]);
    assert_ne!(failed.code, Some(0), "{failed}");
    assert!(!format!("{failed}").contains(CANARY), "{failed}");
    for args in [
        &["history"][..],
        &["events"],
        &["events", "--audit"],
        &["why", "secf/api"],
        &["plan"],
        &["status"],
        &["ps"],
        &["drift"],
    ] {
        for format in ["table", "json"] {
            let mut all = args.to_vec();
            all.extend(["-o", format]);
            let said = fleet.mcp(&all).to_string();
            assert!(!said.contains(CANARY), "{said}");
        }
    }
    let history = fleet.mcp(&["history", "-o", "json"]).to_string();
    assert!(history.contains("(secret)"), "{history}");
    eventually("the alert came", Duration::from_secs(60), || {
        Ok(fs::read_to_string(&got)
            .is_ok_and(|text| text.contains("\"failed") || text.contains("condition"))
            .then_some(()))
    })
    .unwrap();
    // Registry with its log, outbox, alerts, the agent's own log; the engine keeps what the program printed itself.
    assert_eq!(files_with(fleet.node(node).dir(), CANARY), "");
    assert_eq!(files_with(fleet.home(), CANARY), "");
}

/// What `mcp secret set` refuses it refuses before a node is asked or anything is written.
pub(crate) fn a_value_that_will_not_do_leaves_nothing_behind(lane: Lane) {
    let node = "secg";
    let mut fleet = Fleet::with_node(lane, node).unwrap();
    fleet.write(
        &format!("services/{node}.toml"),
        &service(node, node, &[component("api", "v1", "")]),
    );
    // Whoever asked a node would say that it is away.
    fleet.node_mut(node).terminate().unwrap();
    let large = "x".repeat(64 * 1024 + 1);
    for (value, says) in [(large.as_str(), "at most 65536"), ("", "is empty")] {
        fleet
            .mcp_with(&["secret", "set", node, "db"], Some(value))
            .unwrap()
            .exits(64)
            .says(says);
    }
    fleet
        .mcp_with(&["secret", "set", node, "../db"], Some("value"))
        .unwrap()
        .exits(64);
    for path in [".mcp/recipients", "secrets"] {
        assert!(!fleet.repo().join(path).exists(), "{path}");
    }
    fleet.node_mut(node).serve().unwrap();
    let trimmed = format!("{}\r\n", "x".repeat(64 * 1024));
    fleet
        .mcp_with(&["secret", "set", node, "db", "--trim"], Some(&trimmed))
        .unwrap()
        .ok();
    assert!(fleet.repo().join(".mcp/recipients").is_file());
}

/// A secret goes with its service to a node that is added, and only to one whose recipient an owner signed.
pub(crate) fn a_secret_moves_with_its_service_and_to_no_node_that_was_not_signed(lane: Lane) {
    let (old, new) = ("sech", "seci");
    let mut fleet = fleet(lane, old, "goes along", "");
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, old);
    fleet.add_node(lane.shared(), new).unwrap();
    let file = format!("services/{old}.toml");
    fleet.edit(
        &file,
        &format!("node = \"{old}\""),
        &format!("node = \"{new}\""),
    );
    let refused = fleet.mcp(&["sync"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(
        format!("{refused}").contains(&format!("it is not encrypted to {new}")),
        "{refused}"
    );
    // The old node knows of no owner who signed the new one's recipient.
    let unsigned = fleet.mcp(&["secret", "rekey", old]).exits(1);
    assert!(
        format!("{unsigned}").contains("does not give"),
        "{unsigned}"
    );
    fleet.git(&["checkout", "--", &file]);
    fleet.mcp(&["secret", "rekey", "--accept", new]).ok();
    fleet.mcp(&["sync"]).ok();
    fleet.edit(
        &file,
        &format!("node = \"{old}\""),
        &format!("node = \"{new}\""),
    );
    fleet.mcp(&["secret", "rekey", old, "db"]).ok();
    fleet.mcp(&["sync"]).ok();
    // The one that ran it cannot open the new file; the new one can.
    let engine = fleet.node(old).engine();
    fleet.mcp(&["--node", old, "purge", "--yes"]).ok();
    eventually("the old one is gone", Duration::from_secs(60), || {
        let running = fleet.node(old).running()?;
        Ok(running.is_empty().then_some(()))
    })
    .unwrap();
    deploy(&fleet, old);
    let value = engine
        .cli(&["exec", &format!("{old}-api"), "cat", "/run/secrets/db"])
        .unwrap();
    assert_eq!(value.trim_end(), "goes along");
    // A node that leaves takes nothing away from the one that has it.
    fleet.mcp(&["node", "remove", old]).ok();
    fleet.mcp(&["secret", "rekey", "--all"]).ok();
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["plan", "--exit-code"]).exits(0);
}

/// A sealed file that was changed, or copied from another place, is refused with its name; what runs goes on.
pub(crate) fn a_sealed_file_that_was_tampered_with_deploys_nothing(lane: Lane) {
    let node = "secj";
    let fleet = fleet(lane, node, "as it was", "");
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let api = id(&fleet, node, "api");
    let path = format!("secrets/{node}/db.age");
    let file = fleet.repo().join(&path);
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&file, &bad).unwrap();
    fleet.mcp(&["sync"]).ok();
    let plan = fleet.mcp(&["plan", node]);
    assert!(
        format!("{plan}").contains(&format!("the secret {node}/db cannot be opened")),
        "{plan}"
    );
    let deployed = fleet.mcp(&["deploy", node, "--yes"]);
    assert_ne!(deployed.code, Some(0), "{deployed}");
    assert!(
        format!("{deployed}").contains("mcp secret set"),
        "the mend is told: {deployed}"
    );
    assert_eq!(id(&fleet, node, "api"), api);
    // What is no age file at all does not get as far.
    fs::write(&file, "plain text").unwrap();
    let refused = fleet.mcp(&["sync"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(
        format!("{refused}").contains("no encrypted secret"),
        "{refused}"
    );
    // Another secret's file in its place.
    set(&fleet, node, "other", "another value");
    fs::copy(
        fleet.repo().join(format!("secrets/{node}/other.age")),
        &file,
    )
    .unwrap();
    fleet.mcp(&["sync"]).ok();
    let plan = fleet.mcp(&["plan", node]);
    assert!(
        format!("{plan}").contains("lies where it does not belong"),
        "{plan}"
    );
    fs::write(&file, &good).unwrap();
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["plan", node, "--exit-code"]).exits(0);
    assert_eq!(id(&fleet, node, "api"), api);
}

/// Neither a viewer, nor a signer of another service, nor an owner's key without the other's word gets anywhere.
pub(crate) fn those_who_may_not_neither_read_nor_write_a_secret(lane: Lane) {
    let node = "seck";
    let fleet = fleet(lane, node, "not for bob", "");
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    fleet.log_in(node, "alice", "viewer").unwrap();
    let refused = fleet.mcp(&["secret", "rekey", "--all"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(format!("{refused}").contains("operator"), "{refused}");
    fleet.log_in(node, "alice", "operator").unwrap();

    let key = fleet.home().join("bob");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "bob", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let signers = fleet.repo().join(".mcp/allowed_signers");
    let before = fs::read_to_string(&signers).unwrap();
    fs::write(
        &signers,
        format!("{before}bob namespaces=\"git,mcp-request,mcp-service-other\" {public}"),
    )
    .unwrap();
    fleet.mcp(&["sync"]).ok();
    fleet.log_in(node, "bob", "operator").unwrap();
    let bob = key.to_str().unwrap();
    let refused = fleet.mcp(&["--key", bob, "secret", "rekey", "--all", node]);
    assert_ne!(refused.code, Some(0), "{refused}");
    // He has a value of his own for the node's service, and signs it with stock git.
    fleet
        .mcp_with(&["secret", "set", node, "db"], Some("from bob"))
        .unwrap()
        .ok();
    let head = fleet.git(&["rev-parse", "HEAD"]);
    for (path, what) in [
        (format!("secrets/{node}/db.age"), "a secret"),
        (".mcp/recipients".to_owned(), "recipients"),
    ] {
        if path.starts_with(".mcp") {
            let file = fleet.repo().join(&path);
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("{text}# mine\n")).unwrap();
        }
        fleet.git(&["add", &path]);
        fleet.git(&[
            "-c",
            "gpg.format=ssh",
            "-c",
            &format!("user.signingkey={bob}"),
            "commit",
            "-q",
            "-S",
            "-m",
            what,
        ]);
        let refused = fleet.mcp(&["--key", bob, "sync"]);
        assert_ne!(refused.code, Some(0), "{what}: {refused}");
        fleet.git(&["reset", "-q", "--hard", &head]);
    }
    fleet.log_in(node, "alice", "operator").unwrap();
    fleet.mcp(&["plan", node, "--exit-code"]).exits(0);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "not for bob"
    );
}

/// An identity that is gone is told everywhere with its mend, and counts again as soon as it is back.
pub(crate) fn a_lost_identity_is_told_and_comes_back_without_a_restart(lane: Lane) {
    let node = "secl";
    let fleet = fleet(lane, node, "first", "");
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let api = id(&fleet, node, "api");
    let key = fleet.node(node).data_dir().join("age.key");
    let config = fleet.node(node).config();
    let check = || {
        let args = ["check", "--config", config.to_str().unwrap()];
        fleet.node(node).agent(&args).unwrap()
    };
    let good = check().ok();
    assert!(
        good.stdout.contains("identity") && good.stdout.contains("age1"),
        "{good}"
    );
    set(&fleet, node, "db", "second");
    fleet.mcp(&["sync"]).ok();
    let away = key.with_extension("away");
    fs::rename(&key, &away).unwrap();
    for told in [
        fleet.mcp(&["plan", node]),
        fleet.mcp(&["deploy", node, "--yes"]),
        fleet.mcp(&["node", "info", node]),
        fleet
            .mcp_with(&["secret", "set", node, "db"], Some("third"))
            .unwrap(),
        check(),
    ] {
        assert!(format!("{told}").contains("age.key is gone"), "{told}");
    }
    assert!(check().to_string().contains("put the file back"));
    assert_eq!(id(&fleet, node, "api"), api, "what runs goes on");
    fs::rename(&away, &key).unwrap();
    deploy(&fleet, node);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "second"
    );
}

/// A folder that others may change gets no value, and the refusal says what to do.
pub(crate) fn no_value_is_put_where_others_may_change_it(lane: Lane) {
    let node = "secm";
    let mut fleet = fleet(lane, node, "in the open", "");
    let folder = PathBuf::from(format!("/dev/shm/mcp-{node}-{}", std::process::id()));
    config(
        &mut fleet,
        node,
        &format!("\n[secrets]\ndir = {:?}\n", folder.to_str().unwrap()),
    );
    fleet.mcp(&["sync"]).ok();
    deploy(&fleet, node);
    let api = id(&fleet, node, "api");
    set(&fleet, node, "db", "another");
    fleet.mcp(&["sync"]).ok();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let plan = fleet.mcp(&["plan", node]);
    assert!(
        format!("{plan}").contains("others may change it (mode 0777)"),
        "{plan}"
    );
    let refused = fleet.mcp(&["deploy", node, "--yes"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(format!("{refused}").contains("chmod go-w"), "{refused}");
    assert_eq!(id(&fleet, node, "api"), api);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    deploy(&fleet, node);
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "another"
    );
    forget_memory(&fleet, node);
    // Something else in its place, as whoever is quicker after a reboot would have it.
    fs::remove_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/tmp", &folder).unwrap();
    let refused = fleet.mcp(&["restart", node]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(
        format!("{refused}").contains("it is a symlink"),
        "{refused}"
    );
    fs::remove_file(&folder).unwrap();
    fleet.mcp(&["restart", node]).ok();
    assert_eq!(
        read(&fleet, node, "api", "/run/secrets/db").trim_end(),
        "another"
    );
    drop(fleet);
    drop(fs::remove_dir(&folder));
}
