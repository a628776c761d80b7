//! What follows from an accepted revision: its rows in the registry.
//!
//! The repository moved first; this comes last. A crash in between is healed at the start, when the
//! revisions that the registry lacks are taken in.

use std::sync::Arc;

use jiff::Timestamp;
use mcp_spec::definition::DesiredSet;
use mcp_spec::name::ComponentKey;
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::blocking::blocking;
use crate::desired::Desired;
use crate::registry::{NewEvent, Registry, RegistryError, RevisionRow, RevisionSource, SpecChange};
use crate::revisions::{ReadError, RevisionStore, VerifiedRevision};

/// Why an accepted revision could not be written down.
#[derive(Debug, Error)]
pub enum IntakeError {
    /// The repository cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// How revisions came.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The way.
    pub source: RevisionSource,
    /// Who brought them: an operator, or the address of upstream or inbox.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Writes down the revisions that the repository accepted and the registry does not know yet.
/// Doing it twice does nothing the second time. Tells how many were new.
///
/// # Errors
///
/// [`IntakeError`]; the next call makes up for it.
pub async fn take_in(
    registry: &Registry,
    revisions: &Arc<RevisionStore>,
    desired: &Arc<Desired>,
    origin: Origin,
) -> Result<usize, IntakeError> {
    let known = registry.head().await?;
    if known.is_some_and(|known| !revisions.is_accepted(known)) {
        // The repository was set back: changes are stopped until it has again what the registry knows.
        return Ok(0);
    }
    let store = revisions.clone();
    let compiled = desired.clone();
    let (new, changes) = blocking(move || {
        let new = store.accepted_since(known)?;
        let changes = changes(&compiled, &new);
        Ok::<_, ReadError>((new, changes))
    })
    .await?;
    let Some(head) = revisions.head() else {
        return Ok(0);
    };
    if new.is_empty() && known == Some(head) {
        return Ok(0);
    }
    let count = new.len();
    let rows = new.iter().map(|revision| row(revision, &origin)).collect();
    let events = new
        .last()
        .map(|newest| NewEvent {
            at: origin.at,
            service: None,
            component: None,
            kind: "revision".to_owned(),
            reason: origin.source.as_str().to_owned(),
            message: format!(
                "{} is the head: {} (signed {}, {} new)",
                newest.commit().short(),
                newest.subject(),
                newest.principal(),
                count
            ),
            revision: Some(newest.commit()),
            data: serde_json::json!({ "by": origin.by, "new_commits": count }),
        })
        .into_iter()
        .collect();
    registry
        .record_revisions(rows, head, changes, events)
        .await?;
    Ok(count)
}

fn row(revision: &VerifiedRevision, origin: &Origin) -> RevisionRow {
    RevisionRow {
        seq: 0,
        commit: revision.commit(),
        parents: revision.parents().to_vec(),
        subject: revision.subject().to_owned(),
        signer: revision.principal().to_owned(),
        fingerprint: revision.fingerprint().to_owned(),
        authored_at: revision.author_time(),
        received_at: origin.at,
        source: origin.source,
        received_by: origin.by.clone(),
    }
}

/// Which revision changed which component's spec. A revision whose definitions are not valid for
/// this node, as may stand in between, changes nothing: the next valid one is held against the last.
fn changes(desired: &Desired, new: &[VerifiedRevision]) -> Vec<SpecChange> {
    let mut changes = Vec::new();
    let mut last: Option<(CommitId, Arc<DesiredSet>)> = None;
    for revision in new {
        let commit = revision.commit();
        let parent = revision.parents().first().copied();
        let before = match (&last, parent) {
            (Some((at, set)), Some(parent)) if *at == parent => Some(set.clone()),
            (_, Some(parent)) => desired.at(parent).ok().or_else(|| {
                // The nearest valid one that was taken in before it.
                last.as_ref().map(|(_, set)| set.clone())
            }),
            (_, None) => None,
        };
        let Ok(after) = desired.at(commit) else {
            if let Some(set) = before {
                last = Some((commit, set));
            }
            continue;
        };
        let empty = DesiredSet::default();
        compare(
            commit,
            before.as_deref().unwrap_or(&empty),
            &after,
            &mut changes,
        );
        last = Some((commit, after));
    }
    changes
}

fn compare(
    commit: CommitId,
    before: &DesiredSet,
    after: &DesiredSet,
    changes: &mut Vec<SpecChange>,
) {
    for (name, service) in &after.services {
        let old = before.services.get(name);
        if old == Some(service) {
            continue;
        }
        for (component, spec) in &service.components {
            let same = old
                .and_then(|old| old.components.get(component))
                .is_some_and(|old| old == spec);
            if !same {
                changes.push(SpecChange {
                    commit,
                    key: ComponentKey::new(name.clone(), component.clone()),
                    spec_digest: Some(spec.digest()),
                });
            }
        }
    }
    for (name, service) in &before.services {
        for component in service.components.keys() {
            let kept = after
                .services
                .get(name)
                .is_some_and(|service| service.components.contains_key(component));
            if !kept {
                changes.push(SpecChange {
                    commit,
                    key: ComponentKey::new(name.clone(), component.clone()),
                    spec_digest: None,
                });
            }
        }
    }
}
