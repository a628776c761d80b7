//! Which services are being changed right now: while one is, its containers' ends are nobody's drift.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mcp_spec::name::ServiceName;
use tokio::sync::watch;

/// The services that a deployment, or another change, is at work on; clones share it.
///
/// Whoever changes containers enters the service before the first change and leaves it after the
/// registry knows the outcome.
#[derive(Debug, Clone)]
pub struct Busy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    services: Mutex<BTreeMap<ServiceName, usize>>,
    endings: watch::Sender<u64>,
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
            services: Mutex::new(BTreeMap::new()),
            endings: watch::channel(0).0,
        }))
    }
}

impl Inner {
    fn services(&self) -> MutexGuard<'_, BTreeMap<ServiceName, usize>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy {
    /// Marks a service as being changed until the guard is dropped. Guards of one service add up.
    pub fn enter(&self, service: ServiceName) -> BusyGuard {
        *self.0.services().entry(service.clone()).or_default() += 1;
        BusyGuard {
            inner: Arc::clone(&self.0),
            service,
        }
    }

    /// Whether the service is being changed.
    #[must_use]
    pub fn is_busy(&self, service: &ServiceName) -> bool {
        self.0.services().contains_key(service)
    }

    /// Whether any service is being changed.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.0.services().is_empty()
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
        if let Some(count) = services.get_mut(&self.service) {
            *count -= 1;
            if *count == 0 {
                services.remove(&self.service);
                drop(services);
                self.inner.endings.send_modify(|count| *count += 1);
            }
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
