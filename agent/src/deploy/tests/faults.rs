//! Faults: what can befall one call of the engine or one write of the registry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use mcp_spec::image::ImageRef;
use mcp_spec::observed::{ContainerId, ImageId, LiveContainer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::registry::RegistryError;
use crate::runtime::{
    ContainerRequest, EngineEvent, EngineFacts, ExecOutcome, ImageFacts, KeepTag, LogLine,
    LogOptions, PullProgress, Runtime, RuntimeError,
};
use crate::testing::{Pace, ScriptedEngine, Work};

/// How long an effect may come after its call was given up.
const LATE: Duration = Duration::from_millis(800);

/// How long an engine that goes away stays away.
const AWAY: Duration = Duration::from_secs(20);

/// What befalls one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The agent is killed; the call was not made.
    CrashBefore,
    /// The agent is killed; the call was made.
    CrashAfter,
    /// The agent is killed; the engine goes on with the call meanwhile.
    CrashLate,
    /// The call is refused.
    Refused,
    /// The call's time is up, and nothing came of it.
    Timeout,
    /// The call's time is up, and yet it was done.
    TimeoutDone,
    /// The call's time is up, and it is done a moment later.
    TimeoutLate,
    /// The engine goes away before the call, for a while.
    Away,
}

/// What kind of point it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A call of the engine that changes nothing.
    Look,
    /// A call of the engine that changes something.
    Change,
    /// A transaction of the registry.
    Write,
}

impl Kind {
    /// The faults that can befall it.
    pub(super) fn faults(self) -> &'static [Fault] {
        match self {
            Self::Look => &[
                Fault::CrashBefore,
                Fault::Refused,
                Fault::Timeout,
                Fault::Away,
            ],
            Self::Change => &[
                Fault::CrashBefore,
                Fault::CrashAfter,
                Fault::CrashLate,
                Fault::Refused,
                Fault::Timeout,
                Fault::TimeoutDone,
                Fault::TimeoutLate,
                Fault::Away,
            ],
            Self::Write => &[Fault::CrashBefore, Fault::CrashAfter, Fault::Refused],
        }
    }
}

/// The points that a run comes through, and the fault that befalls one of them; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    crashed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    armed: bool,
    points: Vec<(String, Kind)>,
    fault: Option<(usize, Fault)>,
    away_until: Option<Instant>,
    crash_after_write: bool,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            crashed: watch::Sender::new(false),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts points from now on, and lets one of them go wrong.
    pub(super) fn arm(&self, fault: Option<(usize, Fault)>) {
        self.0.crashed.send_replace(false);
        *self.state() = State {
            armed: true,
            fault,
            ..State::default()
        };
    }

    /// Lets everything go well again, and gives the points.
    pub(super) fn disarm(&self) -> Vec<(String, Kind)> {
        let mut state = self.state();
        state.armed = false;
        state.fault = None;
        std::mem::take(&mut state.points)
    }

    /// Returns when the agent was killed.
    pub(super) async fn crashed(&self) {
        let mut crashed = self.0.crashed.subscribe();
        // The sender lives as long as `self`.
        drop(crashed.wait_for(|crashed| *crashed).await);
    }

    fn reach(&self, name: &str, kind: Kind) -> Option<Fault> {
        let mut state = self.state();
        if !state.armed {
            return None;
        }
        let at = state.points.len();
        state.points.push((name.to_owned(), kind));
        state
            .fault
            .filter(|(point, _)| *point == at)
            .map(|(_, fault)| fault)
    }

    async fn crash<T>(&self) -> T {
        self.0.crashed.send_replace(true);
        std::future::pending().await
    }

    fn away(&self) -> Option<RuntimeError> {
        let until = self.state().away_until?;
        (Instant::now() < until).then(|| RuntimeError::Unreachable {
            socket: "/run/engine.sock".to_owned(),
            cause: "connection refused".to_owned(),
        })
    }
}

