//! Components and deployments as messages: what `list`, `ps`, `status`, `history` and the rest show.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use mcp_proto::convert::field_change;
use mcp_proto::v1;
use mcp_spec::component::Kind;
use mcp_spec::definition::DesiredSet;
use mcp_spec::drift::{Expected, drift, observed_state};
use mcp_spec::duration::Span;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, NodeName, ServiceName, Target};
use mcp_spec::observed::{ContainerState, DesiredState, Observed, ObservedState};
use mcp_spec::revision::CommitId;

use crate::Agent;
use crate::registry::{
    ComponentRecord, DeployedRow, DeploymentRow, HealthWord, HoldRow, ObservedRow, Outcome,
    RegistryError, RepairsRow,
};
use crate::watch::Snapshot;

pub(super) fn time(at: Option<Timestamp>) -> String {
    at.map(|at| at.to_string()).unwrap_or_default()
}

pub(super) fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A hold.
pub(super) fn hold(hold: &HoldRow, components: Vec<String>) -> v1::Hold {
    v1::Hold {
        revision: text(Some(hold.revision).filter(|revision| !revision.is_none())),
        by: hold.by.clone(),
        at: hold.at.to_string(),
        reason: hold.reason.clone().unwrap_or_default(),
        components,
    }
}

/// What is gathered to describe components.
pub(super) struct View {
    pub(super) head: Option<CommitId>,
    pub(super) rows: Vec<DeployedRow>,
    pub(super) behind: Vec<u32>,
    pub(super) seen: BTreeMap<ComponentKey, ObservedRow>,
    /// What the head wants here, where its definitions could be read.
    pub(super) wanted: Option<Arc<DesiredSet>>,
    pub(super) quarantined: Vec<(ComponentKey, Digest)>,
    /// What somebody else keeps changing back.
    contested: BTreeMap<ComponentKey, RepairsRow>,
    /// Services that are being changed: what differs there meanwhile is nobody's drift.
    busy: BTreeSet<ServiceName>,
}

impl View {
    /// Reads the registry; no engine call.
    pub(super) async fn read(agent: &Agent) -> Result<Self, RegistryError> {
        let head = agent.revisions.head();
        let (rows, seen) = agent.registry.deployed_and_observed().await?;
        let behind = agent
            .registry
            .behind_all(
                rows.iter()
                    .map(|row| (row.key.clone(), row.revision, row.spec_digest))
                    .collect(),
            )
            .await?;
        let quarantined = agent
            .registry
            .quarantined()
            .await?
            .into_iter()
            .map(|entry| (entry.key, entry.spec_digest))
            .collect();
        let contested = agent.registry.contested().await?;
        let wanted = match head {
            Some(head) => {
                let desired = agent.desired.clone();
                crate::blocking::blocking(move || desired.at(head))
                    .await
                    .ok()
            }
            None => None,
        };
        let services: BTreeSet<_> = rows.iter().map(|row| row.key.service.clone()).collect();
        let busy = services
            .into_iter()
            .filter(|service| agent.busy.is_busy(service))
            .collect();
        Ok(Self {
            head,
            busy,
            rows,
            behind,
            seen: seen.into_iter().map(|row| (row.key.clone(), row)).collect(),
            wanted,
            quarantined,
            contested: contested
                .into_iter()
                .map(|row| (row.key.clone(), row))
                .collect(),
        })
    }

    /// The components that the targets cover, deployed or wanted, in the order of their names. With a
    /// snapshot their state is what it shows, else what was observed last.
    pub(super) fn components(
        &self,
        targets: &[Target],
        snapshot: Option<&Snapshot>,
    ) -> Vec<v1::Component> {
        let covered =
            |key: &ComponentKey| targets.is_empty() || targets.iter().any(|t| t.covers(key));
        let mut components: BTreeMap<ComponentKey, v1::Component> = BTreeMap::new();
        for (row, behind) in self.rows.iter().zip(&self.behind) {
            if covered(&row.key) {
                components.insert(row.key.clone(), self.deployed(row, *behind, snapshot));
            }
        }
        for service in self.wanted.iter().flat_map(|set| set.services.values()) {
            for (key, spec) in service.keys().zip(service.components.values()) {
                if !covered(&key) || components.contains_key(&key) {
                    continue;
                }
                let component = v1::Component {
                    service: key.service.to_string(),
                    component: key.component.to_string(),
                    container: key.container_name(),
                    version: spec.image.version(),
                    desired_state: if service.active {
                        DesiredState::Running
                    } else {
                        DesiredState::Stopped
                    }
                    .to_string(),
                    observed_state: ObservedState::Absent.to_string(),
                    image: spec.image.to_string(),
                    head_revision: text(self.head),
                    behind: 1,
                    managed: true,
                    kind: kind(&spec.kind),
                    quarantined: self.quarantined.contains(&(key.clone(), spec.digest())),
                    ..v1::Component::default()
                };
                components.insert(key, component);
            }
        }
        components.into_values().collect()
    }

