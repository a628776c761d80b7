//! Randomness, as an argument: a simulation gives its own, so that a run can be had again.

use std::fmt;
use std::sync::Arc;

/// A source of random numbers; clones share it.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Random {
    /// The process's own source.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(rand::random))
    }

    /// Another source.
    #[must_use]
    pub fn from_fn(bits: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(bits))
    }

    /// 64 random bits.
    #[must_use]
    pub fn bits(&self) -> u64 {
        (self.0)()
    }

    /// A number between -1 and 1.
    #[must_use]
    pub fn jitter(&self) -> f64 {
        // The 32 upper bits are exact in a double.
        let upper = u32::try_from(self.bits() >> 32).unwrap_or(u32::MAX);
        f64::from(upper) / f64::from(u32::MAX) * 2.0 - 1.0
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_lies_between_minus_one_and_one() {
        let lowest = Random::from_fn(|| 0);
        let highest = Random::from_fn(|| u64::MAX);
        assert!((lowest.jitter() + 1.0).abs() < 1e-9);
        assert!((highest.jitter() - 1.0).abs() < 1e-9);
        assert_ne!(Random::system().bits(), Random::system().bits());
    }
}
