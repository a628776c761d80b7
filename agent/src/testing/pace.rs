//! The pace of a simulation: each piece of work that would block is done at once, on the simulation's
//! own thread, and the simulation has a say before and after it.
//!
//! Threads finish in any order, so with them no run could be had again. With a [`Pace`] in place the
//! registry starts no thread, and reads, writes and disk work run where they are awaited. A pace that
//! never answers is an agent that was killed at this point.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::registry::RegistryError;

/// A piece of work that would block; the name is the function's that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A read of the registry.
    Read(&'static str),
    /// A transaction of the registry.
    Write(&'static str),
    /// Work on files.
    Disk(&'static str),
}

/// What a simulation does around each piece of work.
pub trait Pace: Debug + Send + Sync {
    /// Called before; an error is what the registry answers instead of doing it.
    fn before(&self, work: Work) -> BoxFuture<'static, Result<(), RegistryError>>;

    /// Called after it is done and before whoever asked for it learns of it.
    fn after(&self, work: Work) -> BoxFuture<'static, ()>;
}

thread_local! {
    static PACE: RefCell<Option<Arc<dyn Pace>>> = const { RefCell::new(None) };
}

/// Sets the pace of everything that runs on this thread, or takes it away.
pub fn set_pace(pace: Option<Arc<dyn Pace>>) {
    PACE.with_borrow_mut(|current| *current = pace);
}

/// The pace of this thread.
pub(crate) fn pace() -> Option<Arc<dyn Pace>> {
    PACE.with_borrow(Clone::clone)
}
