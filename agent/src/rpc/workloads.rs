//! `mcp.v1.Workloads`: what runs inside the containers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use mcp_proto::{convert, v1};
use mcp_spec::capture::service_of;
use mcp_spec::component::ServiceSpec;
use mcp_spec::export::toml::{component_toml, to_toml};
use mcp_spec::name::{ComponentKey, NodeName, ServiceName, Target};
use mcp_spec::observed::{ContainerId, label};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::authenticate::{About, caller};
use super::status::{self, Failure};
use crate::Agent;
use crate::adoption::{self, AdoptError, Adopted, Chosen, ForgetError};
use crate::auth::Identity;
use crate::deploy::AloneError;
use crate::runtime::{LogOptions, RuntimeError};

/// Log lines that wait for a slow client: then the engine waits.
const LINES_AHEAD: usize = 256;

/// Most lines from the end that a request may ask for.
const MAX_TAIL: u32 = 100_000;

/// The service.
#[derive(Debug)]
pub(super) struct Workloads {
    agent: Arc<Agent>,
}

impl Workloads {
    pub(super) const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    /// Containers of the agent's own that are registered nowhere: a first deployment that failed keeps
    /// them for their logs.
    async fn left_for_a_look(&self, targets: &[Target]) -> Vec<(ComponentKey, ContainerId)> {
        let agent = &self.agent;
        let Ok(snapshot) = agent.watch.fresh().await else {
            return Vec::new();
        };
        let node = agent.config.node.as_str();
        snapshot
            .containers
            .values()
            .filter(|live| live.labels.get(label::NODE).map(String::as_str) == Some(node))
            .filter_map(|live| Some((live.claimed_key()?, live.id.clone())))
            .filter(|(key, _)| targets.iter().any(|target| target.covers(key)))
            .collect()
    }

    /// The lines that were kept with a deployment.
    async fn kept(
        &self,
        identity: &Identity,
        request: &v1::LogsRequest,
    ) -> Result<Vec<Result<v1::LogLine, Status>>, Status> {
        let registry = &self.agent.registry;
        let row = registry
            .deployment(request.deployment_id.clone())
            .await
            .map_err(|error| status::registry(&error))?
            .one()
            .ok_or_else(|| {
                Status::from(
                    Failure::new(
                        Code::NotFound,
                        "unknown-deployment",
                        format!(
                            "no deployment {} on {}",
                            request.deployment_id.chars().take(40).collect::<String>(),
                            self.agent.config.node
                        ),
                    )
                    .hint("see what was deployed: mcp history"),
                )
            })?;
        identity.require_service(&row.service)?;
        let records = registry
            .records(vec![row.id.clone()])
            .await
            .map_err(|error| status::registry(&error))?
            .remove(&row.id)
            .unwrap_or_default();
        let targets = convert::targets(&request.targets)
            .map_err(|error| status::bad_request(error.to_string()))?;
        Ok(records
            .iter()
            .filter(|record| {
                let key = ComponentKey::new(row.service.clone(), record.component.clone());
                targets.is_empty() || targets.iter().any(|target| target.covers(&key))
            })
            .flat_map(|record| {
                record.log_tail.iter().map(|line| {
                    Ok(v1::LogLine {
                        service: row.service.to_string(),
                        component: record.component.to_string(),
                        stream: "stdout".to_owned(),
                        at: String::new(),
                        line: line.clone().into_bytes(),
                    })
                })
            })
            .collect())
    }
}

/// What the engine said of a component's log.
fn log_failure(key: &ComponentKey, error: &RuntimeError) -> Status {
    let code = if error.is_away() {
        Code::Unavailable
    } else {
        Code::Internal
    };
    Failure::new(
        code,
        "engine",
        format!("cannot read the log of {key}: {error}"),
    )
    .hint("see the engine's state: mcp node info")
    .into()
}

