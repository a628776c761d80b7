//! Taking containers over that exist, and letting go of them again.
//!
//! Nothing here touches a container: its id goes into the registry or out of it. What a definition says of
//! it is captured by the runtime; what the next deploy makes of that is the planner's. Both are written
//! between the deployments of a service, so that none is under way that knows another state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use mcp_spec::capture::Captured;
use mcp_spec::component::ServiceSpec;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, NodeName, ServiceName, Target};
use mcp_spec::observed::{ContainerId, DesiredState, LiveContainer, Observed, label};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::policy::{Policy, Violation};
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::Agent;
use crate::blocking::blocking;
use crate::deploy::AloneError;
use crate::planning::Supposed;
use crate::random::Random;
use crate::registry::{
    AdoptedComponent, Adoption, ComponentRecord, DeployedRow, DeploymentId, DeploymentRow,
    DeploymentState, HealthWord, NewEvent, Outcome, RegistryError, StopOverride, Trigger,
};
use crate::runtime::RuntimeError;
use crate::watch::first_sight;

/// Fewest digits that name a container by the start of its id.
const ID_DIGITS: usize = 4;

/// Most containers that one call takes over.
const MOST: usize = 100;

/// Which containers are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// Those called `SERVICE-…`, or just `SERVICE-COMPONENT`.
    ByName(Target),
    /// One, by name or by the start of its id, as this component.
    As(String, ComponentKey),
}

/// One container that was taken over, or would be.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// The component that it is from now on.
    pub key: ComponentKey,
    /// The container.
    pub live: LiveContainer,
    /// What a definition says of it, and what it cannot.
    pub captured: Captured,
    /// What the node's policy refuses of it.
    pub refused: Vec<Violation>,
    image_digest: Option<Digest>,
    /// The revision that it was made from by this agent, where it was.
    revision: CommitId,
}

/// Why containers are not taken over.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The engine failed.
    #[error("the containers cannot be looked at")]
    Engine(#[from] RuntimeError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A deployment of the service is under way.
    #[error(transparent)]
    Alone(#[from] AloneError),
    /// There is no such container.
    #[error("no container {name} on {node}")]
    NoContainer {
        /// What was looked for.
        name: String,
        /// The node.
        node: NodeName,
        /// The service that was meant.
        service: ServiceName,
        /// Names of containers that are not managed.
        others: Vec<String>,
    },
    /// The start of an id that several containers have.
    #[error("{name} may be {}", found.join(", "))]
    Ambiguous {
        /// What was looked for.
        name: String,
        /// What it may be.
        found: Vec<String>,
    },
    /// The container is a component's already.
    #[error("container {container} is managed already, as {key}")]
    Managed {
        /// The container's name.
        container: String,
        /// The component.
        key: ComponentKey,
    },
    /// The component has a container already.
    #[error("{key} has a container already: {container}")]
    Deployed {
        /// The component.
        key: ComponentKey,
        /// Its container's name.
        container: String,
    },
    /// Another agent of this engine made it.
    #[error("container {container} belongs to node {node}")]
    OtherNode {
        /// The container's name.
        container: String,
        /// The node that its labels name.
        node: String,
    },
    /// A deployment of this agent made it and left it.
    #[error("container {container} is left over from deployment {deployment}")]
    LeftOver {
        /// The container's name.
        container: String,
        /// The start of the deployment's id.
        deployment: String,
    },
    /// More than one call takes over.
    #[error("{count} containers are called {service}-…; one call takes over at most {MOST}")]
    TooMany {
        /// How many.
        count: usize,
        /// The service.
        service: ServiceName,
    },
    /// No revision says whether the head defines it.
    #[error("the head's definitions cannot be read: {cause}")]
    Definitions {
        /// Why.
        cause: String,
    },
}

impl AdoptError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Engine(error) if error.is_away() => {
                "see the engine's state: mcp node info; nothing was taken over".to_owned()
            }
            Self::Engine(_) | Self::Registry(_) | Self::Definitions { .. } => {
                "nothing was taken over".to_owned()
            }
            Self::Alone(_) => "try again when it has ended: mcp history".to_owned(),
            Self::NoContainer {
                service, others, ..
            } if others.is_empty() => {
                format!("name one: mcp adopt CONTAINER --as {service}/COMPONENT")
            }
            Self::NoContainer {
                service, others, ..
            } => format!(
                "not managed here: {}; name one: mcp adopt {} --as {service}/COMPONENT",
                others.join(", "),
                others[0]
            ),
            Self::Ambiguous { .. } => "give the whole name".to_owned(),
            Self::Managed { key, .. } => {
                format!("see it with: mcp ps {key}; let go of it with: mcp forget {key}")
            }
            Self::Deployed { key, .. } => format!(
                "choose another component with --as {}/COMPONENT, or let go of this one: mcp forget {key}",
                key.service
            ),
            Self::OtherNode { node, .. } => {
                format!("the agent of {node} manages it, or let go of it: mcp forget")
            }
            Self::LeftOver { .. } => {
                "look at it, then remove it or deploy again: mcp why, mcp logs".to_owned()
            }
            Self::TooMany { service, .. } => {
                format!("name the components: mcp adopt {service}/COMPONENT")
            }
        }
    }
}

