//! Hostile objects and packs, built with git's plumbing or from raw bytes.

use std::time::Duration;

use mcp_spec::revision::CommitId;

use super::super::{Limits, ReceiveError};
use super::scene::{OWNER, Scene, definition};

fn pushed() -> Scene {
    let scene = Scene::new();
    scene.push().unwrap();
    scene
}

/// Commits a raw tree upon the tip, properly signed, without git looking at what is in it.
fn commit_tree(scene: &Scene, tree: &str, key: &str) -> CommitId {
    let signing = scene.dir.path().join(key).display().to_string();
    let config = format!("user.signingkey={signing}");
    let parent = scene.tip().to_string();
    let commit = scene.git(&[
        "-c",
        &config,
        "commit-tree",
        "-S",
        "-p",
        &parent,
        "-m",
        "odd",
        tree,
    ]);
    scene.git(&["update-ref", "refs/heads/main", commit.trim()]);
    commit.trim().parse().unwrap()
}

/// The tip's tree with one raw entry more.
fn tree_with(scene: &Scene, mode: &str, name: &[u8], id: &str) -> String {
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let listing = scene.git(&["ls-tree", "HEAD"]);
    for line in listing.lines() {
        let (meta, name) = line.split_once('\t').unwrap();
        let words: Vec<_> = meta.split(' ').collect();
        let mode = words[0].trim_start_matches('0');
        entries.push(entry(mode, name.as_bytes(), words[2]));
    }
    entries.push(entry(mode, name, id));
    entries.sort();
    let raw: Vec<u8> = entries.into_iter().flat_map(|(_, raw)| raw).collect();
    scene.hash_object("tree", &raw)
}

fn entry(mode: &str, name: &[u8], id: &str) -> (Vec<u8>, Vec<u8>) {
    let mut key = name.to_vec();
    if mode == "40000" {
        key.push(b'/');
    }
    let mut raw = [mode.as_bytes(), b" ", name, b"\0"].concat();
    raw.extend(hex::decode(id).unwrap());
    (key, raw)
}

/// A pack of all objects the scene's repository has: rev-list would stumble over odd trees.
fn everything(scene: &Scene) -> Vec<u8> {
    let all = scene.git(&[
        "cat-file",
        "--batch-all-objects",
        "--batch-check=%(objectname)",
    ]);
    let ids: Vec<_> = all.lines().collect();
    scene.pack_of(&ids)
}

fn refused_pack(scene: &Scene, pack: &[u8]) -> ReceiveError {
    refused_within(scene, pack, &Limits::default())
}

fn refused_within(scene: &Scene, pack: &[u8], limits: &Limits) -> ReceiveError {
    let before = scene.fingerprint();
    let error = scene
        .receive_within(pack, scene.store.head(), scene.tip(), limits)
        .unwrap_err();
    scene.assert_untouched(&before);
    error
}

#[test]
fn hostile_tree_entries_are_refused_by_name() {
    let blob_names: [(&str, &[u8], &str); 16] = [
        ("120000", b"link", "symbolic link"),
        ("100664", b"odd", "mode"),
        ("100644", b"..", "way through directories"),
        ("100644", b".", "way through directories"),
        ("100644", b".git", ".git"),
        ("100644", b".GIT", ".git"),
        ("100644", b"git~1", ".git"),
        ("100644", b".g\xe2\x80\x8cit", ".git"),
        ("100644", b"a/b", "slash"),
        ("100644", b"a\\b", "slash"),
        ("100644", b"a\nb", "invisible"),
        ("100644", b"a\x1b[2Jb", "invisible"),
        ("100644", b"-rf", "hyphen"),
        ("100644", b"\xff", "UTF-8"),
        ("100644", b"Services", "nothing but case"),
        ("100644", b".MCP", ".mcp"),
    ];
    for (mode, name, reason) in blob_names {
        let scene = pushed();
        let blob = scene.hash_object("blob", b"/etc/passwd");
        let tree = tree_with(&scene, mode, name, &blob);
        let commit = commit_tree(&scene, &tree, OWNER);
        let error = refused_pack(&scene, &everything(&scene));
        assert!(
            matches!(&error, ReceiveError::HostileTree { commit: found, .. } if *found == commit),
            "{name:?}: {error}"
        );
        assert!(error.to_string().contains(reason), "{name:?}: {error}");
    }
}

