//! The inbox: looked at as soon as somebody pushes into it.
//!
//! The watch tells when; the look reads where the branch stands, and copies, verifies and takes in what is new.
//! Events may be lost, as on a network file system, so that a look is made now and then all the same. Whoever
//! pushes can cause events and refusals without end: looks are made one after the other, with a pause after each
//! that failed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hints::Hints;
use super::{Failed, LOOKS, Left, Looked, Place, Way, bounded, keep, note_refusal};
use crate::blocking::blocking;
use crate::config::InboxConfig;
use crate::revisions::{Accepted, Fetched, InboxError, InboxLook, Limits};
use crate::{Agent, TrustRootsError, error_chain, trust_roots};

/// Time between two looks that nothing causes.
const SLOW: Duration = Duration::from_secs(60);

/// A push moves one ref, and some packing moves several files: one look is enough for them.
const SETTLE: Duration = Duration::from_millis(50);

/// Least time after a look that failed: whoever pushes nonsense without pause is read once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// Why nothing came from the inbox.
#[derive(Debug, Error)]
enum LookError {
    /// Owners or denied keys cannot be read, and nothing is verified without.
    #[error(transparent)]
    Trust(#[from] TrustRootsError),
    /// It cannot be read, or what it holds is refused.
    #[error(transparent)]
    Inbox(#[from] InboxError),
}

impl LookError {
    const fn name(&self) -> &'static str {
        match self {
            Self::Trust(_) => "trust-unreadable",
            Self::Inbox(error) => error.name(),
        }
    }
}

/// What one look leaves for the next.
struct Watching {
    config: InboxConfig,
    /// The watch; `None` where the system gives none. Held by a look that hangs, which the next does not wait for.
    hints: Option<Arc<Mutex<Hints>>>,
    /// What the branch stood at when it was last taken or known.
    since: Option<CommitId>,
}

/// Looks at the inbox until `shutdown`, at each event and every minute.
pub async fn watch(agent: Arc<Agent>, config: InboxConfig, shutdown: CancellationToken) {
    let moved = Arc::new(Notify::new());
    let hints = match Hints::new(&config.path, &config.branch, Arc::clone(&moved)) {
        Ok(hints) => Some(Arc::new(Mutex::new(hints))),
        Err(error) => {
            tracing::warn!(%error, "the inbox cannot be watched: it is looked at every minute");
            None
        }
    };
    let mut watching = Watching {
        config,
        hints,
        since: None,
    };
    let mut last = Instant::now();
    loop {
        let well = tokio::select! {
            // What is cut off was only read, or is received to its end without a listener: the next
            // start takes it in.
            () = shutdown.cancelled() => return,
            well = look(&agent, &mut watching) => well,
        };
        loop {
            tokio::select! {
                // Between two looks nothing is under way that could be lost.
                () = shutdown.cancelled() => return,
                () = next(&moved, well) => {}
            }
            if agent.inbox.is_due(last.elapsed()) {
                break;
            }
        }
        last = Instant::now();
    }
}

/// Waits for a reason to look again.
async fn next(moved: &Notify, well: bool) {
    tokio::time::sleep(if well { SETTLE } else { PAUSE }).await;
    // An event that came meanwhile is not lost: it is kept until somebody waits for it.
    if tokio::time::timeout(SLOW, moved.notified()).await.is_ok() {
        tokio::time::sleep(SETTLE).await;
    }
}

/// One look, with all that follows from it. Whether it went well.
async fn look(agent: &Arc<Agent>, watching: &mut Watching) -> bool {
    let config = watching.config.clone();
    let at = config.path.display().to_string();
    let before = agent.inbox.last().error;
    let found = read_and_receive(agent, watching).await;
    let failed = found.as_ref().err().map(|error| Failed {
        reason: error.name(),
        error: error_chain(error),
        refused: matches!(error, LookError::Inbox(InboxError::Refused(_))),
    });
    keep(agent, &agent.inbox, failed).await;
    match found {
        Ok(Some(accepted)) => {
            agent.arrived(Way::Inbox, &at, &accepted).await;
            true
        }
        Ok(None) => true,
        Err(error) => {
            // The same refusal at each look is one.
            if let LookError::Inbox(InboxError::Refused(refused)) = &error
                && agent.inbox.last().error != before
            {
                let looked = Looked {
                    place: Place::Inbox,
                    at: &at,
                    branch: &config.branch,
                };
                note_refusal(agent, looked, refused).await;
            }
            false
        }
    }
}

async fn read_and_receive(
    agent: &Arc<Agent>,
    watching: &mut Watching,
) -> Result<Option<Accepted>, LookError> {
    let store = Arc::clone(agent);
    // Owners and denied keys are read for each receipt: a key denied now counts from now on.
    let read = move || {
        let roots = || trust_roots(&store.config);
        store.revisions.read_trust(roots)
    };
    blocking(read).await?;
    let fetched = match read_bounded(agent, watching).await? {
        InboxLook::Empty => return Ok(None),
        InboxLook::Known(tip) => {
            watching.since = Some(tip);
            return Ok(None);
        }
        InboxLook::New(fetched) => fetched,
    };
    let tip = fetched.tip();
    let store = Arc::clone(agent);
    // From here on it is all on the agent's own disk.
    let received = blocking(move || {
        // Once more: the look may have taken long, and a key was denied meanwhile.
        store.revisions.read_trust(|| trust_roots(&store.config))?;
        receive(&store, fetched)
    });
    let received = received.await?;
    watching.since = Some(tip);
    Ok(received)
}

fn receive(agent: &Agent, fetched: Fetched) -> Result<Option<Accepted>, LookError> {
    let (node, now) = (&agent.config.node, Timestamp::now());
    let received = agent
        .revisions
        .receive_fetched(fetched, node, &Limits::default(), now);
    Ok(received.map_err(InboxError::from)?)
}

/// Reads in a thread that is left where it hangs.
async fn read_bounded(agent: &Agent, watching: &Watching) -> Result<InboxLook, InboxError> {
    let config = watching.config.clone();
    let (store, hints) = (Arc::clone(&agent.revisions), watching.hints.clone());
    let since = watching.since;
    let look = bounded(
        &agent.inbox.looks,
        config.timeout.as_duration(),
        move || {
            // First the watch, then the look: what changes in between is seen or told.
            if let Some(hints) = &hints {
                arm(hints);
            }
            store.read_inbox(&config.path, &config.branch, since, &Limits::default())
        },
    );
    let path = || watching.config.path.clone();
    look.await.map_err(|left| match left {
        Left::Late => InboxError::Stalled {
            path: path(),
            limit: watching.config.timeout,
        },
        Left::Crowded => InboxError::Hangs {
            path: path(),
            looks: LOOKS,
        },
        Left::Died => InboxError::BrokeOff { path: path() },
    })?
}

fn arm(hints: &Mutex<Hints>) {
    // One that hangs has it: nobody waits for that.
    let mut hints = match hints.try_lock() {
        Ok(hints) => hints,
        Err(std::sync::TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
        Err(std::sync::TryLockError::WouldBlock) => return,
    };
    if let Err(error) = hints.arm() {
        tracing::debug!(%error, "a folder of the inbox is not watched");
    }
}