/// What the head and the registry say of the containers that are there.
struct Known {
    node: NodeName,
    rows: Vec<DeployedRow>,
    forgotten: BTreeSet<ContainerId>,
    services: BTreeMap<ServiceName, ServiceSpec>,
}

impl Known {
    async fn read(agent: &Agent) -> Result<Self, AdoptError> {
        let services = match agent.revisions.head() {
            None => BTreeMap::new(),
            Some(head) => {
                let desired = agent.desired.clone();
                let set = blocking(move || desired.at(head)).await;
                set.map_err(|error| AdoptError::Definitions {
                    cause: crate::error_chain(&error),
                })?
                .services
                .clone()
            }
        };
        Ok(Self {
            node: agent.config.node.clone(),
            rows: agent.registry.deployed_all().await?,
            forgotten: agent.registry.forgotten().await?,
            services,
        })
    }

    fn holder(&self, live: &LiveContainer) -> Option<&DeployedRow> {
        self.rows.iter().find(|row| row.container == live.id)
    }

    /// Whether the labels say that this agent made it, and nobody let go of it since.
    fn is_claimed(&self, live: &LiveContainer) -> bool {
        live.labels.get(label::NODE).map(String::as_str) == Some(self.node.as_str())
            && live.labels.contains_key(label::DEPLOYMENT)
            && !self.forgotten.contains(&live.id)
    }

    fn is_free(&self, live: &LiveContainer) -> bool {
        let other = live.labels.get(label::NODE).map(String::as_str);
        self.holder(live).is_none()
            && other.is_none_or(|node| node == self.node.as_str())
            && !self.is_claimed(live)
    }

