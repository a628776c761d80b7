//! The wall clock of a simulated node: it goes with tokio's paused time, and jumps when told to.

use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mcp_agent::clock::Clock;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct SimClock {
    began: Instant,
    base: Mutex<Timestamp>,
}

impl SimClock {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            base: Mutex::new(Timestamp::from_second(1_800_000_000).unwrap()),
        }
    }

    /// Time since the beginning, which never jumps.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Makes the wall clock jump; monotonic time goes on.
    pub(crate) fn jump(&self, by: SignedDuration) {
        let mut base = self.base.lock().unwrap();
        *base = base.checked_add(by).unwrap_or(*base);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let base = *self.base.lock().unwrap();
        base.checked_add(SignedDuration::try_from(self.elapsed()).unwrap())
            .unwrap()
    }
}
