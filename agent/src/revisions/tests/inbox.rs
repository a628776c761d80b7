//! The inbox: whoever can push there writes any object and ref, and whoever owns it any file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mcp_spec::revision::CommitId;

use super::super::{Accepted, InboxError, InboxLook, Limits, ReceiveError, inbox_tip};
use super::raw::compressed;
use super::scene::{OWNER, Scene, definition, node, now};

/// An agent with an accepted head, an inbox that stands there, and what the agent knows of it.
struct Inbox {
    scene: Scene,
    since: Option<CommitId>,
}

impl Inbox {
    /// An inbox that stock git made, and nothing in it.
    fn empty() -> Self {
        let scene = Scene::new();
        let args = ["init", "-q", "--bare", "-b", "main", "inbox.git"];
        scene.command("git", &args, scene.dir.path());
        Self { scene, since: None }
    }

    /// One whose first commit was taken, with a second pushed.
    fn new() -> Self {
        let mut this = Self::empty();
        this.push(&[]);
        this.accepted();
        this.commit("v2");
        this.push(&[]);
        this
    }

    fn dir(&self) -> PathBuf {
        self.scene.dir.path().join("inbox.git")
    }

    fn commit(&self, version: &str) {
        self.scene
            .write("services/shop.toml", &definition("shop", version));
        self.scene.commit(Some("kyle"), version);
    }

    fn push(&self, options: &[&str]) {
        let mut args = vec!["push", "-q"];
        args.extend(options);
        args.extend(["../inbox.git", "HEAD:main"]);
        self.scene.git(&args);
    }

    fn git(&self, args: &[&str]) -> String {
        String::from_utf8(self.scene.command("git", args, &self.dir())).unwrap()
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(path, bytes).unwrap();
    }

    fn look_within(&mut self, limits: &Limits) -> Result<Option<Accepted>, InboxError> {
        let store = &self.scene.store;
        match store.read_inbox(&self.dir(), "main", self.since, limits)? {
            InboxLook::Empty => Ok(None),
            InboxLook::Known(tip) => {
                self.since = Some(tip);
                Ok(None)
            }
            InboxLook::New(fetched) => {
                let tip = fetched.tip();
                let accepted = store.receive_fetched(fetched, &node(), limits, now())?;
                self.since = Some(tip);
                Ok(accepted)
            }
        }
    }

    fn look(&mut self) -> Result<Option<Accepted>, InboxError> {
        self.look_within(&Limits::default())
    }

    /// Looks, and takes the commit of the work tree.
    fn accepted(&mut self) {
        let accepted = self.look().unwrap().expect("nothing is new");
        assert_eq!(accepted.head, self.scene.tip());
        let quarantine = self.scene.data().join("quarantine");
        assert_eq!(fs::read_dir(quarantine).unwrap().count(), 0);
    }

    /// Looks, which is refused, and leaves nothing behind.
    fn refused(&mut self) -> &'static str {
        let before = self.scene.fingerprint();
        let began = Instant::now();
        let error = self.look().unwrap_err();
        self.scene.assert_untouched(&before);
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(!error.hint().is_empty());
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        error.name()
    }
}

#[test]
fn what_plain_git_pushes_is_taken_loose_and_packed() {
    let mut inbox = Inbox::empty();
    assert!(inbox.look().unwrap().is_none(), "nothing was pushed yet");
    inbox.push(&[]);
    inbox.accepted();
    assert!(inbox.look().unwrap().is_none());
    inbox.commit("v2");
    inbox.git(&["config", "receive.unpackLimit", "1"]);
    inbox.push(&[]);
    inbox.accepted();
    inbox.commit("v3");
    inbox.push(&[]);
    inbox.git(&["gc", "-q", "--prune=now"]);
    assert!(!inbox.dir().join("refs/heads/main").exists());
    inbox.accepted();
    assert_eq!(
        inbox_tip(&inbox.dir(), "main").unwrap(),
        Some(inbox.scene.tip())
    );
    let repository = inbox.scene.store.repository();
    let fsck = ["fsck", "--full", "--strict"];
    inbox.scene.command("git", &fsck, &repository);
}

