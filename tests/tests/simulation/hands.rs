//! The engine in one life's hands: its calls, each judged by the model before it is made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use mcp_agent::runtime::{
    Capture, ContainerRequest, EngineEvent, EngineFacts, EngineName, ExecOutcome, ImageFacts,
    KeepTag, LogLine, LogOptions, PullProgress, Runtime, RuntimeError,
};
use mcp_spec::capture::Captured;
use mcp_spec::image::ImageRef;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer};
use tokio::sync::broadcast;

use super::engine::{Engine, image_id, not_found};
use super::history::NOWHERE;
use super::life::{Life, Moment};
use super::model::Deed;

/// The hold that one life has on the engine.
#[derive(Debug)]
pub(crate) struct Hands(pub(crate) Arc<Life>);

impl Hands {
    fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    async fn ask<T>(
        &self,
        call: &'static str,
        answer: impl FnOnce(&super::engine::State) -> T,
    ) -> Result<T, RuntimeError> {
        self.0.step(call, Moment::Look).await;
        let result = self.engine().ask(call, answer).await;
        if result.is_err() {
            self.engine().trace.line(|| format!("{call} failed"));
            self.engine().model.troubled();
        }
        self.0.step(call, Moment::Look).await;
        result
    }

    async fn change<T: Send + 'static>(
        &self,
        call: &'static str,
        about: &str,
        container: Option<&ContainerId>,
        took: Duration,
        effect: impl FnOnce(&Engine, &mut super::engine::State) -> Result<T, RuntimeError>
        + Send
        + 'static,
    ) -> Result<T, RuntimeError> {
        self.0.step(call, Moment::Act).await;
        let engine = self.engine();
        let result = engine.change(call, container.cloned(), took, effect).await;
        if result.is_err() {
            engine.model.troubled();
        }
        engine.trace.line(|| {
            let said = match &result {
                Ok(_) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            format!("{call} {about}: {said}")
        });
        self.0.step(call, Moment::Act).await;
        result
    }
}

impl Hands {
    /// The model's judgement of what the agent is about to do.
    async fn judge(&self, id: &ContainerId, deed: Deed) {
        if self.0.is_over() {
            return std::future::pending().await;
        }
        let engine = self.engine();
        let state = engine.state();
        let Some(container) = state.containers.get(id) else {
            return;
        };
        if deed == Deed::Started && container.runs() {
            return;
        }
        engine.model.judge(&state, container, &deed);
    }
}

fn shown(live: LiveContainer) -> LiveContainer {
    LiveContainer {
        fields: BTreeMap::new(),
        addresses: BTreeMap::new(),
        started_at: None,
        finished_at: None,
        state: match live.state {
            ContainerState::Running { .. } => ContainerState::Running { pid: None },
            other => other,
        },
        ..live
    }
}

fn facts_of(id: ImageId) -> ImageFacts {
    ImageFacts {
        id,
        digest: None,
        size_bytes: 1,
    }
}

