//! SHA-1 collisions: the hash that object ids are made with tells what is made to collide.
//!
//! Both messages are those of the chosen-prefix collision of 2020 (<https://sha-mbles.github.io>): 640 bytes
//! each, other bytes, one SHA-1. No two git objects with one id are known to anybody: git hashes a head
//! before the content, and whoever wants a collision has to compute one for that head. So what can be shown
//! is that the hash is the one that tells, and that the published files do no harm as files.

use super::super::objects::{Kind, Objects};
use super::raw::sha1;
use super::scene::Scene;

const MESSAGES: [&[u8]; 2] = [
    include_bytes!("collision/sha-mbles-1.bin"),
    include_bytes!("collision/sha-mbles-2.bin"),
];

#[test]
fn hash_of_object_ids_tells_what_is_made_to_collide() {
    assert_ne!(MESSAGES[0], MESSAGES[1]);
    for message in MESSAGES {
        let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
        hasher.update(message);
        let error = hasher.try_finalize().unwrap_err().to_string();
        assert!(
            error.contains("collision")
                && error.contains("8ac60ba76f1999a1ab70223f225aefdc78d4ddc0"),
            "{error}"
        );
        // At the end of an honest file as well, and one byte less is none.
        let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
        hasher.update(&[message, b"and more"].concat());
        assert!(hasher.try_finalize().is_err());
    }
    sha1(&MESSAGES[0][1..]);
}

#[test]
fn published_collision_is_two_files_to_git_and_both_are_taken() {
    let scene = Scene::new();
    for (number, message) in MESSAGES.iter().enumerate() {
        std::fs::create_dir_all(scene.work().join("files/shop")).unwrap();
        let file = scene.work().join(format!("files/shop/message{number}"));
        std::fs::write(file, message).unwrap();
    }
    scene.commit(Some("kyle"), "two files");
    scene.push().unwrap();
    let ids = [0, 1].map(|number| scene.rev(&format!("HEAD:files/shop/message{number}")));
    assert_ne!(ids[0], ids[1]);
    let objects = Objects::open(&scene.store.repository().join("objects"), 1 << 20).unwrap();
    for (id, message) in ids.iter().zip(MESSAGES) {
        let bytes = objects.read_kind(id.as_bytes(), Kind::Blob).unwrap();
        assert_eq!(bytes, message);
    }
}