#[tonic::async_trait]
impl v1::workloads_server::Workloads for Workloads {
    type LogsStream = Pin<Box<dyn Stream<Item = Result<v1::LogLine, Status>> + Send>>;

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        if !request.deployment_id.is_empty() {
            let lines = self.kept(&identity, &request).await?;
            return Ok(Response::new(Box::pin(tokio_stream::iter(lines))));
        }
        let targets = convert::targets(&request.targets)
            .map_err(|error| status::bad_request(error.to_string()))?;
        let targets = identity.visible(targets)?;
        let since = if request.since.is_empty() {
            None
        } else {
            Some(request.since.parse().map_err(|_| {
                status::bad_request(format!("since: `{}` is no RFC 3339 time", request.since))
            })?)
        };
        let options = LogOptions {
            follow: request.follow,
            tail: request.tail.map(|tail| tail.min(MAX_TAIL)),
            since,
        };
        let rows = self
            .agent
            .registry
            .deployed_all()
            .await
            .map_err(|error| status::registry(&error))?;
        let mut chosen: Vec<(ComponentKey, ContainerId)> = rows
            .into_iter()
            .filter(|row| {
                targets.is_empty() || targets.iter().any(|target| target.covers(&row.key))
            })
            .map(|row| (row.key, row.container))
            .collect();
        if chosen.is_empty() {
            chosen = self.left_for_a_look(&targets).await;
        }
        if chosen.is_empty() {
            return Err(status::unknown_target(&targets, &self.agent.config.node));
        }
        let (lines, stream) = mpsc::channel(LINES_AHEAD);
        for (key, container) in chosen {
            let (agent, options, lines) = (Arc::clone(&self.agent), options.clone(), lines.clone());
            let work = self.agent.work.clone();
            work.spawn(async move {
                // A reader that went away ends this, and so does the agent's end.
                tokio::select! {
                    () = agent.shutdown.cancelled() => {}
                    () = lines.closed() => {}
                    () = relay(&agent, &key, &container, &options, &lines) => {}
                }
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<v1::ExportResponse>, Status> {
        let identity = caller(&request)?;
        let name: ServiceName = request
            .into_inner()
            .service
            .parse()
            .map_err(|error: mcp_spec::name::NameError| status::bad_request(error.to_string()))?;
        identity.require_service(&name)?;
        let rows = self
            .agent
            .registry
            .deployed_of(name.clone())
            .await
            .map_err(|error| status::registry(&error))?;
        let Some(settings) = rows.first().map(|row| row.settings) else {
            return Err(Failure::new(
                Code::NotFound,
                "unknown-target",
                format!("{name} is not deployed on {}", self.agent.config.node),
            )
            .hint("see what is: mcp list")
            .into());
        };
        let service = ServiceSpec {
            name,
            node: self.agent.config.node.clone(),
            active: settings.active,
            description: None,
            alert: settings.alert,
            deadline: settings.deadline,
            reconcile: settings.reconcile,
            on_failure: settings.on_failure,
            components: rows
                .into_iter()
                .map(|row| (row.key.component, row.spec))
                .collect::<BTreeMap<_, _>>(),
        };
        Ok(Response::new(v1::ExportResponse {
            definition: to_toml(&service),
        }))
    }

    async fn adopt(
        &self,
        request: Request<v1::AdoptRequest>,
    ) -> Result<Response<v1::AdoptResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let target = request
            .target
            .as_ref()
            .ok_or_else(|| status::bad_request("the request names no component"))?;
        let target =
            convert::target(target).map_err(|error| status::bad_request(error.to_string()))?;
        let shown: String = request.container.chars().take(128).collect();
        about.say(
            if shown.is_empty() {
                target.to_string()
            } else {
                format!("{shown} as {target}")
            },
            "",
        );
        identity.require_service(&target.service)?;
        let chosen = match (shown.is_empty(), &target.component) {
            (true, _) => Chosen::ByName(target.clone()),
            (false, Some(component)) => {
                let key = ComponentKey::new(target.service.clone(), component.clone());
                Chosen::As(shown, key)
            }
            (false, None) => {
                return Err(Failure::new(
                    Code::InvalidArgument,
                    "target",
                    format!("{target} is a service: one container is one component"),
                )
                .hint(format!("write --as {target}/COMPONENT"))
                .into());
            }
        };
        let agent = &self.agent;
        let all = adoption::adopt(agent, &identity.subject, chosen, request.dry_run)
            .await
            .map_err(|error| adopt_failure(&error))?;
        let service = ServiceSpec {
            components: all
                .iter()
                .map(|one| (one.key.component.clone(), one.captured.spec.clone()))
                .collect(),
            ..service_of(
                &all[0].key,
                agent.config.node.clone(),
                all[0].captured.spec.clone(),
            )
        };
        Ok(Response::new(v1::AdoptResponse {
            node: agent.config.node.to_string(),
            definition: to_toml(&service),
            adopted: all.iter().map(adopted).collect(),
        }))
    }

    async fn forget(
        &self,
        request: Request<v1::ForgetRequest>,
    ) -> Result<Response<v1::ForgetResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = convert::targets(&request.targets)
            .map_err(|error| status::bad_request(error.to_string()))?;
        about.say_targets(&targets, "");
        if targets.is_empty() {
            return Err(status::bad_request("the request names no component"));
        }
        for target in &targets {
            identity.require_service(&target.service)?;
        }
        let agent = &self.agent;
        let rows = adoption::forget(agent, &identity.subject, &targets, request.yes)
            .await
            .map_err(|error| forget_failure(&error, &agent.config.node))?;
        Ok(Response::new(v1::ForgetResponse {
            forgotten: rows
                .iter()
                .map(|row| v1::Forgotten {
                    target: Some(v1::Target {
                        service: row.key.service.to_string(),
                        component: row.key.component.to_string(),
                    }),
                    container: row.container_name.clone(),
                    container_id: row.container.to_string(),
                })
                .collect(),
        }))
    }
}

pub(super) fn adopt_failure(error: &AdoptError) -> Status {
    let (code, reason) = match error {
        AdoptError::Engine(error) if error.is_away() => (Code::Internal, "engine"),
        AdoptError::Engine(_) => (Code::FailedPrecondition, "engine"),
        AdoptError::Registry(_) | AdoptError::Definitions { .. } => (Code::Internal, "registry"),
        AdoptError::Alone(error) => return alone_failure(error),
        AdoptError::NoContainer { .. } => (Code::NotFound, "no-container"),
        AdoptError::Ambiguous { .. } => (Code::InvalidArgument, "ambiguous"),
        AdoptError::Managed { .. } | AdoptError::Deployed { .. } => {
            (Code::AlreadyExists, "managed")
        }
        AdoptError::OtherNode { .. } => (Code::FailedPrecondition, "other-node"),
        AdoptError::LeftOver { .. } => (Code::FailedPrecondition, "left-over"),
        AdoptError::TooMany { .. } => (Code::InvalidArgument, "too-many"),
    };
    Failure::of(code, reason, error).hint(error.hint()).into()
}

fn alone_failure(error: &AloneError) -> Status {
    match error {
        AloneError::Stopping => status::stopping(),
        AloneError::UnderWay { .. } => Failure::of(Code::FailedPrecondition, "under-way", error)
            .hint("try again when it has ended: mcp history")
            .into(),
    }
}

fn forget_failure(error: &ForgetError, node: &NodeName) -> Status {
    match error {
        ForgetError::Registry(error) => status::registry(error),
        ForgetError::Alone(error) => alone_failure(error),
        ForgetError::Unknown { target } => {
            status::unknown_target(std::slice::from_ref(target), node)
        }
        ForgetError::Defined { key } => Failure::of(Code::FailedPrecondition, "consent", error)
            .hint(format!(
                "take it out of services/{}.toml and sync first, or agree with --yes",
                key.service
            ))
            .into(),
    }
}

/// A container that was taken over, for the client.
fn adopted(one: &Adopted) -> v1::Adopted {
    let Adopted {
        key,
        live,
        captured,
        refused,
        ..
    } = one;
    v1::Adopted {
        target: Some(v1::Target {
            service: key.service.to_string(),
            component: key.component.to_string(),
        }),
        container: live.name.clone(),
        container_id: live.id.to_string(),
        definition: component_toml(&key.service, &key.component, &captured.spec),
        departures: captured
            .departures
            .iter()
            .map(convert::field_change)
            .collect(),
        warnings: captured.warnings.clone(),
        refused: refused
            .iter()
            .map(|violation| v1::Blocked {
                service: key.service.to_string(),
                component: key.component.to_string(),
                reason: violation.message.clone(),
                hint: violation.hint.clone(),
                policy: true,
            })
            .collect(),
        stopped: !live.state.is_running(),
    }
}

/// Relays one container's lines.
async fn relay(
    agent: &Agent,
    key: &ComponentKey,
    container: &ContainerId,
    options: &LogOptions,
    lines: &mpsc::Sender<Result<v1::LogLine, Status>>,
) {
    let mut log = match agent.runtime.logs(container, options).await {
        Ok(log) => log,
        Err(RuntimeError::NotFound { .. }) => return,
        Err(error) => {
            drop(lines.send(Err(log_failure(key, &error))).await);
            return;
        }
    };
    while let Some(line) = log.next().await {
        let message = match line {
            Ok(line) => Ok(v1::LogLine {
                service: key.service.to_string(),
                component: key.component.to_string(),
                stream: if line.stderr { "stderr" } else { "stdout" }.to_owned(),
                at: line.at.map(|at| at.to_string()).unwrap_or_default(),
                line: line.line,
            }),
            Err(error) => Err(log_failure(key, &error)),
        };
        if lines.send(message).await.is_err() {
            return;
        }
    }
}
