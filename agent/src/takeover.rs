//! Taking over containers of this agent's that its registry does not know: after it was lost, rebuilt,
//! or set back to an old backup.
//!
//! A container is taken over only where it bears the name of its component, and where the revision that
//! its labels name is an accepted one whose definition gives the very spec digest that they name. All
//! others are strangers: they are told, and neither stopped, doubled nor removed while they run. One whose
//! revision was not accepted yet becomes known with the push that brings it. What runs now is taken for
//! what was made, since drift from before cannot be told.
//!
//! Nothing in the engine is changed here. A service is busy while its rows are written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, NodeName, ServiceName};
use mcp_spec::observed::{
    ContainerId, ContainerState, DesiredState, LiveContainer, Observed, label,
};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::clock::Clock;
use crate::desired::Desired;
use crate::random::Random;
use crate::registry::{
    CommitDeployment, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Finish,
    HistoryEntry, HoldRow, NewEvent, Outcome, Registry, RegistryError, SetDeployed, StopOverride,
    Trigger,
};
use crate::revisions::RevisionStore;
use crate::watch::{Busy, Snapshot, Watch, first_sight};

/// Who is said to have taken over what a running agent found.
const ACTOR: &str = "agent";

/// What became of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The container's name.
    pub container: String,
    /// The component, where the labels name one.
    pub key: Option<ComponentKey>,
    /// The revision that it is said to run from now on, or why it was left alone.
    pub verdict: Result<CommitId, String>,
}

/// A container and what is to become of it.
pub(crate) struct Judged {
    live: LiveContainer,
    key: Option<ComponentKey>,
    verdict: Result<Box<DeployedRow>, String>,
}

impl Judged {
    pub(crate) fn taken(&self) -> Taken {
        Taken {
            container: self.live.name.clone(),
            key: self.key.clone(),
            verdict: self
                .verdict
                .as_ref()
                .map(|row| row.revision)
                .map_err(Clone::clone),
        }
    }
}

/// Looks at each whether it can be taken over.
pub(crate) async fn judge(
    revisions: &Arc<RevisionStore>,
    desired: &Arc<Desired>,
    live: Vec<LiveContainer>,
) -> Vec<Judged> {
    let (revisions, desired) = (Arc::clone(revisions), Arc::clone(desired));
    blocking(move || {
        live.into_iter()
            .map(|live| {
                let key = live.claimed_key();
                let verdict = match &key {
                    Some(key) => deployed(key, &live, &revisions, &desired)
                        .map(Box::new)
                        .map_err(|reason| format!("left alone: {reason}")),
                    None => Err("left alone: its labels name no component".to_owned()),
                };
                Judged { live, key, verdict }
            })
            .collect()
    })
    .await
}

/// The row of a container whose spec recomputes, or why it does not.
fn deployed(
    key: &ComponentKey,
    live: &LiveContainer,
    revisions: &RevisionStore,
    desired: &Desired,
) -> Result<DeployedRow, String> {
    if live.name != key.container_name() {
        return Err(format!("it is not called {}", key.container_name()));
    }
    let said = |name: &str| {
        live.labels
            .get(name)
            .ok_or_else(|| format!("it has no label {name}"))
    };
    let revision: CommitId = said(label::REVISION)?
        .parse()
        .map_err(|_| "its revision is no commit".to_owned())?;
    let digest: Digest = said(label::SPEC)?
        .parse()
        .map_err(|_| "its spec digest is none".to_owned())?;
    let generation = live
        .generation()
        .ok_or_else(|| "its generation is no number".to_owned())?;
    if !revisions.is_accepted(revision) {
        return Err(format!("{} was never accepted here", revision.short()));
    }
    let spec_at = |commit: CommitId| {
        let set = desired.at(commit).ok()?;
        let service = set.services.get(&key.service)?;
        let spec = service.components.get(&key.component)?;
        (spec.digest() == digest).then(|| (spec.clone(), ServiceSettings::of(service)))
    };
    // Where the head still wants the very same it is said to run the head, as after a deployment of it.
    let newest = revisions
        .head()
        .and_then(|head| Some((head, spec_at(head)?)));
    let is_newest = newest.is_some();
    let (revision, (spec, settings)) = newest
        .or_else(|| Some((revision, spec_at(revision)?)))
        .ok_or_else(|| format!("{} does not give that spec", revision.short()))?;
    let is_wanted_otherwise = !is_newest
        && revisions.head().is_some_and(|head| {
            desired.at(head).is_ok_and(|set| {
                let service = set.services.get(&key.service);
                service.is_some_and(|service| service.components.contains_key(&key.component))
            })
        });
    Ok(DeployedRow {
        key: key.clone(),
        spec_digest: digest,
        spec,
        image_id: live.image_id.clone(),
        image_digest: None,
        revision,
        container: live.id.clone(),
        container_name: live.name.clone(),
        generation,
        baseline: live.fields.clone(),
        desired: if settings.active {
            DesiredState::Running
        } else {
            DesiredState::Stopped
        },
        stopped_by: None,
        // Whether it was held there nobody knows any more: it is not replaced behind anybody's back.
        hold: is_wanted_otherwise.then(|| HoldRow {
            revision,
            by: String::new(),
            at: Timestamp::UNIX_EPOCH,
            reason: Some("found running after the registry was lost or set back".to_owned()),
        }),
        // Given with the deployment that records it.
        deployment: DeploymentId::from_bits(0),
        history: 0,
        deployed_at: Timestamp::UNIX_EPOCH,
        adopted: false,
        settings,
    })
}