    /// The containers that are meant, each with what it is to be.
    fn choose<'l>(
        &self,
        chosen: &Chosen,
        all: &'l [LiveContainer],
    ) -> Result<Vec<(ComponentKey, &'l LiveContainer)>, AdoptError> {
        let missing = |name: String, service: &ServiceName| {
            let others = all.iter().filter(|live| self.is_free(live));
            AdoptError::NoContainer {
                name,
                node: self.node.clone(),
                service: service.clone(),
                others: others.map(|live| live.name.clone()).take(5).collect(),
            }
        };
        match chosen {
            Chosen::As(name, key) => {
                let found = named(name, all)?;
                let live = found.ok_or_else(|| missing(name.clone(), &key.service))?;
                Ok(vec![(key.clone(), live)])
            }
            Chosen::ByName(Target {
                service,
                component: Some(component),
                ..
            }) => {
                let key = ComponentKey::new(service.clone(), component.clone());
                let name = key.container_name();
                let live = all.iter().find(|live| live.name == name);
                Ok(vec![(key, live.ok_or_else(|| missing(name, service))?)])
            }
            Chosen::ByName(Target { service, .. }) => {
                let prefix = format!("{service}-");
                let others: BTreeSet<String> = self
                    .services
                    .values()
                    .filter(|other| other.name != *service)
                    .flat_map(|other| other.keys().collect::<Vec<_>>())
                    .map(|key| key.container_name())
                    .collect();
                let mut found = Vec::new();
                let mut managed = None;
                for live in all {
                    let Some(Ok(component)) = live.name.strip_prefix(&prefix).map(str::parse)
                    else {
                        continue;
                    };
                    let key = ComponentKey::new(service.clone(), component);
                    if let Some(row) = self.holder(live) {
                        managed = Some((live.name.clone(), row.key.clone()));
                    } else if self.is_free(live)
                        && !others.contains(&live.name)
                        && self.rows.iter().all(|row| row.key != key)
                    {
                        found.push((key, live));
                    }
                }
                found.sort_by(|(a, _), (b, _)| a.cmp(b));
                match (found.len(), managed) {
                    (0, Some((container, key))) => Err(AdoptError::Managed { container, key }),
                    (0, None) => Err(missing(format!("{prefix}…"), service)),
                    (count, _) if count > MOST => Err(AdoptError::TooMany {
                        count,
                        service: service.clone(),
                    }),
                    _ => Ok(found),
                }
            }
        }
    }

    /// Refuses what cannot be taken over.
    async fn check(
        &self,
        agent: &Agent,
        key: &ComponentKey,
        live: &LiveContainer,
    ) -> Result<(), AdoptError> {
        let container = live.name.clone();
        if let Some(row) = self.holder(live) {
            let key = row.key.clone();
            return Err(AdoptError::Managed { container, key });
        }
        if let Some(row) = self.rows.iter().find(|row| row.key == *key) {
            return Err(AdoptError::Deployed {
                key: key.clone(),
                container: row.container_name.clone(),
            });
        }
        match live.labels.get(label::NODE) {
            Some(node) if node != self.node.as_str() => {
                let node = node.clone();
                return Err(AdoptError::OtherNode { container, node });
            }
            _ => {}
        }
        // After a lost registry nobody knows the deployment: then taking it over is the way back.
        if self.is_claimed(live)
            && let Some(id) = live.labels.get(label::DEPLOYMENT)
            && agent.registry.deployment(id.clone()).await?.one().is_some()
        {
            return Err(AdoptError::LeftOver {
                container,
                deployment: id.chars().take(7).collect(),
            });
        }
        Ok(())
    }

    /// What this agent made from what the head still wants is exactly that.
    fn made_here(&self, key: &ComponentKey, live: &LiveContainer) -> Option<Captured> {
        let says = |name: &str| live.labels.get(name).map(String::as_str);
        let spec = self.services.get(&key.service)?;
        let spec = spec.components.get(&key.component)?;
        let is_it = says(label::NODE) == Some(self.node.as_str())
            && live.claimed_key().as_ref() == Some(key)
            && says(label::SPEC) == Some(spec.digest().to_string().as_str())
            && live.name == key.container_name();
        is_it.then(|| Captured {
            spec: spec.clone(),
            departures: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn settings(&self, service: &ServiceName) -> ServiceSettings {
        let row = self.rows.iter().find(|row| row.key.service == *service);
        let defined = || self.services.get(service).map(ServiceSettings::of);
        row.map(|row| row.settings)
            .or_else(defined)
            .unwrap_or_default()
    }
}

/// The container of that name, or the only one whose id starts so.
fn named<'l>(
    name: &str,
    all: &'l [LiveContainer],
) -> Result<Option<&'l LiveContainer>, AdoptError> {
    if let Some(live) = all.iter().find(|live| live.name == name) {
        return Ok(Some(live));
    }
    if name.len() < ID_DIGITS {
        return Ok(None);
    }
    let found: Vec<&LiveContainer> = all
        .iter()
        .filter(|live| live.id.as_str().starts_with(name))
        .collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(AdoptError::Ambiguous {
            name: name.to_owned(),
            found: found.iter().map(|live| live.name.clone()).collect(),
        }),
    }
}

/// Looks at containers and captures them; with `dry_run` that is all, else they are the agent's from now on,
/// all or none.
///
/// # Errors
///
/// [`AdoptError`]; then nothing was taken over.
pub async fn adopt(
    agent: &Arc<Agent>,
    actor: &str,
    chosen: Chosen,
    dry_run: bool,
) -> Result<Vec<Adopted>, AdoptError> {
    let service = match &chosen {
        Chosen::ByName(target) => target.service.clone(),
        Chosen::As(_, key) => key.service.clone(),
    };
    let (agent, actor) = (Arc::clone(agent), actor.to_owned());
    let deployer = agent.deployer.clone();
    let work = {
        let service = service.clone();
        async move {
            let known = Known::read(&agent).await?;
            let all = agent.runtime.list().await?;
            let mut adopted = Vec::new();
            for (key, live) in known.choose(&chosen, &all)? {
                known.check(&agent, &key, live).await?;
                adopted.push(captured(&agent, &known, key, live).await?);
            }
            if !dry_run {
                let settings = known.settings(&service);
                write_down(&agent, &actor, &service, settings, &adopted).await?;
            }
            Ok(adopted)
        }
    };
    deployer.alone(&service, work).await?
}

