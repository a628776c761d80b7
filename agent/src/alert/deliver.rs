//! Takes alerts from the outbox and hands them to the command, one at a time.
//!
//! An attempt that fails is made again with growing pauses, for a day at most; meanwhile other alerts
//! go out, but never a younger one about the same.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mcp_spec::name::NodeName;
use serde_json::json;
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::command::{self, Delivered, DeliveryError};
use super::conditions::{Alert, AlertState, ConditionKey, Evidence};
use super::judge::JudgeError;
use crate::clock::Clock;
use crate::config::AlertConfig;
use crate::registry::{NewEvent, Outgoing, Registry, RegistryError};

/// Pause after the first failed attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Attempts at one alert: about a day's, with the longest pause between them.
const ATTEMPTS: u32 = 300;

/// Longest sleep without a look at the outbox: the wall clock may have jumped.
const LOOK: Duration = Duration::from_secs(600);

/// Delivers alerts.
#[derive(Debug)]
pub struct Delivery {
    node: NodeName,
    registry: Registry,
    clock: Arc<dyn Clock>,
    config: Option<AlertConfig>,
    outgoing: Arc<Notify>,
    /// Held while the command runs: one at a time.
    running: Mutex<()>,
}

impl Delivery {
    /// Nothing is under way. `outgoing` is told when something goes out.
    #[must_use]
    pub fn new(
        node: NodeName,
        registry: Registry,
        clock: Arc<dyn Clock>,
        config: Option<AlertConfig>,
        outgoing: Arc<Notify>,
    ) -> Self {
        Self {
            node,
            registry,
            clock,
            config,
            outgoing,
            running: Mutex::new(()),
        }
    }

    /// Delivers until `stop`; an attempt that is under way then is made again after the next start.
    ///
    /// # Errors
    ///
    /// Where the registry can no longer be used: the agent has to end.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), JudgeError> {
        loop {
            let pause = tokio::select! {
                biased;
                // The command is killed with the attempt.
                () = stop.cancelled() => return Ok(()),
                next = self.next() => match next {
                    Ok(pause) => pause,
                    Err(error) if error.is_final() => return Err(error.into()),
                    Err(error) => {
                        tracing::error!(%error, "the outbox of alerts cannot be used");
                        FIRST_PAUSE
                    }
                },
            };
            tokio::select! {
                biased;
                // Waiting has nothing to lose.
                () = stop.cancelled() => return Ok(()),
                () = self.outgoing.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Tries whether an alert arrives.
    ///
    /// # Errors
    ///
    /// [`DeliveryError`] where it does not.
    pub async fn test(&self, by: &str) -> Result<Delivered, DeliveryError> {
        let config = self.config.as_ref().ok_or(DeliveryError::Unset)?;
        let now = self.clock.now();
        let alert = Alert {
            node: self.node.to_string(),
            key: ConditionKey {
                service: None,
                component: None,
                condition: "test".to_owned(),
            },
            state: AlertState::Test,
            cause: "test".to_owned(),
            message: format!("a test alert, asked for by {by}"),
            at: now,
            since: now,
            seq: 0,
            revision: None,
            count: 1,
            data: json!({}),
            evidence: Evidence::default(),
        };
        let _running = self.running.lock().await;
        command::run(config, &alert).await
    }

    /// Delivers what is due; returns how long nothing will be.
    async fn next(&self) -> Result<Duration, RegistryError> {
        loop {
            let Some(config) = &self.config else {
                return Ok(LOOK);
            };
            let Some(outgoing) = self.registry.next_alert().await? else {
                return Ok(LOOK);
            };
            let wait = outgoing.next_at.duration_since(self.clock.now());
            let wait = Duration::try_from(wait).unwrap_or_default();
            // A longer pause than any that is given comes of a clock that has since been set back.
            if !wait.is_zero() && wait <= LONGEST_PAUSE {
                return Ok(wait);
            }
            self.attempt(config, outgoing).await?;
        }
    }

    async fn attempt(&self, config: &AlertConfig, outgoing: Outgoing) -> Result<(), RegistryError> {
        let Ok(alert) = serde_json::from_str::<Alert>(&outgoing.body) else {
            tracing::error!(id = outgoing.id, "an alert of another release is dropped");
            return self.registry.remove_alert(outgoing.id).await;
        };
        let result = {
            let _running = self.running.lock().await;
            command::run(config, &alert).await
        };
        let Err(error) = result else {
            return self.registry.remove_alert(outgoing.id).await;
        };
        let cause = crate::error_chain(&error);
        tracing::warn!(%cause, output = error.output(), attempt = outgoing.attempts + 1, "an alert was not delivered");
        let is_last = outgoing.attempts + 1 >= ATTEMPTS;
        if outgoing.attempts == 0 || is_last {
            let kind = if is_last {
                "alert-lost"
            } else {
                "alert-failed"
            };
            self.tell(&alert, kind, &cause, error.output()).await?;
        }
        if is_last {
            return self.registry.remove_alert(outgoing.id).await;
        }
        self.registry
            .put_off_alert(outgoing.id, self.next_attempt(outgoing.attempts))
            .await
    }

    fn next_attempt(&self, attempts: u32) -> Timestamp {
        let pause = FIRST_PAUSE
            .saturating_mul(1_u32.checked_shl(attempts).unwrap_or(u32::MAX))
            .min(LONGEST_PAUSE);
        let pause = SignedDuration::try_from(pause).unwrap_or_default();
        let now = self.clock.now();
        now.checked_add(pause).unwrap_or(now)
    }

    async fn tell(
        &self,
        alert: &Alert,
        kind: &str,
        cause: &str,
        output: &str,
    ) -> Result<(), RegistryError> {
        let event = NewEvent {
            at: self.clock.now(),
            service: alert.key.service.clone(),
            component: alert.key.component.clone(),
            kind: kind.to_owned(),
            reason: "alert-command".to_owned(),
            message: format!(
                "the alert of `{}` did not arrive: {cause}",
                alert.key.condition
            ),
            revision: None,
            data: json!({ "condition": alert.key.condition, "seq": alert.seq, "output": output }),
        };
        self.registry.append_events(vec![event]).await.map(|_| ())
    }
}
