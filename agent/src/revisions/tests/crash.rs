//! A crash before each step of a promotion, and files that were lost or set back.

use std::{fs, io};

use super::super::door::Step;
use super::super::{HighWaterTrouble, OpenError, ReceiveError, RevisionStore};
use crate::testing::steps_of;

use super::scene::{OWNER, Scene, definition, make_key};
use mcp_spec::signature::{DeniedKeys, fingerprint};

const STEPS: [Step; 5] = [
    Step::MovePack,
    Step::MoveIndex,
    Step::WriteMark,
    Step::MoveHead,
    Step::AppendAccepted,
];

fn crash(scene: &Scene, step: Step) {
    *scene.store.crash_before.lock().unwrap() = Some((step, io::ErrorKind::Other));
    assert!(matches!(scene.push(), Err(ReceiveError::Io { .. })));
    // From the mark on the running agent stops taking changes, since the mark may be ahead.
    let stopped = !matches!(step, Step::MovePack | Step::MoveIndex);
    assert_eq!(scene.store.trouble().is_some(), stopped);
    assert_eq!(
        scene.push().is_err_and(|error| error.name() == "halted"),
        stopped
    );
    assert_eq!(scene.store.confirm().is_err(), stopped);
}

#[test]
fn each_step_of_a_promotion_lasts_before_the_next() {
    let scene = Scene::new();
    scene.push().unwrap();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.commit(Some("kyle"), "second");
    let steps = steps_of(|| drop(scene.push().unwrap()));
    // The quarantine's own name, and the pack's, are made up.
    let is_told = |step: &&String| !step.contains("quarantine/") && !step.contains("pack-");
    let told: Vec<&String> = steps.iter().filter(is_told).collect();
    let data = scene.data();
    let data = data.file_name().unwrap().to_str().unwrap();
    let expected = [
        "flush pack/".to_owned(),
        "flush high-water.lock".to_owned(),
        "rename high-water.lock to high-water".to_owned(),
        format!("flush {data}/"),
        // Its log first.
        "flush head".to_owned(),
        "flush head.lock".to_owned(),
        "rename head.lock to head".to_owned(),
        "flush mcp/".to_owned(),
        "flush accepted-commits".to_owned(),
    ];
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    let place = |what: &str| {
        steps
            .iter()
            .position(|step| step.starts_with(what))
            .unwrap()
    };
    assert!(place("flush pack-") < place("rename pack-"));
    assert!(place("rename pack-") < place("flush pack/"));
}

#[test]
fn crash_at_any_step_of_the_first_push_heals_at_the_next_start() {
    for step in STEPS {
        let mut scene = Scene::new();
        crash(&scene, step);
        scene.restart();
        assert_eq!(scene.store.trouble(), None, "{step:?}");
        let finished = matches!(step, Step::MoveHead | Step::AppendAccepted);
        assert_eq!(
            scene.store.head(),
            finished.then(|| scene.tip()),
            "{step:?}"
        );
        scene.push().unwrap();
        assert_eq!(scene.store.accepted_since(None).unwrap().len(), 1);
        scene.restart();
        assert_eq!(scene.store.head(), Some(scene.tip()));
    }
}

#[test]
fn crash_at_any_step_of_a_later_push_heals_and_healing_twice_changes_nothing() {
    for step in STEPS {
        let mut scene = Scene::new();
        scene.push().unwrap();
        let first = scene.tip();
        scene.commit(Some("kyle"), "second");
        scene.write("services/shop.toml", &definition("shop", "v3"));
        let tip = scene.commit(Some("kyle"), "third");
        crash(&scene, step);
        scene.restart();
        let finished = matches!(step, Step::MoveHead | Step::AppendAccepted);
        assert_eq!(
            scene.store.head(),
            Some(if finished { tip } else { first }),
            "{step:?}"
        );
        let count = scene.store.accepted_since(None).unwrap().len();
        assert_eq!(count, if finished { 3 } else { 1 });
        let before = scene.fingerprint();
        scene.restart();
        scene.assert_untouched(&before);
        scene.push().unwrap();
        assert_eq!(scene.store.head(), Some(tip));
        assert_eq!(scene.store.accepted_since(Some(first)).unwrap().len(), 2);
        scene.command("git", &["fsck", "--full"], &scene.store.repository());
    }
}

