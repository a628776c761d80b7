//! Hostile upstreams: whoever hosts the other repository writes what they like into its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::raw::{RawPack, delta, sha1};
use super::scene::{Scene, definition};
use super::source::{fetch, fetch_work};

/// An agent that follows a bare repository, and a commit in that which it has not fetched.
struct Upstream {
    scene: Scene,
}

impl Upstream {
    fn new() -> Self {
        let scene = Scene::new();
        fetch_work(&scene).unwrap();
        scene.write("services/shop.toml", &definition("shop", "v2"));
        scene.commit(Some("kyle"), "v2");
        let this = Self { scene };
        this.clone_anew();
        this
    }

    /// Clones the work tree into the upstream, which is as no attacker ever saw it then.
    fn clone_anew(&self) {
        let _ = fs::remove_dir_all(self.dir());
        let args = ["clone", "-q", "--bare", "--no-hardlinks", "work", "up.git"];
        self.scene.command("git", &args, self.scene.dir.path());
    }

    fn dir(&self) -> PathBuf {
        self.scene.dir.path().join("up.git")
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn git(&self, args: &[&str]) -> String {
        String::from_utf8(self.scene.command("git", args, &self.dir())).unwrap()
    }

    /// Fetches, which is refused, and leaves nothing behind.
    fn refused(&self) -> &'static str {
        let before = self.scene.fingerprint();
        let began = Instant::now();
        let error = fetch(&self.scene, self.dir().to_str().unwrap(), "main").unwrap_err();
        self.scene.assert_untouched(&before);
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(!error.hint().is_empty());
        assert!(
            !error.to_string().chars().any(char::is_control),
            "{error:?}"
        );
        error.name()
    }

    /// Fetches the commit that an honest upstream has.
    fn accepted(&self) {
        let accepted = fetch(&self.scene, self.dir().to_str().unwrap(), "main");
        assert_eq!(accepted.unwrap().unwrap().head, self.scene.tip());
    }
}

#[test]
fn replaced_objects_are_read_as_they_were_signed() {
    let upstream = Upstream::new();
    let tip = upstream.scene.tip().to_string();
    let evil = upstream.scene.hash_object("blob", b"evil = true\n");
    let blob = upstream.git(&["rev-parse", "main:services/shop.toml"]);
    let other = upstream.git(&["rev-parse", "main~1"]);
    upstream.clone_anew();
    upstream.git(&["replace", "-f", &tip, other.trim()]);
    upstream.git(&["replace", "-f", blob.trim(), &evil]);
    upstream.accepted();
    let store = &upstream.scene.store;
    let read = store.read_file(upstream.scene.tip(), "services/shop.toml");
    assert_eq!(
        read.unwrap().unwrap(),
        definition("shop", "v2").into_bytes()
    );
    assert!(!store.repository().join("refs/replace").exists());
}

#[test]
fn grafts_and_shallow_files_hide_no_parent() {
    for (file, text) in [("shallow", "TIP\n"), ("info/grafts", "TIP\n")] {
        let upstream = Upstream::new();
        let tip = upstream.scene.tip().to_string();
        upstream.write(file, text.replace("TIP", &tip));
        // What git would take for a root has its parents here.
        upstream.accepted();
        assert!(!upstream.scene.store.repository().join(file).exists());
    }
    let upstream = Upstream::new();
    for number in 0..2 {
        upstream.scene.write("files/shop/conf", &number.to_string());
        upstream.scene.commit(Some("kyle"), "more");
    }
    fs::remove_dir_all(upstream.dir()).unwrap();
    let url = format!("file://{}", upstream.scene.work().display());
    let args = ["clone", "-q", "--bare", "--depth=1", &url, "up.git"];
    upstream
        .scene
        .command("git", &args, upstream.scene.dir.path());
    assert_eq!(upstream.refused(), "missing-object");
}

#[test]
fn borrowed_objects_are_refused_wherever_they_come_from() {
    let upstream = Upstream::new();
    let own = upstream.scene.store.repository().join("objects");
    for text in [
        format!("{}\n", own.display()),
        "../../../../../etc\n".to_owned(),
        "\n".to_owned(),
    ] {
        upstream.write("objects/info/alternates", text);
        assert_eq!(upstream.refused(), "borrowed-objects");
    }
    fs::remove_file(upstream.dir().join("objects/info/alternates")).unwrap();
    upstream.write(
        "objects/info/http-alternates",
        "http://127.0.0.1:9/objects\n",
    );
    upstream.accepted();
}

