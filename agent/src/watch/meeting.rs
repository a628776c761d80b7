//! Meeting an engine: for the first time, or again after it was away or its event stream broke off.
//!
//! What is found then may be another engine's store, an emptied one, or one whose containers all went down
//! with the engine or the host. The rest of watching knows none of that; it goes by what is said here.
//! A store that looks emptied is looked at a second time, and until then nothing follows from the first
//! look. Which store an engine has is remembered as soon as it shows a registered container.

use std::collections::BTreeMap;
use std::time::Duration;

use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerState, DesiredState};
use tokio::time::{Instant, sleep};

use super::component::Component;
use super::current::Watch;
use super::snapshot::Snapshot;
use crate::registry::Registry;
use crate::runtime::RuntimeError;

/// The registry's name for where the engine keeps its containers.
const STORE: &str = "engine-store";

/// Between the two looks at a store that looks emptied: longer than an engine that begins is at it.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How long the first list after the event stream broke off is waited for. An engine that is away is seen
/// to be long before; one that refuses the stream is listed at the next resync.
const LIST_WAIT: Duration = Duration::from_secs(5);

/// Where meeting the engine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It has yet to answer; with a list that was asked for after the event stream broke off, where it did.
    Due(Option<Instant>),
    /// Its store looks emptied, and is looked at again.
    Doubted,
    /// It was met.
    Over,
}

impl Meeting {
    /// Whether nothing may follow yet from what is seen: single answers may be another engine's.
    pub(super) fn withholds(self, now: Instant) -> bool {
        match self {
            Self::Due(Some(broke_off)) => now < broke_off + LIST_WAIT,
            Self::Doubted => true,
            Self::Due(None) | Self::Over => false,
        }
    }

    /// When withholding ends by the passing of time alone.
    pub(super) fn given_up_at(self) -> Option<Instant> {
        match self {
            Self::Due(Some(broke_off)) => {
                Some(broke_off + LIST_WAIT).filter(|end| *end > Instant::now())
            }
            _ => None,
        }
    }
}

/// Whether the store is the one that the registered containers are of: one of them is there, or there are
/// none.
pub(super) fn is_shown(
    components: &BTreeMap<ComponentKey, Component>,
    snapshot: &Snapshot,
) -> bool {
    components.is_empty()
        || components
            .values()
            .any(|component| snapshot.containers.contains_key(&component.row.container))
}

/// Looks at a store that looks emptied once more, after a while. Tells whether it is the store that
/// was there before, as far as anybody knows.
///
/// # Errors
///
/// Where the engine is away again, or the registry cannot tell; the next meeting begins anew.
pub(super) async fn look_again(watch: &Watch, registry: &Registry) -> Result<bool, RuntimeError> {
    sleep(SECOND_LOOK).await;
    watch.fresh().await?;
    let store = match watch.runtime().store().await {
        Ok(store) => store,
        Err(error) if error.is_away() => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "the engine does not tell where it keeps its containers");
            return Ok(true);
        }
    };
    match registry.remembered(STORE).await {
        Ok(before) => Ok(before.is_none_or(|before| before == store)),
        Err(error) => {
            tracing::error!(%error, "cannot read which store the engine had");
            Err(RuntimeError::Uncertain {
                call: "info",
                cause: "the registry cannot be read".to_owned(),
            })
        }
    }
}

/// Remembers which store the engine has; tells whether that is written down.
pub(super) async fn note(watch: &Watch, registry: &Registry) -> bool {
    let store = match watch.runtime().store().await {
        Ok(store) => store,
        // It is noted when it is met again.
        Err(error) => {
            tracing::debug!(%error, "the engine does not tell where it keeps its containers");
            return true;
        }
    };
    let known = registry.remembered(STORE).await;
    if known.is_ok_and(|known| known.as_deref() == Some(store.as_str())) {
        return true;
    }
    let written = registry.remember(STORE, store).await;
    if let Err(error) = &written {
        tracing::error!(%error, "cannot write down which store the engine has");
        sleep(SECOND_LOOK).await;
    }
    written.is_ok()
}

/// The components that went down together, with the engine or the host: two or more ran when they were seen
/// last, and none of those runs now. That is no failure of theirs, and waits for no pause.
pub(super) fn fallen(
    components: &BTreeMap<ComponentKey, Component>,
    snapshot: &Snapshot,
) -> Vec<ComponentKey> {
    let ran: Vec<(&ComponentKey, Option<&ContainerState>)> = components
        .iter()
        .filter(|(_, component)| {
            component.row.wanted() == DesiredState::Running && component.was_running()
        })
        .map(|(key, component)| {
            let live = snapshot.container(&component.row.container);
            (key, live.map(|live| &live.state))
        })
        .collect();
    let is_up =
        |state: &&ContainerState| state.is_running() || matches!(state, ContainerState::Paused);
    let down = ran.iter().filter(|(_, state)| state.is_some()).count();
    if down < 2
        || ran
            .iter()
            .any(|(_, state)| state.as_ref().is_some_and(is_up))
    {
        return Vec::new();
    }
    ran.into_iter().map(|(key, _)| key.clone()).collect()
}
