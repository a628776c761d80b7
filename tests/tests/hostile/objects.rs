//! Hostile objects, made in the workstation's repository with git's plumbing, and packs of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mcp_tests::fleet::Fleet;

/// A commit that no agent may take, and the name of its refusal.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) commit: String,
    /// Whether the objects themselves are hostile, and not the pack alone.
    pub(crate) is_in_objects: bool,
    repo: PathBuf,
    packed: Packed,
}

enum Packed {
    /// These objects.
    Objects(Vec<String>),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Hostile {
    /// The pack to push.
    pub(crate) fn pack(&self) -> Vec<u8> {
        match &self.packed {
            Packed::Objects(ids) => {
                pack_of(&self.repo, ids, &["--delta-base-offset", "--window=0"])
            }
            Packed::Bytes(bytes) => bytes.clone(),
        }
    }
}

fn git(repo: &PathBuf, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(repo)
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "alice")
        .env("GIT_AUTHOR_EMAIL", "alice@example.net")
        .env("GIT_COMMITTER_NAME", "alice")
        .env("GIT_COMMITTER_EMAIL", "alice@example.net")
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let fed = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    fed.join().unwrap();
    assert!(output.status.success(), "git {args:?}");
    output.stdout
}

fn pack_of(repo: &PathBuf, ids: &[String], how: &[&str]) -> Vec<u8> {
    let args = [&["pack-objects", "-q", "--stdout"], how].concat();
    git(repo, &args, (ids.join("\n") + "\n").as_bytes())
}

/// The repository, and what stands at its head.
struct Workshop<'a> {
    fleet: &'a Fleet,
    repo: PathBuf,
    head: String,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
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

impl<'a> Workshop<'a> {
    fn new(fleet: &'a Fleet) -> Self {
        let repo = fleet.repo().to_owned();
        let listing = fleet.git(&["ls-tree", "HEAD"]);
        let entries = listing.lines().map(|line| {
            let (meta, name) = line.split_once('\t').unwrap();
            let words: Vec<_> = meta.split(' ').collect();
            entry(words[0].trim_start_matches('0'), name.as_bytes(), words[2])
        });
        Self {
            head: fleet.git(&["rev-parse", "HEAD"]),
            entries: entries.collect(),
            fleet,
            repo,
        }
    }

    fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let args = ["hash-object", "-t", kind, "-w", "--stdin", "--literally"];
        let id = git(&self.repo, &args, bytes);
        String::from_utf8(id).unwrap().trim().to_owned()
    }

    /// A tree of these entries as they come.
    fn tree<'e>(&self, entries: impl IntoIterator<Item = (&'e str, String, &'e str)>) -> String {
        let raw: Vec<u8> = entries
            .into_iter()
            .flat_map(|(mode, name, id)| entry(mode, name.as_bytes(), id).1)
            .collect();
        self.object("tree", &raw)
    }

    fn commit(&self, tree: &str, sign: bool) -> String {
        let key = format!("user.signingkey={}", self.fleet.key().display());
        let mut args = vec!["-c", "gpg.format=ssh", "-c", &key, "commit-tree"];
        if sign {
            args.push("-S");
        }
        args.extend(["-p", &self.head, "-m", "odd", tree]);
        String::from_utf8(git(&self.repo, &args, b""))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// A signed commit of the head's tree and these entries.
    fn with(&self, name: &'static str, more: &[(&str, &[u8], &str)], also: &[&str]) -> Hostile {
        let mut entries = self.entries.clone();
        entries.extend(more.iter().map(|(mode, name, id)| entry(mode, name, id)));
        entries.sort();
        let raw: Vec<u8> = entries.into_iter().flat_map(|(_, raw)| raw).collect();
        let tree = self.object("tree", &raw);
        let commit = self.commit(&tree, true);
        let mut ids = vec![commit.clone(), tree];
        ids.extend(more.iter().map(|(_, _, id)| (*id).to_owned()));
        ids.extend(also.iter().map(|id| (*id).to_owned()));
        ids.retain(|id| *id != self.head);
        self.hostile(name, commit, Packed::Objects(ids), true)
    }

    fn hostile(
        &self,
        name: &'static str,
        commit: String,
        packed: Packed,
        is_in_objects: bool,
    ) -> Hostile {
        Hostile {
            name,
            commit,
            is_in_objects,
            repo: self.repo.clone(),
            packed,
        }
    }

    /// An honest commit with one thing in its raw text changed.
    fn changed(&self, name: &'static str, from: &str, to: &str) -> Hostile {
        let tree = self.fleet.git(&["rev-parse", "HEAD^{tree}"]);
        let fine = git(
            &self.repo,
            &["cat-file", "commit", &self.commit(&tree, true)],
            b"",
        );
        let fine = String::from_utf8(fine).unwrap();
        let odd = fine.replacen(from, to, 1);
        assert_ne!(odd, fine);
        let commit = self.object("commit", odd.as_bytes());
        self.hostile(name, commit.clone(), Packed::Objects(vec![commit]), true)
    }
}