#[async_trait]
impl Runtime for Hands {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        self.ask("facts", |_| EngineFacts {
            name: EngineName::Podman,
            version: "4.3.1".to_owned(),
            rootless: false,
            limits: true,
            shares_pids: false,
        })
        .await
    }

    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError> {
        self.ask("list", |state| {
            state
                .containers
                .values()
                .map(|container| shown(container.live.clone()))
                .collect()
        })
        .await
    }

    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError> {
        self.ask("inspect", |state| {
            state
                .containers
                .values()
                .find(|c| c.live.id.as_str() == id_or_name || c.live.name == id_or_name)
                .map(|container| container.live.clone())
        })
        .await
    }

    async fn capture(
        &self,
        id: &ContainerId,
        key: &ComponentKey,
    ) -> Result<Option<Capture>, RuntimeError> {
        self.ask("capture", |_| ()).await?;
        let mut state = self.engine().state();
        let Some(container) = state.containers.get_mut(id) else {
            return Ok(None);
        };
        container.captured = Some(container.runs());
        let image: ImageRef = container.live.image_name.parse().unwrap();
        Ok(Some(Capture {
            live: container.live.clone(),
            image_digest: None,
            captured: Captured::bare(key, &image),
        }))
    }

    async fn image(&self, image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError> {
        let reference = image.to_string();
        self.ask("image", |state| {
            state.images.get(&reference).cloned().map(facts_of)
        })
        .await
    }

    async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError> {
        self.ask("image_by_id", |state| {
            let found = state.images.values().find(|known| *known == id);
            found.cloned().map(facts_of)
        })
        .await
    }

    async fn pull(
        &self,
        image: &ImageRef,
        _progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError> {
        let reference = image.to_string();
        let mut took = self.engine().takes(50, 3000);
        if self.0.dice.chance(40) {
            // A slow registry spends no deadline.
            took = self.0.dice.millis(20_000, 90_000);
        }
        let about = reference.clone();
        self.change("pull", &about, None, took, move |_, state| {
            if reference.contains(NOWHERE) {
                return Err(RuntimeError::Pull {
                    image: reference,
                    cause: "manifest unknown".to_owned(),
                });
            }
            let id = image_id(&reference);
            state.images.insert(reference, id.clone());
            Ok(facts_of(id))
        })
        .await
    }

    async fn tag(&self, id: &ImageId, name: &KeepTag) -> Result<(), RuntimeError> {
        let (id, name) = (id.clone(), name.clone());
        self.change("tag", "an image", None, Duration::ZERO, move |_, state| {
            if !state.images.values().any(|known| *known == id) {
                return Err(RuntimeError::NotFound {
                    what: "image".to_owned(),
                });
            }
            state.tags.insert(name, id);
            Ok(())
        })
        .await
    }

    async fn untag(&self, name: &KeepTag) -> Result<(), RuntimeError> {
        let name = name.clone();
        self.change(
            "untag",
            "an image",
            None,
            Duration::ZERO,
            move |_, state| {
                state.tags.remove(&name);
                Ok(())
            },
        )
        .await
    }

    async fn kept(&self) -> Result<Vec<KeepTag>, RuntimeError> {
        self.ask("kept", |state| state.tags.keys().cloned().collect())
            .await
    }

    async fn create(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        let took = self.engine().takes(5, 120);
        let request = request.clone();
        let name = request.name.clone();
        if self.0.is_over() {
            return std::future::pending().await;
        }
        {
            let state = self.engine().state();
            self.engine().model.judge_making(&state, &request);
        }
        self.change("create", &name, None, took, move |engine, state| {
            engine.make(state, &request)
        })
        .await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let took = self.engine().takes(5, 200);
        let (engine, target) = (Arc::clone(self.engine()), id.clone());
        self.judge(id, Deed::Started).await;
        self.change(
            "start",
            id.short_name().as_str(),
            Some(id),
            took,
            move |_, state| engine.run(state, &target),
        )
        .await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let took = self.engine().takes(5, 400).min(grace);
        let target = id.clone();
        self.judge(id, Deed::Stopped).await;
        self.change(
            "stop",
            id.short_name().as_str(),
            Some(id),
            took,
            move |engine, state| {
                if !state.containers.contains_key(&target) {
                    return Err(not_found(&target));
                }
                engine.end(state, &target, 143);
                Ok(())
            },
        )
        .await
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let target = id.clone();
        let about = format!("{} {signal}", id.short_name());
        self.judge(id, Deed::Signalled).await;
        self.change(
            "signal",
            &about,
            Some(id),
            Duration::ZERO,
            move |_, state| {
                let runs = state.containers.get(&target).is_some_and(|c| c.runs());
                runs.then_some(()).ok_or_else(|| not_found(&target))
            },
        )
        .await
    }

    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), RuntimeError> {
        let (target, name) = (id.clone(), name.to_owned());
        let about = format!("{} to {name}", id.short_name());
        let took = self.engine().takes(1, 30);
        self.judge(id, Deed::Renamed(name.clone())).await;
        self.change("rename", &about, Some(id), took, move |engine, state| {
            engine.rename(state, &target, &name)
        })
        .await
    }

    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        let wanted = id_or_name.to_owned();
        let found = {
            let state = self.engine().state();
            let found = state
                .containers
                .values()
                .find(|c| c.live.id.as_str() == wanted || c.live.name == wanted);
            found.map(|c| c.live.id.clone())
        };
        let took = self.engine().takes(5, 150);
        let about = found
            .as_ref()
            .map_or_else(|| wanted.clone(), ShortName::short_name);
        if let Some(id) = &found {
            self.judge(id, Deed::Removed).await;
        }
        self.change(
            "remove",
            &about,
            found.as_ref(),
            took,
            move |engine, state| {
                let target = state
                    .containers
                    .values()
                    .find(|c| c.live.id.as_str() == wanted || c.live.name == wanted)
                    .map(|c| c.live.id.clone());
                if let Some(target) = target {
                    engine.take_away(state, &target);
                }
                Ok(())
            },
        )
        .await
    }

    async fn ensure_network(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let (name, labels) = (name.to_owned(), labels.clone());
        let about = name.clone();
        self.change(
            "ensure_network",
            &about,
            None,
            Duration::ZERO,
            move |_, state| {
                let is_new = !state.networks.contains_key(&name);
                state.networks.entry(name).or_insert(labels);
                Ok(is_new)
            },
        )
        .await
    }

    async fn networks(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.ask("networks", |state| labelled(&state.networks, label, value))
            .await
    }

    async fn remove_network(&self, name: &str) -> Result<bool, RuntimeError> {
        let name = name.to_owned();
        let about = name.clone();
        if !self.0.is_over() {
            let state = self.engine().state();
            self.engine().model.judge_network(&state, &name);
        }
        self.change(
            "remove_network",
            &about,
            None,
            Duration::ZERO,
            move |_, state| {
                // One that is in use stays, and the engine says so.
                let is_used = state
                    .containers
                    .values()
                    .any(|c| c.networks.contains(&name));
                Ok(!is_used && state.networks.remove(&name).is_some())
            },
        )
        .await
    }

    async fn ensure_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let (name, labels) = (name.to_owned(), labels.clone());
        let about = name.clone();
        self.change(
            "ensure_volume",
            &about,
            None,
            Duration::ZERO,
            move |_, state| {
                let is_new = !state.volumes.contains_key(&name);
                state.volumes.entry(name).or_insert(labels);
                Ok(is_new)
            },
        )
        .await
    }

    async fn volumes(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.ask("volumes", |state| labelled(&state.volumes, label, value))
            .await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let name = name.to_owned();
        let about = name.clone();
        self.change(
            "remove_volume",
            &about,
            None,
            Duration::ZERO,
            move |engine, state| {
                if state.volumes.get(&name).is_some_and(BTreeMap::is_empty) {
                    engine.trace.violation(format!(
                        "the volume {name} is somebody else's, and was removed"
                    ));
                }
                state.volumes.remove(&name);
                Ok(())
            },
        )
        .await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        _command: &[String],
        _timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let now = self.engine().now();
        let seen = self
            .ask("exec", |state| {
                let container = state.containers.get(id)?;
                let started = container.live.started_at.filter(|_| container.runs())?;
                let ran = Duration::try_from(now.duration_since(started)).unwrap_or_default();
                Some(
                    container
                        .behaviour
                        .healthy_after
                        .is_some_and(|after| ran >= after),
                )
            })
            .await?;
        match seen {
            Some(healthy) => Ok(ExecOutcome::Exited {
                code: i32::from(!healthy),
                output: String::new(),
            }),
            None => Err(not_found(id)),
        }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        _options: &LogOptions,
    ) -> Result<stream::BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        let there = self
            .ask("logs", |state| state.containers.contains_key(id))
            .await?;
        if !there {
            return Err(not_found(id));
        }
        let line = LogLine {
            stderr: false,
            at: None,
            line: b"a line".to_vec(),
        };
        Ok(stream::iter([Ok(line)]).boxed())
    }

    async fn events(
        &self,
    ) -> Result<stream::BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
        let receiver = self.ask("events", |_| self.engine().subscribe()).await?;
        let life = Arc::clone(&self.0);
        Ok(
            stream::unfold((receiver, life), async |(mut receiver, life)| {
                let event = receiver.recv().await;
                // Some take their time.
                if life.dice.chance(60) {
                    tokio::time::sleep(life.dice.millis(1, 3000)).await;
                }
                match event {
                    Ok(event) => Some((Ok(event), (receiver, life))),
                    Err(broadcast::error::RecvError::Lagged(_)) => Some((
                        Err(RuntimeError::Uncertain {
                            call: "events",
                            cause: "events were lost".to_owned(),
                        }),
                        (receiver, life),
                    )),
                    Err(broadcast::error::RecvError::Closed) => None,
                }
            })
            .boxed(),
        )
    }
}

fn labelled(
    things: &BTreeMap<String, BTreeMap<String, String>>,
    label: &str,
    value: &str,
) -> Vec<String> {
    things
        .iter()
        .filter(|(_, labels)| labels.get(label).map(String::as_str) == Some(value))
        .map(|(name, _)| name.clone())
        .collect()
}

/// The part of an id that tells containers of the model apart.
pub(crate) trait ShortName {
    fn short_name(&self) -> String;
}

impl ShortName for ContainerId {
    fn short_name(&self) -> String {
        format!(
            "#{}",
            self.as_str()
                .get(..12)
                .unwrap_or("?")
                .trim_start_matches('0')
        )
    }
}
