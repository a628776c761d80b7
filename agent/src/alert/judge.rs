//! Follows the event log and writes down which conditions hold, and what is told of them.
//!
//! Woken by commits that append events; reads them in batches. It writes only where an event means
//! something, so that an ordinary deployment costs the registry nothing here. The log is read on
//! from the last written event, so what was read without consequence is read again after a restart,
//! again without consequence; every [`REMEMBER_EVERY`] events the place is written anyway.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mcp_spec::name::{ComponentName, NodeName, ServiceName};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::conditions::{Alert, Change, Condition, ConditionKey, Conditions, Services};
use super::{evidence, failing};
use crate::clock::Clock;
use crate::config::AlertConfig;
use crate::desired::Desired;
use crate::registry::{ConditionRow, EventQuery, EventRow, Judgement, Registry, RegistryError};
use crate::runtime::Runtime;

/// Events of one reading.
const BATCH: u32 = 500;

/// Events without consequence after which the place in the log is written down all the same.
const REMEMBER_EVERY: u64 = 5000;

/// How long an event waits for others.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Pause after the registry could not be used.
const PAUSE: Duration = Duration::from_secs(5);

/// Why judging has to end: the registry takes no writes any more.
#[derive(Debug, Error)]
#[error("alerts cannot be written down")]
pub struct JudgeError(#[from] RegistryError);

/// Judges the event log.
#[derive(Debug)]
pub struct Judge {
    /// The node's name.
    pub node: NodeName,
    /// Where events come from and conditions are kept.
    pub registry: Registry,
    /// Where a container's last lines come from.
    pub runtime: Arc<dyn Runtime>,
    /// The wall clock: the cool-down outlives a restart.
    pub clock: Arc<dyn Clock>,
    /// The command; without one conditions are kept and nothing goes out.
    pub config: Option<AlertConfig>,
    /// Told when something goes out.
    pub outgoing: Arc<Notify>,
    /// The last event before the agent's start: where judging begins for the first time.
    pub begins_after: u64,
    /// What the head wants.
    pub desired: Arc<Desired>,
}

impl Judge {
    /// Judges until `stop`.
    ///
    /// # Errors
    ///
    /// [`JudgeError`] where the registry can no longer be used: the agent has to end.
    pub async fn run(self, stop: CancellationToken) -> Result<(), JudgeError> {
        let mut newest = self.registry.newest_event();
        let cooldown = self
            .config
            .as_ref()
            .map_or(Duration::ZERO, |config| config.cooldown.as_duration());
        let cooldown = SignedDuration::try_from(cooldown).unwrap_or(SignedDuration::MAX);
        newest.mark_unchanged();
        let (mut cursor, known) = self.begin(self.begins_after).await?;
        let mut conditions = Conditions::new(self.node.to_string(), cooldown, known);
        let mut written = cursor;
        loop {
            let wake = self.wake(&conditions);
            match self
                .catch_up(&mut conditions, &mut cursor, &mut written)
                .await
            {
                Ok(()) => {}
                Err(error) if error.is_final() => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, "alerts cannot be written down");
                    // What the memory has and the registry has not is judged again.
                    let (stored, known) = self.begin(written).await?;
                    (cursor, written) = (stored, stored);
                    conditions = Conditions::new(self.node.to_string(), cooldown, known);
                    tokio::select! {
                    biased;
                            // Waiting has nothing to lose.
                            () = stop.cancelled() => return Ok(()),
                            () = tokio::time::sleep(PAUSE) => continue,
                        }
                }
            }
            tokio::select! {
                biased;
                // What is not judged yet is still in the log.
                () = stop.cancelled() => return Ok(()),
                changed = newest.changed() => {
                    if changed.is_err() {
                        return Err(RegistryError::Closed.into());
                    }
                    // Events come in bursts; one look at all of them.
                    tokio::time::sleep(DEBOUNCE).await;
                    newest.mark_unchanged();
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Where the log is to be read on. What happened before alerts were first judged is no news.
    async fn begin(&self, newest: u64) -> Result<(u64, Vec<Condition>), RegistryError> {
        let Some((cursor, rows)) = self.registry.conditions().await? else {
            let judgement = Judgement {
                cursor: newest,
                ..Judgement::default()
            };
            self.registry.record_judgement(judgement).await?;
            return Ok((newest, Vec::new()));
        };
        Ok((cursor, rows.into_iter().filter_map(stored).collect()))
    }

    /// When time alone changes something.
    fn wake(&self, conditions: &Conditions) -> Instant {
        let now = self.clock.now();
        let wait = conditions.next_pass().map_or(Duration::MAX, |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
        });
        // A wall clock that jumps is noticed within the hour.
        let longest = Duration::from_secs(3600);
        let shortest = Duration::from_millis(100);
        Instant::now() + wait.clamp(shortest, longest)
    }

    async fn catch_up(
        &self,
        conditions: &mut Conditions,
        cursor: &mut u64,
        written: &mut u64,
    ) -> Result<(), RegistryError> {
        loop {
            let events = self
                .registry
                .events(EventQuery {
                    after: Some(*cursor),
                    limit: BATCH,
                    ..EventQuery::default()
                })
                .await?;
            let now = self.clock.now();
            let mut change = conditions.pass(now);
            let services = self.services(&events, conditions).await?;
            for event in &events {
                let more = conditions.take(event, now, &services);
                change.conditions.extend(more.conditions);
                change.forgotten.extend(more.forgotten);
                change.alerts.extend(more.alerts);
                *cursor = event.seq;
            }
            if !change.is_empty() || *cursor - *written >= REMEMBER_EVERY {
                self.write(change, *cursor, now).await?;
                *written = *cursor;
            }
            if events.len() < BATCH as usize {
                return Ok(());
            }
        }
    }

    /// What judging these events has to know of their services.
    async fn services(
        &self,
        events: &[EventRow],
        conditions: &Conditions,
    ) -> Result<Services, RegistryError> {
        if events.is_empty() {
            return Ok(Services::default());
        }
        let rows = self.registry.deployed_all().await?;
        let failing = if conditions.has_failed_deployments() {
            failing::services(&self.registry, &self.desired, &rows).await?
        } else {
            BTreeSet::new()
        };
        Ok(Services {
            muted: rows
                .iter()
                .filter(|row| !row.settings.alert)
                .map(|row| row.key.service.clone())
                .collect(),
            failing,
        })
    }

    async fn write(
        &self,
        change: Change,
        cursor: u64,
        now: Timestamp,
    ) -> Result<(), RegistryError> {
        let mut alerts = Vec::new();
        if self.config.is_some() {
            for mut alert in change.alerts {
                alert.evidence = evidence::gather(&self.registry, &self.runtime, &alert).await;
                alerts.push((subject(&alert.key), body(&alert)));
            }
        }
        let goes_out = !alerts.is_empty();
        let lost = self
            .registry
            .record_judgement(Judgement {
                cursor,
                at: Some(now),
                conditions: change.conditions.iter().map(row).collect(),
                forgotten: change.forgotten.into_iter().map(names).collect(),
                alerts,
            })
            .await?;
        if lost > 0 {
            tracing::error!(lost, "too many alerts wait: the oldest are dropped");
        }
        if goes_out {
            self.outgoing.notify_one();
        }
        Ok(())
    }
}

fn names(key: ConditionKey) -> (String, String, String) {
    (
        key.service.map(|name| name.to_string()).unwrap_or_default(),
        key.component
            .map(|name| name.to_string())
            .unwrap_or_default(),
        key.condition,
    )
}

fn subject(key: &ConditionKey) -> String {
    let (service, component, condition) = names(key.clone());
    format!("{service}/{component} {condition}")
}

fn body(alert: &Alert) -> String {
    // Nothing in an alert has a key that is no text, which is all that could fail here.
    serde_json::to_string(alert).unwrap_or_default()
}

fn row(condition: &Condition) -> ConditionRow {
    let (service, component, word) = names(condition.key.clone());
    ConditionRow {
        service,
        component,
        condition: word,
        holds: condition.holds,
        last: body(&condition.last),
        told: condition.told.clone(),
        told_at: condition.told_at,
    }
}

/// A stored condition; one that this release cannot read is left out and told anew when it is met again.
fn stored(row: ConditionRow) -> Option<Condition> {
    let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let key = ConditionKey {
        service: match name(&row.service) {
            Some(text) => Some(text.parse::<ServiceName>().ok()?),
            None => None,
        },
        component: match name(&row.component) {
            Some(text) => Some(text.parse::<ComponentName>().ok()?),
            None => None,
        },
        condition: row.condition,
    };
    Some(Condition {
        key,
        holds: row.holds,
        last: serde_json::from_str(&row.last).ok()?,
        told: row.told,
        told_at: row.told_at,
    })
}
