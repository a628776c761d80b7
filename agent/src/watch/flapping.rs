//! Flapping: too many changes within a window, and an explicit end of it.
//!
//! What is remembered stands in the registry beside the component's row, so that a restart of the agent
//! neither begins it a second time nor forgets to end it.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::registry::FlappingRow;

/// Most changes that are remembered, whatever the threshold.
const REMEMBERED: usize = 100;

/// When a component counts as flapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Changes within the window.
    pub(super) threshold: u32,
    /// The window.
    pub(super) window: Duration,
}

/// The changes of one component.
#[derive(Debug, Default)]
pub(super) struct Flapping {
    changes: VecDeque<(Instant, Timestamp)>,
    flaps: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It flaps from now on; so many changes were seen.
    Begins(usize),
    /// It has been calm for a whole window.
    Calm,
    /// It is not wanted to run any more.
    Stopped,
}

impl Flapping {
    /// Takes up what the registry has, `at` now. A wall clock that was set back makes changes as young
    /// as can be.
    pub(super) fn restored(row: &FlappingRow, now: Instant, at: Timestamp) -> Self {
        let since = |change: &Timestamp| {
            let passed = Duration::try_from(at.duration_since(*change)).unwrap_or_default();
            (now.checked_sub(passed).unwrap_or(now), *change)
        };
        Self {
            changes: row.changes.iter().map(since).collect(),
            flaps: row.flaps,
        }
    }

    /// What the registry is to have.
    pub(super) fn row(&self) -> FlappingRow {
        FlappingRow {
            changes: self.changes.iter().map(|(_, at)| *at).collect(),
            flaps: self.flaps,
        }
    }

    /// Takes in a change.
    pub(super) fn change(&mut self, now: Instant, at: Timestamp) {
        if self.changes.len() == REMEMBERED {
            self.changes.pop_front();
        }
        self.changes.push_back((now, at));
    }

    /// It is not wanted to run any more: what was is nothing that a later run answers for.
    pub(super) fn stop(&mut self) -> Option<Turn> {
        self.changes.clear();
        std::mem::take(&mut self.flaps).then_some(Turn::Stopped)
    }

