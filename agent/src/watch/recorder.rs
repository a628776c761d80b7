//! What watching found, on its way to the registry: one write at a time, everything in order.
//!
//! While a write is under way, what follows is gathered: of each component the last row, of events
//! all. A write that fails for want of room is made again; the gathered events are bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use mcp_spec::name::ComponentKey;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::current::Watch;
use crate::registry::{LostRow, NewEvent, ObservedRow, Registry, RegistryError};

/// Most events that wait. With a full disk the oldest go.
const WAITING: usize = 10_000;

/// Pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be written.
#[derive(Debug, Default)]
struct Batch {
    rows: BTreeMap<ComponentKey, ObservedRow>,
    events: Vec<NewEvent>,
    lost: Vec<LostRow>,
    change: u64,
}

/// Writes what watching found.
#[derive(Debug)]
pub(super) struct Recorder {
    registry: Registry,
    watch: Watch,
    waiting: Batch,
    writing: JoinSet<(Batch, Result<(), RegistryError>)>,
}

impl Recorder {
    /// Nothing waits yet.
    pub(super) fn new(registry: Registry, watch: Watch) -> Self {
        Self {
            registry,
            watch,
            waiting: Batch::default(),
            writing: JoinSet::new(),
        }
    }

    /// Adds what an emptied engine took along; it goes with what is added next.
    pub(super) fn add_lost(&mut self, lost: Vec<LostRow>) {
        self.waiting.lost.extend(lost);
    }

    /// Adds what follows from the change with this number and those before.
    pub(super) fn add(&mut self, rows: Vec<ObservedRow>, events: Vec<NewEvent>, change: u64) {
        self.waiting
            .rows
            .extend(rows.into_iter().map(|row| (row.key.clone(), row)));
        self.waiting.events.extend(events);
        let over = self.waiting.events.len().saturating_sub(WAITING);
        if over > 0 {
            tracing::error!(
                lost = over,
                "the registry cannot be written: events are lost"
            );
            self.waiting.events.drain(..over);
        }
        self.waiting.change = self.waiting.change.max(change);
        self.go_on();
    }

    /// Takes in the end of a write; waits for ever where there is none.
    ///
    /// # Errors
    ///
    /// Where nothing can be written any more.
    pub(super) async fn written(&mut self) -> Result<(), RegistryError> {
        let Some(Ok((batch, result))) = self.writing.join_next().await else {
            return std::future::pending().await;
        };
        match result {
            Ok(()) => {
                self.watch.set_recorded(batch.change);
                if !batch.lost.is_empty() {
                    // Whoever brings it back reads it from the registry.
                    self.watch.count_change();
                }
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "cannot write down what was observed");
                let later = std::mem::take(&mut self.waiting);
                self.waiting = batch;
                self.waiting.rows.extend(later.rows);
                self.waiting.events.extend(later.events);
                self.waiting.lost.extend(later.lost);
                self.waiting.change = self.waiting.change.max(later.change);
            }
        }
        self.go_on();
        Ok(())
    }

    /// Waits for all writes, at the agent's end.
    pub(super) async fn finish(&mut self) {
        while let Some(Ok((_, result))) = self.writing.join_next().await {
            if result.is_err() {
                return;
            }
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        let waiting = &self.waiting;
        if waiting.rows.is_empty() && waiting.events.is_empty() && waiting.lost.is_empty() {
            self.watch.set_recorded(self.waiting.change);
            return;
        }
        let batch = std::mem::take(&mut self.waiting);
        self.waiting.change = batch.change;
        let registry = self.registry.clone();
        self.writing.spawn(async move {
            let rows = batch.rows.values().cloned().collect();
            let events = batch.events.clone();
            let result = if batch.lost.is_empty() {
                registry.record_observed(rows, events).await
            } else {
                registry.record_lost(batch.lost.clone(), rows, events).await
            };
            if result.is_err() {
                sleep(PAUSE).await;
            }
            (batch, result)
        });
    }
}