impl Pace for Faults {
    fn before(&self, work: Work) -> BoxFuture<'static, Result<(), RegistryError>> {
        let faults = self.clone();
        Box::pin(async move {
            let Work::Write(name) = work else {
                return Ok(());
            };
            match faults.reach(name, Kind::Write) {
                Some(Fault::CrashBefore) => faults.crash().await,
                Some(Fault::Refused) => Err(RegistryError::Locked),
                Some(Fault::CrashAfter) => {
                    faults.state().crash_after_write = true;
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    fn after(&self, work: Work) -> BoxFuture<'static, ()> {
        let faults = self.clone();
        Box::pin(async move {
            let crashes = matches!(work, Work::Write(_))
                && std::mem::take(&mut faults.state().crash_after_write);
            if crashes {
                faults.crash().await
            }
        })
    }
}

/// The scripted engine with its faults.
#[derive(Debug, Clone)]
pub(super) struct Faulty {
    pub(super) engine: ScriptedEngine,
    pub(super) faults: Faults,
    /// An engine makes one change after another: what comes late comes before what is asked for later.
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
}

fn timeout(call: &'static str) -> RuntimeError {
    RuntimeError::Uncertain {
        call,
        cause: "no answer in time".to_owned(),
    }
}

const fn refused(call: &'static str) -> RuntimeError {
    RuntimeError::Refused {
        call,
        status: 500,
        message: String::new(),
    }
}

/// Makes the call a moment later, and no other before it.
fn late<T, F, R>(engine: ScriptedEngine, call: F, changing: tokio::sync::OwnedMutexGuard<()>)
where
    T: Send + 'static,
    F: FnOnce(ScriptedEngine) -> R + Send + 'static,
    R: Future<Output = Result<T, RuntimeError>> + Send,
{
    tokio::spawn(async move {
        sleep(LATE).await;
        drop(call(engine).await);
        drop(changing);
    });
}

impl Faulty {
    async fn look<T>(
        &self,
        name: &'static str,
        answer: impl Future<Output = Result<T, RuntimeError>> + Send,
    ) -> Result<T, RuntimeError> {
        match self.faults.reach(name, Kind::Look) {
            Some(Fault::CrashBefore) => return self.faults.crash().await,
            Some(Fault::Refused) => return Err(refused(name)),
            Some(Fault::Timeout) => return Err(timeout(name)),
            Some(Fault::Away) => self.faults.state().away_until = Some(Instant::now() + AWAY),
            _ => {}
        }
        match self.faults.away() {
            Some(away) => Err(away),
            None => answer.await,
        }
    }

    async fn change<T, F, R>(&self, name: &'static str, call: F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: FnOnce(ScriptedEngine) -> R + Send + 'static,
        R: Future<Output = Result<T, RuntimeError>> + Send,
    {
        let engine = self.engine.clone();
        let changing = self.changing.clone().lock_owned().await;
        match self.faults.reach(name, Kind::Change) {
            Some(Fault::CrashBefore) => {
                drop(changing);
                return self.faults.crash().await;
            }
            Some(Fault::CrashAfter) => {
                drop(call(engine).await);
                drop(changing);
                return self.faults.crash().await;
            }
            Some(Fault::CrashLate) => {
                late(engine, call, changing);
                return self.faults.crash().await;
            }
            Some(Fault::Refused) => return Err(refused(name)),
            Some(Fault::Timeout) => return Err(timeout(name)),
            Some(Fault::TimeoutDone) => {
                drop(call(engine).await);
                return Err(timeout(name));
            }
            Some(Fault::TimeoutLate) => {
                late(engine, call, changing);
                return Err(timeout(name));
            }
            Some(Fault::Away) => self.faults.state().away_until = Some(Instant::now() + AWAY),
            None => {}
        }
        match self.faults.away() {
            Some(away) => Err(away),
            None => call(engine).await,
        }
    }
}

#[async_trait]
impl Runtime for Faulty {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        self.look("facts", self.engine.facts()).await
    }

    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError> {
        self.look("list", self.engine.list()).await
    }

    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError> {
        self.look("inspect", self.engine.inspect(id_or_name)).await
    }

    async fn image(&self, image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError> {
        self.look("image", self.engine.image(image)).await
    }

    async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError> {
        self.look("image_by_id", self.engine.image_by_id(id)).await
    }

    async fn pull(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError> {
        self.look("pull", self.engine.pull(image, progress)).await
    }

    async fn tag(&self, id: &ImageId, name: &KeepTag) -> Result<(), RuntimeError> {
        let (id, name) = (id.clone(), name.clone());
        self.change("tag", |engine| async move { engine.tag(&id, &name).await })
            .await
    }

    async fn untag(&self, name: &KeepTag) -> Result<(), RuntimeError> {
        let name = name.clone();
        self.change("untag", |engine| async move { engine.untag(&name).await })
            .await
    }

    async fn kept(&self) -> Result<Vec<KeepTag>, RuntimeError> {
        self.look("kept", self.engine.kept()).await
    }

    async fn create(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        let request = request.clone();
        self.change(
            "create",
            |engine| async move { engine.create(&request).await },
        )
        .await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.change("start", |engine| async move { engine.start(&id).await })
            .await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.change("stop", move |engine| async move {
            engine.stop(&id, grace).await
        })
        .await
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let (id, signal) = (id.clone(), signal.to_owned());
        self.change("signal", |engine| async move {
            engine.signal(&id, &signal).await
        })
        .await
    }

    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), RuntimeError> {
        let (id, name) = (id.clone(), name.to_owned());
        self.change(
            "rename",
            |engine| async move { engine.rename(&id, &name).await },
        )
        .await
    }

    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        let name = id_or_name.to_owned();
        self.change("remove", |engine| async move { engine.remove(&name).await })
            .await
    }

    async fn ensure_network(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let (name, labels) = (name.to_owned(), labels.clone());
        self.change("ensure_network", |engine| async move {
            engine.ensure_network(&name, &labels).await
        })
        .await
    }

    async fn networks(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.look("networks", self.engine.networks(label, value))
            .await
    }

    async fn remove_network(&self, name: &str) -> Result<bool, RuntimeError> {
        let name = name.to_owned();
        self.change("remove_network", |engine| async move {
            engine.remove_network(&name).await
        })
        .await
    }

    async fn ensure_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let (name, labels) = (name.to_owned(), labels.clone());
        self.change("ensure_volume", |engine| async move {
            engine.ensure_volume(&name, &labels).await
        })
        .await
    }

    async fn volumes(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError> {
        self.look("volumes", self.engine.volumes(label, value))
            .await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let name = name.to_owned();
        self.change("remove_volume", |engine| async move {
            engine.remove_volume(&name).await
        })
        .await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        self.look("exec", self.engine.exec(id, command, timeout))
            .await
    }

    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        self.look("logs", self.engine.logs(id, options)).await
    }

    async fn events(
        &self,
    ) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
        self.engine.events().await
    }
}