/// One of each family.
pub(crate) fn all(fleet: &Fleet) -> Vec<Hostile> {
    let shop = Workshop::new(fleet);
    let blob = shop.object("blob", b"/etc/passwd");
    let folder = shop.tree([("100644", "x".to_owned(), blob.as_str())]);
    let mut cases = Vec::new();
    for (name, mode, entry) in [
        ("symlink", "120000", "link".as_bytes()),
        ("odd-mode", "100664", b"odd"),
        ("dot-git", "100644", b".GIT"),
        ("dot-git", "100644", b"git~1"),
        ("dot-git", "100644", b".g\xe2\x80\x8cit"),
        ("gitmodules", "100644", b".gitmodules"),
        ("path-escape", "100644", b".."),
        ("slash-in-name", "100644", b"../etc/cron.d/x"),
        ("invisible-character", "100644", b"a\x1b]0;x\x07"),
        ("leading-hyphen", "100644", b"-rf"),
        ("name-not-utf8", "100644", b"\xff"),
        ("alike-names", "100644", b"SERVICES"),
    ] {
        cases.push(shop.with(name, &[(mode, entry, &blob)], &[]));
    }
    cases.push(shop.with("submodule", &[("160000", b"module", &shop.head)], &[]));
    let pair: [(&str, &[u8], &str); 2] = [
        ("100644", "café".as_bytes(), &blob),
        ("40000", "cafe\u{301}".as_bytes(), &folder),
    ];
    cases.push(shop.with("alike-names", &pair, &[&blob]));
    let parent = format!("parent {}\n", shop.head);
    cases.push(shop.changed("duplicate-parent", &parent, &parent.repeat(2)));
    cases.push(shop.changed("duplicate-header", "\ngpgsig ", "\ngpgsig x\ngpgsig "));
    cases.push(shop.changed(
        "header-order",
        "\ncommitter ",
        "\nauthor E <e> 1 +0000\ncommitter ",
    ));
    cases.push(shop.changed("malformed-header", " +0000\ncommitter", " +9999\ncommitter"));
    cases.push(shop.changed("bad-signature", "\n\nodd", "\n\nodder"));
    let tree = fleet.git(&["rev-parse", "HEAD^{tree}"]);
    let unsigned = shop.commit(&tree, false);
    cases.push(shop.hostile(
        "unsigned",
        unsigned.clone(),
        Packed::Objects(vec![unsigned]),
        true,
    ));
    let missing = shop.with("missing-object", &[("100644", b"x", &blob)], &[]);
    let only = missing.commit.clone();
    cases.push(shop.hostile(
        "missing-object",
        only.clone(),
        Packed::Objects(vec![only]),
        false,
    ));
    cases.extend(odd_packs(&shop));
    cases
}

/// Packs that are odd themselves.
fn odd_packs(shop: &Workshop<'_>) -> Vec<Hostile> {
    let tree = shop.fleet.git(&["rev-parse", "HEAD^{tree}"]);
    let fine = shop.commit(&tree, true);
    let pack = pack_of(&shop.repo, std::slice::from_ref(&fine), &[]);
    let with = |at: usize, bytes: &[u8]| {
        let mut odd = pack.clone();
        odd[at..at + bytes.len()].copy_from_slice(bytes);
        odd
    };
    let lines = |count: usize| {
        (0..count)
            .map(|n| format!("line {n}\n"))
            .collect::<String>()
    };
    let base = shop.object("blob", lines(3000).as_bytes());
    let next = shop.object("blob", lines(3001).as_bytes());
    let tag = format!("object {fine}\ntype commit\ntag v1\ntagger A <a> 1 +0000\n\ntag\n");
    let tag = shop.object("tag", tag.as_bytes());
    let odd = |name, bytes| shop.hostile(name, fine.clone(), Packed::Bytes(bytes), false);
    vec![
        odd("truncated-pack", Vec::new()),
        odd("truncated-pack", pack[..pack.len() - 30].to_vec()),
        odd(
            "pack-checksum",
            with(pack.len() - 1, &[!pack[pack.len() - 1]]),
        ),
        odd("pack-goes-on", [pack.as_slice(), b"more"].concat()),
        odd("pack-version", with(4, &3u32.to_be_bytes())),
        odd("too-many-objects", with(8, &u32::MAX.to_be_bytes())),
        odd("not-a-pack", b"PUCK and nothing else at all".to_vec()),
        odd("tag", pack_of(&shop.repo, &[fine.clone(), tag], &[])),
        odd(
            "reference-delta",
            pack_of(&shop.repo, &[fine.clone(), base, next], &["--window=10"]),
        ),
    ]
}