#[test]
fn submodule_and_empty_directory_are_refused() {
    let scene = pushed();
    let tip = scene.tip().to_string();
    let tree = tree_with(&scene, "160000", b"module", &tip);
    commit_tree(&scene, &tree, OWNER);
    assert!(
        refused_pack(&scene, &everything(&scene))
            .to_string()
            .contains("submodule")
    );

    let scene = pushed();
    let empty = scene.hash_object("tree", b"");
    let tree = tree_with(&scene, "40000", b"nothing", &empty);
    commit_tree(&scene, &tree, OWNER);
    assert!(
        refused_pack(&scene, &everything(&scene))
            .to_string()
            .contains("empty directory")
    );
}

#[test]
fn hostile_tree_below_is_refused_with_its_path() {
    let scene = pushed();
    std::fs::create_dir_all(scene.work().join("files/shop")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", scene.work().join("files/shop/key")).unwrap();
    scene.commit(Some("kyle"), "a link");
    let error = scene.refused();
    assert!(
        matches!(&error, ReceiveError::HostileTree { path, .. } if path == "`files/shop/key`"),
        "{error}"
    );
}

#[test]
fn hostile_tree_that_is_mended_again_is_still_refused() {
    let scene = pushed();
    std::os::unix::fs::symlink("/etc/shadow", scene.work().join("link")).unwrap();
    scene.commit(Some("kyle"), "a link");
    scene.remove("link");
    scene.commit(Some("kyle"), "no link");
    assert_eq!(scene.refused().name(), "hostile-tree");
}

#[test]
fn missing_objects_are_refused_by_name() {
    let scene = pushed();
    let head = scene.store.head();
    scene.write("files/shop/conf", "new\n");
    let tip = scene.commit(Some("kyle"), "conf");
    let blob = scene.git(&["rev-parse", "HEAD:files/shop/conf"]);
    let all = scene.git(&[
        "rev-list",
        "--objects",
        &format!("{}..{tip}", head.unwrap()),
    ]);
    let ids: Vec<_> = all.lines().map(|line| &line[..40]).collect();
    for (left_out, what) in [
        (blob.trim(), "the file files/shop/conf"),
        (scene.git(&["rev-parse", "HEAD:files"]).trim(), "the tree"),
        (&tip.to_string(), "the commit"),
    ] {
        let some: Vec<_> = ids.iter().copied().filter(|id| *id != left_out).collect();
        let error = refused_pack(&scene, &scene.pack_of(&some));
        assert!(
            matches!(&error, ReceiveError::MissingObject { what: found, .. } if found == what),
            "{error}"
        );
    }
    scene.commit(Some("kyle"), "again");
    let error = refused_pack(&scene, &scene.pack(Some(tip), scene.tip()));
    assert!(
        matches!(&error, ReceiveError::MissingObject { what, .. } if what == "the commit"),
        "{error}"
    );
}

#[test]
fn entry_that_says_file_and_is_a_tree_is_refused() {
    let scene = pushed();
    let services = scene.git(&["rev-parse", "HEAD:services"]);
    let tree = tree_with(&scene, "100644", b"zfile", services.trim());
    commit_tree(&scene, &tree, OWNER);
    assert_eq!(
        refused_pack(&scene, &everything(&scene)).name(),
        "bad-object"
    );
}

#[test]
fn malformed_commits_are_refused() {
    for (from, to) in [
        (
            "\nauthor ",
            "\nauthor Eve <eve@example.net> 1 +0000\nauthor ",
        ),
        (
            "\ncommitter ",
            "\ntree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\ncommitter ",
        ),
        (
            " +0000\ngpgsig",
            " +0000\ngpgsig -----BEGIN SSH SIGNATURE-----\ngpgsig",
        ),
    ] {
        let scene = pushed();
        let tip = scene.commit(Some("kyle"), "fine");
        let raw = scene.git(&["cat-file", "commit", &tip.to_string()]);
        let odd = raw.replacen(from, to, 1);
        assert_ne!(odd, raw);
        let id = scene.hash_object("commit", odd.as_bytes());
        scene.git(&["update-ref", "refs/heads/main", &id]);
        assert_eq!(
            refused_pack(&scene, &everything(&scene)).name(),
            "bad-header",
            "{to}"
        );
    }
}

#[test]
fn truncated_and_garbled_packs_are_refused() {
    let scene = pushed();
    let head = scene.store.head();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    let tip = scene.commit(Some("kyle"), "v2");
    let pack = scene.pack(head, tip);
    for end in [
        0,
        1,
        11,
        12,
        13,
        60,
        pack.len() / 2,
        pack.len() - 21,
        pack.len() - 20,
        pack.len() - 1,
    ] {
        let error = refused_pack(&scene, &pack[..end]);
        assert!(
            matches!(error, ReceiveError::Corrupt { .. }),
            "{end}: {error}"
        );
    }
    for at in (0..pack.len()).step_by(7) {
        let mut garbled = pack.clone();
        garbled[at] ^= 0x55;
        let error = refused_pack(&scene, &garbled);
        assert!(
            matches!(
                error,
                ReceiveError::Corrupt { .. } | ReceiveError::TooLarge { .. } | ReceiveError::Tag
            ),
            "{at}: {error}"
        );
    }
    let mut longer = pack.clone();
    longer.extend(b"more");
    assert!(matches!(
        refused_pack(&scene, &longer),
        ReceiveError::Corrupt { .. }
    ));
    // Claims more objects than it holds.
    let mut claims = pack.clone();
    claims[8..12].copy_from_slice(&400_000_u32.to_be_bytes());
    let error = refused_pack(&scene, &claims);
    // The pack's checksum is read for the next object, and its first bits say of what kind.
    assert!(
        matches!(
            error,
            ReceiveError::Corrupt { .. } | ReceiveError::TooLarge { .. } | ReceiveError::Tag
        ),
        "{error:?}"
    );
    claims[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        refused_pack(&scene, &claims),
        ReceiveError::TooLarge { .. }
    ));
    scene.receive(&pack, head, tip).unwrap();
}