/// How rows are written down.
pub(crate) struct TakeOver {
    /// Who is said to have done it.
    pub(crate) actor: &'static str,
    /// What the registry said of the components before.
    pub(crate) before: BTreeMap<ComponentKey, DeployedRow>,
    /// When.
    pub(crate) now: Timestamp,
}

impl TakeOver {
    /// The operator's will, as far as it is known.
    fn will(&self, row: &mut DeployedRow, live: &LiveContainer) {
        let before = self.before.get(&row.key);
        if let Some(hold) = &mut row.hold {
            hold.by = self.actor.to_owned();
            hold.at = self.now;
        }
        if let Some(before) = before.filter(|before| before.spec_digest == row.spec_digest) {
            row.hold.clone_from(&before.hold);
        }
        let is_wanted = row.desired == DesiredState::Running && !row.spec.kind.is_job();
        if !is_wanted || live.state.is_running() {
            return;
        }
        row.stopped_by = match before {
            Some(before) => before.stopped_by.clone(),
            None => Some(StopOverride {
                by: self.actor.to_owned(),
                at: self.now,
            }),
        };
    }
}

/// Writes the rows down, a deployment of each service, so that history and `why` have something to tell.
/// Gives the components that were taken over.
pub(crate) async fn record(
    registry: &Registry,
    judged: Vec<Judged>,
    order: TakeOver,
    random: &Random,
) -> Result<Vec<ComponentKey>, RegistryError> {
    let now = order.now;
    let mut services: BTreeMap<ServiceName, Vec<(LiveContainer, DeployedRow)>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for judged in judged {
        if let Ok(row) = judged.verdict
            && seen.insert(row.key.clone())
        {
            services
                .entry(row.key.service.clone())
                .or_default()
                .push((judged.live, *row));
        }
    }
    for (service, rows) in services {
        let id = DeploymentId::from_bits(random.bits());
        let revision = rows.first().map(|(_, row)| row.revision);
        registry
            .admit(DeploymentRow {
                id: id.clone(),
                service: service.clone(),
                component: None,
                request_id: String::new(),
                request_digest: Digest::of(b""),
                actor: order.actor.to_owned(),
                trigger: Trigger::Rebuild,
                revision,
                signer: None,
                plan: String::new(),
                plan_id: String::new(),
                state: DeploymentState::Admitted,
                outcome: None,
                error: None,
                created_at: now,
                line_at: None,
                finished_at: None,
            })
            .await?;
        let mut commit = CommitDeployment::new(id.clone());
        let mut names = Vec::new();
        for (live, mut row) in rows {
            row.deployment = id.clone();
            row.deployed_at = now;
            order.will(&mut row, &live);
            names.push(row.key.component.to_string());
            let observed = Observed::Present(Box::new(live));
            commit.observed.push(first_sight(&row, &observed, now));
            commit.set.push(SetDeployed {
                row,
                history: HistoryEntry::New,
            });
        }
        registry.commit_deployment(commit).await?;
        registry
            .finish(Finish {
                id,
                state: DeploymentState::Cleaned,
                outcome: Outcome::Deployed,
                error: None,
                records: Vec::new(),
                quarantined: Vec::new(),
                events: vec![NewEvent {
                    at: now,
                    service: Some(service.clone()),
                    component: None,
                    kind: "taken-over".to_owned(),
                    reason: order.actor.to_owned(),
                    message: format!(
                        "{service} was found unknown to the registry and taken over: {}",
                        names.join(", ")
                    ),
                    revision,
                    data: serde_json::json!({ "components": names }),
                }],
                at: now,
            })
            .await?;
    }
    Ok(seen.into_iter().collect())
}

