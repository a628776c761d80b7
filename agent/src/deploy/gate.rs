//! The gate: what a container has to show before it counts as started.
//!
//! With a health check it is the first success: probed at once, then at most every second during
//! `start_period`, then every `interval`. Without one it is running, not restarted, for `ready_for`.
//! A job's gate is its end. Waiting at a gate holds no slot.

use std::time::Duration;

use mcp_spec::component::{ComponentSpec, Health, Kind};
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerState, LiveContainer};
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};

use super::context::Context;
use super::feed::Feed;
use crate::runtime::RuntimeError;
use crate::runtime::prober::{ProbeOutcome, probe};
use crate::watch::KILLED;
use crate::watch::process::{Opened, ProcessWatch};

/// Shortest time between two probes: the design's bound for `start_period`.
const PROBE_PACE: Duration = Duration::from_secs(1);

/// How often a container is looked at where no pidfd can be had.
const LOOK_PACE: Duration = Duration::from_millis(500);

/// How long the engine may take to tell the exit code of a process that is dead: inspect still says
/// running for 10 to 50 ms after a death.
const EXIT_CODE_WAIT: Duration = Duration::from_secs(5);

/// Why a container did not pass.
#[derive(Debug, Clone, Error)]
pub(super) enum GateFailure {
    /// It ended.
    #[error("it exited with code {code}{}", if *oom { " (out of memory)" } else { "" })]
    Exited {
        /// Exit code.
        code: i32,
        /// Whether the engine says that its memory ran out.
        oom: bool,
    },
    /// Its health check failed too often.
    #[error("unhealthy after {failures} failed checks: {detail}")]
    Unhealthy {
        /// Failures in a row.
        failures: u32,
        /// What the last one said.
        detail: String,
    },
    /// Its time was up.
    #[error("it was not ready within {}s: {detail}", waited.as_secs())]
    TimeUp {
        /// How long it was given.
        waited: Duration,
        /// What it was still waiting for.
        detail: String,
    },
    /// It was removed, or replaced by another process, behind the agent's back.
    #[error("the container went away")]
    Gone,
    /// The engine failed.
    #[error("the engine failed at the gate: {0}")]
    Engine(RuntimeError),
}

/// Waits until the container passes, or tells why it did not. `live` was inspected after the start.
///
/// # Errors
///
/// [`GateFailure`].
pub(super) async fn pass(
    context: &Context,
    feed: &Feed,
    key: &ComponentKey,
    spec: &ComponentSpec,
    live: &LiveContainer,
    deadline: Instant,
) -> Result<LiveContainer, GateFailure> {
    if let Kind::Job { exit_codes } = &spec.kind {
        let ended = run_to_end(context, live, deadline).await?;
        return match ended.state {
            ContainerState::Exited { code, .. } if exit_codes.contains(&code) => Ok(ended),
            ContainerState::Exited { code, oom } => Err(GateFailure::Exited { code, oom }),
            _ => Err(GateFailure::Gone),
        };
    }
    let exit = exited(context, live);
    tokio::pin!(exit);
    match &spec.health {
        Some(health) => {
            tokio::select! {
                biased;
                // Probing is abandoned when the process dies: nothing answers any more.
                failure = &mut exit => Err(failure),
                result = healthy(context, feed, key, spec, health, live, deadline) => result,
            }?;
        }
        None => {
            let ready_for = spec.ready_for.as_duration();
            if ready_for.is_zero() {
                if !live.state.is_running() {
                    return Err(exit.await);
                }
                return Ok(live.clone());
            }
            feed.tell(
                Some(&key.component),
                "probing",
                format!("stable for {}", spec.ready_for),
            );
            let ready_at = Instant::now() + ready_for;
            tokio::select! {
                biased;
                failure = &mut exit => return Err(failure),
                () = sleep_until(ready_at.min(deadline)) => {}
            }
            if ready_at > deadline {
                return Err(GateFailure::TimeUp {
                    waited: ready_for,
                    detail: "its stable time did not fit into the deadline".to_owned(),
                });
            }
            return still_runs(context, live, deadline).await;
        }
    }
    Ok(live.clone())
}

