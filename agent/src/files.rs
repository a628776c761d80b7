//! Files below services' folders: pushed, pulled, listed, and put back.
//!
//! Whoever asks gives a service and a path, and never a place on the node: [`handle`] opens it beneath the service's folder.
//! A container may own that folder and change it at any moment, so nothing here believes a name twice. A push appears whole or not at all
//! ([`push`]), what it replaced is kept ([`versions`]), and what a crash cut off is swept at the next start ([`intents`]).
//! Under an engine without root all of it is done in the engine's user namespace ([`errands`]).
//!
//! Bounds: so many transfers at a time, so many bytes a file and a service, and room that stays free on the disk, as the
//! node's owner says in `[files]`; two transfers never write one file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use hyper::body::Bytes;
use mcp_spec::name::ServiceName;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc};

use crate::config::{Config, Engine, FilesConfig};
use crate::runtime::{EngineFacts, Runtime, UserNamespace};

pub mod errands;
pub mod error;
pub(crate) mod handle;
mod intents;
pub(crate) mod list;
pub mod path;
pub(crate) mod pull;
pub(crate) mod push;
#[cfg(test)]
mod tests;
pub(crate) mod undo;
mod versions;

use errands::{Done, Work};
use error::FileError;
use handle::Places;
use list::{List, Listing};
use path::FilePath;
use pull::{Facts, Outlet, Pull};
use push::{Push, Pushed};
use undo::{Undo, Undone};

/// The files of a node's services.
#[derive(Debug)]
pub struct Files {
    places: Places,
    config: FilesConfig,
    engine_kind: Engine,
    runtime: Arc<dyn Runtime>,
    engine: Arc<ArcSwapOption<EngineFacts>>,
    /// A process in the engine's user namespace, and the namespace's name.
    namespace: Mutex<Option<(u32, PathBuf)>>,
    /// Whether what was cut off is cleared away; held by transfers, so that none is taken for such.
    swept: RwLock<bool>,
    changing: Arc<Mutex<BTreeSet<(ServiceName, FilePath)>>>,
    expected: Arc<Mutex<BTreeMap<ServiceName, u64>>>,
}

/// A piece of a file that leaves.
#[derive(Debug)]
pub(crate) enum Piece {
    /// What comes.
    Begin(Facts),
    /// The next bytes.
    Bytes(Vec<u8>),
}

/// A file that is being changed; free again when it is dropped.
struct Changing {
    all: Arc<Mutex<BTreeSet<(ServiceName, FilePath)>>>,
    key: (ServiceName, FilePath),
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.key);
    }
}

/// Bytes that are on their way to a service.
struct Expected {
    all: Arc<Mutex<BTreeMap<ServiceName, u64>>>,
    service: ServiceName,
    bytes: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = all.get_mut(&self.service) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                all.remove(&self.service);
            }
        }
    }
}

