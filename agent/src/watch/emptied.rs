//! An engine whose store was emptied, told apart from containers that somebody removed.
//!
//! Looked for when the engine answers for the first time, or for the first time since it was away or closed
//! its event stream, and at no other moment: what goes while agent and engine are there is removed one by one, by somebody, and is
//! drift. All of this has to hold, at two looks in a row ([`super::meeting`]):
//!
//! - the engine gave a whole list: a failed one is no evidence;
//! - of all registered containers of the node none is there, stopped ones and ended jobs included;
//! - none is there that claims to be one of these components either, as after a registry was set back;
//! - one that should run was there when it was seen last: what was drift before stays drift;
//! - the engine keeps its containers where it kept them: an agent that was pointed to another engine finds
//!   nothing there, and nothing was lost.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::DesiredState;

use super::component::Component;
use super::snapshot::Snapshot;
use crate::registry::LostRow;

/// What the engine has lost with its store; nothing where the store was not emptied. A container that claims
/// to be of a busy service may have been made after the loss, and tells nothing.
pub(super) fn lost(
    components: &BTreeMap<ComponentKey, Component>,
    snapshot: &Snapshot,
    busy: &BTreeSet<ServiceName>,
) -> Vec<LostRow> {
    let is_there =
        |component: &Component| snapshot.containers.contains_key(&component.row.container);
    let is_claimed = || {
        let claims = snapshot
            .containers
            .values()
            .filter_map(|live| live.claimed_key());
        claims
            .into_iter()
            .any(|key| !busy.contains(&key.service) && components.contains_key(&key))
    };
    if !snapshot.engine_answers() || components.values().any(is_there) || is_claimed() {
        return Vec::new();
    }
    let lost: Vec<&Component> = components
        .values()
        .filter(|component| component.row.wanted() != DesiredState::Ignore && !component.was_gone())
        .collect();
    let should_run = |component: &&Component| {
        let row = &component.row;
        row.wanted() == DesiredState::Running
            && !row.spec.kind.is_job()
            && !component.seen.has_ended(row)
    };
    if !lost.iter().any(should_run) {
        return Vec::new();
    }
    lost.into_iter()
        .map(|component| LostRow {
            key: component.row.key.clone(),
            container: component.row.container.clone(),
        })
        .collect()
}
