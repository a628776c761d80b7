use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::bed::{Bed, git_in};
use crate::repo::{CommitId, DesiredRepo, PackError};

/// A bare repository that takes packs as a node does: whole, strict, and never thin.
struct Node {
    dir: PathBuf,
}

impl Node {
    fn new(bed: &Bed, name: &str) -> Self {
        git_in(
            bed.root.path(),
            &["init", "-q", "--bare", "-b", "main", name],
        );
        Self {
            dir: bed.root.path().join(name),
        }
    }

    fn receive(&self, repo: &DesiredRepo, new: CommitId, have: &[CommitId]) -> u32 {
        let mut pack = repo.pack(new, have).unwrap();
        let mut bytes = Vec::new();
        std::io::copy(&mut pack, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, pack.len());
        assert_eq!(bytes[8..12], pack.objects().to_be_bytes());
        let mut child = Command::new("git")
            .current_dir(&self.dir)
            .args(["index-pack", "--stdin", "--strict"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        git_in(
            &self.dir,
            &["update-ref", "refs/heads/main", &new.to_string()],
        );
        assert_complete(&self.dir);
        pack.objects()
    }
}

fn assert_complete(dir: &Path) {
    git_in(dir, &["fsck", "--strict", "--connectivity-only", "main"]);
    git_in(dir, &["rev-list", "--objects", "main"]);
}

#[test]
fn whole_history_can_be_cloned_from_what_was_packed() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.write("files/a/deep/er/x", "x");
    bed.commit("a");
    bed.git(&["mv", "files/a/deep", "files/a/moved"]);
    bed.write("services/b.toml", "b");
    let tip = bed.commit("moved");
    let node = Node::new(&bed, "node");
    let sent = node.receive(&bed.open(), tip, &[]);
    let all = bed.git(&["rev-list", "--objects", "HEAD"]).lines().count();
    assert_eq!(sent as usize, all);
    git_in(bed.root.path(), &["clone", "-q", "node", "clone"]);
    assert_eq!(
        std::fs::read(bed.root.path().join("clone/files/a/moved/er/x")).unwrap(),
        b"x"
    );
}

#[test]
fn push_costs_what_it_adds() {
    let bed = Bed::new();
    for n in 0..200 {
        bed.write(&format!("services/s{n}.toml"), &n.to_string());
    }
    let old = bed.commit("many");
    let node = Node::new(&bed, "node");
    node.receive(&bed.open(), old, &[]);
    bed.write("services/s1.toml", "changed");
    let new = bed.commit("one");
    // A commit, two trees and a file.
    assert_eq!(node.receive(&bed.open(), new, &[old]), 4);
    let pack = bed.open().pack(new, &[new]).unwrap();
    assert!(pack.is_empty() && pack.commits() == 0);
}

#[test]
fn renames_deletions_and_content_from_before_are_complete() {
    let bed = Bed::new();
    bed.write("files/a/one", "1");
    bed.write("files/a/two", "2");
    let mut old = bed.commit("first");
    let node = Node::new(&bed, "node");
    node.receive(&bed.open(), old, &[]);
    let steps: [&dyn Fn(); 5] = [
        &|| std::fs::rename(bed.dir.join("files/a"), bed.dir.join("files/z")).unwrap(),
        &|| bed.remove("files/z/one"),
        &|| bed.write("files/y/one", "1"),
        &|| std::fs::rename(bed.dir.join("files/z/two"), bed.dir.join("files/y/two")).unwrap(),
        &|| bed.write("services/copy.toml", "2"),
    ];
    for step in steps {
        step();
        let new = bed.commit("step");
        node.receive(&bed.open(), new, &[old]);
        old = new;
    }
}

#[test]
fn merges_are_complete_from_either_side() {
    let bed = Bed::new();
    bed.write("services/base.toml", "base");
    let base = bed.commit("base");
    bed.git(&["checkout", "-q", "-b", "side"]);
    bed.write("services/side.toml", "side");
    bed.write("files/side/x", "side");
    let side = bed.commit("side");
    bed.git(&["checkout", "-q", "main"]);
    bed.write("services/main.toml", "main");
    let main = bed.commit("main");
    bed.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    bed.write("services/after.toml", "after");
    let tip = bed.commit("after");
    let repo = bed.open();
    for (name, have) in [
        ("n0", vec![]),
        ("n1", vec![base]),
        ("n2", vec![side]),
        ("n3", vec![main]),
        ("n4", vec![main, side]),
    ] {
        let node = Node::new(&bed, name);
        let mut known = Vec::new();
        for id in &have {
            node.receive(&repo, *id, &known);
            known.push(*id);
        }
        node.receive(&repo, tip, &have);
    }
}

#[test]
fn packed_and_collected_repositories_pack_as_well() {
    let bed = Bed::new();
    let text = "line\n".repeat(500);
    for round in 0..10 {
        bed.write("files/large", &format!("{text}{round}"));
        bed.commit("round");
    }
    bed.git(&["gc", "-q"]);
    let old = bed.open().resolve("HEAD~5").unwrap();
    bed.write("files/large", &format!("{text}last"));
    let tip = bed.commit("last");
    let node = Node::new(&bed, "node");
    let repo = bed.open();
    node.receive(&repo, old, &[]);
    node.receive(&repo, tip, &[old]);
}

#[test]
fn commits_unknown_here_are_left_out_of_account() {
    let bed = Bed::new();
    let tip = bed.open().head().unwrap().unwrap();
    let unknown: CommitId = "1234567890123456789012345678901234567890".parse().unwrap();
    let node = Node::new(&bed, "node");
    node.receive(&bed.open(), tip, &[unknown]);
    assert!(matches!(
        bed.open().pack(unknown, &[]),
        Err(PackError::UnknownCommit { .. })
    ));
}

#[test]
fn missing_object_is_an_error_and_no_pack() {
    let bed = Bed::new();
    bed.write("files/x", "content to lose");
    let tip = bed.commit("x");
    let blob = bed.git(&["rev-parse", "HEAD:files/x"]);
    let (folder, file) = blob.trim().split_at(2);
    std::fs::remove_file(bed.dir.join(".git/objects").join(folder).join(file)).unwrap();
    let error = bed.open().pack(tip, &[]).unwrap_err();
    assert_eq!(error.hint(), "check the repository with: git fsck");
}

#[test]
fn removing_everything_leaves_a_complete_history() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    let old = bed.commit("a");
    bed.remove("services/a.toml");
    bed.remove("services/.gitkeep");
    bed.remove("files/.gitkeep");
    let tip = bed.commit("gone");
    let node = Node::new(&bed, "node");
    node.receive(&bed.open(), old, &[]);
    node.receive(&bed.open(), tip, &[old]);
}

