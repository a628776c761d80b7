//! The properties of the fuzz targets, bounded and on stable: over the corpora, over what is near them, and over any
//! bytes. `PROPTEST_CASES` makes it longer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use mcp_tests::entries::{ENTRIES, good_sshsig};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// The corpus of an entry, in a fixed order.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(corpora().join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read(path).unwrap())
        .collect()
}

#[test]
fn every_entry_has_a_target_and_a_corpus() {
    for (name, _) in ENTRIES {
        assert!(!corpus(name).is_empty(), "{name}");
        let target = corpora().join(format!("../fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(target).unwrap();
        assert!(text.contains(&format!("entries::{name}(")), "{name}");
    }
    let folders = fs::read_dir(corpora()).unwrap().count();
    assert_eq!(folders, ENTRIES.len());
}

#[test]
fn corpora_keep_the_properties() {
    for (name, entry) in ENTRIES {
        for seed in corpus(name) {
            entry(&seed);
        }
    }
    // The corpus of signatures is of this use only as long as one of it is taken.
    assert!(corpus("sshsig").contains(&good_sshsig().into_bytes()));
}

/// One step away from a seed: bytes replaced, taken out, doubled, or put in.
fn changed(seed: &[u8], at: Index, count: usize, with: &[u8]) -> Vec<u8> {
    let at = at.index(seed.len() + 1);
    let end = (at + count).min(seed.len());
    [&seed[..at], with, &seed[end..]].concat()
}

#[test]
fn what_is_near_a_corpus_keeps_the_properties() {
    for (name, entry) in ENTRIES {
        let seeds = corpus(name);
        let steps = vec(
            (
                any::<Index>(),
                0usize..8,
                vec(any::<u8>(), 0..8),
                any::<Index>(),
                0usize..40,
            ),
            1..4,
        );
        let near = (any::<Index>(), steps);
        TestRunner::new(Config::with_failure_persistence_off())
            .run(&near, |(seed, steps)| {
                let mut bytes = seed.get(&seeds).clone();
                for (at, count, with, from, length) in steps {
                    // What stands elsewhere in it is as good as chance.
                    let from = from.index(bytes.len() + 1);
                    let copied = bytes[from..(from + length).min(bytes.len())].to_vec();
                    let with = if with.len() > 4 { copied } else { with };
                    bytes = changed(&bytes, at, count, &with);
                }
                entry(&bytes);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn any_bytes_keep_the_properties() {
    for (name, entry) in ENTRIES {
        TestRunner::new(Config::with_failure_persistence_off())
            .run(&vec(any::<u8>(), 0..400), |bytes| {
                entry(&bytes);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

trait Bounded {
    fn with_failure_persistence_off() -> Self;
}

impl Bounded for Config {
    /// What fails goes into a corpus by hand, and not into a file beside the test.
    fn with_failure_persistence_off() -> Self {
        Self {
            failure_persistence: None,
            ..Self::default()
        }
    }
}
