//! What the workstation commits and packs goes through the agent's door as it is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::Command;

use mcp_agent::revisions::{Limits, ReceiveError, RevisionStore, TrustRoots};
use mcp_cli::repo::{DesiredRepo, Identity, Selection};
use mcp_cli::sign::{SigningKey, generate_key};
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{DeniedKeys, OwnerKeys};

struct Bed {
    root: tempfile::TempDir,
    key: SigningKey,
    dir: PathBuf,
    store: RevisionStore,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key = generate_key(&root.path().join("key"), "alice").unwrap();
        let data_dir = root.path().join("agent");
        RevisionStore::init(&data_dir).unwrap();
        let trust = TrustRoots {
            owners: OwnerKeys::parse(&key.public_key()).unwrap(),
            denied: DeniedKeys::parse("").unwrap(),
            introduction: None,
        };
        let store = RevisionStore::open(&data_dir, trust).unwrap();
        let dir = root.path().join("desired");
        Self {
            root,
            key,
            dir,
            store,
        }
    }

    fn init(&self) {
        DesiredRepo::init(&self.dir, &self.key, "alice", None).unwrap();
    }

    fn open(&self) -> DesiredRepo {
        DesiredRepo::open(&self.dir).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn commit(&self, message: &str) -> CommitId {
        let repo = self.open();
        let changes = repo.changes().unwrap();
        let identity = Identity::of_principal("alice");
        repo.commit(&changes, &Selection::All, message, &self.key, &identity)
            .unwrap()
    }

    fn git(&self, args: &[&str]) {
        let status = Command::new("git")
            .current_dir(&self.dir)
            .args(["-c", "user.name=Bob", "-c", "user.email=bob@example.net"])
            .args(args)
            .status();
        assert!(status.unwrap().success(), "git {args:?}");
    }

    /// Pushes the branch's tip upon what the agent has; gives how many commits were new.
    fn push(&self, old: Option<CommitId>) -> Result<usize, ReceiveError> {
        let repo = self.open();
        let new = repo.head().unwrap().unwrap();
        let pack = repo.pack(new, old.as_slice()).unwrap();
        let node: NodeName = "rift".parse().unwrap();
        let now = jiff::Timestamp::now();
        let accepted = self
            .store
            .receive(pack, old, new, &node, &Limits::default(), now)?;
        assert_eq!(accepted.head, new);
        Ok(accepted.new_commits.len())
    }
}

fn definition(image: &str) -> String {
    format!(
        "name = \"web\"\nnode = \"rift\"\n\n[[components]]\nname = \"web\"\nimage = \"registry.example.net/web:{image}\"\n"
    )
}

#[test]
fn commits_of_the_workstation_are_accepted_one_after_the_other() {
    let bed = Bed::new();
    bed.init();
    assert_eq!(bed.push(None).unwrap(), 1);
    let first = bed.open().head().unwrap();
    bed.write("services/web.toml", &definition("v1"));
    bed.write("files/web/web.conf", "listen 80\n");
    let second = bed.commit("web: new");
    assert_eq!(bed.push(first).unwrap(), 1);
    bed.write("services/web.toml", &definition("v2"));
    bed.commit("web: image v1 -> v2");
    std::fs::remove_file(bed.dir.join("files/web/web.conf")).unwrap();
    bed.commit("web: no configuration");
    assert_eq!(bed.push(Some(second)).unwrap(), 2);
}

#[test]
fn commit_and_merge_by_stock_git_are_accepted() {
    let bed = Bed::new();
    bed.init();
    bed.git(&["checkout", "-q", "-b", "side"]);
    bed.write("services/web.toml", &definition("v1"));
    bed.git(&["add", "."]);
    bed.git(&["commit", "-q", "-S", "-m", "by stock git"]);
    bed.git(&["checkout", "-q", "main"]);
    bed.write("files/other/x", "x");
    bed.commit("other");
    bed.git(&["merge", "-q", "-S", "--no-ff", "-m", "merge", "side"]);
    assert_eq!(bed.push(None).unwrap(), 4);
}

#[test]
fn repository_that_was_taken_over_is_accepted_with_its_unsigned_past() {
    let bed = Bed::new();
    std::fs::create_dir(&bed.dir).unwrap();
    bed.git(&["init", "-q", "-b", "main"]);
    bed.write("README", "before\n");
    bed.git(&["add", "."]);
    bed.git(&["commit", "-qm", "unsigned"]);
    bed.init();
    bed.push(None).unwrap();
    let head = bed.open().head().unwrap();
    bed.write("services/web.toml", &definition("v1"));
    bed.commit("web: new");
    assert_eq!(bed.push(head).unwrap(), 1);
}

#[test]
fn unsigned_commit_is_refused_and_the_head_stays() {
    let bed = Bed::new();
    bed.init();
    bed.push(None).unwrap();
    let head = bed.open().head().unwrap();
    bed.write("services/web.toml", &definition("v1"));
    bed.git(&["add", "."]);
    bed.git(&["commit", "-q", "--no-gpg-sign", "-m", "unsigned"]);
    assert!(bed.push(head).is_err());
    assert_eq!(bed.store.head(), head);
    assert!(bed.root.path().join("agent/repo.git").is_dir());
}

#[test]
fn packed_history_with_deltas_is_accepted() {
    let bed = Bed::new();
    bed.init();
    let text: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    for round in 0..10 {
        bed.write("files/web/large", &format!("{text}{round}\n"));
        bed.commit("round");
    }
    bed.git(&["gc", "-q"]);
    assert_eq!(bed.push(None).unwrap(), 11);
}
