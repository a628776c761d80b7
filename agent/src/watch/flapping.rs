//! Flapping: too many changes within a window, and an explicit end of it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

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
    changes: VecDeque<Instant>,
    flaps: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It flaps from now on; so many changes were seen.
    Begins(usize),
    /// It has been calm for a whole window.
    Over,
}

impl Flapping {
    /// Takes in a change.
    pub(super) fn change(&mut self, now: Instant) {
        if self.changes.len() == REMEMBERED {
            self.changes.pop_front();
        }
        self.changes.push_back(now);
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
            .is_some_and(|first| now.duration_since(*first) > bounds.window)
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
            return Some(Turn::Over);
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
        let calm_since = self.changes.back().map_or(since, |last| since.max(*last));
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
            flapping.change(at(second));
            assert_eq!(flapping.turn(at(second), BOUNDS, None), None);
        }
        flapping.change(at(20));
        assert_eq!(flapping.turn(at(20), BOUNDS, None), Some(Turn::Begins(3)));
        let since = Some(at(15));
        assert_eq!(flapping.turn(at(310), BOUNDS, since), None);
        assert!(flapping.flaps());
        assert_eq!(flapping.turn(at(321), BOUNDS, None), None);
        assert_eq!(flapping.turn(at(321), BOUNDS, Some(at(40))), None);
        assert_eq!(flapping.turn(at(321), BOUNDS, since), Some(Turn::Over));
        assert_eq!(flapping.turn(at(322), BOUNDS, since), None);
    }

    #[test]
    fn changes_far_apart_do_not_flap() {
        let mut flapping = Flapping::default();
        let begin = Instant::now();
        for n in 0..10 {
            let now = begin + Duration::from_secs(200) * n;
            flapping.change(now);
            assert_eq!(flapping.turn(now, BOUNDS, Some(begin)), None);
        }
    }
}