async fn captured(
    agent: &Agent,
    known: &Known,
    key: ComponentKey,
    listed: &LiveContainer,
) -> Result<Adopted, AdoptError> {
    let capture = agent.runtime.capture(&listed.id, &key).await?;
    let capture = capture.ok_or_else(|| AdoptError::NoContainer {
        name: listed.name.clone(),
        node: known.node.clone(),
        service: key.service.clone(),
        others: Vec::new(),
    })?;
    let made_here = known.made_here(&key, &capture.live);
    let revision = match (&made_here, agent.revisions.head()) {
        (Some(_), Some(head)) => head,
        _ => CommitId::NONE,
    };
    let policy = &agent.planner.policy;
    let captured = made_here.unwrap_or_else(|| kept_as_it_is(capture.captured, policy));
    let data_dir = agent.planner.data_dir.display().to_string();
    Ok(Adopted {
        refused: policy.violations(&key, &captured.spec, &data_dir),
        key,
        live: capture.live,
        captured,
        image_digest: capture.image_digest,
        revision,
    })
}

/// What the agent takes away unless a definition asks for it is asked for, where the node's owner allows
/// that; else it is a departure.
fn kept_as_it_is(mut captured: Captured, policy: &Policy) -> Captured {
    const PRIVILEGES: &str = "no-new-privileges=false";
    let allowed = |name: &str| policy.capabilities.iter().any(|it| it.ends_with(name));
    let mut departures = Vec::new();
    for departure in std::mem::take(&mut captured.departures) {
        match (departure.field.as_str(), departure.from.as_deref()) {
            ("no_new_privileges", _) if policy.security_opt.iter().any(|it| it == PRIVILEGES) => {
                captured.spec.security_opt.insert(PRIVILEGES.to_owned());
            }
            ("capabilities", Some(names)) if names.split(' ').all(allowed) => {
                let names = names.split(' ').map(str::to_owned);
                captured.spec.cap_add.extend(names);
            }
            _ => departures.push(departure),
        }
    }
    captured.departures = departures;
    captured
}

/// What the node would be with these containers adopted, each of which is looked at now.
///
/// # Errors
///
/// [`AdoptError`], as of an adoption.
pub async fn suppose(
    agent: &Arc<Agent>,
    actor: &str,
    chosen: Vec<Chosen>,
) -> Result<Vec<Supposed>, AdoptError> {
    let known = Known::read(agent).await?;
    let all = agent.runtime.list().await?;
    let now = agent.clock.now();
    let mut supposed = Vec::new();
    for chosen in chosen.iter().take(MOST) {
        for (key, live) in known.choose(chosen, &all)? {
            known.check(agent, &key, live).await?;
            let settings = known.settings(&key.service);
            let one = captured(agent, &known, key, live).await?;
            let nothing = DeploymentId::from_bits(0);
            supposed.push(Supposed {
                row: row(&one, &nothing, actor, settings, now),
                departures: one.captured.departures,
                live: one.live,
            });
        }
    }
    Ok(supposed)
}

/// What the registry has of an adopted container.
fn row(
    one: &Adopted,
    id: &DeploymentId,
    actor: &str,
    settings: ServiceSettings,
    now: Timestamp,
) -> DeployedRow {
    let live = &one.live;
    let is_made_here = !one.revision.is_none();
    // What does not run stays so, until an operator says otherwise.
    let stopped_by = (!live.state.is_running()).then(|| StopOverride {
        by: actor.to_owned(),
        at: now,
    });
    DeployedRow {
        key: one.key.clone(),
        spec_digest: one.captured.spec.digest(),
        spec: one.captured.spec.clone(),
        image_id: live.image_id.clone(),
        image_digest: one.image_digest,
        revision: one.revision,
        container: live.id.clone(),
        container_name: live.name.clone(),
        generation: live.generation().filter(|_| is_made_here).unwrap_or(0),
        baseline: live.fields.clone(),
        desired: DesiredState::Running,
        stopped_by,
        hold: None,
        deployment: id.clone(),
        history: 0,
        deployed_at: now,
        adopted: !is_made_here,
        settings,
    }
}

