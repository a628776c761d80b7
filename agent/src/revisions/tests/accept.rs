//! What is accepted, and what can be read of it afterwards.

use mcp_spec::image::Digest;
use mcp_spec::revision::ParsedCommit;
use mcp_spec::signature::{GIT_NAMESPACE, fingerprint, verify_sshsig};

use super::super::{ReadError, ResolveError, RevisionStore};
use super::scene::{OWNER, Scene, definition, node, now};

#[test]
fn signed_push_is_accepted_and_read_back() {
    let scene = Scene::new();
    let first = scene.tip();
    let accepted = scene.push().unwrap();
    assert_eq!((accepted.previous, accepted.head), (None, first));
    let revision = &accepted.new_commits[0];
    assert!(revision.is_introduction());
    assert_eq!(revision.principal(), "owner@example.net");
    assert_eq!(revision.fingerprint(), fingerprint(&scene.public(OWNER)));
    assert_eq!(revision.subject(), "shop: first");

    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.write("files/shop/shop.conf", "port = 1\n");
    scene.commit(Some("kyle"), "shop: v2");
    scene.write("README.md", "about\n");
    let tip = scene.commit(Some("kyle"), "readme");
    let accepted = scene.push().unwrap();
    assert_eq!(accepted.previous, Some(first));
    let subjects: Vec<_> = accepted.new_commits.iter().map(|r| r.subject()).collect();
    assert_eq!(subjects, ["shop: v2", "readme"]);
    assert_eq!(accepted.new_commits[1].principal(), "kyle@example.net");
    assert_eq!(scene.store.head(), Some(tip));

    let files = scene.store.read_definitions(tip).unwrap();
    assert_eq!(files.definitions()[0].path, "services/shop.toml");
    assert_eq!(
        files.digest("files/shop/shop.conf"),
        Some(Digest::of(b"port = 1\n"))
    );
    assert_eq!(files.digest("README.md"), None);
    let desired = files
        .compile_for_node(
            &node(),
            &crate::secrets::Keyring::new(std::path::Path::new("/nonexistent")),
        )
        .unwrap();
    assert_eq!(desired.services.len(), 1);
    let old = scene.store.read_definitions(first).unwrap();
    assert_eq!(
        old.definitions()[0].bytes,
        definition("shop", "v1").as_bytes()
    );
    assert_eq!(
        scene
            .store
            .read_file(tip, "files/shop/shop.conf")
            .unwrap()
            .as_deref(),
        Some(&b"port = 1\n"[..])
    );
    assert_eq!(
        scene
            .store
            .read_file(first, "files/shop/shop.conf")
            .unwrap(),
        None
    );
    assert_eq!(scene.store.read_file(tip, "files").unwrap(), None);
}

#[test]
fn head_that_is_there_already_is_accepted_without_a_pack() {
    let scene = Scene::new();
    scene.push().unwrap();
    let before = scene.fingerprint();
    let accepted = scene.receive(b"", None, scene.tip()).unwrap();
    assert!(accepted.new_commits.is_empty());
    assert_eq!(accepted.previous, Some(accepted.head));
    scene.assert_untouched(&before);
}

#[test]
fn stock_git_finds_what_was_accepted_in_order() {
    let scene = Scene::new();
    scene.push().unwrap();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.commit(Some("kyle"), "v2");
    scene.push().unwrap();
    let repository = scene.store.repository();
    scene.command("git", &["fsck", "--full", "--strict"], &repository);
    let log = scene.command(
        "git",
        &["log", "--format=%G?%s", "refs/mcp/head"],
        &repository,
    );
    assert_eq!(String::from_utf8(log).unwrap(), "Gv2\nGshop: first\n");
    let reflog = scene.command("git", &["reflog", "refs/mcp/head"], &repository);
    assert_eq!(String::from_utf8(reflog).unwrap().lines().count(), 2);
}

#[test]
fn our_verdict_on_git_signatures_is_that_of_git() {
    let scene = Scene::new();
    for (key, message) in [
        (OWNER, "one"),
        ("kyle", "zwei ü\n\nbody\n"),
        ("kyle", "three"),
    ] {
        let commit = scene.commit(Some(key), message);
        let raw = scene.command(
            "git",
            &["cat-file", "commit", &commit.to_string()],
            &scene.work(),
        );
        let parsed = ParsedCommit::parse(&raw).unwrap();
        let pem = parsed.signature.clone().unwrap();
        let found = verify_sshsig(&pem, GIT_NAMESPACE, &parsed.payload).unwrap();
        assert_eq!(fingerprint(&found), fingerprint(&scene.public(key)));
        scene.git(&["verify-commit", &commit.to_string()]);

        // ssh-keygen agrees on the same bytes, and so it does on changed ones.
        std::fs::write(scene.dir.path().join("pem"), pem.clone() + "\n").unwrap();
        let signers = scene.work().join(".mcp/allowed_signers");
        let principal = format!("{key}@example.net");
        let args = [
            "-Y",
            "verify",
            "-f",
            signers.to_str().unwrap(),
            "-I",
            &principal,
            "-n",
            "git",
            "-s",
            "pem",
        ];
        for (bytes, good) in [
            (parsed.payload.clone(), true),
            ([parsed.payload.as_slice(), b"x"].concat(), false),
        ] {
            let theirs = scene
                .try_feed("ssh-keygen", &args, scene.dir.path(), &bytes)
                .0;
            assert_eq!(theirs, good);
            assert_eq!(verify_sshsig(&pem, GIT_NAMESPACE, &bytes).is_ok(), good);
        }
    }
}

