//! Seeded chance: the same seed throws the same dice.

use std::sync::Mutex;
use std::time::Duration;

/// A stream of random numbers (SplitMix64); shared by reference.
#[derive(Debug)]
pub(crate) struct Dice(Mutex<u64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// A stream of its own for one purpose, so that one more throw here changes nothing there.
    pub(crate) fn of(seed: u64, purpose: &str) -> Self {
        let mixed = purpose
            .bytes()
            .fold(seed ^ 0x5851_f42d_4c95_7f2d, |mixed, byte| {
                (mixed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        let dice = Self::new(mixed);
        dice.bits();
        dice
    }

    pub(crate) fn bits(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `sides`.
    pub(crate) fn below(&self, sides: u64) -> u64 {
        self.bits() % sides.max(1)
    }

    /// True so many times in a thousand.
    pub(crate) fn chance(&self, in_a_thousand: u64) -> bool {
        self.below(1000) < in_a_thousand
    }

    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        let sides = u64::try_from(of.len()).unwrap();
        (sides > 0).then(|| &of[usize::try_from(self.below(sides)).unwrap()])
    }

    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}