    fn deployed(
        &self,
        row: &DeployedRow,
        behind: u32,
        snapshot: Option<&Snapshot>,
    ) -> v1::Component {
        let key = &row.key;
        let seen = self.seen.get(key);
        let contested = self.contested.get(key);
        let wanted = self
            .wanted
            .as_ref()
            .and_then(|set| set.services.get(&key.service))
            .and_then(|service| service.components.get(&key.component));
        let mut component = v1::Component {
            service: key.service.to_string(),
            component: key.component.to_string(),
            container: row.container_name.clone(),
            container_id: row.container.to_string(),
            version: row.spec.image.version(),
            desired_state: row.wanted().to_string(),
            observed_state: seen
                .map_or(ObservedState::Unknown, |seen| seen.state)
                .to_string(),
            health: seen
                .and_then(|seen| seen.health)
                .map(|health| match health {
                    HealthWord::Healthy => "healthy",
                    HealthWord::Unhealthy => "unhealthy",
                    HealthWord::Starting => "starting",
                })
                .unwrap_or_default()
                .to_owned(),
            image: row.spec.image.to_string(),
            image_id: row.image_id.to_string(),
            image_digest: text(row.image_digest),
            revision: text(Some(row.revision).filter(|revision| !revision.is_none())),
            head_revision: text(self.head),
            behind,
            held: row
                .hold
                .as_ref()
                .map(|held| hold(held, vec![key.component.to_string()])),
            drift: seen
                .map(|seen| {
                    seen.drift
                        .iter()
                        .map(|drift| v1::Drift {
                            field: drift.field.clone(),
                            baseline: drift.baseline.clone(),
                            live: drift.live.clone(),
                            wanted: drift.baseline.clone(),
                            since: drift.since.to_string(),
                        })
                        .collect()
                })
                .unwrap_or_default(),
            started_at: time(seen.and_then(|seen| seen.started_at)),
            restarts: seen.map_or(0, |seen| seen.restarts),
            managed: true,
            exit_code: seen
                .filter(|seen| has_ended(seen.state))
                .and_then(|seen| seen.exit_code),
            orphaned: self.wanted.is_some() && wanted.is_none() && !row.revision.is_none(),
            quarantined: wanted.is_some_and(|spec| {
                *spec != row.spec && self.quarantined.contains(&(key.clone(), spec.digest()))
            }),
            observed_at: time(seen.map(|seen| seen.observed_at)),
            kind: kind(&row.spec.kind),
            spec_digest: row.spec_digest.to_string(),
            adopted: row.adopted,
            contested: contested.map(|row| row.cause.clone()).unwrap_or_default(),
            next_repair_at: time(contested.and_then(next_repair)),
            flapping: seen
                .and_then(|seen| seen.flapping.as_ref())
                .is_some_and(|flapping| flapping.flaps),
            unconverged: self.quarantined.contains(&(key.clone(), row.spec_digest)),
        };
        if let Some(snapshot) = snapshot {
            overlay(&mut component, row, seen, snapshot);
        }
        if self.busy.contains(&key.service) {
            component.drift.clear();
        }
        component
    }
}

/// When a contested component is repaired again, at the earliest.
fn next_repair(row: &RepairsRow) -> Option<Timestamp> {
    let pause = Span::from_millis(row.pause_ms).as_duration();
    // To the second: it is for people.
    Timestamp::from_second(row.at.checked_add(pause).ok()?.as_second() + 1).ok()
}

