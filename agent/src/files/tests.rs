//! Files against whoever owns the folder.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mcp_spec::image::Digest;

use super::error::FileError;
use super::handle::Places;
use super::list::{List, Listing};
use super::pull::{Facts, Outlet, Pull};
use super::push::{Allowed, Push, Pushed};
use super::undo::{Undo, Undone};
use super::{intents, list, pull, push, undo};

/// A node's folders, with a service `shop` and what it must not reach.
struct Node {
    places: Places,
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct Received {
    facts: Option<Facts>,
    bytes: Vec<u8>,
}

impl Outlet for Received {
    fn begin(&mut self, facts: Facts) -> io::Result<()> {
        self.facts = Some(facts);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["srv/shop", "srv/wiki", "srv/agent", "outside"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("srv/wiki/secret"), "wiki's").unwrap();
        fs::write(at("srv/agent/issuer.key"), "the agent's").unwrap();
        fs::write(at("outside/secret"), "outside").unwrap();
        Self {
            places: Places {
                services_dir: at("srv"),
                data_dir: at("srv/agent"),
                protected: vec![at("srv/shop/agent.toml")],
            },
            dir,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn order(&self, path: &str, bytes: &[u8]) -> Push {
        Push {
            service: "shop".parse().unwrap(),
            path: path.parse().unwrap(),
            bytes: bytes.len() as u64,
            sha256: Digest::of(bytes),
            mode: 0o644,
            set_mode: false,
            make_folders: true,
            owner: None,
            allowed: Allowed {
                quota: None,
                reserve: 0,
                keep: 1 << 20,
                expected: 0,
            },
        }
    }

    fn push(&self, path: &str, bytes: &[u8]) -> Result<Pushed, FileError> {
        push::run(&self.places, &self.order(path, bytes), &mut &bytes[..])
    }

    fn pull_of(&self, service: &str, path: &str) -> Result<Vec<u8>, FileError> {
        let mut received = Received::default();
        let pull = Pull {
            service: service.parse().unwrap(),
            path: path.parse().unwrap(),
            limit: 1 << 30,
        };
        pull::run(&self.places, &pull, &mut received)?;
        let facts = received.facts.unwrap();
        assert_eq!(facts.sha256, Digest::of(&received.bytes));
        assert_eq!(facts.entry.bytes, received.bytes.len() as u64);
        Ok(received.bytes)
    }

    fn pull(&self, path: &str) -> Result<Vec<u8>, FileError> {
        self.pull_of("shop", path)
    }

    fn list(&self, path: &str, recursive: bool) -> Result<Listing, FileError> {
        let list = List {
            service: "shop".parse().unwrap(),
            path: path.parse().unwrap(),
            recursive,
        };
        list::run(&self.places, &list)
    }

    fn undo(&self, path: &str, force: bool) -> Result<Undone, FileError> {
        let undo = Undo {
            service: "shop".parse().unwrap(),
            path: path.parse().unwrap(),
            force,
            keep: 1 << 20,
        };
        undo::run(&self.places, &undo)
    }

    /// All names below the services' folder that only the agent makes.
    fn litter(&self) -> Vec<PathBuf> {
        fn look(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".mcp-push-")
                {
                    found.push(entry.path());
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    look(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        look(&self.places.services_dir, &mut found);
        look(&self.at("outside"), &mut found);
        let intents = self.places.data_dir.join(".file-transfers");
        found.extend(
            fs::read_dir(intents)
                .into_iter()
                .flatten()
                .flatten()
                .map(|it| it.path()),
        );
        found
    }

    /// What must never change, and what must never be new.
    fn assert_others_untouched(&self) {
        let read = |path: &str| fs::read_to_string(self.at(path)).unwrap();
        assert_eq!(read("srv/wiki/secret"), "wiki's");
        assert_eq!(read("srv/agent/issuer.key"), "the agent's");
        assert_eq!(read("outside/secret"), "outside");
        let names = |path: &str| fs::read_dir(self.at(path)).unwrap().count();
        assert_eq!((names("srv/wiki"), names("outside")), (1, 1));
        assert_eq!(self.litter(), Vec::<PathBuf>::new());
    }
}

#[track_caller]
fn reason<T: std::fmt::Debug>(result: Result<T, FileError>) -> &'static str {
    result.unwrap_err().reason()
}

#[test]
fn what_is_pushed_is_there_whole_and_comes_back() {
    let node = Node::new();
    let pushed = node.push("etc/shop.toml", b"one").unwrap();
    assert!(!pushed.replaced && pushed.can_undo);
    assert_eq!(fs::read(node.at("srv/shop/etc/shop.toml")).unwrap(), b"one");
    assert_eq!(node.pull("etc/shop.toml").unwrap(), b"one");
    assert!(node.push("etc/shop.toml", b"two").unwrap().replaced);
    assert_eq!(node.pull("etc/shop.toml").unwrap(), b"two");
    node.push("empty", b"").unwrap();
    assert_eq!(node.pull("empty").unwrap(), b"");
    node.assert_others_untouched();
}

#[test]
fn a_replaced_file_keeps_its_mode_and_sheds_what_is_dangerous() {
    let node = Node::new();
    let mode = |path: &str| fs::metadata(node.at(path)).unwrap().permissions().mode() & 0o7777;
    let file = node.at("srv/shop/run.sh");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    node.push("run.sh", b"new").unwrap();
    assert_eq!(mode("srv/shop/run.sh"), 0o751);
    let mut order = node.order("run.sh", b"newer");
    order.mode = 0o600;
    order.set_mode = true;
    push::run(&node.places, &order, &mut &b"newer"[..]).unwrap();
    assert_eq!(mode("srv/shop/run.sh"), 0o600);
}

#[test]
fn bytes_that_were_not_signed_for_change_nothing() {
    let node = Node::new();
    node.push("file", b"before").unwrap();
    let mut order = node.order("file", b"after!");
    let attempt =
        |order: &Push, bytes: &[u8]| reason(push::run(&node.places, order, &mut &bytes[..]));
    assert_eq!(attempt(&order, b"after"), "request-other-bytes");
    assert_eq!(attempt(&order, b"after!!"), "request-other-bytes");
    assert_eq!(attempt(&order, b"After!"), "request-other-bytes");
    order.path = "new/file".parse().unwrap();
    assert_eq!(attempt(&order, b"x"), "request-other-bytes");
    assert_eq!(node.pull("file").unwrap(), b"before");
    assert!(!node.at("srv/shop/new").exists(), "no folder is left of it");
    node.assert_others_untouched();
}

#[test]
fn links_lead_nowhere() {
    let node = Node::new();
    let shop = node.at("srv/shop");
    symlink("../wiki", shop.join("up")).unwrap();
    symlink(node.at("outside"), shop.join("out")).unwrap();
    symlink("/proc/self/root", shop.join("root")).unwrap();
    symlink("/proc/self/cwd", shop.join("cwd")).unwrap();
    symlink("etc", shop.join("inner")).unwrap();
    symlink(node.at("outside/secret"), shop.join("secret")).unwrap();
    symlink(node.at("outside/none"), shop.join("dangling")).unwrap();
    symlink("loop", shop.join("loop")).unwrap();
    fs::create_dir(shop.join("etc")).unwrap();
    for path in [
        "up/secret",
        "out/secret",
        "root/etc/passwd",
        "cwd/x",
        "inner/x",
        "secret",
        "dangling",
        "loop",
        "loop/x",
    ] {
        assert_eq!(reason(node.push(path, b"evil")), "symlink", "{path}");
        assert_eq!(reason(node.pull(path)), "symlink", "{path}");
    }
    for path in ["up", "out", "root/etc"] {
        let listed = node.list(path, true);
        if let Ok(listing) = &listed {
            assert!(!listing.folder, "{path}");
        }
    }
    // A service's folder that is a symlink is none.
    symlink(node.at("outside"), node.at("srv/linked")).unwrap();
    assert_eq!(reason(node.pull_of("linked", "secret")), "symlink");
    node.assert_others_untouched();
}

#[test]
fn only_files_with_one_name_are_read_and_replaced() {
    let node = Node::new();
    let shop = node.at("srv/shop");
    fs::hard_link(node.at("srv/wiki/secret"), shop.join("hard")).unwrap();
    assert_eq!(reason(node.push("hard", b"evil")), "hard-links");
    assert_eq!(reason(node.pull("hard")), "hard-links");
    fs::remove_file(shop.join("hard")).unwrap();
    // Opening a FIFO would wait for its other end for ever.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        shop.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(shop.join("socket")).unwrap();
    fs::create_dir(shop.join("folder")).unwrap();
    for (path, why) in [
        ("fifo", "not-a-file"),
        ("socket", "not-a-file"),
        ("folder", "is-a-folder"),
    ] {
        assert_eq!(reason(node.push(path, b"x")), why);
        assert_eq!(reason(node.pull(path)), why);
    }
    assert_eq!(reason(node.push("fifo/x", b"x")), "not-a-folder");
    let kinds: Vec<(String, String)> = node
        .list("", false)
        .unwrap()
        .entries
        .into_iter()
        .map(|it| (it.path, it.kind))
        .collect();
    let kind = |path: &str| kinds.iter().find(|it| it.0 == path).unwrap().1.clone();
    assert_eq!(
        (kind("fifo"), kind("socket"), kind("folder")),
        ("fifo".into(), "socket".into(), "folder".into())
    );
    node.assert_others_untouched();
}

#[test]
fn devices_are_left_alone() {
    let node = Node::new();
    // Where devices cannot be made, none is there.
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        node.at("srv/shop/zero"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RWXU,
        rustix::fs::makedev(1, 5),
    );
    if made.is_ok() {
        assert_eq!(reason(node.push("zero", b"x")), "not-a-file");
        assert_eq!(reason(node.pull("zero")), "not-a-file");
    }
}

#[test]
fn the_agent_s_own_is_nobody_s() {
    let node = Node::new();
    let read = |service: &str, path: &str| reason(node.pull_of(service, path));
    assert_eq!(read("agent", "issuer.key"), "agents-own");
    fs::write(node.at("srv/shop/agent.toml"), "configuration").unwrap();
    assert_eq!(reason(node.pull("agent.toml")), "agents-own");
    assert_eq!(reason(node.push("agent.toml", b"evil")), "agents-own");
    // The data directory below a service's folder, wherever that is.
    let places = Places {
        data_dir: node.at("srv/shop/own"),
        ..node.places.clone()
    };
    fs::create_dir(node.at("srv/shop/own")).unwrap();
    fs::write(node.at("srv/shop/own/mcp.db"), "registry").unwrap();
    let inside = Node {
        places,
        dir: node.dir,
    };
    assert_eq!(reason(inside.pull("own/mcp.db")), "agents-own");
    assert_eq!(reason(inside.push("own/x", b"evil")), "agents-own");
    let listed = inside.list("", true).unwrap();
    assert!(
        listed
            .entries
            .iter()
            .all(|entry| !entry.path.starts_with("own"))
    );
}

#[test]
fn odd_names_are_listed_and_not_believed() {
    use std::os::unix::ffi::OsStrExt as _;
    let node = Node::new();
    let shop = node.at("srv/shop");
    for name in [
        &b"\xff\xfe"[..],
        b"new\nline",
        b"\x1b[31mred",
        b".mcp-push-mine",
        b"plain",
    ] {
        fs::write(shop.join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let listing = node.list("", true).unwrap();
    let names: Vec<(&str, bool)> = listing
        .entries
        .iter()
        .map(|it| (it.path.as_str(), it.unnameable))
        .collect();
    assert_eq!(
        names,
        [
            ("\\x1b[31mred", true),
            ("new\\x0aline", true),
            ("plain", false),
            ("\\xff\\xfe", true)
        ]
    );
    fs::remove_file(shop.join(".mcp-push-mine")).unwrap();
}

#[test]
fn an_undo_puts_back_what_was_and_can_be_undone() {
    let node = Node::new();
    assert_eq!(reason(node.undo("file", false)), "nothing-kept");
    node.push("file", b"one").unwrap();
    let inode = fs::metadata(node.at("srv/shop/file")).unwrap().ino();
    node.push("file", b"two").unwrap();
    assert_eq!(
        node.undo("file", false).unwrap().file.unwrap().1,
        Digest::of(b"one")
    );
    assert_eq!(fs::metadata(node.at("srv/shop/file")).unwrap().ino(), inode);
    assert_eq!(node.pull("file").unwrap(), b"one");
    node.undo("file", false).unwrap();
    assert_eq!(node.pull("file").unwrap(), b"two");
    // A file that was new goes, and comes back.
    node.push("new", b"new").unwrap();
    assert!(node.undo("new", false).unwrap().file.is_none());
    assert_eq!(reason(node.pull("new")), "file-not-found");
    node.undo("new", false).unwrap();
    assert_eq!(node.pull("new").unwrap(), b"new");
    node.assert_others_untouched();
}

#[test]
fn an_undo_spares_what_was_changed_since() {
    let node = Node::new();
    node.push("file", b"one").unwrap();
    node.push("file", b"two").unwrap();
    fs::write(node.at("srv/shop/file"), "by the container").unwrap();
    assert_eq!(reason(node.undo("file", false)), "not-as-pushed");
    node.undo("file", true).unwrap();
    assert_eq!(node.pull("file").unwrap(), b"one");
    node.undo("file", false).unwrap();
    assert_eq!(node.pull("file").unwrap(), b"by the container");
}

#[test]
fn what_is_kept_is_bounded() {
    let node = Node::new();
    let big = vec![7; 700 * 1024];
    for path in ["a", "b"] {
        node.push(path, &big).unwrap();
        assert!(node.push(path, b"small").unwrap().can_undo);
    }
    assert_eq!(
        reason(node.undo("a", false)),
        "nothing-kept",
        "the older one went"
    );
    node.undo("b", false).unwrap();
    let huge = vec![7; (1 << 20) + 1];
    node.push("c", &huge).unwrap();
    assert!(!node.push("c", b"small").unwrap().can_undo);
    assert_eq!(reason(node.undo("c", false)), "nothing-kept");
    node.assert_others_untouched();
}

#[test]
fn quota_and_reserve_are_kept() {
    let node = Node::new();
    node.push("held", &[1; 600]).unwrap();
    let mut order = node.order("more", &[2; 500]);
    order.allowed.quota = Some(1000);
    let attempt = |order: &Push| push::run(&node.places, order, &mut &[2; 500][..]);
    assert_eq!(reason(attempt(&order)), "quota");
    order.path = "held".parse().unwrap();
    attempt(&order).unwrap();
    order.path = "third".parse().unwrap();
    order.allowed.expected = 100;
    assert_eq!(
        reason(attempt(&order)),
        "quota",
        "what is on its way counts"
    );
    order.allowed.quota = None;
    order.allowed.reserve = u64::MAX / 2;
    assert_eq!(reason(attempt(&order)), "disk-full");
    node.assert_others_untouched();
}

#[test]
fn what_was_cut_off_is_swept() {
    let node = Node::new();
    node.push("etc/file", b"one").unwrap();
    node.push("etc/file", b"two").unwrap();
    let intent =
        intents::Intent::write(&node.places, &"shop".parse().unwrap(), &["etc".to_owned()]);
    let intent = intent.unwrap();
    fs::write(node.at("srv/shop/etc").join(&intent.name), "half").unwrap();
    std::mem::forget(intent);
    // A version whose record was never written.
    let cut = node.places.data_dir.join(".file-versions/shop/0123");
    fs::create_dir_all(&cut).unwrap();
    fs::write(cut.join("file"), "old").unwrap();
    assert_eq!(node.litter().len(), 2);
    intents::sweep(&node.places).unwrap();
    assert!(!cut.exists());
    node.assert_others_untouched();
    node.undo("etc/file", false).unwrap();
    assert_eq!(node.pull("etc/file").unwrap(), b"one");
}

/// Somebody who owns the folder exchanges parents and targets for links while files come and go.
#[test]
fn parents_that_are_swapped_lead_nowhere() {
    let node = Node::new();
    let shop = node.at("srv/shop");
    fs::create_dir_all(shop.join("a/b")).unwrap();
    fs::write(shop.join("a/b/secret"), "shop's").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (stop, shop, outside) = (Arc::clone(&stop), shop.clone(), node.at("outside"));
        std::thread::spawn(move || {
            let mut rounds: u32 = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                for (name, target) in [("a", shop.join("a")), ("a/b", shop.join("a/b"))] {
                    let aside = shop.join("aside");
                    if fs::rename(&target, &aside).is_err() {
                        continue;
                    }
                    let to: &Path = if rounds.is_multiple_of(2) {
                        &outside
                    } else {
                        Path::new("../wiki")
                    };
                    drop(symlink(to, &target));
                    std::hint::spin_loop();
                    drop(fs::remove_file(&target));
                    // A push may have made the folder that it missed.
                    while fs::rename(&aside, shop.join(name)).is_err() {
                        drop(fs::remove_dir_all(&target));
                    }
                }
                let file = shop.join("a/b/secret");
                if fs::remove_file(&file).is_ok() {
                    drop(symlink(outside.join("secret"), &file));
                    drop(fs::remove_file(&file));
                    drop(fs::write(&file, "shop's"));
                }
            }
            rounds
        })
    };
    let (mut arrived, mut refused) = (0, 0);
    for round in 0..4000_u32 {
        // Each push waits for the disk.
        if round % 4 == 0 {
            let bytes = format!("shop's {round}");
            match node.push("a/b/secret", bytes.as_bytes()) {
                Ok(_) => arrived += 1,
                Err(_) => refused += 1,
            }
        }
        if let Ok(read) = node.pull("a/b/secret") {
            let read = String::from_utf8(read).unwrap();
            assert!(read.is_empty() || read.starts_with("shop's"), "{read}");
        }
        if round % 16 == 0 {
            drop(node.undo("a/b/secret", true));
            drop(node.list("", true));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    assert!(
        swaps > 0 && arrived > 0,
        "{swaps} swaps, {arrived} arrived, {refused} refused"
    );
    intents::sweep(&node.places).unwrap();
    node.assert_others_untouched();
}

/// Whoever reads while files are exchanged sees the one or the other.
#[test]
fn a_reader_sees_a_whole_file() {
    let node = Node::new();
    let file = node.at("srv/shop/file");
    let contents: [Vec<u8>; 2] = [vec![b'a'; 100_000], vec![b'b'; 70_000]];
    node.push("file", &contents[0]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let reading = {
        let (stop, contents) = (Arc::clone(&stop), contents.clone());
        std::thread::spawn(move || {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) || reads == 0 {
                let read = fs::read(&file).unwrap();
                assert!(contents.contains(&read), "{} bytes", read.len());
                reads += 1;
            }
        })
    };
    for round in 0..50 {
        node.push("file", &contents[round % 2]).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    reading.join().unwrap();
}
