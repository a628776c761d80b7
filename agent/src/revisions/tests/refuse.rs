//! Refusals of who signed what: each by its own name, each without a trace.

use mcp_spec::signature::{AuthorisationError, DeniedKeys, fingerprint};

use super::super::{IntroductionFault, ReceiveError};
use super::scene::{OWNER, Scene, definition, make_key};

fn pushed() -> Scene {
    let scene = Scene::new();
    scene.push().unwrap();
    scene
}

#[test]
fn unsigned_commit_is_refused() {
    let scene = pushed();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let tip = scene.commit(None, "unsigned");
    assert!(matches!(scene.refused(), ReceiveError::Unsigned { commit } if commit == tip));
}

#[test]
fn unsigned_commit_in_the_middle_is_refused() {
    let scene = pushed();
    let middle = scene.commit(None, "unsigned");
    scene.commit(Some("kyle"), "signed");
    assert!(matches!(scene.refused(), ReceiveError::Unsigned { commit } if commit == middle));
}

#[test]
fn key_that_no_parent_names_is_refused() {
    let scene = pushed();
    let parent = scene.tip();
    let tip = scene.commit(Some("eve"), "eve was here");
    let error = scene.refused();
    assert!(matches!(
        &error,
        ReceiveError::UnknownSigner { commit, parent: by, fingerprint: print }
            if *commit == tip && *by == parent && *print == fingerprint(&scene.public("eve"))
    ));
    assert!(error.to_string().contains(&tip.short()));
}

#[test]
fn key_cannot_add_itself() {
    let scene = pushed();
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("eve", "git,mcp-owner")]);
    scene.commit(Some("eve"), "let me in");
    assert_eq!(scene.refused().name(), "unknown-signer");
}

#[test]
fn key_added_by_an_owner_may_sign_from_then_on_and_a_removed_one_may_not() {
    let scene = pushed();
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("eve", "git")]);
    scene.commit(Some(OWNER), "eve instead of kyle");
    scene.commit(Some("eve"), "eve");
    scene.push().unwrap();
    scene.commit(Some("kyle"), "kyle");
    assert_eq!(scene.refused().name(), "unknown-signer");
}

#[test]
fn change_of_the_trust_needs_an_owner() {
    let scene = pushed();
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("kyle", "git,mcp-owner")]);
    scene.commit(Some("kyle"), "kyle for president");
    assert!(matches!(
        scene.refused(),
        ReceiveError::Unauthorised {
            fault: AuthorisationError::NotOwner { .. },
            ..
        }
    ));
}

#[test]
fn signers_are_neither_deleted_nor_left_without_an_owner_nor_broken() {
    for (text, name) in [
        (None, "unauthorised"),
        (Some("kyle git"), "unauthorised"),
        (Some("nonsense\n"), "bad-signers"),
    ] {
        let scene = pushed();
        match text {
            None => scene.remove(".mcp/allowed_signers"),
            Some("kyle git") => scene.write_signers(&[("kyle", "git")]),
            Some(text) => scene.write(".mcp/allowed_signers", text),
        }
        scene.write("services/shop.toml", &definition("shop", "v2"));
        scene.commit(Some(OWNER), "trust");
        assert_eq!(scene.refused().name(), name, "{text:?}");
    }
}

#[test]
fn limited_signer_changes_its_service_alone() {
    let scene = Scene::empty();
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("kyle", "git,mcp-service-shop")]);
    scene.write("services/shop.toml", &definition("shop", "v1"));
    scene.write("services/cart.toml", &definition("cart", "v1"));
    scene.commit(Some(OWNER), "first");
    scene.push().unwrap();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.write("files/shop/conf", "x");
    scene.commit(Some("kyle"), "shop");
    scene.push().unwrap();
    scene.write("services/cart.toml", &definition("cart", "v2"));
    scene.commit(Some("kyle"), "cart");
    assert!(matches!(
        scene.refused(),
        ReceiveError::Unauthorised {
            fault: AuthorisationError::OutsideServices { path, .. },
            ..
        } if path == "services/cart.toml"
    ));
}

#[test]
fn denied_key_signs_nothing_new_and_its_past_stays() {
    let mut scene = Scene::new();
    scene.push().unwrap();
    let past = scene.commit(Some("kyle"), "before");
    scene.push().unwrap();
    let mut trust = scene.trust(&[OWNER]);
    trust.denied = DeniedKeys::parse(&fingerprint(&scene.public("kyle"))).unwrap();
    scene.store.set_trust(trust.clone());
    scene.commit(Some("kyle"), "after");
    assert!(matches!(scene.refused(), ReceiveError::DeniedKey { .. }));
    // A restart with the denylist, even without the list of accepted commits, keeps the past.
    std::fs::remove_file(scene.data().join("accepted-commits")).unwrap();
    scene.restart_with(trust);
    assert_eq!(scene.store.trouble(), None);
    assert!(scene.store.is_accepted(past));
    assert_eq!(scene.refused().name(), "denied-key");
}