#[test]
fn configuration_of_an_upstream_has_no_say() {
    let upstream = Upstream::new();
    let canary = upstream.scene.dir.path().join("canary");
    let touch = format!("touch {}", canary.display());
    upstream.write("included", format!("[core]\n\tfsmonitor = {touch}\n"));
    for (key, value) in [
        ("core.worktree", "/"),
        ("core.fsmonitor", touch.as_str()),
        ("core.alternateRefsCommand", &touch),
        ("core.sshCommand", &touch),
        ("core.gitProxy", &touch),
        ("uploadpack.packObjectsHook", &touch),
        ("include.path", "included"),
        ("includeIf.gitdir:/.path", "included"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", "ext::sh -c 'touch canary'"),
        ("extensions.partialClone", "origin"),
        ("gc.auto", "1"),
        ("core.useReplaceRefs", "true"),
        ("core.deltaBaseCacheLimit", "9999999999"),
    ] {
        upstream.git(&["config", "--add", key, value]);
    }
    for hook in [
        "post-update",
        "pre-receive",
        "post-checkout",
        "reference-transaction",
    ] {
        upstream.write(&format!("hooks/{hook}"), format!("#!/bin/sh\n{touch}\n"));
    }
    upstream.accepted();
    assert!(!canary.exists());
}

#[test]
fn configuration_that_cannot_be_read_is_no_repository() {
    let upstream = Upstream::new();
    for text in [
        "[core]\n\trepositoryformatversion = 99\n",
        "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n",
        "[core\n",
        "\0\0\0",
    ] {
        upstream.write("config", text);
        let name = upstream.refused();
        assert!(
            ["no-repository", "no-branch", "corrupt-object"].contains(&name),
            "{text:?}: {name}"
        );
    }
}

#[test]
fn refs_lead_nowhere_but_to_a_commit() {
    let upstream = Upstream::new();
    let tag = {
        upstream.scene.git(&["tag", "-a", "-m", "a tag", "v1"]);
        upstream.scene.git(&["rev-parse", "v1"])
    };
    let blob = upstream
        .scene
        .git(&["rev-parse", "HEAD:services/shop.toml"]);
    upstream.clone_anew();
    upstream.git(&["pack-refs", "--all"]);
    let ref_file = upstream.dir().join("refs/heads/main");
    for (text, names) in [
        ("ref: refs/heads/main\n", ["no-branch", ""]),
        ("ref: ../../../../etc/passwd\n", ["no-branch", ""]),
        ("ref: refs/heads/nowhere\n", ["no-branch", ""]),
        ("not an id\n", ["no-branch", ""]),
        ("\n", ["no-branch", ""]),
        (
            "1111111111111111111111111111111111111111\n",
            ["no-branch", "missing-object"],
        ),
        (
            "0000000000000000000000000000000000000000\n",
            ["no-branch", "missing-object"],
        ),
        (&blob, ["wrong-object-kind", "no-branch"]),
    ] {
        upstream.write("refs/heads/main", text);
        let name = upstream.refused();
        assert!(names.contains(&name), "{text:?}: {name}");
    }
    fs::remove_file(&ref_file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &ref_file).unwrap();
    assert_eq!(upstream.refused(), "no-branch");
    fs::remove_file(&ref_file).unwrap();
    fs::create_dir_all(ref_file.join("below")).unwrap();
    // The packed ref is behind it; what stands there decides, and git's library reads on.
    drop(fetch(
        &upstream.scene,
        upstream.dir().to_str().unwrap(),
        "main",
    ));
    fs::remove_dir_all(&ref_file).unwrap();
    // Others' refs are not looked at, whatever they are called.
    for odd in [
        "refs/heads/-rf",
        "refs/heads/a b",
        "refs/heads/x\u{1b}[2J",
        "refs/mcp/head",
    ] {
        upstream.write(odd, "garbage");
    }
    // A branch that is a tag leads to its commit.
    upstream.scene.commit(Some("kyle"), "after the tag");
    upstream.write("refs/heads/main", &tag);
    let head = upstream.scene.store.head();
    let fetched = fetch(&upstream.scene, upstream.dir().to_str().unwrap(), "main");
    match fetched {
        Ok(_) => assert_eq!(
            upstream.scene.store.head(),
            Some(upstream.scene.rev("v1^{commit}"))
        ),
        Err(error) => {
            assert_eq!(error.name(), "wrong-object-kind");
            assert_eq!(upstream.scene.store.head(), head);
        }
    }
}

#[test]
fn files_that_are_none_are_not_waited_for_and_large_ones_not_read() {
    for (path, pipe) in [
        ("config", true),
        ("HEAD", true),
        ("packed-refs", true),
        ("refs/heads/main", true),
        ("config", false),
        ("HEAD", false),
        ("packed-refs", false),
        ("refs/heads/main", false),
    ] {
        let upstream = Upstream::new();
        let file = upstream.dir().join(path);
        let _ = fs::remove_file(&file);
        if pipe {
            let args = [file.to_str().unwrap()];
            upstream.scene.command("mkfifo", &args, Path::new("/"));
        } else {
            // Sparse: nothing is written.
            let large = fs::File::create(&file).unwrap();
            large.set_len(8 << 30).unwrap();
        }
        assert_eq!(upstream.refused(), "odd-repository", "{path}");
    }
}

/// Loose objects that are not what their name says, and packs whose index lies.
#[test]
fn objects_that_lie_are_refused_by_name() {
    let upstream = Upstream::new();
    let tip = upstream.scene.tip().to_string();
    let loose = |id: &str| format!("objects/{}/{}", &id[..2], &id[2..]);
    let zeros = vec![0; 40 << 20];
    for object in [
        super::raw::compressed(b"commit 99999999999\0tree "),
        super::raw::compressed(b"commit 5\0tree "),
        super::raw::compressed(b"commit -1\0tree "),
        super::raw::compressed(b"nothing 5\0tree "),
        super::raw::compressed(&[b"blob 41943040\0", zeros.as_slice()].concat()),
        super::raw::compressed(&[b"commit 4\0", zeros.as_slice()].concat()),
        b"garbage".to_vec(),
        Vec::new(),
    ] {
        upstream.clone_anew();
        // Unpacked, so that the loose one is the only one.
        let pack = fs::read_dir(upstream.dir().join("objects/pack")).unwrap();
        for file in pack {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        let _ = fs::remove_file(upstream.dir().join(loose(&tip)));
        upstream.write(&loose(&tip), object);
        let name = upstream.refused();
        assert!(
            ["corrupt-object", "no-branch", "wrong-object-kind"].contains(&name),
            "{name}"
        );
    }
}

#[test]
fn deltas_in_a_circle_come_to_an_end() {
    let upstream = Upstream::new();
    // Ids that no content has: each of the two says that it is a delta upon the other.
    let ids = [[0x11; 20], [0x22; 20], [0x33; 20]];
    let odd = delta(5, 5, b"\x90\x05");
    let mut pack = RawPack::new();
    let offsets = [
        pack.reference_delta(&ids[1], &odd),
        pack.reference_delta(&ids[0], &odd),
        pack.reference_delta(&ids[2], &odd),
    ];
    let pack = pack.finish();
    let index = index_of(&ids, &offsets, &pack);
    upstream.write("objects/pack/pack-circle.pack", &pack);
    upstream.write("objects/pack/pack-circle.idx", index);
    for id in ids {
        upstream.write("refs/heads/main", hex::encode(id) + "\n");
        let name = upstream.refused();
        assert!(["corrupt-object", "no-branch"].contains(&name), "{name}");
    }
}

/// An index that says where each of these objects is.
fn index_of(ids: &[[u8; 20]], offsets: &[u64], pack: &[u8]) -> Vec<u8> {
    let mut index = b"\xfftOc\0\0\0\x02".to_vec();
    for first in 0..=255u8 {
        let count = ids.iter().filter(|id| id[0] <= first).count();
        index.extend(u32::try_from(count).unwrap().to_be_bytes());
    }
    index.extend(ids.concat());
    index.extend(vec![0; 4 * ids.len()]);
    for offset in offsets {
        index.extend(u32::try_from(*offset).unwrap().to_be_bytes());
    }
    index.extend(&pack[pack.len() - 20..]);
    let checksum = sha1(&index);
    index.extend(checksum);
    index
}
