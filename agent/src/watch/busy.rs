//! Which services are being changed right now: while one is, its containers' ends are nobody's drift.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mcp_spec::name::ServiceName;
use tokio::sync::watch;
use tokio::time::Instant;

/// The services that a deployment, or another change, is at work on; clones share it.
///
/// Whoever changes containers enters the service before the first change and leaves it after the
/// registry knows the outcome.
#[derive(Debug, Clone)]
pub struct Busy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    services: Mutex<Services>,
    endings: watch::Sender<u64>,
    /// Wakes when ends were taken up.
    taken: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Services {
    /// Guards of each service that is busy, and since when it is.
    busy: BTreeMap<ServiceName, (usize, Instant)>,
    /// Those that are no longer, and since when they had been; one entry a service.
    ended: BTreeMap<ServiceName, Instant>,
    /// Grows with each beginning and each end.
    epoch: u64,
}

/// Keeps a service busy until it is dropped.
#[derive(Debug)]
#[must_use = "the service is busy only as long as the guard lives"]
pub struct BusyGuard {
    inner: Arc<Inner>,
    service: ServiceName,
}

impl Default for Busy {
    fn default() -> Self {
        Self(Arc::new(Inner {
            services: Mutex::default(),
            endings: watch::channel(0).0,
            taken: watch::channel(0).0,
        }))
    }
}

impl Inner {
    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy {
    /// Marks a service as being changed until the guard is dropped. Guards of one service add up.
    pub fn enter(&self, service: ServiceName) -> BusyGuard {
        let mut services = self.0.services();
        services.epoch += 1;
        let entry = services
            .busy
            .entry(service.clone())
            .or_insert_with(|| (0, Instant::now()));
        entry.0 += 1;
        drop(services);
        BusyGuard {
            inner: Arc::clone(&self.0),
            service,
        }
    }

    /// Whether the service is being changed.
    #[must_use]
    pub fn is_busy(&self, service: &ServiceName) -> bool {
        self.0.services().busy.contains_key(service)
    }

    /// Whether any service is being changed.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.0.services().busy.is_empty()
    }

    /// The services that are busy.
    pub(super) fn all(&self) -> BTreeSet<ServiceName> {
        self.0.services().busy.keys().cloned().collect()
    }

    /// A number that grows with each beginning and each end.
    pub(super) fn epoch(&self) -> u64 {
        self.0.services().epoch
    }

    /// The services that have ended being busy since the last call, and since when they had been.
    pub(super) fn take_ended(&self) -> BTreeMap<ServiceName, Instant> {
        let ended = std::mem::take(&mut self.0.services().ended);
        self.0.taken.send_modify(|count| *count += 1);
        ended
    }

    /// Whether a service has ended being busy since the last call of [`Self::take_ended`].
    pub(super) fn has_ended(&self) -> bool {
        !self.0.services().ended.is_empty()
    }

    /// Waits until all ends so far were taken up.
    pub(super) async fn taken_up(&self) {
        let mut taken = self.0.taken.subscribe();
        // The sender lives as long as `self`.
        drop(taken.wait_for(|_| !self.has_ended()).await);
    }

    /// A receiver that is woken each time a service is no longer busy.
    #[must_use]
    pub fn endings(&self) -> watch::Receiver<u64> {
        self.0.endings.subscribe()
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let mut services = self.inner.services();
        services.epoch += 1;
        let Some((guards, since)) = services.busy.get_mut(&self.service) else {
            return;
        };
        *guards -= 1;
        let (guards, since) = (*guards, *since);
        if guards == 0 {
            services.busy.remove(&self.service);
            // Where nobody has taken the last end up, the change goes back to its beginning.
            services.ended.entry(self.service.clone()).or_insert(since);
            drop(services);
            self.inner.endings.send_modify(|count| *count += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_busy_until_its_last_guard_is_gone() {
        let busy = Busy::default();
        let shop: ServiceName = "shop".parse().unwrap();
        let mut endings = busy.endings();
        let first = busy.enter(shop.clone());
        let second = busy.clone().enter(shop.clone());
        assert!(busy.is_busy(&shop) && busy.any());
        drop(first);
        assert!(busy.is_busy(&shop));
        assert!(!endings.has_changed().unwrap());
        drop(second);
        assert!(!busy.is_busy(&shop) && !busy.any());
        assert!(endings.has_changed().unwrap());
        endings.mark_unchanged();
    }
}
