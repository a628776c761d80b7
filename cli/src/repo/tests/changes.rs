use std::os::unix::fs::PermissionsExt;

use super::bed::Bed;
use crate::repo::{At, ChangeKind, Refusal, Selection};

fn listed(bed: &Bed) -> Vec<(String, ChangeKind)> {
    bed.changes()
        .changes
        .into_iter()
        .map(|change| (change.path, change.kind))
        .collect()
}

#[test]
fn changes_are_told_by_kind() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.write("services/b.toml", "b");
    bed.write("files/run.sh", "#!/bin/sh\n");
    bed.commit("first");
    assert!(bed.changes().is_empty());
    bed.write("services/a.toml", "aa");
    bed.remove("services/b.toml");
    bed.write("secrets/c.age", "c");
    let script = bed.dir.join("files/run.sh");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    bed.write("elsewhere.toml", "x");
    let expected = [
        ("files/run.sh", ChangeKind::Modified),
        ("secrets/c.age", ChangeKind::Added),
        ("services/a.toml", ChangeKind::Modified),
        ("services/b.toml", ChangeKind::Deleted),
    ];
    assert_eq!(
        listed(&bed),
        expected.map(|(path, kind)| (path.to_owned(), kind))
    );
}

#[test]
fn change_of_the_same_size_in_the_same_tick_is_seen() {
    let bed = Bed::new();
    for round in 0..20 {
        bed.write("services/a.toml", &format!("{:02}", round));
        bed.commit("a");
        bed.write("services/a.toml", &format!("{:02}", round + 50));
        assert_eq!(listed(&bed).len(), 1);
    }
}

#[test]
fn ignored_files_are_left_out_unless_tracked() {
    let bed = Bed::new();
    bed.write("services/kept.bak", "1");
    bed.commit("kept");
    bed.write(".gitignore", "*.bak\n/files/cache/\n");
    bed.write("services/kept.bak", "22");
    bed.write("services/new.bak", "1");
    bed.write("files/cache/x", "1");
    std::os::unix::fs::symlink("nowhere", bed.dir.join("files/link.bak")).unwrap();
    assert_eq!(
        listed(&bed),
        [("services/kept.bak".to_owned(), ChangeKind::Modified)]
    );
    assert!(bed.changes().refused.is_empty());
}

#[test]
fn symlinks_and_special_files_are_refused_by_name() {
    let bed = Bed::new();
    bed.write("secret", "s");
    std::os::unix::fs::symlink("../secret", bed.dir.join("services/a.toml")).unwrap();
    let socket = bed.dir.join("files/socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    bed.write("files/nested/.git/HEAD", "x");
    bed.write("files/-dash", "x");
    bed.write("files/git~1", "x");
    let refused: Vec<_> = bed
        .changes()
        .refused
        .into_iter()
        .map(|refused| (refused.path, refused.reason))
        .collect();
    let paths: Vec<_> = refused.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "files/-dash",
            "files/git~1",
            "files/nested",
            "files/socket",
            "services/a.toml"
        ]
    );
    assert_eq!(refused[2].1, Refusal::NestedRepository);
    assert_eq!(refused[3].1, Refusal::Special { kind: "socket" });
    assert_eq!(refused[4].1, Refusal::Symlink);
    let definitions = bed.open().read_definitions(At::WorkTree).unwrap();
    assert!(definitions.is_empty());
}

#[test]
fn symlink_in_place_of_a_tracked_file_is_no_deletion() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.commit("a");
    bed.remove("services/a.toml");
    std::os::unix::fs::symlink("b.toml", bed.dir.join("services/a.toml")).unwrap();
    let changes = bed.changes();
    assert!(changes.changes.is_empty());
    assert_eq!(changes.refused.len(), 1);
}

#[test]
fn names_that_differ_by_case_are_refused() {
    let bed = Bed::new();
    bed.write("files/A/x", "1");
    bed.write("files/a/y", "1");
    let changes = bed.changes();
    assert_eq!(
        changes.refused[0].reason,
        Refusal::NameClash {
            other: "files/A".to_owned()
        }
    );
}

#[test]
fn files_kept_out_by_a_sparse_checkout_are_not_deleted() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.write("files/a/x", "x");
    bed.commit("a");
    bed.git(&["sparse-checkout", "set", "services"]);
    assert!(!bed.dir.join("files/a/x").exists());
    assert!(bed.changes().is_empty());
    let files = bed.open();
    let files = files.files(At::WorkTree).unwrap();
    assert_eq!(files.read("files/a/x").unwrap().unwrap(), b"x");
    bed.write("services/a.toml", "aa");
    bed.commit("aa");
    assert_eq!(bed.status(), "");
    assert!(bed.git(&["ls-tree", "-r", "HEAD"]).contains("files/a/x"));
}

#[test]
fn other_changes_are_listed_for_a_note() {
    let bed = Bed::new();
    bed.write("tracked", "1");
    bed.git(&["add", "tracked"]);
    bed.git(&["commit", "-qm", "tracked"]);
    bed.write("tracked", "2");
    bed.write("staged", "1");
    bed.git(&["add", "staged"]);
    bed.write("new/file", "1");
    bed.write("services/a.toml", "1");
    bed.write("secrets/a.age", "1");
    let others = bed.open().other_changes().unwrap();
    let listed: Vec<_> = others
        .listed
        .iter()
        .map(|change| (change.path.as_str(), change.staged))
        .collect();
    assert_eq!(
        listed,
        [("new", false), ("staged", true), ("tracked", false)]
    );
    assert_eq!(others.count, 3);
}

#[test]
fn selection_takes_paths_and_folders() {
    let selection = Selection::Only(vec!["services/a.toml".to_owned(), "files/a/".to_owned()]);
    assert!(selection.takes("services/a.toml"));
    assert!(selection.takes("files/a/x/y"));
    assert!(!selection.takes("files/ab"));
    assert!(!selection.takes("services/a.toml.bak"));
}

#[test]
fn definitions_are_read_alike_from_work_tree_and_commit() {
    let bed = Bed::new();
    bed.write("services/b.toml", "b");
    bed.write("services/a.toml", "a");
    bed.write("services/README.md", "no definition");
    bed.write("services/sub/c.toml", "no definition");
    bed.write("files/a/x", "x");
    let commit = bed.commit("all");
    bed.write("services/a.toml", "edited");
    let repo = bed.open();
    let texts = |at| -> Vec<_> {
        repo.read_definitions(at)
            .unwrap()
            .into_iter()
            .map(|(path, bytes)| (path, String::from_utf8(bytes).unwrap()))
            .collect()
    };
    let pair = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    assert_eq!(
        texts(At::Commit(commit)),
        [pair("services/a.toml", "a"), pair("services/b.toml", "b")]
    );
    assert_eq!(
        texts(At::WorkTree),
        [
            pair("services/a.toml", "edited"),
            pair("services/b.toml", "b")
        ]
    );
    let files = repo.files(At::Commit(commit)).unwrap();
    let digest = files.file_digest("files/a/x").unwrap().unwrap();
    assert!(digest.hex().starts_with("2d711642b726b04401627ca9"));
    assert_eq!(files.file_digest("files/a").unwrap(), None);
}
