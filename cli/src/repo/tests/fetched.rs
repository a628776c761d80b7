use std::io::Read;

use super::bed::Bed;
use crate::repo::{DesiredRepo, FetchedError};

fn bytes(
    repo: &DesiredRepo,
    new: crate::repo::CommitId,
    have: &[crate::repo::CommitId],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    repo.pack(new, have)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn commits_of_others_are_taken_in_and_their_head_is_remembered() {
    let bed = Bed::new();
    let first = bed.open().head().unwrap().unwrap();
    let other = bed.root.path().join("other");
    super::bed::git_in(bed.root.path(), &["clone", "-q", "desired", "other"]);
    bed.write("services/a.toml", "a");
    let second = bed.commit("a");

    let colleague = DesiredRepo::open(&other).unwrap();
    let node = "rift".parse().unwrap();
    assert!(!colleague.contains(second));
    assert_eq!(colleague.node_head(&node), None);
    let pack = bytes(&bed.open(), second, &[first]);
    colleague.receive_pack(&pack, second).unwrap();
    colleague.set_node_head(&node, second).unwrap();
    assert_eq!(colleague.node_head(&node), Some(second));
    assert_eq!(colleague.head().unwrap(), Some(first));
    super::bed::git_in(&other, &["merge", "-q", "--ff-only", "rift/head"]);
    super::bed::git_in(&other, &["fsck", "--strict"]);
}

#[test]
fn a_pack_without_the_promised_commit_is_an_error() {
    let bed = Bed::new();
    let other = Bed::new();
    other.write("services/a.toml", "a");
    let foreign = other.commit("a");
    let first = bed.open().head().unwrap().unwrap();
    let empty = bytes(&bed.open(), first, &[first]);
    let error = bed.open().receive_pack(&empty, foreign).unwrap_err();
    assert!(matches!(error, FetchedError::Missing { .. }), "{error:?}");
    let error = bed.open().receive_pack(&[b'x'; 64], foreign).unwrap_err();
    assert!(matches!(error, FetchedError::Pack { .. }), "{error:?}");
}