/// Probes until the first success.
async fn healthy(
    context: &Context,
    feed: &Feed,
    key: &ComponentKey,
    spec: &ComponentSpec,
    health: &Health,
    live: &LiveContainer,
    deadline: Instant,
) -> Result<(), GateFailure> {
    let began = Instant::now();
    let grace = began + health.start_period.as_duration();
    let patience = health.start_period.as_duration()
        + (health.interval.as_duration() + health.timeout.as_duration()) * health.retries;
    let until = (began + patience).min(deadline);
    let mut failures = 0;
    let mut last;
    loop {
        let outcome = match context.facts() {
            Some(facts) => probe(context.runtime.as_ref(), &facts, spec, health, live).await,
            None => ProbeOutcome {
                ok: false,
                detail: "the engine has not answered yet".to_owned(),
            },
        };
        if outcome.ok {
            return Ok(());
        }
        last = outcome.detail;
        let now = Instant::now();
        if now >= grace {
            failures += 1;
        }
        feed.tell_counted(
            Some(&key.component),
            "unhealthy",
            last.clone(),
            failures.into(),
            health.retries.into(),
        );
        if failures >= health.retries {
            return Err(GateFailure::Unhealthy {
                failures,
                detail: last,
            });
        }
        let pace = if now < grace {
            health.interval.as_duration().min(PROBE_PACE)
        } else {
            health.interval.as_duration()
        };
        let next = now + pace;
        if next >= until {
            // The last probe that fits has been made.
            if until > now {
                sleep_until(until).await;
            }
            return Err(GateFailure::TimeUp {
                waited: until - began,
                detail: last,
            });
        }
        sleep_until(next).await;
    }
}

/// Makes sure that time has not passed for want of an answer: an engine that is away shows no end.
async fn still_runs(
    context: &Context,
    live: &LiveContainer,
    deadline: Instant,
) -> Result<LiveContainer, GateFailure> {
    loop {
        match look(context, live).await {
            Ok(now) if now.state.is_running() && now.started_at == live.started_at => {
                return Ok(now);
            }
            Ok(now) => {
                return Err(match now.state {
                    ContainerState::Exited { code, oom } => GateFailure::Exited { code, oom },
                    _ => GateFailure::Gone,
                });
            }
            Err(GateFailure::Engine(error)) if error.is_away() && Instant::now() < deadline => {
                sleep(LOOK_PACE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Waits for the end of a container, at most until the deadline.
async fn run_to_end(
    context: &Context,
    live: &LiveContainer,
    deadline: Instant,
) -> Result<LiveContainer, GateFailure> {
    let began = Instant::now();
    match tokio::time::timeout_at(deadline, ended(context, live)).await {
        Ok(end) => end,
        Err(_) => Err(GateFailure::TimeUp {
            waited: deadline - began,
            detail: "the job had not ended".to_owned(),
        }),
    }
}

/// The failure that the end of a container is, once it ends.
async fn exited(context: &Context, live: &LiveContainer) -> GateFailure {
    match ended(context, live).await {
        Ok(live) => match live.state {
            ContainerState::Exited { code, oom } => GateFailure::Exited { code, oom },
            _ => GateFailure::Gone,
        },
        Err(failure) => failure,
    }
}

/// Waits for the end of a container and tells how it looks then.
async fn ended(context: &Context, live: &LiveContainer) -> Result<LiveContainer, GateFailure> {
    if let ContainerState::Running { pid: Some(pid) } = live.state
        && context.facts().is_some_and(|facts| facts.shares_pids)
    {
        let mut memory_ran_out = false;
        match ProcessWatch::open(pid, &live.id) {
            Ok(Opened::Watched(watch)) => memory_ran_out = watch.died().await.memory_ran_out,
            Ok(Opened::Unproven(watch)) => {
                let again = look(context, live).await?;
                if again.state == live.state && again.started_at == live.started_at {
                    watch.died().await;
                }
            }
            Ok(Opened::Gone) => {}
            Err(_) => return poll_end(context, live, None).await,
        }
        let until = Instant::now() + EXIT_CODE_WAIT;
        let mut end = poll_end(context, live, Some(until)).await?;
        if let ContainerState::Exited { code: KILLED, oom } = &mut end.state {
            // Podman does not say so itself.
            *oom |= memory_ran_out;
        }
        return Ok(end);
    }
    poll_end(context, live, None).await
}

/// Looks until the engine says that the container ended. With `dead_since` the process is known to
/// be dead, and the engine is asked often and not for ever.
async fn poll_end(
    context: &Context,
    live: &LiveContainer,
    dead_until: Option<Instant>,
) -> Result<LiveContainer, GateFailure> {
    let mut pace = Duration::from_millis(5);
    loop {
        match look(context, live).await {
            Ok(now) => {
                let restarted = now.started_at != live.started_at && live.started_at.is_some();
                if !now.state.is_running() || restarted {
                    return Ok(now);
                }
            }
            Err(GateFailure::Engine(error)) if error.is_away() => {}
            Err(failure) => return Err(failure),
        }
        match dead_until {
            Some(until) if Instant::now() >= until => {
                return Err(GateFailure::Exited {
                    code: -1,
                    oom: false,
                });
            }
            Some(_) => {
                sleep(pace).await;
                pace = (pace * 2).min(LOOK_PACE);
            }
            None => sleep(LOOK_PACE).await,
        }
    }
}

async fn look(context: &Context, live: &LiveContainer) -> Result<LiveContainer, GateFailure> {
    match context.runtime.inspect(live.id.as_str()).await {
        Ok(Some(now)) => Ok(now),
        Ok(None) => Err(GateFailure::Gone),
        Err(error) => Err(GateFailure::Engine(error)),
    }
}
