//! Fetching from another repository goes through the same door.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::super::{Accepted, FetchError, Limits, ReceiveError};
use super::scene::{OWNER, Scene, definition, node, now};

pub(super) fn fetch(
    scene: &Scene,
    url: &str,
    branch: &str,
) -> Result<Option<Accepted>, FetchError> {
    let limits = Limits::default();
    let Some(fetched) = scene.store.read_source(url, branch, &limits)? else {
        return Ok(None);
    };
    Ok(scene
        .store
        .receive_fetched(fetched, &node(), &limits, now())?)
}

pub(super) fn fetch_work(scene: &Scene) -> Result<Option<Accepted>, FetchError> {
    fetch(scene, scene.work().to_str().unwrap(), "main")
}

#[test]
fn source_is_fetched_through_the_door() {
    let scene = Scene::new();
    let accepted = fetch_work(&scene).unwrap().unwrap();
    assert_eq!(accepted.head, scene.tip());
    assert!(fetch_work(&scene).unwrap().is_none());
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.commit(Some("kyle"), "v2");
    scene.write("services/shop.toml", &definition("shop", "v1"));
    scene.commit(Some("kyle"), "back to what was");
    scene.git(&["gc", "-q"]);
    let url = format!("file://{}", scene.work().display());
    let accepted = fetch(&scene, &url, "main").unwrap().unwrap();
    assert_eq!(accepted.new_commits.len(), 2);
    assert_eq!(scene.store.head(), Some(scene.tip()));
    scene.command(
        "git",
        &["fsck", "--full", "--strict"],
        &scene.store.repository(),
    );
}

#[test]
fn bare_repository_with_packed_refs_is_fetched() {
    let scene = Scene::new();
    scene.command(
        "git",
        &["clone", "-q", "--bare", "work", "up.git"],
        scene.dir.path(),
    );
    let up = scene.dir.path().join("up.git");
    scene.command("git", &["pack-refs", "--all"], &up);
    let accepted = fetch(&scene, up.to_str().unwrap(), "main")
        .unwrap()
        .unwrap();
    assert_eq!(accepted.head, scene.tip());
}

#[test]
fn refusals_of_a_fetch_are_those_of_a_push() {
    let scene = Scene::new();
    fetch_work(&scene).unwrap();
    let first = scene.tip();
    scene.commit(None, "unsigned");
    let before = scene.fingerprint();
    assert!(matches!(
        fetch_work(&scene),
        Err(FetchError::Refused(ReceiveError::Unsigned { .. }))
    ));
    scene.assert_untouched(&before);

    scene.git(&["reset", "-q", "--hard", &first.to_string()]);
    scene.commit(Some("kyle"), "second");
    fetch_work(&scene).unwrap();
    scene.git(&["reset", "-q", "--hard", &first.to_string()]);
    let before = scene.fingerprint();
    assert_eq!(fetch_work(&scene).unwrap_err().name(), "older");
    scene.git(&["checkout", "-q", "--orphan", "other"]);
    scene.commit(Some(OWNER), "unrelated");
    let url = scene.work().display().to_string();
    assert_eq!(
        fetch(&scene, &url, "other").unwrap_err().name(),
        "unrelated"
    );
    scene.assert_untouched(&before);
}

#[test]
fn source_that_cannot_be_fetched_is_named() {
    let scene = Scene::new();
    let url = scene.work().display().to_string();
    assert!(matches!(
        fetch(&scene, &url, "nope"),
        Err(FetchError::NoBranch { .. })
    ));
    assert!(matches!(
        fetch(&scene, &url, "../../x"),
        Err(FetchError::NoBranch { .. })
    ));
    assert!(matches!(
        fetch(&scene, "/nonexistent", "main"),
        Err(FetchError::NoRepository { .. })
    ));
    let error = fetch(&scene, "https://example.net/x.git", "main").unwrap_err();
    assert!(error.to_string().contains("https"), "{error}");
    fs::write(
        scene.work().join(".git/objects/info/alternates"),
        "/elsewhere\n",
    )
    .unwrap();
    assert!(matches!(
        fetch(&scene, &url, "main"),
        Err(FetchError::Borrows { .. })
    ));
}

#[test]
fn source_runs_no_program_that_its_configuration_names() {
    let scene = Scene::new();
    let canary = scene.dir.path().join("canary");
    let command = format!("touch {}", canary.display());
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "uploadpack.packObjectsHook",
        "core.hooksPath",
    ] {
        scene.git(&["config", key, &command]);
    }
    fetch_work(&scene).unwrap().unwrap();
    assert!(!canary.exists());
}

#[test]
fn source_that_lies_about_an_object_is_refused() {
    let scene = Scene::new();
    let blob = scene.git(&["rev-parse", "HEAD:services/shop.toml"]);
    let other = scene.hash_object("blob", b"something else\n");
    let path = |id: &str| {
        let id = id.trim();
        scene
            .work()
            .join(".git/objects")
            .join(&id[..2])
            .join(&id[2..])
    };
    fs::remove_file(path(&blob)).unwrap();
    fs::copy(path(&other), path(&blob)).unwrap();
    let before = scene.fingerprint();
    assert_eq!(fetch_work(&scene).unwrap_err().name(), "corrupt-object");
    scene.assert_untouched(&before);
}

/// Opens a pipe for writing as soon as somebody reads from it, who then waits for what is never written.
fn hold_reader(pipe: &std::path::Path) -> fs::File {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let opened = fs::OpenOptions::new()
            .write(true)
            .custom_flags(nonblocking)
            .open(pipe);
        match opened {
            Ok(held) => return held,
            Err(error) => assert!(Instant::now() < until, "nobody reads: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn upstream_that_hangs_keeps_neither_pushes_nor_readers_waiting() {
    let scene = Scene::new();
    fetch_work(&scene).unwrap();
    scene.write("services/shop.toml", &definition("shop", "v2"));
    scene.commit(Some("kyle"), "v2");
    scene.command("cp", &["-r", "work", "up"], scene.dir.path());
    let objects = scene.dir.path().join("up/.git/objects");
    // What an object database looks at first.
    let pipe = objects.join("info/alternates");
    fs::create_dir_all(objects.join("info")).unwrap();
    scene.command("mkfifo", &[pipe.to_str().unwrap()], scene.dir.path());
    let (scene, store) = (&scene, &scene.store);
    std::thread::scope(|threads| {
        let (limits, tip) = (Limits::default(), scene.tip());
        let reading = threads.spawn(move || store.copy_objects(&objects, tip, &limits));
        let held = hold_reader(&pipe);
        let (tell, told) = mpsc::channel();
        let pushing =
            threads.spawn(move || drop(tell.send(scene.push().map(|pushed| pushed.head))));
        let pushed = told.recv_timeout(Duration::from_secs(20));
        let hung = !reading.is_finished();
        // It is looked at more than once.
        fs::remove_file(&pipe).unwrap();
        drop(held);
        pushing.join().unwrap();
        assert_eq!(pushed.expect("a push waits").unwrap(), scene.tip());
        assert!(hung, "the upstream did not hang");
        drop(reading.join().unwrap());
    });
}
