//! The clock: the second seam of the agent, beside the engine.
//!
//! Wall-clock time is for people and records. Timers run on tokio's monotonic clock, which a
//! simulation can pause and advance.

use jiff::Timestamp;

/// Where the agent reads the time of day.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// Now, by the wall clock; it may jump.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
