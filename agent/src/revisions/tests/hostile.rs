//! Hostile objects and packs, built with git's plumbing or from raw bytes.

use std::time::{Duration, Instant};

use mcp_spec::revision::CommitId;

use super::super::{Bound, Limits, ReceiveError};
use super::scene::{OWNER, Scene};

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
    tree_with_all(scene, &[(mode, name, id)])
}

/// The tip's tree with more raw entries, in git's order.
fn tree_with_all(scene: &Scene, more: &[(&str, &[u8], &str)]) -> String {
    let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let listing = scene.git(&["ls-tree", "HEAD"]);
    for line in listing.lines() {
        let (meta, name) = line.split_once('\t').unwrap();
        let words: Vec<_> = meta.split(' ').collect();
        let mode = words[0].trim_start_matches('0');
        entries.push(entry(mode, name.as_bytes(), words[2]));
    }
    entries.extend(more.iter().map(|(mode, name, id)| entry(mode, name, id)));
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

/// Commits a raw tree of the tip's entries and these, pushes that and what is new in it, and goes back.
fn refused_entries(scene: &Scene, more: &[(&str, &[u8], &str)]) -> ReceiveError {
    let tip = scene.tip().to_string();
    let tree = tree_with_all(scene, more);
    let ids: Vec<&str> = more.iter().map(|(_, _, id)| *id).collect();
    refused_tree(scene, &tip, &tree, &ids)
}

fn refused_tree(scene: &Scene, tip: &str, tree: &str, more: &[&str]) -> ReceiveError {
    let commit = commit_tree(scene, tree, OWNER);
    let text = commit.to_string();
    let mut ids = vec![text.as_str(), tree];
    ids.extend(more.iter().filter(|id| **id != tip));
    let error = refused_pack(scene, &scene.pack_of(&ids));
    scene.git(&["update-ref", "refs/heads/main", tip]);
    assert!(
        matches!(&error, ReceiveError::HostileTree { commit: found, .. } if *found == commit),
        "{error}"
    );
    assert!(
        !error.to_string().chars().any(char::is_control),
        "{error:?}"
    );
    error
}

#[test]
fn hostile_names_are_refused_by_name() {
    let scene = pushed();
    let blob = scene.hash_object("blob", b"/etc/passwd");
    let names: &[(&[u8], &str)] = &[
        (b".git", "dot-git"),
        (b".GIT", "dot-git"),
        (b".Git", "dot-git"),
        (b"git~1", "dot-git"),
        (b"GIT~1", "dot-git"),
        (b".git ", "dot-git"),
        (b".git.", "dot-git"),
        (b".git . . ", "dot-git"),
        (b".git::$INDEX_ALLOCATION", "dot-git"),
        (b".git:$DATA", "dot-git"),
        (b".git\\hooks", "dot-git"),
        (b".g\xe2\x80\x8cit", "dot-git"),
        (b"\xef\xbb\xbf.git", "dot-git"),
        (b".gi\xe2\x80\xaet", "dot-git"),
        ("．ｇｉｔ".as_bytes(), "dot-git"),
        (".gıt".as_bytes(), "dot-git"),
        (b".gitmodules", "gitmodules"),
        (b"GITMOD~1", "gitmodules"),
        (b".MCP", "dot-mcp"),
        (b".mcp.", "dot-mcp"),
        ("．mcp".as_bytes(), "dot-mcp"),
        (b".", "path-escape"),
        (b"..", "path-escape"),
        ("．．".as_bytes(), "path-escape"),
        (b"", "empty-name"),
        (b"a/b", "slash-in-name"),
        (b"/etc", "slash-in-name"),
        (b"a\\b", "slash-in-name"),
        (b"../../etc/passwd", "slash-in-name"),
        (b"a\nb", "invisible-character"),
        (b"a\x1b[2Jb", "invisible-character"),
        (b"a\x7f", "invisible-character"),
        (b"\x01", "invisible-character"),
        ("a\u{85}b".as_bytes(), "invisible-character"),
        ("a\u{a0}b".as_bytes(), "invisible-character"),
        ("gpj.\u{202e}sh".as_bytes(), "invisible-character"),
        ("a\u{2066}b".as_bytes(), "invisible-character"),
        ("a\u{200b}b".as_bytes(), "invisible-character"),
        ("a\u{e0041}".as_bytes(), "invisible-character"),
        ("a\u{ffff}".as_bytes(), "invisible-character"),
        (b"-rf", "leading-hyphen"),
        (b"--exec=sh", "leading-hyphen"),
        (b"\xff", "name-not-utf8"),
        (b"caf\xe9", "name-not-utf8"),
        (b"\xc0\xaegit", "name-not-utf8"),
        (b"\xed\xa0\x80", "name-not-utf8"),
        (&[b'a'; 256], "long-name"),
        (b"Services", "alike-names"),
    ];
    for mode in ["100644", "40000"] {
        let tree = scene.hash_object("tree", &entry("100644", b"x", &blob).1);
        let id = if mode == "40000" { &tree } else { &blob };
        for (name, rule) in names {
            let error = refused_entries(&scene, &[(mode, name, id)]);
            assert_eq!(error.name(), *rule, "{mode} {name:?}: {error}");
        }
    }
}

#[test]
fn odd_modes_are_refused_by_name() {
    let scene = pushed();
    let blob = scene.hash_object("blob", b"/etc/passwd");
    let tip = scene.tip().to_string();
    for (mode, rule) in [
        ("120000", "symlink"),
        ("160000", "submodule"),
        ("100664", "odd-mode"),
        ("100600", "odd-mode"),
        ("100777", "odd-mode"),
        ("104755", "odd-mode"),
        ("40755", "odd-mode"),
        ("040000", "odd-mode"),
        ("0100644", "odd-mode"),
        ("0", "odd-mode"),
        ("060000", "odd-mode"),
        ("-100644", "odd-mode"),
        ("100644x", "odd-mode"),
        ("00100644", "garbled-tree"),
    ] {
        let id = if mode == "160000" { &tip } else { &blob };
        let error = refused_entries(&scene, &[(mode, b"odd", id)]);
        assert_eq!(error.name(), rule, "{mode}: {error}");
    }
}

#[test]
fn names_that_some_file_system_takes_for_one_are_refused_by_name() {
    let scene = pushed();
    let blob = scene.hash_object("blob", b"x");
    let folder = scene.hash_object("tree", &entry("100644", b"x", &blob).1);
    for (one, other) in [
        ("conf", "CONF"),
        ("straße", "STRASSE"),
        ("straẞe", "straße"),
        ("straẞe", "strasse"),
        ("\u{131}d", "ID"),
        ("\u{130}d", "i\u{307}d"),
        ("\u{212a}ey", "key"),
        ("café", "cafe\u{301}"),
        ("\u{1e9b}\u{323}", "\u{17f}\u{323}\u{307}"),
        ("Σίσυφος", "σίσυφοσ"),
        ("각", "\u{1100}\u{1161}\u{11a8}"),
        ("ﬁle", "FILE"),
    ] {
        for (mode, id) in [("100644", &blob), ("40000", &folder)] {
            let pair: [(&str, &[u8], &str); 2] = [
                ("100644", one.as_bytes(), &blob),
                (mode, other.as_bytes(), id),
            ];
            let error = refused_entries(&scene, &pair);
            assert_eq!(error.name(), "alike-names", "{one} {other}: {error}");
        }
    }
    let same: [(&str, &[u8], &str); 2] = [("100644", b"a", &blob), ("40000", b"a", &folder)];
    assert_eq!(refused_entries(&scene, &same).name(), "duplicate-entry");
    let apart: [(&str, &[u8], &str); 3] = [
        ("100644", b"a", &blob),
        ("100644", b"a.b", &blob),
        ("40000", b"a", &folder),
    ];
    assert_eq!(refused_entries(&scene, &apart).name(), "duplicate-entry");
}

#[test]
fn garbled_trees_are_refused_by_name() {
    let scene = pushed();
    let tip = scene.tip().to_string();
    let blob = scene.hash_object("blob", b"x");
    let a = entry("100644", b"a", &blob).1;
    let b = entry("100644", b"b", &blob).1;
    for (raw, rule) in [
        ([b.clone(), a.clone()].concat(), "unsorted-tree"),
        ([a.clone(), a.clone()].concat(), "duplicate-entry"),
        (a[..a.len() - 1].to_vec(), "garbled-tree"),
        ([a.as_slice(), b"1"].concat(), "garbled-tree"),
        ([a.as_slice(), b"100644 b"].concat(), "garbled-tree"),
        (b"\0".repeat(40), "garbled-tree"),
        (b"100644".to_vec(), "garbled-tree"),
        // A folder sorts as though its name ended with a slash.
        (
            [
                entry("40000", b"a", &blob).1,
                entry("100644", b"a.b", &blob).1,
            ]
            .concat(),
            "unsorted-tree",
        ),
    ] {
        let tree = scene.hash_object("tree", &raw);
        let error = refused_tree(&scene, &tip, &tree, &[&blob]);
        assert_eq!(error.name(), rule, "{error}");
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
    assert_eq!(scene.refused().name(), "symlink");
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
        "wrong-object-kind"
    );
}

#[test]
fn malformed_commits_are_refused_by_name() {
    let scene = pushed();
    let before = scene.tip().to_string();
    let tip = scene.commit(Some("kyle"), "fine").to_string();
    let fine = scene.git(&["cat-file", "commit", &tip]);
    let parent = format!("parent {before}\n");
    let tree = &fine[..fine.find('\n').unwrap() + 1];
    let more: String = (1..=16).map(|n| format!("parent {n:040x}\n")).collect();
    let long = format!("\n{} x\ngpgsig ", "a".repeat(70_000));
    let cases: &[(&str, &str, &str)] = &[
        (
            "\nauthor ",
            "\nauthor E <e@e> 1 +0000\nauthor ",
            "header-order",
        ),
        (
            "\ncommitter ",
            "\ntree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\ncommitter ",
            "header-order",
        ),
        (
            "\ngpgsig ",
            "\ntree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\ngpgsig ",
            "duplicate-header",
        ),
        (
            "\ngpgsig ",
            "\ncommitter E <e@e> 1 +0000\ngpgsig ",
            "duplicate-header",
        ),
        (
            "\ngpgsig ",
            "\nparent 1111111111111111111111111111111111111111\ngpgsig ",
            "duplicate-header",
        ),
        (
            "\ngpgsig ",
            "\ngpgsig -----BEGIN SSH SIGNATURE-----\ngpgsig ",
            "duplicate-header",
        ),
        ("\n\n", "\ngpgsig x\n\n", "duplicate-header"),
        ("\n\n", "\ngpgsig-sha256 x\n\n", "refused-header"),
        (
            "\n\n",
            "\nmergetag object 1\nmergetag object 2\n\n",
            "duplicate-header",
        ),
        ("\n\n", "\nencoding ISO-8859-1\n\n", "malformed-header"),
        ("\n\n", "\nx y\nx y\n\n", "duplicate-header"),
        ("\n\n", "\n\tx y\n\n", "malformed-header"),
        ("\ngpgsig ", &long, "malformed-header"),
        ("\ngpgsig -", "\ngpgsig\n -", "malformed-header"),
        (&parent, &parent.repeat(2), "duplicate-parent"),
        (&parent, &(parent.clone() + &more), "missing-object"),
        (&parent, &parent.to_uppercase(), "unrelated"),
        (&parent, &parent.replace(' ', "  "), "malformed-header"),
        (tree, &tree.repeat(2), "unrelated"),
        (tree, &tree.replace('\n', " \n"), "malformed-header"),
        (
            " +0000\ncommitter",
            " +0000 \ncommitter",
            "malformed-header",
        ),
        (" +0000\ncommitter", " +9900\ncommitter", "malformed-header"),
        (" +0000\ncommitter", " 0\ncommitter", "malformed-header"),
        (
            "<kyle@example.net> ",
            "<kyle@example.net> 9223372036854775808",
            "malformed-header",
        ),
        (
            "<kyle@example.net> ",
            "<kyle@example.net> -",
            "malformed-header",
        ),
        (
            "<kyle@example.net> ",
            "<kyle@example.net> 0x",
            "malformed-header",
        ),
        (
            "<kyle@example.net>",
            "<kyle@<>example.net>",
            "malformed-header",
        ),
        (
            "author Kyle",
            "author K\x1b]0;owned\x07",
            "malformed-header",
        ),
        ("\n\nfine", "\n\nfi\0ne", "nul-in-commit"),
        ("\n\nfine\n", "\n", "headers-do-not-end"),
    ];
    for (from, to, rule) in cases {
        let odd = fine.replacen(from, to, 1);
        assert_ne!(odd, fine, "{from:?}");
        let id = scene.hash_object("commit", odd.as_bytes());
        let error = refused_commit(&scene, &id);
        // Where the headers hide the parents, or name more that are nowhere, that is found first.
        assert_eq!(error.name(), *rule, "{to:?}: {error}");
        let text = error.to_string();
        assert!(
            text.len() < 400 && !text.chars().any(char::is_control),
            "{text:?}"
        );
    }
    scene.push().unwrap();
}

/// Pushes one commit that stands in no ref: its tree is that of the tip.
fn refused_commit(scene: &Scene, id: &str) -> ReceiveError {
    let before = scene.fingerprint();
    let pack = scene.pack_of(&[id]);
    let error = scene
        .receive(&pack, scene.store.head(), id.parse().unwrap())
        .unwrap_err();
    scene.assert_untouched(&before);
    error
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
    assert_eq!(error.name(), "reference-delta");
    // Offset deltas are fine, as deep as the limit says.
    let pack = scene.pack(Some(head), tip);
    let flat = Limits {
        delta_depth: 0,
        ..Limits::default()
    };
    let error = refused_within(&scene, &pack, &flat);
    assert!(
        matches!(
            error,
            ReceiveError::TooLarge {
                what: Bound::DeltaDepth,
                ..
            }
        ),
        "{error}"
    );
    scene.push().unwrap();
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
            Bound::PackBytes,
        ),
        (
            Limits {
                objects: 3,
                ..fine.clone()
            },
            Bound::Objects,
        ),
        (
            Limits {
                object_bytes: 1024 * 1024,
                ..fine.clone()
            },
            Bound::ObjectBytes,
        ),
        (
            Limits {
                inflated_bytes: 1024 * 1024,
                ..fine.clone()
            },
            Bound::InflatedBytes,
        ),
        (
            Limits {
                commits: 0,
                ..fine.clone()
            },
            Bound::Commits,
        ),
        (
            Limits {
                tree_depth: 0,
                ..fine.clone()
            },
            Bound::TreeDepth,
        ),
        (
            Limits {
                tree_paths: 2,
                ..fine.clone()
            },
            Bound::TreePaths,
        ),
        (
            Limits {
                path_bytes: 5,
                ..fine.clone()
            },
            Bound::PathBytes,
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
        matches!(
            error,
            ReceiveError::TooLarge {
                what: Bound::TreePaths,
                ..
            }
        ),
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
        matches!(
            error,
            ReceiveError::TooLarge {
                what: Bound::TreeDepth,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn folders_full_of_files_are_refused_before_all_of_them_are_read() {
    let scene = pushed();
    let tip = scene.tip().to_string();
    let blob = scene.hash_object("blob", b"x");
    let files: Vec<u8> = (0..60_000)
        .flat_map(|number| entry("100644", format!("{number:05}").as_bytes(), &blob).1)
        .collect();
    // Not one of them is too large, and each is another one.
    let mut folders = Vec::new();
    for number in 0..6 {
        let name = format!("x{number}");
        let raw = [files.as_slice(), &entry("100644", name.as_bytes(), &blob).1].concat();
        folders.push((name, scene.hash_object("tree", &raw)));
    }
    let bomb: Vec<u8> = folders
        .iter()
        .flat_map(|(name, id)| entry("40000", name.as_bytes(), id).1)
        .collect();
    let bomb = scene.hash_object("tree", &bomb);
    let tree = tree_with(&scene, "40000", b"bomb", &bomb);
    let commit = commit_tree(&scene, &tree, OWNER).to_string();
    let mut ids = vec![commit.as_str(), &tree, &bomb, &blob];
    // The third is not there, and nobody asks for it.
    ids.extend(folders[..2].iter().map(|(_, id)| id.as_str()));
    let error = refused_pack(&scene, &scene.pack_of(&ids));
    assert_eq!(error.name(), "too-many-files", "{error}");
    scene.git(&["update-ref", "refs/heads/main", &tip]);
    let wide: Vec<u8> = (0..100_001)
        .flat_map(|number| entry("100644", format!("{number:06}").as_bytes(), &blob).1)
        .collect();
    let wide = scene.hash_object("tree", &wide);
    let tree = tree_with(&scene, "40000", b"wide", &wide);
    let error = {
        let commit = commit_tree(&scene, &tree, OWNER).to_string();
        refused_pack(&scene, &scene.pack_of(&[&commit, &tree, &wide, &blob]))
    };
    assert_eq!(error.name(), "too-many-entries", "{error}");
}

#[test]
fn one_large_file_under_ten_thousand_names_is_read_once() {
    let scene = pushed();
    let blob = scene.hash_object("blob", &vec![0; 16 * 1024 * 1024]);
    let broken = scene.hash_object("blob", b"name = ");
    let files: Vec<u8> = (0..10_000)
        .flat_map(|number| entry("100644", format!("{number:05}").as_bytes(), &blob).1)
        .collect();
    let files = scene.hash_object("tree", &files);
    let folder = scene.hash_object("tree", &entry("40000", b"shop", &files).1);
    // What is wrong with a definition is told after everything was read.
    let services = scene.hash_object("tree", &entry("100644", b"shop.toml", &broken).1);
    let signers = scene.git(&["rev-parse", "HEAD:.mcp"]);
    let raw = [
        entry("40000", b".mcp", signers.trim()).1,
        entry("40000", b"files", &folder).1,
        entry("40000", b"services", &services).1,
    ]
    .concat();
    let tree = scene.hash_object("tree", &raw);
    let commit = commit_tree(&scene, &tree, OWNER).to_string();
    let began = Instant::now();
    let ids = [&commit, &tree, &folder, &files, &services, &blob, &broken];
    let error = refused_pack(&scene, &scene.pack_of(&ids.map(String::as_str)));
    assert_eq!(error.name(), "bad-definitions", "{error}");
    // To read it ten thousand times would take some minutes on any machine.
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn history_from_before_the_introduction_is_walked_once_whatever_it_names() {
    let scene = Scene::empty();
    let blob = scene.hash_object("blob", b"x");
    let mut below = ("100644", blob);
    for _ in 0..30 {
        let raw: Vec<u8> = (0..1000)
            .flat_map(|number| entry(below.0, format!("{number:04}").as_bytes(), &below.1).1)
            .collect();
        below = ("40000", scene.hash_object("tree", &raw));
    }
    let commit = scene.git(&["commit-tree", "-m", "from before", &below.1]);
    scene.git(&["update-ref", "refs/heads/main", commit.trim()]);
    scene.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    scene.write_signers(&[(OWNER, "git,mcp-owner")]);
    scene.git(&["read-tree", "--empty"]);
    scene.commit(Some(OWNER), "introduction");
    let pack = everything(&scene);
    let limits = Limits {
        deadline: Duration::from_secs(30),
        ..Limits::default()
    };
    scene
        .receive_within(&pack, None, scene.tip(), &limits)
        .unwrap();
}