#[test]
fn repository_with_unsigned_history_is_taken_over() {
    let scene = Scene::empty();
    scene.write("old.txt", "old\n");
    std::os::unix::fs::symlink("old.txt", scene.work().join("link")).unwrap();
    let old = scene.commit(None, "unsigned");
    scene.write_signers(&[("eve", "git,mcp-owner")]);
    scene.commit(Some("eve"), "somebody else's signers");
    scene.remove("link");
    scene.write_signers(&[(OWNER, "git,mcp-owner")]);
    scene.write("services/shop.toml", &definition("shop", "v1"));
    let introduction = scene.commit(Some(OWNER), "taken over");
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let tip = scene.commit(Some(OWNER), "v2");
    let accepted = scene.push().unwrap();
    let subjects: Vec<_> = accepted.new_commits.iter().map(|r| r.subject()).collect();
    assert_eq!(subjects, ["taken over", "v2"]);
    assert!(accepted.new_commits[0].is_introduction());
    // What lies before is neither verified nor readable as a revision.
    assert!(matches!(
        scene.store.read_definitions(old),
        Err(ReadError::NotAccepted { .. })
    ));
    assert!(matches!(
        scene.store.resolve(&old.to_string()),
        Err(ResolveError::Unknown { .. })
    ));
    assert!(matches!(
        scene.store.resolve("HEAD~2"),
        Err(ResolveError::BeforeHistory { .. })
    ));
    assert_eq!(scene.store.resolve("HEAD~1").unwrap(), introduction);
    // A clone still gets the whole of it.
    let mut pack = Vec::new();
    assert_eq!(scene.store.pack_since(None, &mut pack).unwrap(), Some(tip));
    let clone = scene.dir.path().join("clone");
    scene.command("git", &["init", "-q", "--bare", "clone"], scene.dir.path());
    scene.feed("git", &["index-pack", "--stdin", "--strict"], &clone, &pack);
    scene.command(
        "git",
        &["update-ref", "refs/heads/main", &tip.to_string()],
        &clone,
    );
    scene.command("git", &["fsck", "--full", "--connectivity-only"], &clone);
    let count = scene.command("git", &["rev-list", "--count", "main"], &clone);
    assert_eq!(String::from_utf8(count).unwrap().trim(), "4");
}

#[test]
fn pinned_introduction_starts_the_history_there() {
    let mut scene = Scene::new();
    scene.write_signers(&[("kyle", "git,mcp-owner")]);
    scene.commit(Some(OWNER), "kyle takes over");
    let later = scene.commit(Some("kyle"), "later");
    let mut trust = scene.trust(&["eve"]);
    scene.restart_with(trust.clone());
    assert_eq!(scene.refused().name(), "no-introduction");
    trust.introduction = Some(later);
    scene.restart_with(trust.clone());
    let accepted = scene.push().unwrap();
    assert_eq!(accepted.new_commits.len(), 1);
    assert!(accepted.new_commits[0].is_introduction());

    let other = Scene::new();
    trust.introduction = Some(later);
    let _ = std::fs::remove_dir_all(other.data());
    RevisionStore::init(&other.data()).unwrap();
    let store = RevisionStore::open(&other.data(), trust).unwrap();
    let tip = other.tip();
    let refused = store.receive(
        other.pack(None, tip).as_slice(),
        None,
        tip,
        &node(),
        &super::super::Limits::default(),
        now(),
    );
    assert_eq!(refused.unwrap_err().name(), "no-introduction");
}

#[test]
fn merge_by_a_signer_without_limits_is_accepted() {
    let scene = Scene::new();
    scene.push().unwrap();
    scene.git(&["checkout", "-q", "-b", "side"]);
    scene.write("services/cart.toml", &definition("cart", "v1"));
    scene.commit(Some("kyle"), "cart");
    scene.git(&["checkout", "-q", "main"]);
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let main = scene.commit(Some("kyle"), "shop v2");
    scene.git(&["merge", "-q", "--no-ff", "--no-commit", "side"]);
    let merge = scene.commit_index(Some("kyle"), "merge");
    let accepted = scene.push().unwrap();
    assert_eq!(accepted.new_commits.len(), 3);
    assert_eq!(accepted.new_commits[2].parents().len(), 2);
    assert_eq!(scene.store.resolve("HEAD^").unwrap(), main);
    assert_eq!(scene.store.distance(main, merge), 2);
    assert_eq!(scene.store.commits_between(Some(main), merge).len(), 2);
    assert!(scene.store.is_ancestor(main, merge));
    assert!(!scene.store.is_ancestor(merge, main));
}