/// The bytes of a push, as they arrive.
struct Inlet {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for Inlet {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.chunk.split_to(into.len().min(self.chunk.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

impl Outlet for mpsc::Sender<Piece> {
    fn begin(&mut self, facts: Facts) -> io::Result<()> {
        self.blocking_send(Piece::Begin(facts))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.blocking_send(Piece::Bytes(bytes.to_vec()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Work that sends nothing.
struct Nowhere;

impl Outlet for Nowhere {
    fn begin(&mut self, _: Facts) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

impl Files {
    /// The files below the configured folder.
    #[must_use]
    pub fn new(
        config: &Config,
        runtime: Arc<dyn Runtime>,
        engine: Arc<ArcSwapOption<EngineFacts>>,
    ) -> Self {
        let mut protected = vec![
            config.file.clone(),
            config.runtime.socket.clone(),
            config.tls.cert.clone(),
            config.tls.key.clone(),
            config.trust.owners.clone(),
            config.trust.denied_keys.clone(),
        ];
        protected.extend(config.auth.external.iter().map(|it| it.keys.file.clone()));
        Self {
            places: Places {
                services_dir: config.services_dir.clone(),
                data_dir: config.data_dir.clone(),
                protected,
            },
            config: config.files.clone(),
            engine_kind: config.runtime.engine,
            runtime,
            engine,
            namespace: Mutex::default(),
            swept: RwLock::new(false),
            changing: Arc::default(),
            expected: Arc::default(),
        }
    }

    /// What the node's owner allows.
    #[must_use]
    pub const fn config(&self) -> &FilesConfig {
        &self.config
    }

    /// Clears away what was cut off, where that is not done yet.
    pub async fn sweep(&self) {
        if let Err(error) = self.ready().await {
            tracing::debug!(%error, "what transfers left behind is cleared away before the next one");
        }
    }

    /// Takes a file in, from `chunks`.
    pub(crate) async fn push(
        &self,
        mut push: Push,
        chunks: mpsc::Receiver<Bytes>,
    ) -> Result<Pushed, FileError> {
        let _ready = self.ready().await?;
        let _changing = self.changing(&push.service, &push.path)?;
        let expected = self.expect(&push.service, push.bytes);
        push.allowed.expected = expected.1;
        let inlet = Inlet {
            chunks,
            chunk: Bytes::new(),
        };
        match self.work(Work::Push(push), inlet, Nowhere).await? {
            Done::Pushed(pushed) => Ok(pushed),
            other => Err(odd(&other)),
        }
    }

    /// Reads a file into `pieces`.
    pub(crate) async fn pull(
        &self,
        pull: Pull,
        pieces: mpsc::Sender<Piece>,
    ) -> Result<(), FileError> {
        let _ready = self.ready().await?;
        match self.work(Work::Pull(pull), io::empty(), pieces).await? {
            Done::Pulled => Ok(()),
            other => Err(odd(&other)),
        }
    }

    /// Lists a folder.
    pub(crate) async fn list(&self, list: List) -> Result<Listing, FileError> {
        let _ready = self.ready().await?;
        match self.work(Work::List(list), io::empty(), Nowhere).await? {
            Done::Listed(listing) => Ok(listing),
            other => Err(odd(&other)),
        }
    }

    /// Puts back what a push replaced.
    pub(crate) async fn undo(&self, undo: Undo) -> Result<Undone, FileError> {
        let _ready = self.ready().await?;
        let _changing = self.changing(&undo.service, &undo.path)?;
        match self.work(Work::Undo(undo), io::empty(), Nowhere).await? {
            Done::Undone(undone) => Ok(undone),
            other => Err(odd(&other)),
        }
    }

    fn changing(&self, service: &ServiceName, path: &FilePath) -> Result<Changing, FileError> {
        let key = (service.clone(), path.clone());
        let mut all = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(key.clone()) {
            return Err(FileError::Busy {
                place: format!("{service}:{path}"),
            });
        }
        Ok(Changing {
            all: Arc::clone(&self.changing),
            key,
        })
    }

    /// Says that bytes are on their way; gives how many others are.
    fn expect(&self, service: &ServiceName, bytes: u64) -> (Expected, u64) {
        let mut all = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let others = all.entry(service.clone()).or_default();
        let before = *others;
        *others = others.saturating_add(bytes);
        let expected = Expected {
            all: Arc::clone(&self.expected),
            service: service.clone(),
            bytes,
        };
        (expected, before)
    }

    /// Waits until nothing is left of what was cut off; held while a transfer is under way.
    async fn ready(&self) -> Result<RwLockReadGuard<'_, bool>, FileError> {
        let swept = self.swept.read().await;
        if *swept {
            return Ok(swept);
        }
        drop(swept);
        let mut swept = self.swept.write().await;
        if !*swept {
            match self.work(Work::Sweep, io::empty(), Nowhere).await {
                Err(error @ FileError::Namespace { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "what a transfer left behind stays until the next start");
                }
                Ok(_) => {}
            }
            *swept = true;
        }
        Ok(swept.downgrade())
    }

    /// Does the work where the engine's containers' ids are ids.
    async fn work(
        &self,
        work: Work,
        mut input: impl Read + Send + 'static,
        mut to: impl Outlet + Send + 'static,
    ) -> Result<Done, FileError> {
        let namespace = self.namespace().await?;
        let places = self.places.clone();
        crate::blocking::blocking(move || match namespace {
            None => errands::here(&places, &work, &mut input, &mut to),
            Some(pid) => errands::inside(pid, &places, work, &mut input, &mut to),
        })
        .await
    }

    /// A process in the engine's user namespace; none where there is no such namespace.
    async fn namespace(&self) -> Result<Option<u32>, FileError> {
        if self
            .engine
            .load()
            .as_ref()
            .is_some_and(|facts| !facts.rootless)
        {
            return Ok(None);
        }
        let name_of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let known = {
            let known = self
                .namespace
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.clone()
        };
        if let Some((pid, name)) = known
            && name_of(pid).as_ref() == Some(&name)
        {
            return Ok(Some(pid));
        }
        match self.runtime.user_namespace().await {
            UserNamespace::Shared => Ok(None),
            UserNamespace::Own { pid } => {
                let mut known = self
                    .namespace
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *known = name_of(pid).map(|name| (pid, name));
                Ok(Some(pid))
            }
            // With the engine away its files can be mended all the same, where it has no namespace of its own.
            UserNamespace::Unknown { .. }
                if self.engine_kind == Engine::Docker || rustix::process::geteuid().is_root() =>
            {
                Ok(None)
            }
            UserNamespace::Unknown { why } => Err(FileError::Namespace { why }),
        }
    }
}

/// An answer to another question, which no errand gives.
fn odd(done: &Done) -> FileError {
    FileError::Namespace {
        why: format!("`mcp-agent files` answered {done:?}")
            .chars()
            .take(200)
            .collect(),
    }
}