#[test]
fn refusals_are_those_of_a_push_and_a_mended_branch_is_taken() {
    let mut inbox = Inbox::new();
    inbox.accepted();
    let good = inbox.scene.tip().to_string();
    inbox.scene.commit(None, "unsigned");
    inbox.push(&[]);
    assert_eq!(inbox.refused(), "unsigned");
    inbox.scene.git(&["reset", "-q", "--hard", &good]);
    inbox.scene.commit(Some("eve"), "a stranger's");
    inbox.push(&["-f"]);
    assert_eq!(inbox.refused(), "unknown-signer");
    inbox.scene.git(&["reset", "-q", "--hard", &good]);
    inbox.commit("v3");
    inbox.push(&["-f"]);
    inbox.accepted();
}

#[test]
fn branch_that_is_set_back_is_refused_and_one_that_lags_is_not() {
    let mut inbox = Inbox::new();
    inbox.accepted();
    let (first, second) = (inbox.scene.rev("HEAD~1"), inbox.scene.tip());
    inbox.git(&["update-ref", "refs/heads/main", &first.to_string()]);
    assert_eq!(inbox.refused(), "older");
    // An agent that starts knows not where it stood before.
    inbox.since = None;
    assert!(inbox.look().unwrap().is_none());
    inbox.git(&["update-ref", "refs/heads/main", &second.to_string()]);
    assert!(inbox.look().unwrap().is_none());
    // Pushed past the inbox: it lags behind, and nobody set it back.
    inbox.commit("v3");
    let third = inbox.scene.tip();
    inbox.commit("v4");
    inbox.scene.push().unwrap();
    assert!(inbox.look().unwrap().is_none());
    inbox.git(&["fetch", "-q", "../work", "main"]);
    inbox.git(&["update-ref", "refs/heads/main", &third.to_string()]);
    assert!(inbox.look().unwrap().is_none());
    inbox.git(&["update-ref", "refs/heads/main", &second.to_string()]);
    assert_eq!(inbox.refused(), "older");
    // What parted from the head is another thing.
    inbox.scene.git(&["reset", "-q", "--hard", "HEAD~1"]);
    inbox.commit("v4 otherwise");
    inbox.push(&["-f"]);
    assert_eq!(inbox.refused(), "not-fast-forward");
    inbox.scene.git(&["checkout", "-q", "--orphan", "other"]);
    inbox.scene.commit(Some(OWNER), "unrelated");
    inbox.push(&["-f"]);
    assert_eq!(inbox.refused(), "unrelated");
}

#[test]
fn missing_inbox_and_what_is_none_are_named() {
    let mut inbox = Inbox::empty();
    fs::remove_dir_all(inbox.dir()).unwrap();
    let error = inbox.look().unwrap_err();
    assert!(matches!(error, InboxError::Missing { .. }));
    assert!(
        error.hint().contains("--initial-branch=main"),
        "{}",
        error.hint()
    );
    fs::create_dir(inbox.dir()).unwrap();
    assert_eq!(inbox.refused(), "no-repository");
    fs::remove_dir(inbox.dir()).unwrap();
    fs::write(inbox.dir(), "x").unwrap();
    assert_eq!(inbox.refused(), "odd-repository");

    let mut inbox = Inbox::new();
    fs::remove_dir_all(inbox.dir().join("objects")).unwrap();
    assert_eq!(inbox.refused(), "no-repository");

    let mut inbox = Inbox::new();
    inbox.git(&["branch", "-m", "main", "master"]);
    assert_eq!(inbox.refused(), "no-branch");
    inbox.git(&["pack-refs", "--all"]);
    assert_eq!(inbox.refused(), "no-branch");
    inbox.git(&["branch", "-m", "master", "main"]);
    inbox.accepted();
    fs::create_dir(inbox.dir().join("reftable")).unwrap();
    assert_eq!(inbox.refused(), "repository-format");
}