#[test]
fn revisions_are_found_by_short_id_and_path() {
    let scene = Scene::new();
    let first = scene.tip();
    assert_eq!(scene.store.resolve("HEAD"), Err(ResolveError::Empty));
    scene.push().unwrap();
    scene.write("services/cart.toml", &definition("cart", "v1"));
    let cart = scene.commit(Some("kyle"), "cart");
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let tip = scene.commit(Some("kyle"), "shop v2");
    scene.push().unwrap();
    for (rev, commit) in [
        ("HEAD".to_owned(), tip),
        ("@".to_owned(), tip),
        ("HEAD~".to_owned(), cart),
        ("HEAD~2".to_owned(), first),
        ("HEAD^^".to_owned(), first),
        (tip.short(), tip),
        (tip.short().to_uppercase(), tip),
        (format!("{}~1", tip.short()), cart),
        (first.to_string(), first),
    ] {
        assert_eq!(scene.store.resolve(&rev).unwrap(), commit, "{rev}");
    }
    for rev in [
        "",
        "HEAD~x",
        "main",
        "abc",
        "--all",
        "HEAD~99999999999999999999",
        "HEAD@{1}",
        "HEAD:x",
    ] {
        assert!(
            matches!(scene.store.resolve(rev), Err(ResolveError::Syntax { .. })),
            "{rev}"
        );
    }
    assert!(matches!(
        scene.store.resolve("0000000"),
        Err(ResolveError::Unknown { .. })
    ));
    let subjects = |paths: &[&str]| -> Vec<String> {
        let log = scene.store.log(10, paths).unwrap();
        log.iter().map(|r| r.subject().to_owned()).collect()
    };
    assert_eq!(subjects(&[]), ["shop v2", "cart", "shop: first"]);
    assert_eq!(
        subjects(&["services/shop.toml", "files/shop"]),
        ["shop v2", "shop: first"]
    );
    assert_eq!(subjects(&["services"]), ["shop v2", "cart", "shop: first"]);
    assert_eq!(subjects(&["services/cart.toml"]), ["cart"]);
    assert_eq!(subjects(&["nothing"]), Vec::<String>::new());
    assert_eq!(scene.store.log(1, &[]).unwrap().len(), 1);
    let since = scene.store.accepted_since(Some(first)).unwrap();
    assert_eq!(
        since.iter().map(|r| r.commit()).collect::<Vec<_>>(),
        [cart, tip]
    );
    assert_eq!(scene.store.accepted_since(None).unwrap().len(), 3);
}

#[test]
fn pack_since_brings_a_clone_up_to_date() {
    let scene = Scene::new();
    let first = scene.tip();
    scene.push().unwrap();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let tip = scene.commit(Some("kyle"), "v2");
    scene.push().unwrap();
    scene.command(
        "git",
        &[
            "clone",
            "-q",
            "--no-local",
            "--single-branch",
            "work",
            "clone",
        ],
        scene.dir.path(),
    );
    let clone = scene.dir.path().join("clone");
    scene.command(
        "git",
        &["reset", "-q", "--hard", &first.to_string()],
        &clone,
    );
    let mut pack = Vec::new();
    assert_eq!(
        scene.store.pack_since(Some(first), &mut pack).unwrap(),
        Some(tip)
    );
    scene.feed("git", &["unpack-objects", "-q"], &clone, &pack);
    scene.command("git", &["reset", "-q", "--hard", &tip.to_string()], &clone);
    let mut nothing = Vec::new();
    assert_eq!(
        scene.store.pack_since(Some(tip), &mut nothing).unwrap(),
        None
    );
    assert!(nothing.is_empty());
    let stranger = "0123456789012345678901234567890123456789".parse().unwrap();
    assert!(
        scene
            .store
            .pack_since(Some(stranger), &mut nothing)
            .is_err()
    );
}

#[test]
fn draft_is_laid_over_a_revision_in_memory() {
    let scene = Scene::new();
    let tip = scene.tip();
    scene.push().unwrap();
    let before = scene.fingerprint();
    let edits = [(
        "services/shop.toml".to_owned(),
        Some(definition("shop", "v9").into_bytes()),
    )];
    let draft = scene.store.with_draft(tip, &edits).unwrap();
    let desired = draft
        .compile_for_node(
            &node(),
            &crate::secrets::Keyring::new(std::path::Path::new("/nonexistent")),
        )
        .unwrap();
    let shop = desired.services.values().next().unwrap();
    assert_eq!(
        shop.components.values().next().unwrap().image.version(),
        "v9"
    );
    scene.assert_untouched(&before);
}