#[test]
fn push_that_met_a_full_disk_is_taken_up_by_the_next_one() {
    for step in STEPS {
        let mut scene = Scene::new();
        scene.push().unwrap();
        let tip = scene.commit(Some("kyle"), "second");
        let fails = |kind| *scene.store.crash_before.lock().unwrap() = kind;
        fails(Some((step, io::ErrorKind::StorageFull)));
        assert!(matches!(scene.push(), Err(ReceiveError::Io { .. })));
        assert!(!scene.store.in_doubt.is_cancelled(), "{step:?}");
        fails(None);
        scene.push().unwrap();
        assert_eq!(scene.store.trouble(), None, "{step:?}");
        assert_eq!(scene.store.head(), Some(tip), "{step:?}");
        scene.restart();
        assert_eq!(scene.store.head(), Some(tip), "{step:?}");
        assert_eq!(scene.store.accepted_since(None).unwrap().len(), 2);
    }
}

#[test]
fn mark_ahead_by_what_was_never_verified_stops_changes() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let head = scene.tip();
    let forged = scene.commit(Some("eve"), "forged");
    // Its objects are there, as after a break-in, and the mark names it.
    let pack = scene.pack(Some(head), forged);
    scene.feed(
        "git",
        &["unpack-objects", "-q"],
        &scene.store.repository(),
        &pack,
    );
    fs::write(scene.data().join("high-water"), format!("{forged}\n")).unwrap();
    scene.restart();
    assert!(matches!(
        scene.store.trouble(),
        Some(HighWaterTrouble::Unverified { .. })
    ));
    assert_eq!(scene.store.head(), Some(head));
    assert!(scene.store.read_definitions(head).is_ok());
    assert!(scene.store.read_definitions(forged).is_err());
    scene.git(&["reset", "-q", "--hard", &head.to_string()]);
    scene.commit(Some("kyle"), "next");
    assert_eq!(scene.push().unwrap_err().name(), "halted");
    scene.store.confirm().unwrap();
    scene.push().unwrap();
}

#[test]
fn head_that_was_set_back_stops_changes_until_confirmed() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let first = scene.tip();
    let second = scene.commit(Some("kyle"), "second");
    scene.push().unwrap();
    let head = scene.store.repository().join("refs/mcp/head");

    // The ref alone is older: the mark is ahead by a verified descendant, and heals it.
    fs::write(&head, format!("{first}\n")).unwrap();
    scene.restart();
    assert_eq!(scene.store.head(), Some(second));

    // The mark is older than the ref: somebody put an old file back.
    fs::write(scene.data().join("high-water"), format!("{first}\n")).unwrap();
    scene.restart();
    assert!(matches!(
        scene.store.trouble(),
        Some(HighWaterTrouble::Diverged { .. })
    ));
    scene.store.confirm().unwrap();
    scene.restart();
    assert_eq!(scene.store.trouble(), None);

    fs::remove_file(scene.data().join("high-water")).unwrap();
    scene.restart();
    assert!(matches!(
        scene.store.trouble(),
        Some(HighWaterTrouble::MarkMissing { .. })
    ));
    scene.store.confirm().unwrap();
    fs::write(scene.data().join("high-water"), "garbage").unwrap();
    scene.restart();
    assert!(matches!(
        scene.store.trouble(),
        Some(HighWaterTrouble::MarkGarbled)
    ));
}

#[test]
fn emptied_repository_is_not_filled_with_another_history() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    fs::remove_dir_all(scene.store.repository()).unwrap();
    let missing = RevisionStore::open(&scene.data(), scene.trust(&[OWNER]));
    assert!(matches!(missing, Err(OpenError::Missing { .. })));
    RevisionStore::init(&scene.data()).unwrap();
    scene.restart();
    assert!(matches!(
        scene.store.trouble(),
        Some(HighWaterTrouble::SetBack { head: None, .. })
    ));
    let mark = scene.tip();
    scene.git(&["checkout", "-q", "--orphan", "other"]);
    let other = scene.commit(Some(OWNER), "another history");
    let refused = scene.receive(&scene.pack(None, other), None, other);
    assert_eq!(refused.unwrap_err().name(), "halted");
    // Its own history ends the trouble, at the mark or past it.
    scene.git(&["checkout", "-q", "main"]);
    let past = scene.commit(Some("kyle"), "past it");
    let accepted = scene.receive(&scene.pack(None, past), None, past).unwrap();
    assert!(accepted.new_commits.iter().any(|new| new.commit() == mark));
    assert_eq!(scene.store.trouble(), None);
    scene.restart();
    assert_eq!(
        (scene.store.head(), scene.store.trouble()),
        (Some(past), None)
    );
}

