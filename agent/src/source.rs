//! Where revisions come from by themselves: an upstream that is polled, and the inbox that is watched.
//!
//! What comes goes through the same door as a push. Of each place one look at a time is made, and each is
//! bounded: one that hangs is left to its thread, of which there are at most [`LOOKS`], and nobody else waits
//! for it. A failure is kept for `mcp node info`, told as an event when it changes, and the place is looked at
//! again. Each place has a [`Source`] of its own; [`upstream`] and [`inbox`] know when to look, and how.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};

use crate::registry::{AuditRow, NewEvent};
use crate::revisions::ReceiveError;
use crate::{Agent, error_chain};

mod hints;
pub mod inbox;
mod upstream;

pub use upstream::{SourceError, fetch, poll};

/// How the last look at a place ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastFetch {
    /// When it ended; `None` before the first.
    pub at: Option<Timestamp>,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// Whether an event told that it cannot be read.
    told: bool,
}

/// How a look failed.
struct Failed {
    reason: &'static str,
    /// In one line.
    error: String,
    /// The place could be read, and what it holds is refused: that is told as such.
    refused: bool,
}

/// Looks at one place that may hang at a time. A thread that reads from a file system that is gone cannot
/// be ended, only left: while so many hang none is begun.
const LOOKS: usize = 16;

/// With more than so many looks that hang, the agent by itself looks only every [`RARELY`].
const EAGER: usize = 3;

/// Time between two looks at a place that goes on to hang: what may hang lasts for two hours then.
const RARELY: Duration = Duration::from_secs(600);

/// The places that the agent looks at by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The upstream of `[source]`.
    Upstream,
    /// The inbox of `[inbox]`.
    Inbox,
}

impl Place {
    /// The kinds of the events that it cannot be read, and that it can again.
    const fn kinds(self) -> (&'static str, &'static str) {
        match self {
            Self::Upstream => ("upstream-failed", "upstream-back"),
            Self::Inbox => ("inbox-failed", "inbox-back"),
        }
    }

    /// The same in words, and that what it holds is refused.
    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Upstream => (
                "the upstream cannot be fetched",
                "the upstream can be fetched again",
                "what the upstream holds is refused",
            ),
            Self::Inbox => (
                "the inbox cannot be read",
                "the inbox can be read again",
                "what the inbox holds is refused",
            ),
        }
    }

    /// What audit rows call a look that nobody asked for.
    const fn method(self) -> &'static str {
        match self {
            Self::Upstream => "Poll",
            Self::Inbox => "Inbox",
        }
    }
}

/// A place's state.
#[derive(Debug)]
pub struct Source {
    place: Place,
    last: Mutex<LastFetch>,
    /// Held by whoever fetches: one at a time.
    turn: tokio::sync::Mutex<()>,
    looks: Arc<Semaphore>,
}

impl Source {
    /// A place that was not looked at yet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self {
            place,
            last: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            looks: Arc::new(Semaphore::new(LOOKS)),
        }
    }

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
        let (failing, well, holds) = self.place.words();
        let refused = failed.as_ref().is_some_and(|failed| failed.refused);
        let (failed_kind, back_kind) = self.place.kinds();
        match &last.error {
            Some(error) if is_news && refused => tracing::warn!(error, "{holds}"),
            Some(error) if is_news => tracing::warn!(error, "{failing}"),
            None if is_news => tracing::info!("{well}"),
            _ => {}
        }
        let (kind, reason, message) = match failed {
            Some(failed) if !failed.refused => {
                last.told = true;
                if !is_news && before.told {
                    return None;
                }
                let message = format!("{failing}: {}", failed.error);
                (failed_kind, failed.reason, message)
            }
            _ if before.told => (back_kind, "answers", well.to_owned()),
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
    let thread = std::thread::Builder::new().name("source".to_owned());
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

/// Keeps how a look ended, and tells where that is news.
async fn keep(agent: &Agent, source: &Source, failed: Option<Failed>) {
    if let Some(event) = source.note(failed, agent.clock.now())
        && let Err(error) = agent.registry.append_events(vec![event]).await
    {
        tracing::error!(%error, "what became of a look cannot be written down");
    }
}

/// What was looked at, for audit and event.
struct Looked<'a> {
    place: Place,
    /// Its address.
    at: &'a str,
    branch: &'a str,
}

/// Writes down that what a place holds was refused: nobody called, so nobody else would.
async fn note_refusal(agent: &Agent, looked: Looked<'_>, refused: &ReceiveError) {
    let at = agent.clock.now();
    let row = AuditRow {
        seq: 0,
        at,
        who: "mcp-agent".to_owned(),
        token: String::new(),
        signer: String::new(),
        method: looked.place.method().to_owned(),
        target: format!("{} {}", looked.at, looked.branch),
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
            looked.at,
            error_chain(refused)
        ),
        revision: None,
        data: serde_json::json!({ "branch": looked.branch, "hint": refused.hint() }),
    };
    let written = async {
        agent.registry.append_audit(row).await?;
        agent.registry.append_events(vec![event]).await
    };
    if let Err(error) = written.await {
        tracing::error!(error = %error_chain(&error), "a refusal was not audited");
    }
}

/// How revisions reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Somebody pushed them.
    Push,
    /// The agent fetched them.
    Fetch,
    /// Somebody pushed them into the inbox.
    Inbox,
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
    fn place_that_goes_on_to_hang_is_looked_at_rarely() {
        let source = Source::new(Place::Upstream);
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
    fn events_name_the_place() {
        let inbox = Source::new(Place::Inbox);
        let failed = Failed {
            reason: "no-repository",
            error: "nothing there".to_owned(),
            refused: false,
        };
        let event = inbox.note(Some(failed), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(event.kind, "inbox-failed");
        assert_eq!(event.message, "the inbox cannot be read: nothing there");
        let event = inbox.note(None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(event.kind, "inbox-back");
    }

    #[test]
    fn failure_is_an_event_once_and_its_end_another() {
        let source = Source::new(Place::Upstream);
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
