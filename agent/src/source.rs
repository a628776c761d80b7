//! The upstream that the agent pulls from: polled, and at once where an operator asks.
//!
//! What is fetched goes through the same door as a push. One fetch at a time; a failure is kept for
//! `mcp node info`, logged when it changes, and tried again at the next poll.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::config::SourceConfig;
use crate::revisions::{Accepted, FetchError, Limits};
use crate::{Agent, TrustRootsError, error_chain, trust_roots};

/// How the last look at the upstream ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastFetch {
    /// When it ended; `None` before the first.
    pub at: Option<Timestamp>,
    /// Why it failed, in one line.
    pub error: Option<String>,
}

/// The upstream's state.
#[derive(Debug, Default)]
pub struct Source {
    last: Mutex<LastFetch>,
}

impl Source {
    /// How the last look ended.
    #[must_use]
    pub fn last(&self) -> LastFetch {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, error: Option<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &error
            && last.error.as_ref() != Some(error)
        {
            tracing::warn!(error, "the upstream could not be fetched");
        }
        if error.is_none() && last.error.is_some() {
            tracing::info!("the upstream can be fetched again");
        }
        *last = LastFetch {
            at: Some(Timestamp::now()),
            error,
        };
    }
}

/// Why nothing came from the upstream.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Owners or denied keys cannot be read, and nothing is verified without.
    #[error(transparent)]
    Trust(#[from] TrustRootsError),
    /// The fetch failed, or what came is refused.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Fetches the upstream's branch now. `None` where the head stands there already.
///
/// # Errors
///
/// [`SourceError`], with nothing changed.
pub async fn fetch(
    agent: &Arc<Agent>,
    config: &SourceConfig,
) -> Result<Option<Accepted>, SourceError> {
    let (store, config) = (Arc::clone(agent), config.clone());
    let fetched = tokio::task::spawn_blocking(move || {
        // Owners and denied keys are read for each receipt: a key denied now counts from now on.
        store.revisions.set_trust(trust_roots(&store.config)?);
        Ok(store.revisions.fetch_source(
            &config.url,
            &config.branch,
            &store.config.node,
            &Limits::default(),
            Timestamp::now(),
        )?)
    })
    .await
    .unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()));
    agent.source.note(
        fetched
            .as_ref()
            .err()
            .map(|error: &SourceError| error_chain(error)),
    );
    fetched
}

/// Polls the upstream until `shutdown`.
pub async fn poll(agent: Arc<Agent>, config: SourceConfig, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(config.poll.as_duration());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Between two looks nothing is under way that could be lost.
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Ok(Some(accepted)) = fetch(&agent, &config).await {
            agent.arrived(Way::Fetch, &config.url, &accepted).await;
        }
    }
}

/// How revisions reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Somebody pushed them.
    Push,
    /// The agent fetched them.
    Fetch,
}