#[test]
fn packs_with_reference_deltas_are_sent_without_them() {
    let bed = Bed::new();
    let text: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    bed.write("files/large", &text);
    bed.commit("large");
    git_in(
        bed.root.path(),
        &[
            "clone",
            "-q",
            &format!("file://{}", bed.dir.display()),
            "clone",
        ],
    );
    bed.write("files/large", &(text + "last\n"));
    let tip = bed.commit("larger");
    let clone = bed.root.path().join("clone");
    // The fetched pack is thin, and kept with a reference delta.
    git_in(&clone, &["-c", "fetch.unpackLimit=1", "fetch", "-q"]);
    let node = Node::new(&bed, "node");
    node.receive(&DesiredRepo::open(&clone).unwrap(), tip, &[]);
}

#[test]
fn replaced_objects_are_packed_as_they_were_signed() {
    let bed = Bed::new();
    bed.write("files/x", "signed");
    let tip = bed.commit("x");
    bed.write("other", "replacement");
    let other = bed.git(&["hash-object", "-w", "other"]);
    bed.git(&["replace", "HEAD:files/x", other.trim()]);
    let node = Node::new(&bed, "node");
    node.receive(&bed.open(), tip, &[]);
    assert_eq!(
        git_in(&node.dir, &["cat-file", "blob", "main:files/x"]),
        "signed"
    );
    let repo = bed.open();
    let files = repo.files(crate::repo::At::Commit(tip)).unwrap();
    assert_eq!(files.read("files/x").unwrap().unwrap(), b"signed");
}
