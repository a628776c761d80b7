//! `mcp-agent trust`: whom the node believes, the three places that remember how far it has come, and the
//! operator's word where they disagree. [`deny()`] and [`reset()`] stand in modules of their own.
//!
//! Head, high-water mark and registry agree in all normal times. Where the repository was set back, a push
//! that brings what it lacks ends the stop by itself; `confirm` is for what nobody has any more, or for a
//! mark that was lost or garbled. It takes the repository's head as it is, and lets mark and registry
//! go back to it.

mod deny;
mod reset;

use std::io;

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::fingerprint;
use thiserror::Error;

use crate::config::Config;
use crate::lock::{DataDirLock, LockError};
use crate::registry::{
    NewEvent, OpenError, Registry, RegistryError, RevisionFilter, inspect, is_blank,
};
use crate::revisions::{self, HighWaterTrouble, Inspection, ReceiveError, RevisionStore};
use crate::{TrustRootsError, trust_roots};

pub(crate) use reset::ASIDE;

pub use deny::{Denied, DenyError, deny};
pub use reset::{Introduction, Reset, ResetError, reset};

/// Why trust cannot be shown or confirmed. Nothing has changed then.
#[derive(Debug, Error)]
pub enum TrustError {
    /// An agent runs, or the data directory is not there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The data directory cannot be read.
    #[error("cannot read the repository")]
    Read(#[from] io::Error),
    /// The trust that comes out of band cannot be read.
    #[error(transparent)]
    Roots(#[from] TrustRootsError),
    /// The repository cannot be opened.
    #[error("cannot open the repository")]
    Open(#[from] revisions::OpenError),
    /// The registry cannot be opened.
    #[error(transparent)]
    OpenRegistry(#[from] OpenError),
    /// The registry cannot be written.
    #[error("the registry cannot be written")]
    Registry(#[from] RegistryError),
    /// The head does not verify, or the disk refuses.
    #[error("the head cannot be confirmed")]
    Confirm(#[from] ReceiveError),
}

impl TrustError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Lock(error) => error.hint_for_command(),
            Self::Roots(error) => error.hint(),
            Self::Confirm(error) => error.hint(),
            Self::OpenRegistry(_) => {
                "make a new registry first: mcp-agent rebuild --config FILE".to_owned()
            }
            Self::Read(_) | Self::Open(_) => {
                "restore the data directory from a backup: mcp-agent restore".to_owned()
            }
            Self::Registry(_) => "look at the disk of the data directory".to_owned(),
        }
    }
}

/// What the node trusts, and how far it has come.
#[derive(Debug, Clone)]
pub struct TrustState {
    /// The repository.
    pub repository: Inspection,
    /// The head that the registry knows; `Err` with the reason where it cannot be read.
    pub registry: Result<Option<CommitId>, String>,
    /// Fingerprints of the owners, with their comments.
    pub owners: Vec<String>,
    /// Fingerprints of the denied keys.
    pub denied: Vec<String>,
    /// The introduction that the configuration pins.
    pub pinned: Option<CommitId>,
}

/// Looks, also while an agent runs; changes nothing.
///
/// # Errors
///
/// [`TrustError`].
pub fn show(config: &Config) -> Result<TrustState, TrustError> {
    let roots = trust_roots(config)?;
    let registry = if is_blank(&config.database()) {
        Ok(None)
    } else {
        inspect(&config.database())
            .map(|facts| facts.head)
            .map_err(|error| error.to_string())
    };
    let known = registry.as_ref().ok().copied().flatten();
    let repository = RevisionStore::inspect(&config.data_dir, known)?;
    Ok(TrustState {
        repository,
        registry,
        owners: roots
            .owners
            .iter()
            .map(|key| {
                let print = fingerprint(key);
                format!("{print} {}", key.comment()).trim_end().to_owned()
            })
            .collect(),
        denied: roots.denied.fingerprints().map(ToOwned::to_owned).collect(),
        pinned: roots.introduction,
    })
}

/// What a confirmation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// What had stopped changes; `None` where nothing had, and nothing changed.
    pub trouble: Option<HighWaterTrouble>,
    /// The head that counts from now on.
    pub head: Option<CommitId>,
    /// Revisions that the registry forgot.
    pub forgotten: Vec<CommitId>,
}

/// Takes the repository's head as it is, while no agent runs.
///
/// # Errors
///
/// [`TrustError`].
pub async fn confirm(config: &Config) -> Result<Confirmed, TrustError> {
    let _lock = DataDirLock::take(&config.data_dir)?;
    let registry = if is_blank(&config.database()) {
        None
    } else {
        Some(Registry::open(&config.database())?)
    };
    let store = RevisionStore::open(&config.data_dir, trust_roots(config)?)?;
    if let Some(registry) = &registry {
        store.hold_against(registry.head().await?);
    }
    let trouble = store.trouble();
    let head = store.head();
    let mut forgotten = Vec::new();
    if let Some(trouble) = &trouble {
        // The registry first: while the mark stands a crash in between only means to confirm again.
        store.forget_beyond_head();
        if let Some(registry) = &registry {
            forgotten = unknown_to(&store, registry).await?;
            let event = NewEvent {
                at: Timestamp::now(),
                service: None,
                component: None,
                kind: "trust-confirmed".to_owned(),
                reason: "operator".to_owned(),
                message: format!(
                    "the head {} was confirmed on the node: {trouble}",
                    head.map_or_else(|| "none".to_owned(), |head| head.short())
                ),
                revision: head,
                data: serde_json::json!({ "forgotten": forgotten.len() }),
            };
            let is_recorded = match head {
                Some(head) => registry.revision(head).await?.is_some(),
                None => true,
            };
            if is_recorded {
                registry
                    .set_back(head, forgotten.clone(), vec![event])
                    .await?;
            }
        }
        store.confirm()?;
    }
    if let Some(registry) = registry {
        crate::blocking::blocking(move || registry.close()).await;
    }
    Ok(Confirmed {
        trouble,
        head,
        forgotten,
    })
}

/// The registry's newest revisions that the store has not accepted.
async fn unknown_to(
    store: &RevisionStore,
    registry: &Registry,
) -> Result<Vec<CommitId>, RegistryError> {
    let newest = RevisionFilter {
        limit: crate::registry::MAX_ROWS,
        ..RevisionFilter::default()
    };
    Ok(registry
        .revisions(newest)
        .await?
        .into_iter()
        .map(|row| row.commit)
        .filter(|commit| !store.is_accepted(*commit))
        .collect())
}
