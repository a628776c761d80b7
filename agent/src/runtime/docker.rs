//! [`Runtime`] over the Docker API, which podman's service and dockerd both speak.
//!
//! One HTTP client with kept connections carries every call ([`http`]); bollard gives docker's
//! bodies their types. Where podman's docker-compatible calls fall short its own are used
//! ([`libpod`]).

mod capture;
mod compile;
mod create;
mod errors;
mod events;
mod exec;
mod frames;
mod gateway;
mod http;
mod images;
mod libpod;
mod logs;
mod namespace;
mod normalise;
#[cfg(test)]
mod samples;
mod session;
mod socket;
mod storage;
mod users;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper::StatusCode;
use mcp_spec::image::ImageRef;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer};
use serde::Deserialize;
use serde_json::{Value, json};

use self::http::{Answer, CHANGE_LIMIT, Call, Http, encoded};
use self::session::Sessions;
pub use self::socket::{EngineSocket, SocketError};
use super::{
    Capture, ContainerRequest, EngineEvent, EngineFacts, EngineName, ExecOutcome, ImageFacts,
    KeepTag, LogLine, LogOptions, PullProgress, Runtime, RuntimeError, UserNamespace,
};
use crate::secrets::mask::Mask;

/// What an engine's answer says of containers, be it a list or the inspection of one: nothing where it is neither.
/// For those who hold the reader against answers that no engine gives.
#[must_use]
pub fn read_containers(answer: &[u8]) -> Vec<LiveContainer> {
    match serde_json::from_slice(answer) {
        Ok(Value::Array(entries)) => entries.iter().filter_map(normalise::listed).collect(),
        Ok(answer) => normalise::inspected(&answer).into_iter().collect(),
        Err(_) => Vec::new(),
    }
}

/// What a stop may take beyond the grace: the kill, the network, the engine's bookkeeping.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// How long a removal that someone else began is waited for.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// An engine behind a socket.
#[derive(Debug)]
pub struct DockerRuntime {
    http: Http,
    sessions: Sessions,
    mask: Mask,
}

impl DockerRuntime {
    /// The engine at `socket`. Connects when it is first asked something.
    #[must_use]
    pub fn new(socket: EngineSocket) -> Self {
        Self {
            http: Http::new(socket),
            sessions: Sessions::default(),
            mask: Mask::default(),
        }
    }

    /// The same, with what hides values in what containers write.
    #[must_use]
    pub fn behind(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    fn hidden(&self, outcome: ExecOutcome) -> ExecOutcome {
        match outcome {
            ExecOutcome::Exited { code, output } => ExecOutcome::Exited {
                code,
                output: self.mask.hide_text(output),
            },
            ExecOutcome::TimedOut => ExecOutcome::TimedOut,
        }
    }

    /// Sends a call under the engine's API version.
    async fn send(&self, call: impl FnOnce(&str) -> Call) -> Result<Answer, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        self.forgetting(self.http.send(call(&session.prefix)).await)
    }

    /// What went away may come back as another release: the next call asks again.
    fn forgetting<T>(&self, result: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        if result.as_ref().is_err_and(RuntimeError::is_away) {
            self.sessions.forget();
        }
        result
    }

    async fn engine(&self) -> Result<EngineName, RuntimeError> {
        Ok(self.sessions.current(&self.http).await?.engine)
    }

    async fn inspect_raw(&self, id_or_name: &str) -> Result<Option<Value>, RuntimeError> {
        let answer = self
            .send(|prefix| {
                let path = format!("{prefix}/containers/{}/json", encoded(id_or_name));
                Call::get("inspect", path)
            })
            .await?;
        if errors::is_missing(&answer) {
            return Ok(None);
        }
        answer.ok()?.parsed().map(Some)
    }

    /// Whether any container, running or not, is attached to a network.
    async fn network_has_containers(&self, name: &str) -> Result<bool, RuntimeError> {
        let filters = encoded(&json!({ "network": [name] }).to_string());
        let answer = self
            .send(|prefix| {
                let path = format!("{prefix}/containers/json?all=1&filters={filters}");
                Call::get("list", path)
            })
            .await?
            .ok()?;
        let found: Vec<Value> = answer.parsed()?;
        Ok(!found.is_empty())
    }

    /// A post to a container that changes it, with 304 for what is so already.
    async fn post_to(
        &self,
        name: &'static str,
        id: &str,
        path: String,
        limit: Duration,
    ) -> Result<(), RuntimeError> {
        let answer = self
            .send(|prefix| {
                let path = format!("{prefix}/containers/{}/{path}", encoded(id));
                Call::post(name, path).within(limit)
            })
            .await?;
        if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED {
            return Ok(());
        }
        Err(errors::meaning(&answer, id))
    }

    /// After a refusal: lets a container that is paused go on, which engines want before all else.
    async fn goes_on_again(&self, id: &ContainerId, refusal: &RuntimeError) -> bool {
        if refusal.is_away() {
            return false;
        }
        let is_paused = matches!(
            self.inspect(id.as_str()).await,
            Ok(Some(live)) if live.state == ContainerState::Paused
        );
        is_paused
            && self
                .post_to("unpause", id.as_str(), "unpause".to_owned(), CHANGE_LIMIT)
                .await
                .is_ok()
    }