#[test]
fn tags_and_reference_deltas_are_refused() {
    let scene = pushed();
    scene.git(&["tag", "-a", "-m", "tag", "v1"]);
    let tag = scene.git(&["rev-parse", "v1"]);
    scene.commit(Some("kyle"), "more");
    let tip = scene.tip().to_string();
    let error = refused_pack(&scene, &scene.pack_of(&[&tip, tag.trim()]));
    assert!(matches!(error, ReceiveError::Tag));

    let scene = pushed();
    let text: String = (0..2000).map(|line| format!("line {line}\n")).collect();
    scene.write("files/shop/big", &text);
    scene.commit(Some("kyle"), "big");
    scene.write("files/shop/big", &(text + "one more\n"));
    let tip = scene.commit(Some("kyle"), "bigger");
    let head = scene.store.head().unwrap();
    let revs = format!("{tip}\n^{head}\n");
    let args = ["pack-objects", "-q", "--stdout", "--revs"];
    let pack = scene.feed("git", &args, &scene.work(), revs.as_bytes());
    let error = refused_pack(&scene, &pack);
    assert!(error.to_string().contains("reference deltas"), "{error}");
    // Offset deltas are fine, as deep as the limit says.
    let pack = scene.pack(Some(head), tip);
    let flat = Limits {
        delta_depth: 0,
        ..Limits::default()
    };
    let error = refused_within(&scene, &pack, &flat);
    assert!(
        matches!(&error, ReceiveError::TooLarge { what, .. } if *what == "the depth of deltas"),
        "{error}"
    );
    scene.push().unwrap();
}

#[test]
fn entry_of_another_size_than_it_says_is_refused() {
    let scene = pushed();
    let head = scene.store.head();
    let tip = scene.commit(Some("kyle"), "next");
    let pack = scene.pack(head, tip);
    for change in [0x01, 0x08] {
        let mut odd = pack.clone();
        odd[12] ^= change;
        let error = refused_pack(&scene, &odd);
        assert!(error.to_string().contains("than it says"), "{error}");
    }
}