async fn write_down(
    agent: &Agent,
    actor: &str,
    service: &ServiceName,
    settings: ServiceSettings,
    adopted: &[Adopted],
) -> Result<(), RegistryError> {
    let now = agent.clock.now();
    let id = DeploymentId::from_bits(Random::system().bits());
    let deployment = DeploymentRow {
        id: id.clone(),
        service: service.clone(),
        component: match adopted {
            [one] => Some(one.key.component.clone()),
            _ => None,
        },
        request_id: String::new(),
        request_digest: Digest::of(b""),
        actor: actor.to_owned(),
        trigger: Trigger::Adopt,
        revision: None,
        signer: None,
        plan: String::new(),
        plan_id: String::new(),
        state: DeploymentState::Cleaned,
        outcome: Some(Outcome::Deployed),
        error: None,
        created_at: now,
        line_at: None,
        finished_at: Some(now),
    };
    let mut adoption = Adoption {
        deployment,
        components: Vec::new(),
        records: Vec::new(),
        events: Vec::new(),
    };
    for one in adopted {
        let live = &one.live;
        let row = row(one, &id, actor, settings, now);
        let mut observed = first_sight(&row, &Observed::Present(Box::new(live.clone())), now);
        // No gate has passed it.
        observed.health = observed.health.map(|_| HealthWord::Starting);
        adoption.records.push(ComponentRecord {
            deployment: id.clone(),
            component: one.key.component.clone(),
            action: "adopt".to_owned(),
            outcome: "adopted".to_owned(),
            from_revision: None,
            to_revision: Some(one.revision).filter(|revision| !revision.is_none()),
            image_digest: one.image_digest,
            image_id: Some(live.image_id.clone()),
            duration_ms: 0,
            downtime_ms: 0,
            error: None,
            changes: Vec::new(),
            log_tail: Vec::new(),
        });
        adoption.events.push(NewEvent {
            at: now,
            service: Some(one.key.service.clone()),
            component: Some(one.key.component.clone()),
            kind: "adopted".to_owned(),
            reason: "operator".to_owned(),
            message: format!(
                "{} adopted by {actor}: container {} ({})",
                one.key,
                live.name,
                live.id.short()
            ),
            revision: None,
            data: serde_json::json!({ "actor": actor, "container": live.id.as_str() }),
        });
        adoption.components.push(AdoptedComponent {
            row,
            departures: one.captured.departures.clone(),
            observed,
        });
    }
    agent.registry.adopt(adoption).await
}

/// Why components are not let go of.
#[derive(Debug, Error)]
pub enum ForgetError {
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A deployment of the service is under way.
    #[error(transparent)]
    Alone(#[from] AloneError),
    /// Nothing of that name is deployed.
    #[error("nothing called {target} is managed here")]
    Unknown {
        /// What was named.
        target: Target,
    },
    /// The head defines it: the next deploy would find its name taken.
    #[error("{key} is defined at the head: the next deploy of it would find its name taken")]
    Defined {
        /// The component.
        key: ComponentKey,
    },
}

/// Lets go of components, a service at a time; `yes` also of those that the head defines.
///
/// # Errors
///
/// [`ForgetError`]; the services before the failed one are let go of.
pub async fn forget(
    agent: &Arc<Agent>,
    actor: &str,
    targets: &[Target],
    yes: bool,
) -> Result<Vec<DeployedRow>, ForgetError> {
    let rows = agent.registry.deployed_all().await?;
    for target in targets {
        if !rows.iter().any(|row| target.covers(&row.key)) {
            return Err(ForgetError::Unknown {
                target: target.clone(),
            });
        }
    }
    let mut services: BTreeMap<ServiceName, Vec<DeployedRow>> = BTreeMap::new();
    for row in rows {
        if targets.iter().any(|target| target.covers(&row.key)) {
            services
                .entry(row.key.service.clone())
                .or_default()
                .push(row);
        }
    }
    if !yes && let Some(head) = agent.revisions.head() {
        let desired = agent.desired.clone();
        // What cannot be read is taken for undefined: nothing could be deployed of it either.
        let set = blocking(move || desired.at(head)).await.ok();
        let defines = |key: &ComponentKey| {
            let set = set.as_ref()?;
            let service = set.services.get(&key.service)?;
            service.components.get(&key.component)
        };
        if let Some(row) = services
            .values()
            .flatten()
            .find(|row| defines(&row.key).is_some())
        {
            let key = row.key.clone();
            return Err(ForgetError::Defined { key });
        }
    }
    let mut forgotten = Vec::new();
    for (service, rows) in services {
        let (registry, now) = (agent.registry.clone(), agent.clock.now());
        let keys = rows.iter().map(|row| row.key.clone()).collect();
        let events = rows
            .iter()
            .map(|row| NewEvent {
                at: now,
                service: Some(row.key.service.clone()),
                component: Some(row.key.component.clone()),
                kind: "forgotten".to_owned(),
                reason: "operator".to_owned(),
                message: format!(
                    "{} forgotten by {actor}: container {} ({}) is not managed any more",
                    row.key,
                    row.container_name,
                    row.container.short()
                ),
                revision: Some(row.revision).filter(|revision| !revision.is_none()),
                data: serde_json::json!({ "actor": actor, "container": row.container.as_str() }),
            })
            .collect();
        agent
            .deployer
            .alone(
                &service,
                async move { registry.forget(keys, now, events).await },
            )
            .await??;
        forgotten.extend(rows);
    }
    Ok(forgotten)
}
