//! Retention: events older than `[watch] event_retention` are pruned, a chunk at a time, so that no
//! deployment waits for it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::registry::{PruneBounds, Registry};

/// Time between two prunings: what is kept an hour too long harms nobody.
const PAUSE: Duration = Duration::from_secs(3600);

/// Events of one transaction: some ten milliseconds of the writer's time.
const CHUNK: u32 = 1000;

/// Events that stay whatever their age: a clock that jumped ahead must not empty the log.
const KEPT: u32 = 10_000;

/// Events above which the oldest go whatever their age: about four gigabytes.
const AT_MOST: u32 = 10_000_000;

/// Prunes until `stop`.
pub async fn run(
    registry: Registry,
    clock: &dyn Clock,
    retention: Duration,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PAUSE);
    loop {
        tokio::select! {
            // Nothing is lost by cancelling a wait.
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Ok(before) = clock.now().checked_sub(retention) else {
            continue;
        };
        loop {
            if stop.is_cancelled() {
                return;
            }
            let bounds = PruneBounds {
                before,
                keep_newest: KEPT,
                keep_at_most: AT_MOST,
                chunk: CHUNK,
            };
            match registry.prune(bounds).await {
                Ok(0) => break,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::warn!(%error, "old events cannot be pruned");
                    break;
                }
            }
        }
    }
}
