//! `mcp.v1.Registry`: what the agent knows, and what the engine says.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use mcp_proto::{convert, v1};
use mcp_spec::name::Target;
use mcp_spec::observed::label;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::authenticate::caller;
use super::components::{View, is_amiss, text};
use super::node::usage;
use super::status::{self, Failure};
use crate::Agent;
use crate::auth::{Identity, Role};
use crate::node::{NodeFacts, Usage};
use crate::registry::{BLOCKED, EventQuery, EventRow, PauseRow};
use crate::takeover::strangers;
use crate::tls::validity::configured;
use crate::watch::{EngineState, Snapshot};

/// Events that wait for a slow follower; then the registry is read again where it stopped.
const EVENTS_AHEAD: usize = 64;

/// Events of one read.
const EVENTS_A_READ: u32 = 500;

/// Events of the past where the client does not say how many.
const EVENTS_SHOWN: u32 = 100;

/// How long an answer waits for the watch to write down what it has seen.
const RECORDING: Duration = Duration::from_millis(200);

/// Events in a status where the client does not say.
const STATUS_EVENTS: u32 = 5;

/// Audited calls where the client does not say how many, and the most that it gets.
const AUDIT_SHOWN: u32 = 100;
const MAX_AUDIT: u32 = 1000;

/// The service.
#[derive(Debug)]
pub(super) struct Registry {
    agent: Arc<Agent>,
}

impl Registry {
    pub(super) const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    async fn listed<T>(
        &self,
        request: Request<T>,
        targets: impl FnOnce(T) -> Vec<v1::Target>,
        look: Look,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let identity = caller(&request)?;
        let (targets, named) = seen(&identity, &targets(request.into_inner()))?;
        let agent = &self.agent;
        let (snapshot, engine_error) = match look {
            Look::Registry => (None, String::new()),
            Look::Live => {
                let (snapshot, error) = fresh(agent).await;
                (Some(snapshot), error)
            }
        };
        // What a deployment that has just ended led to is in the answer.
        agent.watch.recorded(&agent.busy, RECORDING).await;
        let view = View::read(agent)
            .await
            .map_err(|error| status::registry(&error))?;
        let components = view.components(&targets, snapshot.as_deref());
        if components.is_empty() && named {
            return Err(status::unknown_target(&targets, &agent.config.node));
        }
        Ok(Response::new(v1::ListResponse {
            node: agent.config.node.to_string(),
            head_revision: text(view.head),
            components,
            engine_error,
        }))
    }
}

/// The targets that the caller sees, and whether it named any itself.
fn seen(identity: &Identity, targets: &[v1::Target]) -> Result<(Vec<Target>, bool), Status> {
    let targets = convert::targets(targets)
        .map_err(|error| Status::from(Failure::of(Code::InvalidArgument, "target", &error)))?;
    let named = !targets.is_empty();
    Ok((identity.visible(targets)?, named))
}

/// Where a list comes from.
enum Look {
    Registry,
    Live,
}

/// A live look; where the engine does not answer, what was seen last and why.
async fn fresh(agent: &Agent) -> (Arc<Snapshot>, String) {
    match agent.watch.inspected().await {
        Ok(snapshot) => (snapshot, String::new()),
        Err(error) => (agent.watch.current(), error.to_string()),
    }
}

fn event(node: &str, row: &EventRow) -> v1::Event {
    v1::Event {
        seq: row.seq,
        at: row.at.to_string(),
        node: node.to_owned(),
        service: text(row.service.as_ref()),
        component: text(row.component.as_ref()),
        kind: row.kind.clone(),
        reason: row.reason.clone(),
        message: row.message.clone(),
        revision: text(row.revision),
        data: row.data.to_string(),
    }
}

/// The engine's state as `status` and `node info` show it.
pub(super) fn engine_status(agent: &Agent, snapshot: &Snapshot) -> v1::EngineStatus {
    let facts = agent.engine.load();
    let (reachable, error) = match &snapshot.engine {
        EngineState::Answers => (true, String::new()),
        EngineState::Away { reason, .. } => (false, reason.clone()),
        EngineState::NeverSeen => (false, "not asked yet".to_owned()),
    };
    v1::EngineStatus {
        name: agent.config.runtime.engine.as_str().to_owned(),
        version: facts
            .as_ref()
            .map(|facts| facts.version.clone())
            .unwrap_or_default(),
        reachable,
        error,
        socket: agent.config.runtime.socket_url(),
        rootless: facts.as_ref().is_some_and(|facts| facts.rootless),
    }
}

