//! Changes in disguise: what a key may not do, dressed up as what it may.

use mcp_spec::signature::{AllowedSigners, AuthorisationError};

use super::super::ReceiveError;
use super::scene::{OWNER, Scene, definition};

/// A repository in which `kyle` signs for shop alone, and `eve` for everything but the trust.
fn limited() -> Scene {
    let scene = Scene::empty();
    scene.write_signers(&[
        (OWNER, "git,mcp-owner"),
        ("kyle", "git,mcp-service-shop"),
        ("eve", "git"),
    ]);
    for service in ["shop", "cart"] {
        scene.write(
            &format!("services/{service}.toml"),
            &definition(service, "v1"),
        );
        scene.write(&format!("files/{service}/conf"), "x");
    }
    scene.commit(Some(OWNER), "first");
    scene.push().unwrap();
    scene
}

fn fault(scene: &Scene) -> AuthorisationError {
    match scene.refused() {
        ReceiveError::Unauthorised { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn limited_signer_reaches_no_other_service_by_a_rename() {
    for (from, to) in [
        ("services/cart.toml", "services/shop.toml"),
        ("services/shop.toml", "services/cart.toml"),
        ("files/cart/conf", "files/shop/stolen"),
        ("files/shop/conf", "files/cart/planted"),
        ("files/shop/conf", "files/shop2/planted"),
        ("files/shop/conf", "conf"),
        ("files/shop/conf", "secrets/shop"),
    ] {
        let scene = limited();
        std::fs::create_dir_all(scene.work().join(to).parent().unwrap()).unwrap();
        scene.git(&["mv", "-f", from, to]);
        scene.commit(Some("kyle"), "a rename");
        assert!(
            matches!(fault(&scene), AuthorisationError::OutsideServices { .. }),
            "{from} -> {to}"
        );
    }
}

#[test]
fn limited_signer_reaches_no_other_service_by_a_folder_a_mode_or_a_deletion() {
    // A folder in the place of a file, a file in the place of a folder, the executable bit, a removal.
    let disguises: [&dyn Fn(&Scene); 4] = [
        &|scene| {
            scene.remove("services/shop.toml");
            scene.write("services/shop.toml/cart.toml", "x");
        },
        &|scene| {
            std::fs::remove_dir_all(scene.work().join("files/shop")).unwrap();
            scene.write("files/shop", "x");
        },
        &|scene| {
            scene.git(&["update-index", "--chmod=+x", "services/cart.toml"]);
        },
        &|scene| scene.remove("files/cart/conf"),
    ];
    for disguise in disguises {
        let scene = limited();
        scene.git(&["config", "core.fileMode", "false"]);
        disguise(&scene);
        scene.commit(Some("kyle"), "a disguise");
        assert!(matches!(
            fault(&scene),
            AuthorisationError::OutsideServices { .. }
        ));
    }
}

#[test]
fn limited_signer_hides_nothing_between_two_commits_that_cancel_out() {
    let scene = limited();
    scene.write("services/cart.toml", &definition("cart", "evil"));
    scene.commit(Some("kyle"), "out of bounds");
    scene.write("services/cart.toml", &definition("cart", "v1"));
    scene.commit(Some("kyle"), "as if nothing had been");
    assert!(matches!(
        fault(&scene),
        AuthorisationError::OutsideServices { .. }
    ));
}

#[test]
fn limited_signer_signs_no_merge_even_of_its_own_work() {
    let scene = limited();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.write("files/shop/conf", "y");
    scene.commit(Some("kyle"), "side");
    scene.git(&["checkout", "-q", "main"]);
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.commit(Some("kyle"), "main");
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    scene.commit_index(Some("kyle"), "merge");
    assert!(matches!(
        fault(&scene),
        AuthorisationError::LimitedMerge { .. }
    ));
}

#[test]
fn change_of_the_trust_on_one_side_of_a_merge_needs_an_owner_on_that_side() {
    let scene = limited();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("eve", "git,mcp-owner")]);
    let side = scene.commit(Some("eve"), "eve for president");
    scene.git(&["checkout", "-q", "main"]);
    scene.commit(Some(OWNER), "main");
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    // The owner does not look, and signs the merge.
    scene.commit_index(Some(OWNER), "merge");
    assert!(matches!(
        scene.refused(),
        ReceiveError::Unauthorised { commit, fault: AuthorisationError::NotOwner { .. } } if commit == side
    ));
}

#[test]
fn merge_takes_no_side_of_the_trust_without_an_owner() {
    let scene = limited();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.write("files/cart/conf", "y");
    scene.commit(Some("eve"), "side");
    scene.git(&["checkout", "-q", "main"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("eve", "git")]);
    scene.commit(Some(OWNER), "kyle is gone");
    scene.push().unwrap();
    // Merged as it should be, and with the older signers back: eve may sign neither, since either differs
    // from one of the parents.
    for back in [false, true] {
        scene.git(&["checkout", "-q", "-B", "merged", "main"]);
        scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
        if back {
            scene.git(&["checkout", "-q", "side", "--", ".mcp/allowed_signers"]);
        }
        scene.commit_index(Some("eve"), "merge");
        assert!(matches!(fault(&scene), AuthorisationError::NotOwner { .. }));
    }
    scene.git(&["checkout", "-q", "-B", "merged", "main"]);
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    scene.commit_index(Some(OWNER), "merge");
    scene.push().unwrap();
}

#[test]
fn evil_merge_changes_no_trust_that_neither_side_changed() {
    let scene = limited();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.write("files/cart/conf", "y");
    scene.commit(Some("eve"), "side");
    scene.git(&["checkout", "-q", "main"]);
    scene.write("services/cart.toml", &definition("cart", "v2"));
    scene.commit(Some("eve"), "main");
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner"), ("eve", "git,mcp-owner")]);
    scene.commit(Some("eve"), "merge");
    assert!(matches!(fault(&scene), AuthorisationError::NotOwner { .. }));
}

#[test]
fn line_that_git_reads_more_widely_than_we_do_is_refused() {
    let line = |scene: &Scene, namespaces: &[&str]| {
        AllowedSigners::line_for("kyle@example.net", &scene.public("kyle"), namespaces)
    };
    let lines: [&dyn Fn(&Scene) -> String; 5] = [
        // The same key twice: narrow here, wide there.
        &|scene| {
            format!(
                "{}\n{}\n",
                line(scene, &["git", "mcp-service-shop"]),
                line(scene, &["git"])
            )
        },
        &|scene| {
            line(scene, &["git"]).replace("namespaces", "valid-before=\"20200101\",namespaces")
        },
        &|scene| line(scene, &["git"]).replace("namespaces", "cert-authority,namespaces"),
        &|scene| line(scene, &["git"]).replace("kyle@example.net", "*"),
        &|scene| line(scene, &["git"]).replace("namespaces=\"git\" ", ""),
    ];
    for text in lines {
        let scene = limited();
        let owner = scene.signers_text(&[(OWNER, "git,mcp-owner")]);
        scene.write(
            ".mcp/allowed_signers",
            &format!("{owner}{}\n", text(&scene)),
        );
        scene.commit(Some(OWNER), "a line of another meaning");
        let error = scene.refused();
        assert!(
            matches!(&error, ReceiveError::BadSigners { fault, .. } if fault.line >= 2),
            "{error}"
        );
    }
}

#[test]
fn trust_under_another_spelling_is_refused() {
    for path in [
        ".MCP/allowed_signers",
        ".mcp/Allowed_Signers",
        ".mcp/shared.toml",
    ] {
        let scene = limited();
        scene.write(path, "x");
        scene.commit(Some("eve"), "another spelling");
        let name = scene.refused().name();
        assert!(
            matches!(name, "dot-mcp" | "alike-names" | "unauthorised"),
            "{path}: {name}"
        );
    }
}

#[test]
fn revoked_key_signs_nothing_new_whatever_it_builds_upon() {
    let scene = limited();
    let before = scene.tip();
    scene.write_signers(&[(OWNER, "git,mcp-owner")]);
    scene.commit(Some(OWNER), "eve is gone");
    scene.push().unwrap();
    // Upon the head she is unknown; upon what was before it the head does not descend.
    scene.commit(Some("eve"), "still here");
    assert_eq!(scene.refused().name(), "unknown-signer");
    scene.git(&["checkout", "-q", "-b", "past", &before.to_string()]);
    scene.commit(Some("eve"), "from the past");
    assert_eq!(scene.refused().name(), "not-fast-forward");
    // And she cannot merge it herself.
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "main~0"]);
    scene.commit_index(Some("eve"), "merge");
    assert_eq!(scene.refused().name(), "unknown-signer");
}