#[test]
fn nothing_beside_branch_and_objects_is_honoured() {
    let mut inbox = Inbox::new();
    let canary = inbox.scene.dir.path().join("canary");
    let touch = format!("touch {}", canary.display());
    let tip = inbox.scene.tip().to_string();
    let first = inbox.scene.rev("HEAD~1").to_string();
    inbox.git(&["replace", "-f", &tip, &first]);
    inbox.write("info/grafts", format!("{tip}\n"));
    inbox.write("shallow", format!("{tip}\n"));
    inbox.write("config", "[core\n\0repositoryformatversion = 99");
    for hook in [
        "pre-receive",
        "update",
        "post-update",
        "reference-transaction",
    ] {
        inbox.write(&format!("hooks/{hook}"), format!("#!/bin/sh\n{touch}\n"));
    }
    inbox.write("objects/info/http-alternates", "http://127.0.0.1:9/\n");
    inbox.write("objects/pack/multi-pack-index", "MIDX and then garbage");
    inbox.write("objects/info/commit-graph", "garbage");
    inbox.write("HEAD", "ref: ../../../../etc/passwd\n");
    inbox.accepted();
    assert!(!canary.exists());
    let read = inbox
        .scene
        .store
        .read_file(inbox.scene.tip(), "services/shop.toml");
    let signed = definition("shop", "v2").into_bytes();
    assert_eq!(read.unwrap().unwrap(), signed);
}

#[test]
fn borrowed_objects_are_refused() {
    let mut inbox = Inbox::new();
    let own = inbox.scene.store.repository().join("objects");
    inbox.write("objects/info/alternates", format!("{}\n", own.display()));
    assert_eq!(inbox.refused(), "borrowed-objects");
    let alternates = inbox.dir().join("objects/info/alternates");
    fs::remove_file(&alternates).unwrap();
    symlink("/nonexistent", &alternates).unwrap();
    assert_eq!(inbox.refused(), "borrowed-objects");
    fs::remove_file(&alternates).unwrap();
    inbox.accepted();
}

#[test]
fn refs_that_are_none_are_named() {
    let mut inbox = Inbox::new();
    let tip = inbox.scene.tip();
    let blob = inbox.git(&["rev-parse", "main:services/shop.toml"]);
    for (text, name) in [
        ("ref: refs/heads/main\n", "bad-ref"),
        ("ref: ../../../../etc/passwd\n", "bad-ref"),
        ("garbage\n", "bad-ref"),
        ("", "bad-ref"),
        (&format!("{tip}\nmore"), "bad-ref"),
        (&"1".repeat(64), "bad-ref"),
        (&"1".repeat(40), "missing-object"),
        (&blob, "wrong-object-kind"),
        (&"x".repeat(5000), "odd-repository"),
    ] {
        inbox.write("refs/heads/main", text);
        assert_eq!(inbox.refused(), name, "{text:?}");
    }
    inbox.write("refs/heads/main", format!("{tip}\n"));
    for odd in ["refs/heads/-rf", "refs/heads/x\u{1b}[2J", "refs/mcp/head"] {
        inbox.write(odd, "garbage");
    }
    inbox.accepted();
}

