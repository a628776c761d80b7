//! Refused tokens by address: a bound on what one address can make the agent say and log.
//!
//! A good token always passes, whatever else comes from its address: a neighbour cannot lock an
//! operator out. Only refusals are counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Refusals of one address within [`WINDOW`] that are answered in full.
const ALLOWED: u32 = 20;
/// The time over which refusals are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Most addresses that are remembered; the oldest goes first. About 64 bytes each.
const MAX_ADDRESSES: usize = 4096;

/// Counts refused tokens by address.
#[derive(Debug, Default)]
pub struct Refusals {
    by_address: Mutex<HashMap<IpAddr, Counted>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    since: Instant,
    count: u32,
}

impl Refusals {
    /// Counts one refusal, and tells how long the address has to wait where it had too many.
    pub fn count(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let mut by_address = self
            .by_address
            .lock()
            .expect("nothing panics while it holds this lock");
        if by_address.len() >= MAX_ADDRESSES && !by_address.contains_key(&address) {
            by_address.retain(|_, counted| now.duration_since(counted.since) < WINDOW);
            if by_address.len() >= MAX_ADDRESSES
                && let Some(oldest) = by_address
                    .iter()
                    .min_by_key(|(_, counted)| counted.since)
                    .map(|(address, _)| *address)
            {
                by_address.remove(&oldest);
            }
        }
        let counted = by_address.entry(address).or_insert(Counted {
            since: now,
            count: 0,
        });
        let age = now.duration_since(counted.since);
        if age >= WINDOW {
            *counted = Counted {
                since: now,
                count: 0,
            };
        }
        counted.count = counted.count.saturating_add(1);
        (counted.count > ALLOWED).then(|| WINDOW.saturating_sub(now.duration_since(counted.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_many_refusals_waits_for_the_window() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let (bad, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..ALLOWED {
            assert_eq!(refusals.count(bad, start), None);
        }
        assert_eq!(refusals.count(bad, start), Some(WINDOW));
        assert_eq!(refusals.count(other, start), None);
        assert_eq!(refusals.count(bad, start + WINDOW), None);
    }

    #[test]
    fn memory_is_bounded() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for n in 0..20_000u32 {
            refusals.count(IpAddr::V4(n.into()), now);
        }
        assert!(refusals.by_address.lock().unwrap().len() <= MAX_ADDRESSES);
    }
}
