//! A witness of what is made to last: it knows what a power cut would leave.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

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
