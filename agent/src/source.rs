//! The upstream that the agent pulls from: polled, and at once where an operator asks.
//!
//! What is fetched goes through the same door as a push. One fetch at a time, and each is bounded: an
//! upstream that hangs is left to its thread, of which there are at most [`LOOKS`], and nobody else waits for
//! it. A failure is kept for `mcp node info`, told as an event when it changes, and tried again at the next
//! poll.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
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
    /// Whether an event told that it cannot be fetched.
    told: bool,
}

/// How a look failed.
struct Failed {
    reason: &'static str,
    /// In one line.
    error: String,
    /// The upstream answered, and what it holds is refused: that is told as such.
    refused: bool,
}

/// Looks at the upstream that may hang at a time. A thread that reads from a file system that is gone cannot
/// be ended, only left: while so many hang none is begun.
const LOOKS: usize = 16;

/// With more than so many looks that hang, the agent by itself looks only every [`RARELY`].
const EAGER: usize = 3;

/// Time between two looks at an upstream that goes on to hang: what may hang lasts for two hours then.
const RARELY: Duration = Duration::from_secs(600);

/// The upstream's state.
#[derive(Debug)]
pub struct Source {
    last: Mutex<LastFetch>,
    /// Held by whoever fetches: one at a time.
    turn: tokio::sync::Mutex<()>,
    looks: Arc<Semaphore>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            looks: Arc::new(Semaphore::new(LOOKS)),
        }
    }
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

    /// Whether a look may be made that nobody asks for, so long after the last.
    fn is_due(&self, since_last: Duration) -> bool {
        let hanging = LOOKS - self.looks.available_permits();
        hanging <= EAGER || since_last >= RARELY
    }

    /// Keeps how a look ended; an event where that is news.
    fn note(&self, failed: Option<Failed>, at: Timestamp) -> Option<NewEvent> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *last);
        last.at = Some(at);
        last.error = failed.as_ref().map(|failed| failed.error.clone());
        let is_news = before.error != last.error;
        match &last.error {
            Some(error) if is_news => tracing::warn!(error, "the upstream could not be fetched"),
            None if is_news => tracing::info!("the upstream can be fetched again"),
            _ => {}
        }
        let (kind, reason, message) = match failed {
            Some(failed) if !failed.refused => {
                last.told = true;
                if !is_news && before.told {
                    return None;
                }
                let message = format!("the upstream cannot be fetched: {}", failed.error);
                ("upstream-failed", failed.reason, message)
            }
            _ if before.told => {
                let message = "the upstream can be fetched again".to_owned();
                ("upstream-back", "answers", message)
            }
            _ => return None,
        };
        Some(NewEvent {
            at,
            service: None,
            component: None,
            kind: kind.to_owned(),
            reason: reason.to_owned(),
            message,
            revision: None,
            data: serde_json::json!({}),
        })
    }
}

/// Why a bounded look gave nothing.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// It did not end in time, and is left to itself.
    Late,
    /// As many as may hang do.
    Crowded,
    /// Its thread died or could not be had.
    Died,
}

/// Has `look` done in a thread of its own, and leaves it there where it takes longer than `limit`. What it
/// returns then is dropped.
async fn bounded<T: Send + 'static>(
    looks: &Arc<Semaphore>,
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Left> {
    let permit = Arc::clone(looks)
        .try_acquire_owned()
        .map_err(|_| Left::Crowded)?;
    let (tell, told) = oneshot::channel();
    // Not one of the runtime's: those are waited for at the agent's end.
    let thread = std::thread::Builder::new().name("upstream".to_owned());
    thread
        .spawn(move || {
            let _permit = permit;
            // Nobody may be waiting any more.
            drop(tell.send(look()));
        })
        .map_err(|_| Left::Died)?;
    match tokio::time::timeout(limit, told).await {
        Ok(told) => told.map_err(|_| Left::Died),
        Err(_) => Err(Left::Late),
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
    if let Some(event) = agent.source.note(failed, agent.clock.now())
        && let Err(error) = agent.registry.append_events(vec![event]).await
    {
        tracing::error!(%error, "what became of a fetch cannot be written down");
    }
    fetched
}

/// Writes down that what the upstream holds was refused: nobody called, so nobody else would.
async fn note_refusal(agent: &Agent, config: &SourceConfig, refused: &ReceiveError) {
    let at = agent.clock.now();
    let row = AuditRow {
        seq: 0,
        at,
        who: "mcp-agent".to_owned(),
        token: String::new(),
        signer: String::new(),
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
            .receive_fetched(fetched, node, &limits, now)?;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::SemaphorePermit;

    use super::*;

    /// Long enough for a thread to begin on a machine under load.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn look_that_hangs_is_left_and_the_next_is_made() {
        let looks = Arc::new(Semaphore::new(LOOKS));
        let mut hanging = Vec::new();
        for _ in 0..LOOKS {
            let (release, hangs) = mpsc::channel::<()>();
            let left = bounded(&looks, Duration::from_millis(20), move || hangs.recv()).await;
            assert_eq!(left.unwrap_err(), Left::Late);
            hanging.push(release);
        }
        let crowded = bounded(&looks, PATIENCE, || ()).await;
        assert_eq!(crowded, Err(Left::Crowded), "threads do not pile up");
        hanging.pop();
        let free = Arc::clone(&looks).acquire_many_owned(1);
        drop(tokio::time::timeout(PATIENCE, free).await.unwrap());
        assert_eq!(bounded(&looks, PATIENCE, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn what_a_look_left_to_itself_comes_to_is_dropped() {
        let looks = Arc::new(Semaphore::new(1));
        let (release, hangs) = mpsc::channel::<()>();
        let kept = Arc::new(());
        let held = Arc::clone(&kept);
        let look = bounded(&looks, Duration::from_millis(20), move || {
            let _ = hangs.recv();
            held
        });
        assert!(look.await.is_err());
        drop(release);
        drop(
            tokio::time::timeout(PATIENCE, looks.acquire())
                .await
                .unwrap(),
        );
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn upstream_that_goes_on_to_hang_is_looked_at_rarely() {
        let source = Source::default();
        let hang = |count| {
            drop(
                source
                    .looks
                    .try_acquire_many(count)
                    .map(SemaphorePermit::forget),
            )
        };
        hang(3);
        assert!(source.is_due(Duration::ZERO));
        hang(1);
        assert!(!source.is_due(RARELY - Duration::from_secs(1)));
        assert!(source.is_due(RARELY));
    }

    #[test]
    fn failure_is_an_event_once_and_its_end_another() {
        let source = Source::default();
        let at = Timestamp::UNIX_EPOCH;
        let look = |failed: Option<(&str, bool)>| {
            let failed = failed.map(|(error, refused)| Failed {
                reason: "stalled",
                error: error.to_owned(),
                refused,
            });
            source.note(failed, at).map(|event| event.kind)
        };
        let told = |failed: Option<&str>| look(failed.map(|error| (error, false)));
        assert_eq!(told(None), None);
        assert_eq!(told(Some("no answer")).as_deref(), Some("upstream-failed"));
        assert_eq!(told(Some("no answer")), None);
        assert_eq!(told(Some("no branch")).as_deref(), Some("upstream-failed"));
        assert_eq!(told(None).as_deref(), Some("upstream-back"));
        assert_eq!(told(None), None);
        assert_eq!(look(Some(("unsigned", true))), None, "told as a refusal");
        assert_eq!(told(Some("no answer")).as_deref(), Some("upstream-failed"));
        let answers = look(Some(("unsigned", true)));
        assert_eq!(answers.as_deref(), Some("upstream-back"));
    }
}
