//! What of staged files is made to last.

use std::sync::{Arc, Mutex};

use mcp_spec::component::OnChange;

use super::*;
use crate::disk::Step;
use crate::testing::{Witness, memory_dir, set_witness};

/// Remembers what was flushed.
#[derive(Debug, Default)]
struct Flushed(Mutex<Vec<PathBuf>>);

impl Witness for Flushed {
    fn before(&self, _: Step<'_>) {}

    fn after(&self, step: Step<'_>) {
        if let Step::SyncFile(path) | Step::SyncDir(path) = step {
            self.0.lock().unwrap().push(path.to_owned());
        }
    }
}

fn flushed_by(work: impl FnOnce()) -> Vec<PathBuf> {
    let witness = Arc::new(Flushed::default());
    set_witness(Some(witness.clone()));
    work();
    set_witness(None);
    witness.0.lock().unwrap().clone()
}

fn file(bytes: &[u8]) -> FileMount {
    FileMount {
        from: "web.conf".to_owned(),
        digest: mcp_spec::image::Digest::of(bytes),
        mode: 0o644,
        owner: None,
        on_change: OnChange::None,
    }
}

#[test]
fn what_is_exchanged_in_place_lasts_and_what_was_kept_beside_it_is_gone_for_good() {
    let dir = memory_dir();
    let staging = Staging::new(dir.path());
    let key: ComponentKey = "shop/web".parse().unwrap();
    let (target, old, new) = ("/web.conf", file(b"old"), file(b"new"));
    let path = staging.path(&key, 1, target);
    staging.write(&key, 1, target, &old, b"old").unwrap();
    let flushed = flushed_by(|| {
        let exchanged = staging.exchange(&key, 1, target, &new, b"new", true);
        exchanged.unwrap();
    });
    assert!(flushed.contains(&path));
    let files = BTreeMap::from([(target.to_owned(), new)]);
    let flushed = flushed_by(|| staging.settle(&key, 1, &files));
    assert_eq!(flushed, [path.parent().unwrap()]);
}