#[test]
fn neither_links_nor_pipes_are_followed() {
    for path in [
        "refs/heads/main",
        "refs/heads",
        "refs",
        "objects",
        "objects/pack",
        "packed-refs",
    ] {
        for pipe in [false, true] {
            let mut inbox = Inbox::new();
            if path == "packed-refs" {
                inbox.git(&["pack-refs", "--all"]);
            }
            let file = inbox.dir().join(path);
            let aside = inbox.scene.dir.path().join("aside");
            fs::rename(&file, &aside).unwrap();
            if pipe {
                let args = [file.to_str().unwrap()];
                inbox.scene.command("mkfifo", &args, Path::new("/"));
            } else {
                symlink(&aside, &file).unwrap();
            }
            assert_eq!(inbox.refused(), "odd-repository", "{path} {pipe}");
            fs::remove_file(&file).unwrap();
            fs::rename(&aside, &file).unwrap();
            inbox.accepted();
        }
    }
    // One of the objects.
    for pipe in [false, true] {
        let mut inbox = Inbox::new();
        let tip = inbox.scene.tip().to_string();
        let object = inbox.dir().join("objects").join(&tip[..2]).join(&tip[2..]);
        let aside = inbox.scene.dir.path().join("aside");
        fs::rename(&object, &aside).unwrap();
        if pipe {
            let args = [object.to_str().unwrap()];
            inbox.scene.command("mkfifo", &args, Path::new("/"));
        } else {
            symlink(&aside, &object).unwrap();
        }
        assert_eq!(inbox.refused(), "odd-repository");
    }
}

#[test]
fn hostile_objects_are_refused_by_name() {
    let mut inbox = Inbox::new();
    let tip = inbox.scene.tip().to_string();
    let loose = format!("objects/{}/{}", &tip[..2], &tip[2..]);
    let zeros = vec![0; 40 << 20];
    for object in [
        compressed(b"commit 99999999999\0tree "),
        compressed(b"commit 5\0tree "),
        compressed(b"nothing 5\0tree "),
        compressed(&[b"blob 41943040\0", zeros.as_slice()].concat()),
        compressed(&[b"commit 4\0", zeros.as_slice()].concat()),
        b"garbage".to_vec(),
        Vec::new(),
    ] {
        inbox.write(&loose, object);
        let name = inbox.refused();
        assert!(
            ["corrupt-object", "wrong-object-kind", "object-too-large"].contains(&name),
            "{name}"
        );
    }
    // Packs that are none do not stand in the way of those that are.
    inbox.write(
        &loose,
        fs::read(inbox.scene.work().join(".git").join(&loose)).unwrap(),
    );
    let odd = "objects/pack/pack-1111111111111111111111111111111111111111";
    inbox.write(&format!("{odd}.pack"), "PACK");
    inbox.write("objects/pack/pack-../../x.idx", "x");
    inbox.accepted();
}

#[test]
fn copy_is_bounded() {
    let mut inbox = Inbox::new();
    let small = |objects, inflated_bytes| Limits {
        objects,
        inflated_bytes,
        ..Limits::default()
    };
    let before = inbox.scene.fingerprint();
    for limits in [small(3, 1 << 30), small(500_000, 100)] {
        let error = inbox.look_within(&limits).unwrap_err();
        assert_eq!(error.name(), "inbox-too-large", "{error}");
    }
    // Sparse: nothing is written there, and little here.
    let object = "1".repeat(38);
    inbox.write(&format!("objects/11/{object}"), "");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(inbox.dir().join("objects/11").join(&object))
        .unwrap();
    file.set_len(8 << 30).unwrap();
    let error = inbox.look_within(&small(500_000, 1 << 20)).unwrap_err();
    assert_eq!(error.name(), "inbox-too-large", "{error}");
    inbox.scene.assert_untouched(&before);
}

#[test]
fn denied_key_is_refused_in_the_inbox_too() {
    let mut inbox = Inbox::new();
    let mut trust = inbox.scene.trust(&[OWNER]);
    let kyle = inbox
        .scene
        .public("kyle")
        .fingerprint(ssh_key::HashAlg::Sha256);
    trust.denied = mcp_spec::signature::DeniedKeys::parse(&format!("{kyle}\n")).unwrap();
    inbox.scene.store.set_trust(trust);
    let error = inbox.look().unwrap_err();
    assert!(
        matches!(error, InboxError::Refused(ReceiveError::DeniedKey { .. })),
        "{error}"
    );
}
