//! The engine's event stream: kept open, tried again with back-off.
//!
//! After each connection the whole engine is listed once, since what happened in between was lost. An
//! event is a hint: it makes a container a suspect, and the watch looks at it soon.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt;
use jiff::SignedDuration;
use mcp_spec::observed::LiveContainer;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::current::{Watch, is_dead};
use crate::runtime::{EngineEvent, EngineFacts, RuntimeError};

/// First pause before the next attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between two attempts: the engine's return is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How far the engine's word for a start may lie from the event's time: podman tells whole seconds.
const CLOCK_GRAIN: SignedDuration = SignedDuration::from_millis(1100);

/// Follows the engine's events for ever; wakes `hints` for each that is news.
pub(super) async fn follow(
    watch: Watch,
    facts: Arc<ArcSwapOption<EngineFacts>>,
    hints: Arc<Notify>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connected(&watch, &facts, &hints).await {
            // It flowed for a while and ended: the engine may be back at once.
            Ok(()) => pause = FIRST_PAUSE,
            Err(error) => {
                if error.is_away() {
                    watch.engine_away(&error);
                }
                tracing::debug!(%error, "the engine's events do not flow");
            }
        }
        watch.set_events_flow(false);
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connected(
    watch: &Watch,
    facts: &ArcSwapOption<EngineFacts>,
    hints: &Notify,
) -> Result<(), RuntimeError> {
    let runtime = watch.runtime();
    if facts.load().is_none() {
        facts.store(Some(Arc::new(runtime.facts().await?)));
    }
    let mut events = runtime.events().await?;
    // Connected first and listed then: nothing falls in between.
    watch.inspected().await?;
    watch.set_events_flow(true);
    hints.notify_one();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if is_news(watch, &event) {
                    watch.suspect(event.container);
                    hints.notify_one();
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the engine's event stream broke off");
                break;
            }
        }
    }
    watch.stream_broke_off();
    // Whether the engine is away or has only closed the stream, the list of the next attempt tells.
    Ok(())
}

/// Whether an event may tell of something that is not known yet.
fn is_news(watch: &Watch, event: &EngineEvent) -> bool {
    let current = watch.current();
    let Some(held) = current.containers.get(&event.container) else {
        return event.action != "destroy";
    };
    let known = match event.action.as_str() {
        "create" => true,
        // What a signal or a stop leads to is told by itself.
        "kill" | "stop" => true,
        "start" => held.state.is_running() && is_at_or_after(held, held.started_at, event),
        "die" => {
            is_dead(held)
                || (!held.state.is_running() && is_at_or_after(held, held.finished_at, event))
        }
        _ => false,
    };
    !known
}

/// Whether the container was inspected, and `told` is no earlier than the event.
fn is_at_or_after(
    held: &LiveContainer,
    told: Option<jiff::Timestamp>,
    event: &EngineEvent,
) -> bool {
    let (Some(told), Some(at)) = (told, event.at) else {
        return false;
    };
    !held.fields.is_empty() && told.checked_add(CLOCK_GRAIN).is_ok_and(|told| told >= at)
}
