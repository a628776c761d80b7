//! A git work tree with keys, an agent's store, and ways to push from one to the other.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{AllowedSigners, DeniedKeys, OwnerKeys, PublicKey};
use tempfile::TempDir;

use super::super::{Accepted, Limits, ReceiveError, RevisionStore, TrustRoots};

pub(crate) const OWNER: &str = "owner";

pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) store: RevisionStore,
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

pub(crate) fn node() -> NodeName {
    "rift".parse().unwrap()
}

pub(crate) fn definition(name: &str, version: &str) -> String {
    format!(
        "name = \"{name}\"\nnode = \"rift\"\n\n[[components]]\nname = \"web\"\nimage = \"localhost/web:{version}\"\n"
    )
}

impl Scene {
    /// A repository with one commit, signed by the owner, that names owner and `kyle` (git only).
    pub(crate) fn new() -> Self {
        let scene = Self::empty();
        scene.write_signers(&[(OWNER, "git,mcp-owner"), ("kyle", "git")]);
        scene.write("services/shop.toml", &definition("shop", "v1"));
        scene.commit(Some(OWNER), "shop: first");
        scene
    }

    /// Keys, an empty work tree and an empty store that pins the owner.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for key in [OWNER, "kyle", "eve"] {
            make_key(dir.path(), key);
        }
        let data = dir.path().join("data");
        RevisionStore::init(&data).unwrap();
        let trust = trust(dir.path(), &[OWNER]);
        let store = RevisionStore::open(&data, trust).unwrap();
        let scene = Self { dir, store };
        scene.command(
            "git",
            &["init", "-q", "-b", "main", "work"],
            scene.dir.path(),
        );
        scene
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn trust(&self, owners: &[&str]) -> TrustRoots {
        trust(self.dir.path(), owners)
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) fn restart(&mut self) {
        self.restart_with(self.trust(&[OWNER]));
    }

    pub(crate) fn restart_with(&mut self, trust: TrustRoots) {
        self.store = RevisionStore::open(&self.data(), trust).unwrap();
    }

    pub(crate) fn public(&self, key: &str) -> PublicKey {
        PublicKey::read_openssh_file(&self.dir.path().join(format!("{key}.pub"))).unwrap()
    }

    pub(crate) fn signers_text(&self, signers: &[(&str, &str)]) -> String {
        signers
            .iter()
            .map(|(key, namespaces)| {
                let namespaces: Vec<_> = namespaces.split(',').collect();
                let principal = format!("{key}@example.net");
                AllowedSigners::line_for(&principal, &self.public(key), &namespaces) + "\n"
            })
            .collect()
    }

    pub(crate) fn write_signers(&self, signers: &[(&str, &str)]) {
        self.write(".mcp/allowed_signers", &self.signers_text(signers));
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.work().join(path)).unwrap();
    }

    /// Commits all that is in the work tree, signed by this key.
    pub(crate) fn commit(&self, key: Option<&str>, message: &str) -> CommitId {
        self.git(&["add", "-A"]);
        self.commit_index(key, message)
    }

    pub(crate) fn commit_index(&self, key: Option<&str>, message: &str) -> CommitId {
        let signing = key.map_or_else(String::new, |key| {
            self.dir.path().join(key).display().to_string()
        });
        let config = format!("user.signingkey={signing}");
        let sign = if key.is_some() { "-S" } else { "--no-gpg-sign" };
        self.git(&[
            "-c",
            &config,
            "commit",
            "-q",
            "--allow-empty",
            sign,
            "-m",
            message,
        ]);
        self.tip()
    }

    pub(crate) fn tip(&self) -> CommitId {
        self.rev("HEAD")
    }

    pub(crate) fn rev(&self, rev: &str) -> CommitId {
        self.git(&["rev-parse", rev]).trim().parse().unwrap()
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        String::from_utf8(self.command("git", args, &self.work())).unwrap()
    }

    pub(crate) fn command(&self, program: &str, args: &[&str], dir: &Path) -> Vec<u8> {
        self.feed(program, args, dir, b"")
    }

    pub(crate) fn feed(&self, program: &str, args: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
        let (fine, out, error) = self.try_feed(program, args, dir, input);
        assert!(fine, "{program} {args:?}: {error}");
        out
    }

    pub(crate) fn try_feed(
        &self,
        program: &str,
        args: &[&str],
        dir: &Path,
        input: &[u8],
    ) -> (bool, Vec<u8>, String) {
        let mut child = isolated(Command::new(program), self.dir.path())
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        (
            output.status.success(),
            output.stdout,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Writes a raw object, however odd.
    pub(crate) fn hash_object(&self, kind: &str, bytes: &[u8]) -> String {
        let args = ["hash-object", "-t", kind, "-w", "--stdin", "--literally"];
        let id = self.feed("git", &args, &self.work(), bytes);
        String::from_utf8(id).unwrap().trim().to_owned()
    }

    /// A pack of what `new` reaches and `old` does not.
    pub(crate) fn pack(&self, old: Option<CommitId>, new: CommitId) -> Vec<u8> {
        let mut revs = format!("{new}\n");
        if let Some(old) = old {
            revs += &format!("^{old}\n");
        }
        let args = [
            "pack-objects",
            "-q",
            "--stdout",
            "--revs",
            "--delta-base-offset",
        ];
        self.feed("git", &args, &self.work(), revs.as_bytes())
    }

    /// A pack of exactly these objects.
    pub(crate) fn pack_of(&self, ids: &[&str]) -> Vec<u8> {
        let args = ["pack-objects", "-q", "--stdout", "--delta-base-offset"];
        self.feed(
            "git",
            &args,
            &self.work(),
            (ids.join("\n") + "\n").as_bytes(),
        )
    }

    pub(crate) fn receive(
        &self,
        pack: &[u8],
        old: Option<CommitId>,
        new: CommitId,
    ) -> Result<Accepted, ReceiveError> {
        self.receive_within(pack, old, new, &Limits::default())
    }

    pub(crate) fn receive_within(
        &self,
        pack: &[u8],
        old: Option<CommitId>,
        new: CommitId,
        limits: &Limits,
    ) -> Result<Accepted, ReceiveError> {
        self.store.receive(pack, old, new, &node(), limits, now())
    }

    /// Pushes the tip of the work tree, as the CLI does.
    pub(crate) fn push(&self) -> Result<Accepted, ReceiveError> {
        let head = self.store.head();
        let tip = self.tip();
        self.receive(&self.pack(head, tip), head, tip)
    }

    /// Pushes, which is refused, and leaves neither a trace in the store nor a file behind.
    pub(crate) fn refused(&self) -> ReceiveError {
        let before = self.fingerprint();
        let error = self.push().unwrap_err();
        self.assert_untouched(&before);
        assert!(!error.hint().is_empty() && !error.name().is_empty());
        error
    }

    /// Everything below the data directory, for comparison.
    pub(crate) fn fingerprint(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect(&self.data(), &mut files);
        files
    }

    pub(crate) fn assert_untouched(&self, before: &[(PathBuf, Vec<u8>)]) {
        let after = self.fingerprint();
        let names = |files: &[(PathBuf, Vec<u8>)]| -> Vec<PathBuf> {
            files.iter().map(|(path, _)| path.clone()).collect()
        };
        assert_eq!(names(before), names(&after));
        assert!(before == after.as_slice(), "a file's bytes have changed");
    }
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
}

fn trust(dir: &Path, owners: &[&str]) -> TrustRoots {
    let keys: String = owners
        .iter()
        .map(|owner| fs::read_to_string(dir.join(format!("{owner}.pub"))).unwrap())
        .collect();
    TrustRoots {
        owners: OwnerKeys::parse(&keys).unwrap(),
        denied: DeniedKeys::default(),
        introduction: None,
    }
}

pub(crate) fn make_key(dir: &Path, name: &str) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name])
        .current_dir(dir)
        .status()
        .unwrap();
    assert!(status.success());
}

fn isolated(mut command: Command, home: &Path) -> Command {
    command
        .env("HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "3")
        .env("GIT_CONFIG_KEY_0", "gpg.format")
        .env("GIT_CONFIG_VALUE_0", "ssh")
        .env("GIT_CONFIG_KEY_1", "gpg.ssh.allowedSignersFile")
        .env("GIT_CONFIG_VALUE_1", home.join("work/.mcp/allowed_signers"))
        .env("GIT_CONFIG_KEY_2", "advice.detachedHead")
        .env("GIT_CONFIG_VALUE_2", "false")
        .env("GIT_AUTHOR_NAME", "Kyle")
        .env("GIT_AUTHOR_EMAIL", "kyle@example.net")
        .env("GIT_COMMITTER_NAME", "Kyle")
        .env("GIT_COMMITTER_EMAIL", "kyle@example.net")
        .env_remove("SSH_AUTH_SOCK");
    command
}