/// Puts what a snapshot shows over what was observed last.
fn overlay(
    component: &mut v1::Component,
    row: &DeployedRow,
    seen: Option<&ObservedRow>,
    snapshot: &Snapshot,
) {
    let observed = snapshot.of_container(&row.container);
    let expected = Expected {
        spec: &row.spec,
        wanted: row.wanted(),
        baseline: &row.baseline,
        attempts: seen.map_or(0, |seen| seen.backoff_attempt),
    };
    let state = observed_state(&expected, &observed);
    state.as_str().clone_into(&mut component.observed_state);
    let since = |field: &str| {
        seen.and_then(|seen| seen.drift.iter().find(|drift| drift.field == field))
            .map_or(snapshot.at, |drift| drift.since)
    };
    if !matches!(observed, Observed::Unknown { .. }) {
        component.drift = drift(&expected, &observed)
            .into_iter()
            .map(|difference| v1::Drift {
                since: since(&difference.field).to_string(),
                field: difference.field,
                wanted: difference.deployed.clone(),
                baseline: difference.deployed,
                live: difference.live,
            })
            .collect();
    }
    component.observed_at = snapshot.at.to_string();
    match &observed {
        Observed::Present(live) => {
            component.started_at = time(live.started_at);
            if !live.state.is_running() {
                component.health = String::new();
            }
            if let ContainerState::Exited { code, .. } = live.state {
                component.exit_code = Some(code);
            }
        }
        Observed::Absent => {
            component.health = String::new();
            component.started_at = String::new();
        }
        Observed::Unknown { .. } => {}
    }
    if !has_ended(state) {
        component.exit_code = None;
    }
}

/// Whether a component's container is there and has ended: nothing else has an exit code, and what runs
/// has only that of an earlier run.
const fn has_ended(state: ObservedState) -> bool {
    matches!(
        state,
        ObservedState::Stopped | ObservedState::Completed | ObservedState::Failed
    )
}

/// Whether the agent has something to do for a component, where it may.
pub(super) fn is_amiss(component: &v1::Component) -> bool {
    component.desired_state == "running" && (component.behind > 0 || !component.drift.is_empty())
}

fn kind(kind: &Kind) -> String {
    if kind.is_job() { "job" } else { "service" }.to_owned()
}

/// A deployment with its components' parts.
pub(super) fn deployment(
    node: &NodeName,
    row: &DeploymentRow,
    records: &[ComponentRecord],
) -> v1::Deployment {
    v1::Deployment {
        deployment_id: row.id.to_string(),
        node: node.to_string(),
        service: row.service.to_string(),
        component: text(row.component.as_ref()),
        revision: text(row.revision),
        outcome: row.outcome.map_or("running", Outcome::as_str).to_owned(),
        components: records.iter().map(record).collect(),
        signer: row.signer.clone().unwrap_or_default(),
        actor: row.actor.clone(),
        started_at: row.created_at.to_string(),
        finished_at: time(row.finished_at),
        trigger: row.trigger.as_str().to_owned(),
        error: row.error.clone().unwrap_or_default(),
        state: row.state.as_str().to_owned(),
        plan_id: row.plan_id.trim_start_matches("sha256:").to_owned(),
        mend: mend(row, records).unwrap_or_default().to_owned(),
    }
}

/// The mend of what a deployment failed with, where one is known.
fn mend<'a>(row: &'a DeploymentRow, records: &[ComponentRecord]) -> Option<&'a str> {
    let error = row.error.as_deref()?;
    let mut failures = records.iter().filter_map(|record| record.error.as_deref());
    failures.find_map(|failure| crate::deploy::mend(error, failure))
}

fn record(record: &ComponentRecord) -> v1::ComponentOutcome {
    v1::ComponentOutcome {
        component: record.component.to_string(),
        action: record.action.clone(),
        outcome: record.outcome.clone(),
        from_revision: text(record.from_revision),
        to_revision: text(record.to_revision),
        image_digest: record
            .image_digest
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| record.image_id.as_ref().map(ToString::to_string))
            .unwrap_or_default(),
        duration_ms: record.duration_ms,
        downtime_ms: record.downtime_ms,
        error: record.error.clone().unwrap_or_default(),
        changes: record.changes.iter().map(field_change).collect(),
        log_tail: record.log_tail.clone(),
    }
}