#[test]
fn what_a_pack_holds_beside_the_revision_never_becomes_readable() {
    let scene = pushed();
    let head = scene.store.head();
    let base = scene.tip();
    let hidden = scene.commit(None, "unsigned, beside the others");
    scene.git(&["reset", "-q", "--hard", &base.to_string()]);
    let tip = scene.commit(Some("kyle"), "signed");
    let pack = scene.pack_of(&[&tip.to_string(), &hidden.to_string()]);
    scene.receive(&pack, head, tip).unwrap();
    assert!(scene.store.read_definitions(hidden).is_err());
    assert!(scene.store.resolve(&hidden.to_string()).is_err());
    // Being there already does not make it any better.
    scene.git(&["reset", "-q", "--hard", &hidden.to_string()]);
    let upon = scene.commit(Some("kyle"), "upon it");
    let refused = scene.receive(&scene.pack_of(&[&upon.to_string()]), Some(tip), upon);
    assert_eq!(refused.unwrap_err().name(), "not-fast-forward");
    scene.git(&["reset", "-q", "--hard", &tip.to_string()]);
    scene.git(&[
        "merge",
        "-q",
        "-s",
        "ours",
        "--no-commit",
        &hidden.to_string(),
    ]);
    let merge = scene.commit_index(Some("kyle"), "merge it");
    let refused = scene.receive(&scene.pack_of(&[&merge.to_string()]), Some(tip), merge);
    assert_eq!(refused.unwrap_err().name(), "unsigned");
}

#[test]
fn every_bound_has_its_name() {
    let scene = pushed();
    let blob = scene.hash_object("blob", &vec![0; 3 * 1024 * 1024]);
    let tree = tree_with(&scene, "100644", b"zeros", &blob);
    commit_tree(&scene, &tree, OWNER);
    let pack = everything(&scene);
    let fine = Limits::default();
    for (limits, what) in [
        (
            Limits {
                pack_bytes: 1000,
                ..fine.clone()
            },
            "the pack's bytes",
        ),
        (
            Limits {
                objects: 3,
                ..fine.clone()
            },
            "the pack's objects",
        ),
        (
            Limits {
                object_bytes: 1024 * 1024,
                ..fine.clone()
            },
            "an object's bytes",
        ),
        (
            Limits {
                inflated_bytes: 1024 * 1024,
                ..fine.clone()
            },
            "the pack's inflated bytes",
        ),
        (
            Limits {
                commits: 0,
                ..fine.clone()
            },
            "new commits",
        ),
        (
            Limits {
                tree_depth: 0,
                ..fine.clone()
            },
            "directories within directories",
        ),
        (
            Limits {
                tree_paths: 2,
                ..fine.clone()
            },
            "the revision's files",
        ),
        (
            Limits {
                path_bytes: 5,
                ..fine.clone()
            },
            "the bytes of a path",
        ),
    ] {
        let error = refused_within(&scene, &pack, &limits);
        assert!(
            matches!(&error, ReceiveError::TooLarge { what: found, .. } if *found == what),
            "{what}: {error}"
        );
    }
    let slow = Limits {
        deadline: Duration::ZERO,
        ..fine
    };
    assert!(matches!(
        refused_within(&scene, &pack, &slow),
        ReceiveError::TimedOut { .. }
    ));
    scene
        .receive(&pack, scene.store.head(), scene.tip())
        .unwrap();
}

#[test]
fn tree_bomb_costs_one_look_a_tree() {
    let scene = pushed();
    let blob = scene.hash_object("blob", b"x");
    let mut below = ("100644", blob);
    for _ in 0..12 {
        let mut raw = Vec::new();
        for number in 0..10 {
            raw.extend(entry(below.0, format!("{number}").as_bytes(), &below.1).1);
        }
        below = ("40000", scene.hash_object("tree", &raw));
    }
    let tree = tree_with(&scene, "40000", b"bomb", &below.1);
    commit_tree(&scene, &tree, OWNER);
    let limits = Limits {
        deadline: Duration::from_secs(20),
        ..Limits::default()
    };
    let error = refused_within(&scene, &everything(&scene), &limits);
    assert!(
        matches!(&error, ReceiveError::TooLarge { what, .. } if *what == "the revision's files"),
        "{error}"
    );
}

#[test]
fn directories_without_end_are_refused() {
    let scene = pushed();
    let mut below = ("100644", scene.hash_object("blob", b"x"));
    for _ in 0..40 {
        below = (
            "40000",
            scene.hash_object("tree", &entry(below.0, b"d", &below.1).1),
        );
    }
    let tree = tree_with(&scene, "40000", b"deep", &below.1);
    commit_tree(&scene, &tree, OWNER);
    let error = refused_pack(&scene, &everything(&scene));
    assert!(
        matches!(&error, ReceiveError::TooLarge { what, .. } if what.contains("directories")),
        "{error}"
    );
}