#[test]
fn limited_signer_shares_nothing_with_other_services_that_owners_do_not_list() {
    let joined = |network: &str| format!("{}network = \"{network}\"\n", definition("shop", "v1"));
    let scene = limited();
    let before = scene.tip();
    for network in ["cart", "backend", "bridge", "host"] {
        scene.write("services/shop.toml", &joined(network));
        scene.commit(Some("kyle"), "let me join");
        let error = scene.refused();
        assert!(
            matches!(&error, ReceiveError::BadDefinitions { errors, .. }
                if errors[0].file == "services/shop.toml" && errors[0].message.contains(network)),
            "{error}"
        );
        scene.git(&["reset", "-q", "--hard", &before.to_string()]);
    }
    // Taken back in the next commit it is in the history, and still deployed from nowhere.
    scene.write("services/shop.toml", &joined("cart"));
    let hidden = scene.commit(Some("kyle"), "let me join");
    scene.write("services/shop.toml", &definition("shop", "v1"));
    scene.commit(Some("kyle"), "never mind");
    scene.push().unwrap();
    let node = super::scene::node();
    assert!(scene.store.desired(hidden, &node).unwrap().is_err());
    assert!(scene.store.desired(scene.tip(), &node).unwrap().is_ok());
    // Nor does a draft reach further.
    let draft = [(
        "services/shop.toml".to_owned(),
        Some(joined("cart").into_bytes()),
    )];
    let drafted = scene.store.with_draft(scene.tip(), &draft).unwrap();
    assert!(
        drafted
            .compile_for_node(
                &node,
                &crate::secrets::Keyring::new(std::path::Path::new("/nonexistent"))
            )
            .is_err()
    );

    scene.write(".mcp/shared.toml", "[networks]\ncart = [\"shop\"]\n");
    scene.commit(Some("eve"), "eve is no owner");
    assert!(matches!(fault(&scene), AuthorisationError::NotOwner { .. }));
    scene.git(&["reset", "-q", "--hard", "HEAD~1"]);
    scene.write(".mcp/shared.toml", "[networks]\ncart = [\"shop\"]\n");
    scene.commit(Some(OWNER), "shared");
    scene.write("services/shop.toml", &joined("cart"));
    scene.commit(Some("kyle"), "joined");
    scene.push().unwrap();
    assert!(scene.store.desired(scene.tip(), &node).unwrap().is_ok());
    scene.write(".mcp/shared.toml", "[network]\n");
    scene.commit(Some(OWNER), "broken");
    assert!(matches!(
        scene.refused(),
        ReceiveError::BadDefinitions { errors, .. } if errors[0].file == ".mcp/shared.toml"
    ));
}