/// Containers under the names of this node's components that the registry does not know, and that no
/// deployment which it knows has made.
pub(crate) async fn strangers(
    node: &NodeName,
    registry: &Registry,
    snapshot: &Snapshot,
    rows: &[DeployedRow],
) -> Result<Vec<Arc<LiveContainer>>, RegistryError> {
    let registered: BTreeSet<&ContainerId> = rows.iter().map(|row| &row.container).collect();
    let mut found = Vec::new();
    // Read when it is first needed: mostly there is nothing to look at.
    let mut forgotten = None;
    for live in snapshot.containers.values() {
        // Nearly all are known, and a plan, a push and a status each come by here: asked first.
        if registered.contains(&live.id) {
            continue;
        }
        let is_named = live.labels.get(label::NODE).map(String::as_str) == Some(node.as_str())
            && live
                .claimed_key()
                .is_some_and(|key| key.container_name() == live.name);
        if is_named && !is_of_known_deployment(registry, live).await? {
            if forgotten.is_none() {
                forgotten = Some(registry.forgotten().await?);
            }
            // What an operator let go of stays let go.
            if forgotten.as_ref().is_some_and(|ids| ids.contains(&live.id)) {
                continue;
            }
            found.push(Arc::clone(live));
        }
    }
    Ok(found)
}

/// Whether the registry knows the deployment that made a container. One that is not known may have been
/// forgotten with an old backup, and what it made may be all that runs.
pub(crate) async fn is_of_known_deployment(
    registry: &Registry,
    live: &LiveContainer,
) -> Result<bool, RegistryError> {
    let Some(id) = live.labels.get(label::DEPLOYMENT) else {
        return Ok(false);
    };
    let known = registry.deployment(id.clone()).await?.one();
    Ok(known.is_some_and(|row| row.id.as_str() == id))
}

/// Whether something runs in it, or might.
pub(crate) const fn is_alive(live: &LiveContainer) -> bool {
    !matches!(
        live.state,
        ContainerState::Created | ContainerState::Exited { .. }
    )
}

/// Takes over what a running agent finds.
#[derive(Debug)]
pub struct Reclaimer {
    /// This node.
    pub node: NodeName,
    /// Where rows are written.
    pub registry: Registry,
    /// The accepted revisions.
    pub revisions: Arc<RevisionStore>,
    /// Their compiled definitions.
    pub desired: Arc<Desired>,
    /// What runs.
    pub watch: Watch,
    /// The services that are being changed.
    pub busy: Busy,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for ids.
    pub random: Random,
}

impl Reclaimer {
    /// Takes over what can be, on what the snapshot shows. `false` where a service was busy or the
    /// engine is away, so that it has to be asked again.
    ///
    /// # Errors
    ///
    /// Where the registry failed; nothing of a service is written, or all.
    pub async fn reclaim(&self) -> Result<bool, RegistryError> {
        let snapshot = self.watch.current();
        if !snapshot.engine_answers() {
            return Ok(false);
        }
        let rows = self.registry.deployed_all().await?;
        let strangers = strangers(&self.node, &self.registry, &snapshot, &rows).await?;
        let mut services: BTreeMap<ServiceName, Vec<LiveContainer>> = BTreeMap::new();
        for live in strangers {
            if let Some(key) = live.claimed_key() {
                let of_service = services.entry(key.service).or_default();
                of_service.push(LiveContainer::clone(&live));
            }
        }
        let mut is_complete = true;
        for (service, live) in services {
            if self.busy.is_busy(&service) {
                is_complete = false;
                continue;
            }
            let _guard = self.busy.enter(service.clone());
            let judged = judge(&self.revisions, &self.desired, live).await;
            for left in judged.iter().map(Judged::taken) {
                if let Err(reason) = &left.verdict {
                    tracing::warn!(
                        container = left.container,
                        reason,
                        "a container that is not known here"
                    );
                }
            }
            let before = rows
                .iter()
                .filter(|row| row.key.service == service)
                .map(|row| (row.key.clone(), row.clone()))
                .collect();
            let order = TakeOver {
                actor: ACTOR,
                before,
                now: self.clock.now(),
            };
            for key in record(&self.registry, judged, order, &self.random).await? {
                tracing::warn!(%key, "ran unknown to the registry and was taken over");
            }
        }
        Ok(is_complete)
    }

    /// Takes over what is there once the engine answers; later ones come with a push.
    pub async fn run(&self, stop: CancellationToken) {
        let mut changes = self.watch.changes();
        loop {
            match self.reclaim().await {
                Ok(true) => return stop.cancelled().await,
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "cannot take over what runs"),
            }
            tokio::select! {
                // Waiting has nothing to lose.
                biased;
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests;