/// What is small to send and large to look at.
pub(crate) fn bombs(fleet: &Fleet) -> Vec<Hostile> {
    let shop = Workshop::new(fleet);
    let blob = shop.object("blob", b"x");
    let mut cases = Vec::new();

    let zeros = shop.object("blob", &vec![0; 33 << 20]);
    cases.push(shop.with("object-too-large", &[("100644", b"zeros", &zeros)], &[]));

    // Ten names for one folder, which has ten for the next: ten thousand million files.
    let mut ids = vec![blob.clone()];
    for level in 0..10 {
        let mode = if level == 0 { "100644" } else { "40000" };
        let below = ids[level].clone();
        ids.push(shop.tree((0..10).map(|name| (mode, name.to_string(), below.as_str()))));
    }
    let also: Vec<&str> = ids.iter().map(String::as_str).collect();
    cases.push(shop.with("too-many-files", &[("40000", b"dag", &ids[10])], &also));

    let mut ids = vec![blob.clone()];
    for level in 0..40 {
        let mode = if level == 0 { "100644" } else { "40000" };
        let below = ids[level].clone();
        ids.push(shop.tree([(mode, "d".to_owned(), below.as_str())]));
    }
    let also: Vec<&str> = ids.iter().map(String::as_str).collect();
    cases.push(shop.with("tree-too-deep", &[("40000", b"deep", &ids[40])], &also));

    // Folders that are each as full as one may be, and all of them others.
    let full: Vec<u8> = (0..90_000)
        .flat_map(|number| entry("100644", format!("{number:05}").as_bytes(), &blob).1)
        .collect();
    let folders: Vec<(String, String)> = (0..60)
        .map(|number| {
            let name = format!("x{number:02}");
            let raw = [full.as_slice(), &entry("100644", name.as_bytes(), &blob).1].concat();
            (name, shop.object("tree", &raw))
        })
        .collect();
    let bomb = shop.tree(
        folders
            .iter()
            .map(|(name, id)| ("40000", name.clone(), id.as_str())),
    );
    let mut also: Vec<&str> = folders.iter().map(|(_, id)| id.as_str()).collect();
    also.push(&blob);
    cases.push(shop.with("too-many-files", &[("40000", b"full", &bomb)], &also));

    // A commit whose parents fill it.
    let tree = fleet.git(&["rev-parse", "HEAD^{tree}"]);
    let mut raw = format!("tree {tree}\nparent {}\n", shop.head);
    for number in 0..400_000 {
        raw += &format!("parent {number:040x}\n");
    }
    raw += "author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nmany\n";
    let commit = shop.object("commit", raw.as_bytes());
    cases.push(shop.hostile(
        "commit-too-large",
        commit.clone(),
        Packed::Objects(vec![commit]),
        true,
    ));

    // One large file under thousands of names, and a definition that has all of them read.
    let large = shop.object("blob", &vec![0; 16 << 20]);
    let names = shop.tree((0..5000).map(|name| ("100644", format!("{name:05}"), large.as_str())));
    let files = shop.tree([("40000", "bombs".to_owned(), names.as_str())]);
    let broken = shop.object("blob", b"name = ");
    let services = shop.tree([("100644", "bombs.toml".to_owned(), broken.as_str())]);
    let signers = fleet.git(&["rev-parse", "HEAD:.mcp"]);
    let tree = shop.tree([
        ("40000", ".mcp".to_owned(), signers.as_str()),
        ("40000", "files".to_owned(), files.as_str()),
        ("40000", "services".to_owned(), services.as_str()),
    ]);
    let commit = shop.commit(&tree, true);
    let ids = vec![commit.clone(), tree, files, names, large, services, broken];
    cases.push(shop.hostile("bad-definitions", commit, Packed::Objects(ids), true));
    cases
}
