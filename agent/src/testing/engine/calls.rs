//! The engine's calls.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use mcp_spec::image::ImageRef;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer};
use tokio::sync::broadcast;

use super::{ScriptedEngine, State};
use crate::runtime::{
    ContainerRequest, EngineEvent, EngineFacts, EngineName, ExecOutcome, ImageFacts, KeepTag,
    LogLine, LogOptions, PullProgress, Runtime, RuntimeError,
};

const fn facts(id: ImageId) -> ImageFacts {
    ImageFacts {
        id,
        digest: None,
        size_bytes: 1,
    }
}

/// The names of what bears a label with this value.
fn with_label(
    things: &BTreeMap<String, BTreeMap<String, String>>,
    label: &str,
    value: &str,
) -> Vec<String> {
    let mut names = Vec::new();
    for (name, labels) in things {
        if labels.get(label).map(String::as_str) == Some(value) {
            names.push(name.clone());
        }
    }
    names
}

impl ScriptedEngine {
    /// A call that may change something.
    fn changing(&self, name: &'static str) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let mut state = self.call(name)?;
        state.changes += 1;
        Ok(state)
    }
}

#[async_trait]
impl Runtime for ScriptedEngine {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let state = self.call("facts")?;
        Ok(EngineFacts {
            name: EngineName::Podman,
            version: "4.3.1".to_owned(),
            rootless: false,
            limits: true,
            shares_pids: state.shares_pids,
        })
    }

    async fn store(&self) -> Result<String, RuntimeError> {
        Ok(self.state().store.clone())
    }

    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError> {
        // A real engine lets others run meanwhile.
        tokio::task::yield_now().await;
        let state = self.call("list")?;
        Ok(state
            .containers
            .values()
            .cloned()
            .map(|mut live| {
                live.fields.clear();
                live.addresses.clear();
                live.started_at = None;
                live.finished_at = None;
                if let ContainerState::Running { pid } = &mut live.state {
                    *pid = None;
                }
                live
            })
            .collect())
    }

    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError> {
        tokio::task::yield_now().await;
        let mut state = self.call("inspect")?;
        let id = ContainerId::new(id_or_name);
        if let Some(live) = state.stale.get_mut(&id).and_then(VecDeque::pop_front) {
            return Ok(Some(live));
        }
        Ok(state
            .containers
            .values()
            .find(|live| live.id == id || live.name == id_or_name)
            .cloned())
    }

    async fn image(&self, image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError> {
        let state = self.call("image")?;
        let reference = image.to_string();
        Ok((!state.missing.contains(&reference)).then(|| facts(Self::image_id(&reference))))
    }

    async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError> {
        let state = self.call("image_by_id")?;
        let mut missing = state.missing.iter();
        let is_missing = missing.any(|reference| Self::image_id(reference) == *id);
        Ok((!is_missing).then(|| facts(id.clone())))
    }

    async fn pull(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError> {
        let reference = image.to_string();
        while self.state().holds_pulls {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut state = self.call("pull")?;
        progress(PullProgress {
            current_bytes: 1,
            total_bytes: 1,
        });
        state.missing.remove(&reference);
        Ok(facts(Self::image_id(&reference)))
    }

    async fn tag(&self, id: &ImageId, name: &KeepTag) -> Result<(), RuntimeError> {
        let mut state = self.changing("tag")?;
        state.tags.insert(name.clone(), id.clone());
        Ok(())
    }

    async fn untag(&self, name: &KeepTag) -> Result<(), RuntimeError> {
        let mut state = self.changing("untag")?;
        state.tags.remove(name);
        Ok(())
    }

    async fn kept(&self) -> Result<Vec<KeepTag>, RuntimeError> {
        let state = self.call("kept")?;
        Ok(state.tags.keys().cloned().collect())
    }

    async fn create(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        let mut state = self.changing("create")?;
        if state.is_taken(&request.name) {
            return Err(RuntimeError::NameTaken {
                name: request.name.clone(),
            });
        }
        state.made += 1;
        let id = ContainerId::new(format!("made{:08}", state.made));
        let mut labels = request.spec.labels.clone();
        labels.extend(request.labels.clone());
        let live = LiveContainer {
            id: id.clone(),
            name: request.name.clone(),
            image_id: request.image.clone(),
            image_name: request.spec.image.to_string(),
            state: ContainerState::Created,
            labels,
            started_at: None,
            finished_at: None,
            fields: BTreeMap::from([("image".to_owned(), request.image.to_string())]),
            addresses: BTreeMap::new(),
        };
        state.containers.insert(id.clone(), live);
        state.specs.insert(id.clone(), request.spec.clone());
        Ok(id)
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.changing("start")?;
        if state.refuses_start || state.port_is_taken(id) {
            return Err(RuntimeError::PortTaken {
                cause: "address already in use".to_owned(),
            });
        }
        if state.stuck.contains(id) {
            return Err(RuntimeError::Stuck {
                cause: format!("task {id}: already exists"),
            });
        }
        let started_at = Timestamp::UNIX_EPOCH + Duration::from_secs((state.starts + 1).into());
        let state = &mut *state;
        let runs = |live: &LiveContainer| live.state.is_running();
        if !state.containers.get(id).is_some_and(runs) {
            let mishap = state.mishap(id);
            state.mishaps.extend(mishap);
        }
        let Some(live) = state.containers.get_mut(id) else {
            return Err(RuntimeError::NotFound {
                what: format!("container {id}"),
            });
        };
        if live.state == ContainerState::Paused {
            live.state = ContainerState::Running { pid: None };
        }
        if !live.state.is_running() {
            state.starts += 1;
            live.started_at = Some(started_at);
            live.finished_at = None;
            if let Some((field, value)) = &state.odd {
                live.fields.insert(field.clone(), value.clone());
            }
            live.state = match state.exits.get(&live.image_id) {
                Some(code) => ContainerState::Exited {
                    code: *code,
                    oom: false,
                },
                None => ContainerState::Running { pid: None },
            };
        }
        self.tell(id, "start", None);
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, _grace: Duration) -> Result<(), RuntimeError> {
        let runs = {
            let state = self.changing("stop")?;
            let Some(live) = state.containers.get(id) else {
                return Err(RuntimeError::NotFound {
                    what: format!("container {id}"),
                });
            };
            live.state.is_running()
        };
        if runs {
            self.exit(id.as_str(), 143, Timestamp::UNIX_EPOCH, false);
        }
        Ok(())
    }

    async fn signal(&self, _id: &ContainerId, _signal: &str) -> Result<(), RuntimeError> {
        drop(self.changing("signal")?);
        Ok(())
    }

    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), RuntimeError> {
        let mut state = self.changing("rename")?;
        let holder = state.named(name);
        if state.is_taken(name) && holder.as_ref() != Some(id) {
            return Err(RuntimeError::NameTaken {
                name: name.to_owned(),
            });
        }
        let Some(live) = state.containers.get_mut(id) else {
            return Err(RuntimeError::NotFound {
                what: format!("container {id}"),
            });
        };
        name.clone_into(&mut live.name);
        Ok(())
    }

    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        let removed = {
            let mut state = self.changing("remove")?;
            state.storage.remove(id_or_name);
            let id = state.named(id_or_name);
            if let Some(id) = &id {
                state.specs.remove(id);
            }
            id
        };
        if let Some(id) = removed {
            self.destroy(id.as_str());
        }
        Ok(())
    }

    async fn ensure_network(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let mut state = self.changing("ensure_network")?;
        let is_new = !state.networks.contains_key(name);
        state
            .networks
            .entry(name.to_owned())
            .or_insert_with(|| labels.clone());
        Ok(is_new)
    }

    async fn networks(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        let state = self.call("networks")?;
        Ok(with_label(&state.networks, label, value))
    }

    async fn remove_network(&self, name: &str) -> Result<bool, RuntimeError> {
        let mut state = self.changing("remove_network")?;
        if state.network_is_used(name) {
            return Ok(false);
        }
        Ok(state.networks.remove(name).is_some())
    }

    async fn ensure_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let mut state = self.changing("ensure_volume")?;
        let is_new = !state.volumes.contains_key(name);
        state
            .volumes
            .entry(name.to_owned())
            .or_insert_with(|| labels.clone());
        Ok(is_new)
    }

    async fn volumes(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        let state = self.call("volumes")?;
        Ok(with_label(&state.volumes, label, value))
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let mut state = self.changing("remove_volume")?;
        if state.volume_is_used(name) {
            return Err(RuntimeError::Refused {
                call: "remove_volume",
                status: 409,
                message: "volume is in use".to_owned(),
            });
        }
        state.volumes.remove(name);
        Ok(())
    }

    async fn exec(
        &self,
        _id: &ContainerId,
        _command: &[String],
        _timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let state = self.call("exec")?;
        match &state.exec {
            Some(outcome) => Ok(outcome.clone()),
            None => Self::unscripted("exec"),
        }
    }

    async fn logs(
        &self,
        _id: &ContainerId,
        _options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        drop(self.call("logs")?);
        let line = LogLine {
            stderr: false,
            at: None,
            line: b"a line".to_vec(),
        };
        Ok(stream::iter([Ok(line)]).boxed())
    }

    async fn events(
        &self,
    ) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
        drop(self.call("events")?);
        let receiver = self
            .shared
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .subscribe();
        Ok(
            stream::unfold(receiver, async |mut receiver| match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some((
                    Err(RuntimeError::Uncertain {
                        call: "events",
                        cause: format!("{missed} events were lost"),
                    }),
                    receiver,
                )),
                Err(broadcast::error::RecvError::Closed) => None,
            })
            .boxed(),
        )
    }
}
