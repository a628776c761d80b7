//! A witness of what is made to last: it knows what a power cut would leave.

use std::cell::RefCell;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::Step;

/// Sees each step by which something is made to last, on the thread that it was set on.
pub trait Witness: Debug + Send + Sync {
    /// Called before a step: where the power fails here, the step has not been made.
    fn before(&self, step: Step<'_>);

    /// Called after it has been made.
    fn after(&self, step: Step<'_>);
}

thread_local! {
    static WITNESS: RefCell<Option<Arc<dyn Witness>>> = const { RefCell::new(None) };
}

/// Sets the witness of everything that runs on this thread, or takes it away.
pub fn set_witness(witness: Option<Arc<dyn Witness>>) {
    WITNESS.with_borrow_mut(|current| *current = witness);
}

/// The witness of this thread.
pub(crate) fn witness() -> Option<Arc<dyn Witness>> {
    WITNESS.with_borrow(Clone::clone)
}

/// Remembers the steps, in words.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl Witness for Told {
    fn before(&self, _: Step<'_>) {}

    fn after(&self, step: Step<'_>) {
        let name = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let told = match step {
            Step::SyncFile(path) => format!("flush {}", name(path)),
            Step::SyncDir(path) => format!("flush {}/", name(path)),
            Step::Rename(from, to) => format!("rename {} to {}", name(from), name(to)),
            Step::MakeDir(path) => format!("make {}/", name(path)),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(told);
    }
}

/// The steps that work on this thread makes, in their order, by the names of files and folders.
pub fn steps_of(work: impl FnOnce()) -> Vec<String> {
    let told = Arc::new(Told::default());
    set_witness(Some(told.clone()));
    work();
    set_witness(None);
    let all = told.0.lock().unwrap_or_else(PoisonError::into_inner);
    all.clone()
}
