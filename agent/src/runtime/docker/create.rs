//! Making a container: the create calls of both engines, and what has to be known before and after them.
//!
//! What the engine would say only at the start, after the old container has stopped, is found out here.

use hyper::StatusCode;
use mcp_spec::component::{ComponentSpec, HOST_GATEWAY};
use mcp_spec::observed::ContainerId;
use serde::Deserialize;
use serde_json::Value;

use super::super::{ContainerRequest, EngineFacts, EngineName, Runtime as _, RuntimeError};
use super::http::{Answer, Call, encoded};
use super::{DockerRuntime, compile, errors, gateway, images, libpod, session, users};

impl DockerRuntime {
    /// Makes a container and does not start it; what cannot run as it is asked for is not left behind.
    pub(super) async fn made(
        &self,
        request: &ContainerRequest,
    ) -> Result<ContainerId, RuntimeError> {
        let cleared = self.without_command(request).await?;
        let request = cleared.as_ref().unwrap_or(request);
        let id = match self.engine().await? {
            EngineName::Docker => self.create_docker(request).await?,
            EngineName::Podman => self.create_podman(request).await?,
        };
        if let Err(error) = self.knows_user(&id, &request.spec).await {
            // Where the removal fails too, the first error matters.
            drop(self.remove(id.as_str()).await);
            return Err(error);
        }
        Ok(id)
    }

    /// The request with the image's own entry point written out, where `cmd = []` takes the image's
    /// command away: both engines take an empty command for an absent one unless an entry point is named.
    async fn without_command(
        &self,
        request: &ContainerRequest,
    ) -> Result<Option<ContainerRequest>, RuntimeError> {
        let cleared = request.spec.cmd.as_ref().is_some_and(Vec::is_empty);
        if !cleared || request.spec.entrypoint.is_some() {
            return Ok(None);
        }
        let answer = self
            .send(|prefix| images::inspect(prefix, request.image.as_str()))
            .await?
            .ok()?;
        let entrypoint = entrypoint(&answer.parsed()?);
        if entrypoint.is_empty() {
            return Err(RuntimeError::Impossible {
                what: "`cmd = []`".to_owned(),
                why: "the image has no entry point, so nothing would run".to_owned(),
            });
        }
        let mut request = request.clone();
        request.spec.entrypoint = Some(entrypoint);
        Ok(Some(request))
    }

    async fn create_docker(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        let compiled = compile::docker_create(request);
        let answer = self
            .send(|prefix| {
                let name = encoded(&request.name);
                Call::post("create", format!("{prefix}/containers/create?name={name}"))
                    .json(&compiled.body)
            })
            .await?;
        let id = created(&answer, &request.name)?;
        for (network, mut body) in compiled.connect {
            body.container = id.as_str().to_owned();
            let connected = self
                .send(|prefix| {
                    let path = format!("{prefix}/networks/{}/connect", encoded(&network));
                    Call::post("connect", path).json(&body)
                })
                .await
                .and_then(|answer| {
                    if answer.status.is_success() {
                        Ok(())
                    } else {
                        Err(errors::meaning(&answer, &network))
                    }
                });
            if let Err(error) = connected {
                // Half a container is none. Where the removal fails too, the first error matters.
                drop(self.remove(id.as_str()).await);
                return Err(error);
            }
        }
        Ok(id)
    }

    async fn create_podman(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        let facts = self.facts().await?;
        self.can_raise(&facts, &request.spec).await?;
        let pointed = self.with_gateway(&facts, request).await?;
        let request = pointed.as_ref().unwrap_or(request);
        let body = libpod::spec_generator(request, &facts)?;
        let answer = self
            .send(|_| {
                Call::post("create", format!("{}/containers/create", session::LIBPOD)).json(&body)
            })
            .await?;
        created(&answer, &request.name)
    }

    /// The request with the node's own address for `host-gateway`, where podman does not know the word.
    async fn with_gateway(
        &self,
        facts: &EngineFacts,
        request: &ContainerRequest,
    ) -> Result<Option<ContainerRequest>, RuntimeError> {
        let hosts = &request.spec.extra_hosts;
        if !hosts.values().any(|it| it == HOST_GATEWAY) || gateway::is_known_to(facts) {
            return Ok(None);
        }
        let address = gateway::address(self, facts, &request.spec.network).await?;
        let mut request = request.clone();
        for value in request.spec.extra_hosts.values_mut() {
            if value == HOST_GATEWAY {
                *value = address.to_string();
            }
        }
        Ok(Some(request))
    }

    /// A rootless engine cannot raise a limit above its own.
    async fn can_raise(
        &self,
        facts: &EngineFacts,
        spec: &ComponentSpec,
    ) -> Result<(), RuntimeError> {
        if !facts.rootless || spec.ulimits.is_empty() {
            return Ok(());
        }
        let Some(pid) = self.http.socket().peer_pid().await else {
            return Ok(());
        };
        // Where it cannot be read, the engine itself says so at the start.
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        for (name, limit) in &spec.ulimits {
            if let Some(own) = libpod::hard_limit(&limits, name)
                && limit.hard.is_none_or(|hard| hard > own)
            {
                return Err(RuntimeError::Unsupported {
                    what: format!("`ulimits.{name}` = {limit}"),
                    why: format!("it runs without root, and its own hard limit is {own}"),
                });
            }
        }
        Ok(())
    }

    /// A user or group by name has to be in the container's own tables: the engines look only at the start.
    async fn knows_user(&self, id: &ContainerId, spec: &ComponentSpec) -> Result<(), RuntimeError> {
        let named = users::named(spec);
        for entry in &named {
            let path = format!(
                "containers/{}/archive?path={}",
                id.as_str(),
                encoded(entry.table)
            );
            let answer = self
                .send(|prefix| Call::get("archive", format!("{prefix}/{path}")))
                .await?;
            let missing = if answer.status.is_success() {
                (!users::is_in(&answer.body, entry.name)).then_some(entry)
            } else if answer.status == StatusCode::NOT_FOUND {
                Some(entry)
            } else {
                // Podman looks for the user itself. What else it may say is left for the start.
                let message = answer.message();
                named.iter().find(|entry| entry.is_missed_by(&message))
            };
            if let Some(users::Named { table, what, name }) = missing {
                return Err(RuntimeError::Impossible {
                    what: format!("`user = \"{}\"`", spec.user.as_deref().unwrap_or_default()),
                    why: format!("the image knows no {what} `{name}` ({table})"),
                });
            }
        }
        Ok(())
    }
}

/// The entry point of an image, as its inspect tells.
fn entrypoint(image: &Value) -> Vec<String> {
    image
        .pointer("/Config/Entrypoint")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

fn created(answer: &Answer, name: &str) -> Result<ContainerId, RuntimeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created {
        id: String,
    }
    if answer.status.is_success() {
        return Ok(ContainerId::new(answer.parsed::<Created>()?.id));
    }
    Err(errors::meaning(answer, name))
}
