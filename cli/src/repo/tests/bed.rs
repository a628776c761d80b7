//! A temporary folder with a repository, a key, and stock git shielded from the machine's configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::repo::{Changes, CommitId, DesiredRepo, Identity, Selection};
use crate::sign::{SigningKey, generate_key};

pub(super) struct Bed {
    pub(super) root: tempfile::TempDir,
    pub(super) key: SigningKey,
    pub(super) dir: PathBuf,
}

impl Bed {
    /// A key, and no repository yet.
    pub(super) fn empty() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key = generate_key(&root.path().join("key"), "alice@test").unwrap();
        let dir = root.path().join("desired");
        Self { root, key, dir }
    }

    /// A repository fresh from `init`.
    pub(super) fn new() -> Self {
        let bed = Self::empty();
        bed.init();
        bed
    }

    pub(super) fn init(&self) -> crate::repo::InitOutcome {
        DesiredRepo::init(&self.dir, &self.key, "alice", Some(&identity())).unwrap()
    }

    pub(super) fn open(&self) -> DesiredRepo {
        DesiredRepo::open(&self.dir).unwrap()
    }

    pub(super) fn changes(&self) -> Changes {
        self.open().changes().unwrap()
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        std::fs::remove_file(self.dir.join(path)).unwrap();
    }

    /// Commits everything below the managed paths.
    pub(super) fn commit(&self, message: &str) -> CommitId {
        self.commit_of(message, &Selection::All)
    }

    pub(super) fn commit_of(&self, message: &str, selection: &Selection) -> CommitId {
        let repo = self.open();
        let changes = repo.changes().unwrap();
        repo.commit(&changes, selection, message, &self.key, &identity())
            .unwrap()
    }

    /// Stock git in the repository; fails the test if git fails.
    pub(super) fn git(&self, args: &[&str]) -> String {
        git_in(&self.dir, args)
    }

    pub(super) fn git_output(&self, args: &[&str]) -> Output {
        command(&self.dir, args).output().unwrap()
    }

    /// `git status` as scripts read it, new files one by one.
    pub(super) fn status(&self) -> String {
        self.git(&["status", "--porcelain=v1", "-uall"])
    }

    /// What stock git thinks of the repository as a whole.
    pub(super) fn fsck(&self) {
        let output = self.git_output(&["fsck", "--strict", "--no-dangling"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("error"), "{text}");
    }
}

pub(super) fn identity() -> Identity {
    Identity {
        name: "Alice Example".to_owned(),
        email: "alice@example.net".to_owned(),
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args);
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        command.env_remove(name);
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "Bob")
        .env("GIT_AUTHOR_EMAIL", "bob@example.net")
        .env("GIT_COMMITTER_NAME", "Bob")
        .env("GIT_COMMITTER_EMAIL", "bob@example.net");
    command
}

pub(super) fn git_in(dir: &Path, args: &[&str]) -> String {
    let output = command(dir, args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