/// Groups components by service.
fn services(
    components: Vec<v1::Component>,
    view: &View,
    pauses: &[PauseRow],
) -> Vec<v1::ServiceStatus> {
    let mut services: BTreeMap<String, v1::ServiceStatus> = BTreeMap::new();
    for component in components {
        let service = services
            .entry(component.service.clone())
            .or_insert_with(|| v1::ServiceStatus {
                service: component.service.clone(),
                revision: component.revision.clone(),
                active: true,
                orphaned: true,
                ..v1::ServiceStatus::default()
            });
        if service.revision != component.revision {
            service.revision.clear();
        }
        service.behind = service.behind.max(component.behind);
        service.drift |= !component.drift.is_empty();
        service.orphaned &= component.orphaned;
        if let Some(held) = &component.held {
            let whole = service.held.get_or_insert_with(|| v1::Hold {
                components: Vec::new(),
                ..held.clone()
            });
            whole.components.push(component.component.clone());
        }
        service.components.push(component);
    }
    for row in &view.rows {
        if let Some(service) = services.get_mut(row.key.service.as_str()) {
            service.active &= row.settings.active;
        }
    }
    for pause in pauses.iter().filter(|pause| pause.pause_ms > 0) {
        if let Some(service) = services.get_mut(pause.service.as_str())
            && service.components.iter().any(is_amiss)
        {
            let cause = pause.cause.strip_prefix(BLOCKED).unwrap_or(&pause.cause);
            cause.clone_into(&mut service.blocked);
            service.next_try_at = text(pause.next_try());
        }
    }
    services.into_values().collect()
}

