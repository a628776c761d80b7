//! The upstream that the agent pulls from: polled, and at once where an operator asks.

use std::sync::Arc;

use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Failed, LOOKS, Left, Looked, Place, Way, bounded, keep, note_refusal};
use crate::blocking::blocking;
use crate::config::SourceConfig;
use crate::revisions::{Accepted, FetchError, Limits};
use crate::{Agent, TrustRootsError, error_chain, trust_roots};

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

impl SourceError {
    /// The failure's name, for events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Trust(_) => "trust-unreadable",
            Self::Fetch(error) => error.name(),
        }
    }
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
    let _turn = agent.source.turn.lock().await;
    let fetched = read_and_receive(agent, config).await;
    let failed = fetched.as_ref().err().map(|error| Failed {
        reason: error.name(),
        error: error_chain(error),
        refused: matches!(error, SourceError::Fetch(FetchError::Refused(_))),
    });
    keep(agent, &agent.source, failed).await;
    fetched
}

async fn read_and_receive(
    agent: &Arc<Agent>,
    config: &SourceConfig,
) -> Result<Option<Accepted>, SourceError> {
    let store = Arc::clone(agent);
    // Owners and denied keys are read for each receipt: a key denied now counts from now on.
    let read = move || {
        let roots = || trust_roots(&store.config);
        store.revisions.read_trust(roots)
    };
    blocking(read).await?;
    let (store, source) = (Arc::clone(&agent.revisions), config.clone());
    let look = bounded(
        &agent.source.looks,
        config.timeout.as_duration(),
        move || store.read_source(&source.url, &source.branch, &Limits::default()),
    );
    let url = || config.url.clone();
    let read = look.await.map_err(|left| match left {
        Left::Late => FetchError::Stalled {
            url: url(),
            limit: config.timeout,
        },
        Left::Crowded => FetchError::Hangs {
            url: url(),
            looks: LOOKS,
        },
        Left::Died => FetchError::BrokeOff { url: url() },
    })?;
    let Some(fetched) = read? else {
        return Ok(None);
    };
    let store = Arc::clone(agent);
    // From here on it is all on the agent's own disk.
    let received = blocking(move || {
        // Once more: the look may have taken long, and a key was denied meanwhile.
        store.revisions.read_trust(|| trust_roots(&store.config))?;
        let node = &store.config.node;
        let limits = Limits::default();
        let now = Timestamp::now();
        let received = store
            .revisions
            .receive_fetched(fetched, node, &limits, now)
            .map_err(FetchError::from)?;
        Ok(received)
    });
    received.await
}

/// Polls the upstream until `shutdown`.
pub async fn poll(agent: Arc<Agent>, config: SourceConfig, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(config.poll.as_duration());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            // Between two looks nothing is under way that could be lost.
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !agent.source.is_due(last.elapsed()) {
            continue;
        }
        last = Instant::now();
        let before = agent.source.last().error;
        let fetched = tokio::select! {
            // What is cut off was only read, or is received to its end without a listener: the next
            // start takes it in.
            () = shutdown.cancelled() => return,
            fetched = fetch(&agent, &config) => fetched,
        };
        match fetched {
            Ok(Some(accepted)) => agent.arrived(Way::Fetch, &config.url, &accepted).await,
            Ok(None) => {}
            // The same refusal at each poll is one.
            Err(SourceError::Fetch(FetchError::Refused(refused)))
                if agent.source.last().error != before =>
            {
                let looked = Looked {
                    place: Place::Upstream,
                    at: &config.url,
                    branch: &config.branch,
                };
                note_refusal(&agent, looked, &refused).await;
            }
            Err(_) => {}
        }
    }
}