#[test]
fn past_of_a_key_that_was_denied_since_comes_back_to_an_emptied_repository() {
    let mut scene = Scene::new();
    scene.commit(Some("kyle"), "before the theft");
    scene.push().unwrap();
    // The owner's key was replaced, the thief's is denied, and the disk is lost.
    make_key(scene.dir.path(), "next");
    scene.write_signers(&[("next", "git,mcp-owner")]);
    let past = scene.commit(Some(OWNER), "rotated");
    scene.push().unwrap();
    let mut trust = scene.trust(&["next"]);
    let denied = format!(
        "{}\n{}\n",
        fingerprint(&scene.public("kyle")),
        fingerprint(&scene.public(OWNER))
    );
    trust.denied = DeniedKeys::parse(&denied).unwrap();
    fs::remove_dir_all(scene.store.repository()).unwrap();
    RevisionStore::init(&scene.data()).unwrap();
    scene.restart_with(trust.clone());
    // What was not accepted before is refused, with the past before it.
    scene.git(&["checkout", "-q", "-b", "forged", &past.to_string()]);
    let forged = scene.commit(Some(OWNER), "forged");
    let refused = scene.receive(&scene.pack(None, forged), None, forged);
    assert_eq!(refused.unwrap_err().name(), "denied-key");
    scene.git(&["checkout", "-q", "main"]);
    let accepted = scene.receive(&scene.pack(None, past), None, past).unwrap();
    assert_eq!(accepted.new_commits.len(), 3, "from its old beginning");
    assert_eq!(scene.store.trouble(), None);
    scene.restart_with(trust);
    assert_eq!(
        (scene.store.head(), scene.store.trouble()),
        (Some(past), None)
    );
}

#[test]
fn past_that_the_registry_alone_remembers_comes_back_too() {
    let mut scene = Scene::new();
    let past = scene.commit(Some("kyle"), "before the theft");
    scene.push().unwrap();
    let commits: Vec<_> = scene
        .store
        .accepted_since(None)
        .unwrap()
        .iter()
        .map(super::super::VerifiedRevision::commit)
        .collect();
    let mut trust = scene.trust(&[OWNER]);
    trust.denied = DeniedKeys::parse(&fingerprint(&scene.public("kyle"))).unwrap();
    fs::remove_dir_all(scene.data()).unwrap();
    RevisionStore::init(&scene.data()).unwrap();
    scene.restart_with(trust);
    scene.store.remember(commits.clone());
    assert_eq!(scene.refused().name(), "denied-key", "nothing is awaited");
    scene.store.hold_against(Some(past));
    scene.store.remember(commits);
    scene.push().unwrap();
    assert_eq!(scene.store.head(), Some(past));
}

#[test]
fn repository_that_was_set_back_takes_back_what_it_lacks_and_nothing_else() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let old = scene.tip();
    let aside = scene.data().join("repo.old");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.unwrap().success());
    };
    copy(&scene.store.repository(), &aside);
    let lost = scene.commit(Some("kyle"), "second");
    scene.push().unwrap();
    fs::remove_dir_all(scene.store.repository()).unwrap();
    copy(&aside, &scene.store.repository());
    scene.restart();
    let trouble = HighWaterTrouble::SetBack {
        known: lost,
        head: Some(old),
    };
    assert_eq!(scene.store.trouble(), Some(trouble));
    scene.git(&["checkout", "-q", "-b", "fork", &old.to_string()]);
    let fork = scene.commit(Some("kyle"), "another second");
    let refused = scene.receive(&scene.pack(Some(old), fork), Some(old), fork);
    assert_eq!(refused.unwrap_err().name(), "halted");
    let accepted = scene.receive(&scene.pack(Some(old), lost), Some(old), lost);
    assert_eq!(accepted.unwrap().head, lost);
    assert_eq!(scene.store.trouble(), None);

    // Where nobody has it any more, an operator confirms what there is.
    fs::remove_dir_all(scene.store.repository()).unwrap();
    copy(&aside, &scene.store.repository());
    scene.restart();
    scene.store.confirm().unwrap();
    scene.restart();
    assert_eq!(
        (scene.store.head(), scene.store.trouble()),
        (Some(old), None)
    );
    let accepted = scene.receive(&scene.pack(Some(old), fork), Some(old), fork);
    assert_eq!(accepted.unwrap().head, fork);
}