    /// The names of what a list call gives under `key`, for one label.
    async fn labelled(
        &self,
        call: &'static str,
        key: Option<&str>,
        label: &str,
        value: &str,
    ) -> Result<Vec<String>, RuntimeError> {
        let filters = encoded(&json!({ "label": [format!("{label}={value}")] }).to_string());
        let answer = self
            .send(|prefix| Call::get(call, format!("{prefix}/{call}?filters={filters}")))
            .await?
            .ok()?;
        let body: Value = answer.parsed()?;
        let entries = key.map_or(Some(&body), |key| body.get(key));
        let mut names: Vec<String> = entries
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.get("Name")?.as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Whether a network or volume of exactly this name exists.
    async fn exists(&self, call: &'static str, name: &str) -> Result<bool, RuntimeError> {
        let answer = self
            .send(|prefix| Call::get(call, format!("{prefix}/{call}/{}", encoded(name))))
            .await?;
        if errors::is_missing(&answer) {
            return Ok(false);
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Named {
            name: String,
        }
        // The engines take the start of an id for a name as well.
        Ok(answer.ok()?.parsed::<Named>()?.name == name)
    }

    /// Makes a network or volume; one that came into being meanwhile is no error.
    async fn make(
        &self,
        call: &'static str,
        name: &str,
        body: &Value,
    ) -> Result<bool, RuntimeError> {
        let answer = self
            .send(|prefix| Call::post(call, format!("{prefix}/{call}/create")).json(body))
            .await?;
        if answer.status.is_success() {
            return Ok(true);
        }
        if errors::exists_already(&answer) {
            return Ok(false);
        }
        Err(errors::meaning(&answer, name))
    }

    /// Removes a container, with its anonymous volumes or without.
    async fn removed(&self, id_or_name: &str, volumes: bool) -> Result<(), RuntimeError> {
        let answer = self
            .send(|prefix| {
                let path = format!(
                    "{prefix}/containers/{}?force=1&v={}",
                    encoded(id_or_name),
                    u8::from(volumes)
                );
                Call::delete("remove", path)
            })
            .await?;
        if answer.status.is_success() || errors::is_missing(&answer) {
            return Ok(());
        }
        if !answer.message().contains("already in progress") {
            return Err(errors::meaning(&answer, id_or_name));
        }
        let end = Instant::now() + REMOVAL_WAIT;
        while self.inspect(id_or_name).await?.is_some() {
            if Instant::now() > end {
                return Err(errors::meaning(&answer, id_or_name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        self.forgetting(self.sessions.facts(&self.http).await)
    }

    async fn store(&self) -> Result<String, RuntimeError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Info {
            docker_root_dir: String,
        }
        let engine = self.engine().await?;
        let info: Info = self
            .send(|prefix| Call::get("info", format!("{prefix}/info")).within(libpod::INFO_LIMIT))
            .await?
            .ok()?
            .parsed()?;
        Ok(format!("{} {}", engine.as_str(), info.docker_root_dir))
    }

    async fn user_namespace(&self) -> UserNamespace {
        namespace::of(self).await
    }

    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError> {
        let answer = self
            .send(|prefix| Call::get("list", format!("{prefix}/containers/json?all=1")))
            .await?
            .ok()?;
        let entries: Vec<Value> = answer.parsed()?;
        entries
            .iter()
            .map(|entry| {
                normalise::listed(entry).ok_or_else(|| RuntimeError::Uncertain {
                    call: "list",
                    cause: "an entry has no id or no name".to_owned(),
                })
            })
            .collect()
    }

    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError> {
        let Some(raw) = self.inspect_raw(id_or_name).await? else {
            return Ok(None);
        };
        let container = normalise::inspected(&raw).ok_or_else(|| RuntimeError::Uncertain {
            call: "inspect",
            cause: "the answer is no container".to_owned(),
        })?;
        // The engines take the start of an id for a name as well.
        let meant = container.id.as_str() == id_or_name || container.name == id_or_name;
        Ok(meant.then_some(container))
    }

    async fn capture(
        &self,
        id: &ContainerId,
        key: &ComponentKey,
    ) -> Result<Option<Capture>, RuntimeError> {
        self.captured(id, key).await
    }

    async fn image(&self, image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError> {
        let engine = self.engine().await?;
        let reference = images::local_name(image);
        let answer = self
            .send(|prefix| images::inspect(prefix, &reference))
            .await?;
        images::facts(&answer, engine, Some(image))
    }

    async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError> {
        let engine = self.engine().await?;
        let answer = self
            .send(|prefix| images::inspect(prefix, id.as_str()))
            .await?;
        images::facts(&answer, engine, None)
    }

    async fn pull(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        self.forgetting(images::pull(&self.http, &session, image, progress).await)
    }

    async fn tag(&self, id: &ImageId, name: &KeepTag) -> Result<(), RuntimeError> {
        let answer = self.send(|prefix| images::tag(prefix, id, name)).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(errors::meaning(&answer, id.as_str()))
    }

    async fn kept(&self) -> Result<Vec<KeepTag>, RuntimeError> {
        images::kept(&self.send(images::list).await?)
    }

    async fn untag(&self, name: &KeepTag) -> Result<(), RuntimeError> {
        let answer = self.send(|prefix| images::untag(prefix, name)).await?;
        // The last name of an image that a container uses stays, and with it the image.
        if answer.status.is_success() || errors::is_missing(&answer) || errors::is_in_use(&answer) {
            return Ok(());
        }
        Err(errors::meaning(&answer, &name.full_repository()))
    }

    async fn create(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        self.made(request).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let started = self
            .post_to("start", id.as_str(), "start".to_owned(), CHANGE_LIMIT)
            .await;
        match started {
            Err(error) if self.goes_on_again(id, &error).await => Ok(()),
            started => started,
        }
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let path = format!("stop?t={seconds}");
        let limit = grace + STOP_MARGIN;
        let stopped = self.post_to("stop", id.as_str(), path.clone(), limit).await;
        match stopped {
            Err(error) if self.goes_on_again(id, &error).await => {
                self.post_to("stop", id.as_str(), path, limit).await
            }
            stopped => stopped,
        }
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let path = format!("kill?signal={}", encoded(signal));
        self.post_to("signal", id.as_str(), path, CHANGE_LIMIT)
            .await
    }

    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), RuntimeError> {
        let answer = self
            .send(|prefix| {
                let (id, name) = (encoded(id.as_str()), encoded(name));
                Call::post(
                    "rename",
                    format!("{prefix}/containers/{id}/rename?name={name}"),
                )
            })
            .await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(match errors::meaning(&answer, name) {
            RuntimeError::NotFound { .. } => RuntimeError::NotFound {
                what: id.as_str().to_owned(),
            },
            other => other,
        })
    }

    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        self.removed(id_or_name, true).await
    }

    async fn remove_but_volumes(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        self.removed(id_or_name, false).await
    }

    async fn free_name(&self, name: &str) -> Result<Option<ContainerId>, RuntimeError> {
        if self.engine().await? == EngineName::Podman
            && let Some(id) = storage::builder_of(self, name).await?
        {
            return Ok(Some(id));
        }
        self.removed(name, true).await.map(|()| None)
    }

    async fn ensure_network(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        if self.exists("networks", name).await? {
            return Ok(false);
        }
        let body =
            json!({ "Name": name, "CheckDuplicate": true, "Driver": "bridge", "Labels": labels });
        self.make("networks", name, &body).await
    }

    async fn networks(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.labelled("networks", None, label, value).await
    }

    async fn remove_network(&self, name: &str) -> Result<bool, RuntimeError> {
        // Docker counts only running containers as users.
        if self.network_has_containers(name).await? {
            return Ok(false);
        }
        let answer = self
            .send(|prefix| {
                Call::delete(
                    "remove network",
                    format!("{prefix}/networks/{}", encoded(name)),
                )
            })
            .await?;
        if answer.status.is_success() {
            return Ok(true);
        }
        if errors::is_missing(&answer) || errors::is_in_use(&answer) {
            return Ok(false);
        }
        Err(errors::meaning(&answer, name))
    }

    async fn ensure_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        if self.exists("volumes", name).await? {
            return Ok(false);
        }
        let body = json!({ "Name": name, "Driver": "local", "Labels": labels });
        self.make("volumes", name, &body).await
    }

    async fn volumes(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.labelled("volumes", Some("Volumes"), label, value)
            .await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let answer = self
            .send(|prefix| {
                Call::delete(
                    "remove volume",
                    format!("{prefix}/volumes/{}", encoded(name)),
                )
            })
            .await?;
        if answer.status.is_success() || errors::is_missing(&answer) {
            return Ok(());
        }
        Err(errors::meaning(&answer, name))
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        self.forgetting(exec::run(&self.http, &session, id, command, timeout).await)
            .map(|outcome| self.hidden(outcome))
    }

    async fn check(
        &self,
        container: &LiveContainer,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        let asked = serde_json::to_string(&libpod::health_test(command)).expect("strings are JSON");
        let known = container.fields.get("health") == Some(&asked);
        if session.engine == EngineName::Podman && known {
            let checked = exec::health_check(&self.http, &session, container, command, timeout);
            self.forgetting(checked.await)
                .map(|outcome| self.hidden(outcome))
        } else {
            self.exec(&container.id, command, timeout).await
        }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        let lines = self.forgetting(
            logs::open(
                &self.http,
                session.engine,
                &session.prefix,
                id.as_str(),
                options,
            )
            .await,
        )?;
        let mask = self.mask.clone();
        Ok(lines
            .map_ok(move |mut line| {
                if let Cow::Owned(hidden) = mask.hide(&line.line) {
                    line.line = hidden;
                }
                line
            })
            .boxed())
    }

    async fn events(
        &self,
    ) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
        let session = self.sessions.current(&self.http).await?;
        self.forgetting(events::open(&self.http, &session.prefix).await)
    }
}