    /// Tells where it began or ended. It ends only when it has run for a whole window, `running_since`
    /// counted, and nothing changed meanwhile: that is how the hysteresis is had.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        bounds: Bounds,
        running_since: Option<Instant>,
    ) -> Option<Turn> {
        while self
            .changes
            .front()
            .is_some_and(|(first, _)| now.duration_since(*first) > bounds.window)
        {
            self.changes.pop_front();
        }
        let threshold = usize::try_from(bounds.threshold).unwrap_or(REMEMBERED);
        if !self.flaps && threshold > 0 && self.changes.len() >= threshold.min(REMEMBERED) {
            self.flaps = true;
            return Some(Turn::Begins(self.changes.len()));
        }
        let is_calm = self.changes.is_empty()
            && running_since.is_some_and(|since| now.duration_since(since) > bounds.window);
        if self.flaps && is_calm {
            self.flaps = false;
            return Some(Turn::Calm);
        }
        None
    }

    /// When it is worth asking [`Self::turn`] again without a change.
    pub(super) fn next_turn(
        &self,
        bounds: Bounds,
        running_since: Option<Instant>,
    ) -> Option<Instant> {
        let since = running_since.filter(|_| self.flaps)?;
        let last = self.changes.back();
        let calm_since = last.map_or(since, |(last, _)| since.max(*last));
        Some(calm_since + bounds.window + Duration::from_millis(1))
    }

    /// Whether it flaps.
    #[cfg(test)]
    pub(super) const fn flaps(&self) -> bool {
        self.flaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        threshold: 3,
        window: Duration::from_secs(300),
    };

    #[test]
    fn three_changes_in_the_window_flap_until_a_whole_window_is_calm() {
        let mut flapping = Flapping::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        for second in [0, 10] {
            flapping.change(at(second), Timestamp::UNIX_EPOCH);
            assert_eq!(flapping.turn(at(second), BOUNDS, None), None);
        }
        flapping.change(at(20), Timestamp::UNIX_EPOCH);
        assert_eq!(flapping.turn(at(20), BOUNDS, None), Some(Turn::Begins(3)));
        let since = Some(at(15));
        assert_eq!(flapping.turn(at(310), BOUNDS, since), None);
        assert!(flapping.flaps());
        assert_eq!(flapping.turn(at(321), BOUNDS, None), None);
        assert_eq!(flapping.turn(at(321), BOUNDS, Some(at(40))), None);
        assert_eq!(flapping.turn(at(321), BOUNDS, since), Some(Turn::Calm));
        assert_eq!(flapping.turn(at(322), BOUNDS, since), None);
    }

    #[test]
    fn what_runs_on_and_changes_within_the_window_is_not_calm() {
        let mut flapping = Flapping::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        // Its health comes and goes; it has run all along.
        for second in [400, 410, 420] {
            flapping.change(at(second), Timestamp::UNIX_EPOCH);
        }
        let since = Some(begin);
        assert_eq!(flapping.turn(at(420), BOUNDS, since), Some(Turn::Begins(3)));
        assert_eq!(flapping.turn(at(430), BOUNDS, since), None);
        flapping.change(at(600), Timestamp::UNIX_EPOCH);
        assert_eq!(flapping.turn(at(899), BOUNDS, since), None);
        assert_eq!(flapping.turn(at(901), BOUNDS, since), Some(Turn::Calm));
    }

    #[test]
    fn changes_far_apart_do_not_flap() {
        let mut flapping = Flapping::default();
        let begin = Instant::now();
        for n in 0..10 {
            let now = begin + Duration::from_secs(200) * n;
            flapping.change(now, Timestamp::UNIX_EPOCH);
            assert_eq!(flapping.turn(now, BOUNDS, Some(begin)), None);
        }
    }

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn what_is_remembered_outlives_the_agent() {
        let begin = Instant::now() + Duration::from_secs(3600);
        let mut flapping = Flapping::default();
        flapping.change(begin, wall(0));
        flapping.change(begin, wall(10));
        let mut again = Flapping::restored(&flapping.row(), begin, wall(20));
        assert_eq!(again.turn(begin, BOUNDS, None), None);
        again.change(begin, wall(20));
        assert_eq!(again.turn(begin, BOUNDS, None), Some(Turn::Begins(3)));
        // It has begun already, and its end comes after a whole calm window.
        let mut again = Flapping::restored(&again.row(), begin, wall(30));
        assert_eq!(again.turn(begin, BOUNDS, Some(begin)), None);
        assert!(again.flaps());
        let later = begin + Duration::from_secs(301);
        assert_eq!(again.turn(later, BOUNDS, Some(begin)), Some(Turn::Calm));
        let mut again = Flapping::restored(&again.row(), later, wall(331));
        assert_eq!(again.turn(later, BOUNDS, Some(begin)), None);
    }

    #[test]
    fn a_clock_that_was_set_neither_begins_nor_keeps_it_for_ever() {
        let begin = Instant::now() + Duration::from_secs(3600);
        let ten_years = 10 * 365 * 86_400;
        for at in [wall(ten_years), wall(-ten_years)] {
            let row = FlappingRow {
                changes: vec![wall(0), wall(1)],
                flaps: true,
            };
            let mut flapping = Flapping::restored(&row, begin, at);
            let later = begin + Duration::from_secs(302);
            assert_eq!(flapping.turn(later, BOUNDS, Some(begin)), Some(Turn::Calm));
        }
    }

    #[test]
    fn what_is_stopped_flaps_no_more_and_begins_anew() {
        let begin = Instant::now();
        let mut flapping = Flapping::default();
        assert_eq!(flapping.stop(), None);
        for _ in 0..3 {
            flapping.change(begin, wall(0));
        }
        assert_eq!(flapping.turn(begin, BOUNDS, None), Some(Turn::Begins(3)));
        assert_eq!(flapping.stop(), Some(Turn::Stopped));
        assert_eq!(flapping.stop(), None);
        flapping.change(begin, wall(1));
        assert_eq!(flapping.turn(begin, BOUNDS, None), None);
    }
}