#[tonic::async_trait]
impl v1::registry_server::Registry for Registry {
    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.listed(request, |request| request.targets, Look::Registry)
            .await
    }

    async fn ps(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.listed(request, |request| request.targets, Look::Live)
            .await
    }

    async fn audit(
        &self,
        request: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        let identity = caller(&request)?;
        identity.require(Role::Operator)?;
        identity.require_all_services()?;
        let limit = match request.into_inner().limit {
            0 => AUDIT_SHOWN,
            limit => limit.min(MAX_AUDIT),
        };
        let rows = self.agent.registry.audit(limit).await;
        let rows = rows.map_err(|error| status::registry(&error))?;
        let entries = rows.into_iter().map(|row| v1::AuditEntry {
            seq: row.seq,
            at: row.at.to_string(),
            who: row.who,
            token: row.token,
            signer: row.signer,
            method: row.method,
            target: row.target,
            from: row.from,
            request_id: row.request_id,
            result: row.result,
        });
        Ok(Response::new(v1::AuditResponse {
            entries: entries.collect(),
        }))
    }

    async fn get_drift(
        &self,
        request: Request<v1::DriftRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.listed(request, |request| request.targets, Look::Live)
            .await
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let (targets, named) = seen(&identity, &request.targets)?;
        let agent = &self.agent;
        let (snapshot, _) = fresh(agent).await;
        agent.watch.recorded(&agent.busy, RECORDING).await;
        let view = View::read(agent)
            .await
            .map_err(|error| status::registry(&error))?;
        let components = view.components(&targets, Some(&snapshot));
        if components.is_empty() && named {
            return Err(status::unknown_target(&targets, &agent.config.node));
        }
        let limit = if request.events == 0 {
            STATUS_EVENTS
        } else {
            request.events.min(100)
        };
        let events = agent
            .registry
            .events(EventQuery {
                targets: targets.clone(),
                limit,
                newest: true,
                ..EventQuery::default()
            })
            .await
            .map_err(|error| status::registry(&error))?;
        let registered: BTreeSet<_> = view.rows.iter().map(|row| &row.container).collect();
        let forgotten = agent
            .registry
            .forgotten()
            .await
            .map_err(|error| status::registry(&error))?;
        let unmanaged = if targets.is_empty() {
            snapshot
                .containers
                .values()
                .filter(|live| !registered.contains(&live.id))
                .filter(|live| {
                    !live.labels.contains_key(label::DEPLOYMENT) || forgotten.contains(&live.id)
                })
                .map(|live| v1::Unmanaged {
                    container: live.name.clone(),
                    container_id: live.id.to_string(),
                    image: live.image_name.clone(),
                    state: match &live.state {
                        state if state.is_running() => "running".to_owned(),
                        mcp_spec::observed::ContainerState::Other(word) => word.clone(),
                        mcp_spec::observed::ContainerState::Created => "created".to_owned(),
                        _ => "stopped".to_owned(),
                    },
                })
                .collect()
        } else {
            Vec::new()
        };
        let (pauses, _) = agent
            .registry
            .reconciling()
            .await
            .map_err(|error| status::registry(&error))?;
        let facts = NodeFacts::read(&agent.config.data_dir);
        let node = agent.config.node.to_string();
        let mut warnings = Vec::new();
        if let Some(trouble) = agent.revisions.trouble() {
            warnings.push(format!(
                "no changes are taken: {trouble}; {}",
                trouble.hint()
            ));
        }
        if is_full(facts.disk) {
            warnings.push(format!(
                "disk full at {}: nothing can be changed until there is room",
                agent.config.data_dir.display()
            ));
        }
        if targets.is_empty() {
            let unknown = strangers(&agent.config.node, &agent.registry, &snapshot, &view.rows)
                .await
                .map_err(|error| status::registry(&error))?;
            warnings.extend(unknown.iter().map(|live| {
                format!(
                    "{} is a container of this node that the registry does not know, as after an old backup: \
                     it is left alone",
                    live.name
                )
            }));
        }
        if let Ok(Some(dates)) = configured(&agent.config.tls)
            && let Err(error) = dates.look(&agent.config.tls, agent.clock.now())
        {
            warnings.push(format!("the certificate {error}; {}", error.hint()));
        }
        if let Some(error) = agent.source.last().error {
            warnings.push(format!("the upstream cannot be fetched: {error}"));
        }
        if let Some(error) = agent.inbox.last().error {
            warnings.push(format!("nothing is taken from the inbox: {error}"));
        }
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            head_revision: text(view.head),
            engine: Some(engine_status(agent, &snapshot)),
            disk: Some(usage(facts.disk)),
            memory: Some(usage(facts.memory)),
            cpus: facts.cpus,
            load_millis: facts.load_millis,
            services: services(components, &view, &pauses),
            unmanaged,
            events: events.iter().map(|row| event(&node, row)).collect(),
            warnings,
            node,
        }))
    }

    type WatchEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let (targets, _) = seen(&identity, &request.targets)?;
        let since = if request.since.is_empty() {
            None
        } else {
            Some(request.since.parse().map_err(|_| {
                status::bad_request(format!("since: `{}` is no RFC 3339 time", request.since))
            })?)
        };
        let (events, stream) = mpsc::channel(EVENTS_AHEAD);
        let agent = Arc::clone(&self.agent);
        let limit = request.limit.unwrap_or(EVENTS_SHOWN).min(10_000);
        let first = EventQuery {
            targets,
            after: (request.after > 0).then_some(request.after),
            since,
            limit,
            // None of the past: what is followed begins after the newest.
            newest: limit == 0 || (request.after == 0 && since.is_none()),
        };
        let follow = request.follow;
        let work = self.agent.work.clone();
        work.spawn(async move {
            // A follower that went away ends this, and so does the agent's end.
            tokio::select! {
                () = agent.shutdown.cancelled() => {}
                () = events.closed() => {}
                () = stream_events(&agent, first, follow, &events) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Sends what the log holds, then what comes, in the order of the numbers: none twice, none left out.
async fn stream_events(
    agent: &Agent,
    first: EventQuery,
    follow: bool,
    events: &mpsc::Sender<Result<v1::WatchEventsResponse, Status>>,
) {
    let node = agent.config.node.to_string();
    let mut newest = agent.registry.newest_event();
    let mut query = first;
    let mut left = query.limit;
    loop {
        let seen = *newest.borrow_and_update();
        loop {
            let asked = if query.newest {
                query.limit
            } else {
                EVENTS_A_READ.min(if follow { EVENTS_A_READ } else { left })
            };
            let read = agent
                .registry
                .events(EventQuery {
                    limit: asked,
                    ..query.clone()
                })
                .await;
            let rows = match read {
                Ok(rows) => rows,
                Err(error) => {
                    drop(events.send(Err(status::registry(&error))).await);
                    return;
                }
            };
            let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            for row in rows {
                query.after = query.after.max(Some(row.seq));
                let message = v1::WatchEventsResponse {
                    event: Some(event(&node, &row)),
                };
                if events.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            left = left.saturating_sub(count);
            let was_newest = std::mem::take(&mut query.newest);
            if was_newest {
                // What was committed before the first read is behind: go on after it.
                query.after = query.after.max(Some(seen));
                break;
            }
            if count < asked || (!follow && left == 0) {
                break;
            }
        }
        if !follow {
            return;
        }
        query.since = None;
        if newest.changed().await.is_err() {
            return;
        }
    }
}

/// Whether not even a small change can be written down any more: less than 256 KiB are free.
const fn is_full(disk: Usage) -> bool {
    disk.total_bytes > 0 && disk.total_bytes.saturating_sub(disk.used_bytes) < 256 * 1024
}