#[test]
fn registry_that_knows_more_than_the_repository_stops_changes() {
    let scene = Scene::new();
    scene.push().unwrap();
    let lost = scene.commit(Some("kyle"), "second");
    scene.store.hold_against(Some(lost));
    assert_eq!(
        scene.store.trouble().and_then(|trouble| trouble.awaits()),
        Some(lost)
    );
    scene.push().unwrap();
    assert_eq!(scene.store.trouble(), None);
    scene.store.hold_against(Some(lost));
    assert_eq!(scene.store.trouble(), None);
}

#[test]
fn garbled_head_is_read_from_the_mark() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let head = scene.store.head();
    for garbage in ["garbage\n", ""] {
        fs::write(scene.store.repository().join("refs/mcp/head"), garbage).unwrap();
        scene.restart();
        assert_eq!((scene.store.head(), scene.store.trouble()), (head, None));
    }
}

#[test]
fn lost_list_of_accepted_commits_is_rebuilt() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    scene.commit(Some("kyle"), "second");
    scene.push().unwrap();
    let list = scene.data().join("accepted-commits");
    let whole = fs::read(&list).unwrap();
    for damaged in [
        None,
        Some(&b"garbage\n"[..]),
        Some(&whole[..whole.len() - 3]),
    ] {
        match damaged {
            None => fs::remove_file(&list).unwrap(),
            Some(bytes) => fs::write(&list, bytes).unwrap(),
        }
        scene.restart();
        assert_eq!(scene.store.trouble(), None);
        assert_eq!(fs::read(&list).unwrap(), whole);
        assert_eq!(scene.store.accepted_since(None).unwrap().len(), 2);
    }
}

#[test]
fn leftovers_of_a_crash_are_cleared_at_start() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let before = scene.fingerprint();
    let repository = scene.store.repository();
    for path in [
        "refs/mcp/head.lock",
        "objects/pack/pack-1.pack",
        "config.lock",
    ] {
        fs::write(repository.join(path), "stale").unwrap();
    }
    fs::write(scene.data().join("high-water.lock"), "stale").unwrap();
    fs::create_dir_all(scene.data().join("quarantine/pack-x")).unwrap();
    fs::write(scene.data().join("quarantine/pack-x/incoming"), "stale").unwrap();
    scene.restart();
    scene.assert_untouched(&before);
    scene.commit(Some("kyle"), "next");
    scene.push().unwrap();
}

#[test]
fn repository_that_borrows_or_replaces_objects_is_not_opened() {
    let scene = Scene::new();
    scene.push().unwrap();
    for path in [
        "objects/info/alternates",
        "shallow",
        "info/grafts",
        "refs/replace",
    ] {
        let path = scene.store.repository().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        let refused = RevisionStore::open(&scene.data(), scene.trust(&[OWNER]));
        assert!(matches!(refused, Err(OpenError::Foreign { .. })));
        fs::remove_file(&path).unwrap();
    }
    let (head, path) = (scene.tip(), scene.store.repository().join("packed-refs"));
    let packed = format!("# pack-refs with: peeled\n{head} refs/replace/{head}\n");
    fs::write(&path, packed).unwrap();
    let refused = RevisionStore::open(&scene.data(), scene.trust(&[OWNER]));
    assert!(matches!(refused, Err(OpenError::Foreign { path: found }) if found == path));
}

#[test]
fn many_packs_become_one_at_start_and_nothing_is_lost() {
    let mut scene = Scene::empty();
    scene.write("old.txt", "old\n");
    scene.commit(None, "unsigned");
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("kyle", "git")]);
    scene.commit(Some(OWNER), "first");
    scene.push().unwrap();
    let packs = |scene: &Scene| {
        let dir = scene.store.repository().join("objects/pack");
        fs::read_dir(dir).unwrap().count() / 2
    };
    for number in 0..51 {
        scene.write(
            "services/shop.toml",
            &definition("shop", &format!("v{number}")),
        );
        scene.commit(Some("kyle"), "next");
        scene.push().unwrap();
    }
    assert_eq!(packs(&scene), 52);
    scene.restart();
    assert_eq!(packs(&scene), 1);
    assert_eq!(scene.store.accepted_since(None).unwrap().len(), 52);
    scene.command(
        "git",
        &["fsck", "--full", "--strict"],
        &scene.store.repository(),
    );
    scene.write("services/shop.toml", &definition("shop", "last"));
    scene.commit(Some("kyle"), "last");
    scene.push().unwrap();
}
