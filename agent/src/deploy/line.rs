//! The point of no return of a deployment.

use std::sync::atomic::{AtomicU8, Ordering};

/// The point of no return: crossed once, or cancelled before.
#[derive(Debug, Default)]
pub(super) struct Line(AtomicU8);

impl Line {
    const BEFORE: u8 = 0;
    const CANCELLED: u8 = 1;
    const CROSSED: u8 = 2;

    fn decide(&self, to: u8) -> bool {
        self.0
            .compare_exchange(Self::BEFORE, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Crosses; `false` where it was cancelled before.
    pub(super) fn cross(&self) -> bool {
        self.decide(Self::CROSSED) || self.0.load(Ordering::Acquire) == Self::CROSSED
    }

    /// Cancels; `false` where it is too late.
    pub(super) fn cancel(&self) -> bool {
        self.decide(Self::CANCELLED) || self.is_cancelled()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::CANCELLED
    }
}