#[test]
fn denied_owner_introduces_nothing() {
    let scene = Scene::new();
    let mut trust = scene.trust(&[OWNER]);
    trust.denied = DeniedKeys::parse(&fingerprint(&scene.public(OWNER))).unwrap();
    scene.store.set_trust(trust);
    assert_eq!(scene.refused().name(), "denied-key");
}

#[test]
fn history_without_an_owners_signature_is_not_introduced() {
    let fault = |scene: &Scene| match scene.refused() {
        ReceiveError::NoIntroduction { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let scene = Scene::empty();
    scene.write("services/shop.toml", &definition("shop", "v1"));
    scene.commit(Some(OWNER), "no signers");
    assert_eq!(fault(&scene), IntroductionFault::NoSigners);
    scene.write_signers(&[("eve", "git,mcp-owner")]);
    let unsigned = scene.commit(None, "unsigned");
    assert_eq!(fault(&scene), IntroductionFault::Unsigned(unsigned));

    let scene = Scene::empty();
    scene.write_signers(&[("eve", "git,mcp-owner"), (OWNER, "git,mcp-owner")]);
    scene.commit(Some("eve"), "eve's");
    assert!(matches!(fault(&scene), IntroductionFault::NotOwner { .. }));

    let scene = Scene::empty();
    scene.write_signers(&[(OWNER, "git")]);
    scene.commit(Some(OWNER), "nobody owns it");
    assert!(matches!(fault(&scene), IntroductionFault::NoOwner(_)));
}

#[test]
fn older_unrelated_and_forked_revisions_are_refused_by_name() {
    let scene = pushed();
    let first = scene.tip();
    let second = scene.commit(Some("kyle"), "second");
    scene.push().unwrap();
    let before = scene.fingerprint();
    let older = scene.receive(&scene.pack(None, first), Some(second), first);
    assert!(
        matches!(older, Err(ReceiveError::Older { commit, head }) if commit == first && head == second)
    );
    scene.assert_untouched(&before);

    scene.git(&["reset", "-q", "--hard", &first.to_string()]);
    let fork = scene.commit(Some("kyle"), "fork");
    let refused = scene.receive(&scene.pack(Some(first), fork), Some(second), fork);
    assert!(matches!(
        refused,
        Err(ReceiveError::NotFastForward { commit, head, common: Some(common) })
            if commit == fork && head == second && common == first
    ));
    scene.assert_untouched(&before);

    scene.git(&["checkout", "-q", "--orphan", "other"]);
    let orphan = scene.commit(Some(OWNER), "another history");
    let refused = scene.receive(&scene.pack(None, orphan), Some(second), orphan);
    assert!(matches!(refused, Err(ReceiveError::Unrelated { .. })));
    scene.assert_untouched(&before);
}

#[test]
fn root_merged_in_from_elsewhere_is_refused() {
    let scene = pushed();
    scene.git(&["checkout", "-q", "--orphan", "other"]);
    let orphan = scene.commit(Some(OWNER), "another history");
    scene.git(&["checkout", "-q", "main"]);
    scene.git(&[
        "merge",
        "-q",
        "-s",
        "ours",
        "--no-commit",
        "--allow-unrelated-histories",
        "other",
    ]);
    scene.commit_index(Some(OWNER), "merge");
    assert!(matches!(
        scene.refused(),
        ReceiveError::Unauthorised { commit, fault: AuthorisationError::NoParent } if commit == orphan
    ));
}

#[test]
fn branch_from_before_the_introduction_cannot_be_merged() {
    let scene = Scene::empty();
    scene.write("old.txt", "old\n");
    let old = scene.commit(None, "unsigned");
    scene.git(&["branch", "side"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner")]);
    scene.commit(Some(OWNER), "taken over");
    scene.push().unwrap();
    scene.git(&["checkout", "-q", "side"]);
    let side = scene.commit(Some(OWNER), "from before");
    scene.git(&["checkout", "-q", "main"]);
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    scene.commit_index(Some(OWNER), "merge");
    let error = scene.refused();
    assert!(
        matches!(&error, ReceiveError::BeforeIntroduction { commit, parent } if *commit == side && *parent == old)
            || matches!(&error, ReceiveError::Unauthorised { commit, .. } if *commit == old)
            || matches!(&error, ReceiveError::Unsigned { commit } if *commit == old),
        "{error}"
    );
}

#[test]
fn merge_cannot_undo_a_revocation() {
    let scene = pushed();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.commit(Some("kyle"), "work of kyle");
    scene.git(&["checkout", "-q", "main"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner")]);
    scene.commit(Some(OWNER), "kyle is gone");
    scene.push().unwrap();
    // The merge takes kyle's side of the file, and kyle signs it.
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("kyle", "git")]);
    scene.commit(Some("kyle"), "merge");
    assert_eq!(scene.refused().name(), "unknown-signer");
}

#[test]
fn push_upon_an_outdated_head_is_stale() {
    let scene = pushed();
    let first = scene.tip();
    let second = scene.commit(Some("kyle"), "second");
    scene.push().unwrap();
    let third = scene.commit(Some("kyle"), "third");
    let before = scene.fingerprint();
    for old in [None, Some(first)] {
        let refused = scene.receive(&scene.pack(old, third), old, third);
        assert!(matches!(
            refused,
            Err(ReceiveError::Stale { expected, head }) if expected == old && head == Some(second)
        ));
    }
    scene.assert_untouched(&before);
}

#[test]
fn of_two_racing_pushes_one_wins() {
    let scene = pushed();
    let base = scene.tip();
    let packs: Vec<_> = ["one", "other"]
        .iter()
        .map(|name| {
            scene.git(&["reset", "-q", "--hard", &base.to_string()]);
            let tip = scene.commit(Some("kyle"), name);
            (tip, scene.pack(Some(base), tip))
        })
        .collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = packs
            .iter()
            .map(|(tip, pack)| scope.spawn(|| scene.receive(pack, Some(base), *tip)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let won: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().ok())
        .collect();
    assert_eq!(won.len(), 1);
    assert_eq!(scene.store.head(), Some(won[0].head));
    assert!(
        results
            .iter()
            .any(|result| matches!(result, Err(ReceiveError::Stale { .. })))
    );
}

#[test]
fn commit_changed_after_signing_is_refused() {
    let scene = pushed();
    let tip = scene.commit(Some("kyle"), "pay 10");
    let raw = scene.git(&["cat-file", "commit", &tip.to_string()]);
    let forged = scene.hash_object("commit", raw.replace("pay 10", "pay 99").as_bytes());
    scene.git(&["update-ref", "refs/heads/main", &forged]);
    let error = scene.refused();
    assert_eq!(error.name(), "bad-signature");
    assert!(
        error.hint().contains("changed after it was signed"),
        "{}",
        error.hint()
    );
}

#[test]
fn signature_of_one_commit_does_not_fit_another() {
    let scene = pushed();
    let signed = scene.commit(Some("kyle"), "signed");
    let raw = scene.git(&["cat-file", "commit", &signed.to_string()]);
    let start = raw.find("gpgsig ").unwrap();
    let end = raw.find("\n\n").unwrap() + 1;
    scene.write("services/shop.toml", &definition("shop", "evil"));
    let unsigned = scene.commit(None, "other");
    let other = scene.git(&["cat-file", "commit", &unsigned.to_string()]);
    let forged = other.replacen("\n\n", &format!("\n{}\n", &raw[start..end]), 1);
    let forged = scene.hash_object("commit", forged.as_bytes());
    scene.git(&["update-ref", "refs/heads/main", &forged]);
    assert_eq!(scene.refused().name(), "bad-signature");
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let scene = pushed();
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-N", "", "-f", "ecdsa"])
        .current_dir(scene.dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    scene.commit(Some("ecdsa"), "ecdsa");
    assert_eq!(scene.refused().name(), "bad-signature");
}

#[test]
fn broken_definitions_at_the_tip_are_refused_and_in_between_they_are_not() {
    let scene = pushed();
    scene.write(
        "services/shop.toml",
        "name = \"shop\"\nnode = \"rift\"\ncomponents = 1\n",
    );
    scene.commit(Some("kyle"), "broken");
    let error = scene.refused();
    assert!(matches!(&error, ReceiveError::BadDefinitions { errors, .. } if !errors.is_empty()));
    assert!(
        error.to_string().contains("services/shop.toml:3:"),
        "{error}"
    );
    scene.write("services/shop.toml", &definition("shop", "v3"));
    scene.commit(Some("kyle"), "mended");
    scene.push().unwrap();
}

#[test]
fn owners_rotate_and_a_new_node_follows_the_new_one() {
    let mut scene = pushed();
    make_key(scene.dir.path(), "next");
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("next", "git,mcp-owner")]);
    scene.commit(Some(OWNER), "next owner");
    scene.write_signers(&[("next", "git,mcp-owner")]);
    let first_of_next = scene.commit(Some("next"), "old owner is gone");
    scene.push().unwrap();
    // A new node knows the new owner alone: history starts with that owner's first commit.
    std::fs::remove_dir_all(scene.data()).unwrap();
    super::super::RevisionStore::init(&scene.data()).unwrap();
    let trust = scene.trust(&["next"]);
    scene.restart_with(trust);
    let accepted = scene.push().unwrap();
    assert_eq!(accepted.new_commits[0].commit(), first_of_next);
}
