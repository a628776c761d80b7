//! The upstream that the agent pulls from: polled, and at once where an operator asks.
//!
//! What is fetched goes through the same door as a push. One fetch at a time; a failure is kept for
//! `mcp node info`, logged when it changes, and tried again at the next poll.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::config::SourceConfig;
use crate::registry::{AuditRow, NewEvent};
use crate::revisions::{Accepted, FetchError, Limits, ReceiveError};
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

/// Writes down that what the upstream holds was refused: nobody called, so nobody else would.
async fn note_refusal(agent: &Agent, config: &SourceConfig, refused: &ReceiveError) {
    let at = agent.clock.now();
    let row = AuditRow {
        seq: 0,
        at,
        who: "mcp-agent".to_owned(),
        method: "Poll".to_owned(),
        target: format!("{} {}", config.url, config.branch),
        from: String::new(),
        request_id: String::new(),
        result: refused.name().to_owned(),
    };
    let event = NewEvent {
        at,
        service: None,
        component: None,
        kind: "revision-refused".to_owned(),
        reason: refused.name().to_owned(),
        message: format!(
            "what {} holds is refused: {}",
            config.url,
            error_chain(refused)
        ),
        revision: None,
        data: serde_json::json!({ "branch": config.branch, "hint": refused.hint() }),
    };
    let written = async {
        agent.registry.append_audit(row).await?;
        agent.registry.append_events(vec![event]).await
    };
    if let Err(error) = written.await {
        tracing::error!(error = %error_chain(&error), "a refusal was not audited");
    }
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
        let before = agent.source.last().error;
        match fetch(&agent, &config).await {
            Ok(Some(accepted)) => agent.arrived(Way::Fetch, &config.url, &accepted).await,
            Ok(None) => {}
            // The same refusal at each poll is one.
            Err(SourceError::Fetch(FetchError::Refused(refused)))
                if agent.source.last().error != before =>
            {
                note_refusal(&agent, &config, &refused).await;
            }
            Err(_) => {}
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
