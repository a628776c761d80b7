//! A proxy in front of an engine's socket that does what engines do on a bad day: it hangs, answers half
//! a document, does what it is asked and loses the answer.
//!
//! The agent's `runtime.socket` points at the proxy; whoever looks from outside asks the engine itself. A
//! [`Rule`] picks calls by their request line and says what befalls them, so many times or until it is
//! lifted. A call that no rule picks goes through untouched.
//!
//! One call a connection: the answer's end is the connection's, which every client copes with.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;

pub mod bed;
mod exchange;
pub mod sweep;

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It reaches nobody, and nobody answers.
    Hang,
    /// It waits first, and then goes through.
    Delay(Duration),
    /// It reaches nobody, and is refused with this status and message.
    Refuse(u16, &'static str),
    /// It reaches nobody, and the connection ends.
    Close,
    /// It is done; the connection ends without the answer.
    DropAnswer,
    /// It is done; nobody ever answers.
    HoldAnswer,
    /// It is done; half of the answer comes, and the connection ends.
    HalfAnswer,
    /// It is done; half of the answer comes, and nothing more.
    HalfAndHang,
    /// It is done; the answer is whole as HTTP, and its document is cut in half.
    HalfDocument,
    /// It is done; what is answered is no HTTP at all.
    Garbage,
    /// It is done; the answer comes drop by drop, with this pause between them.
    Drip(Duration),
    /// A stream whose every part comes twice.
    Doubled,
    /// A stream that stays open and tells nothing.
    Silent,
}

/// Picks calls and says what befalls them.
#[derive(Debug, Clone)]
pub struct Rule {
    method: &'static str,
    path: &'static str,
    fault: Fault,
    times: Option<u32>,
}

impl Rule {
    /// Every call of this method whose path, query included, has this part; an empty method or part picks
    /// all.
    #[must_use]
    pub fn new(method: &'static str, path: &'static str, fault: Fault) -> Self {
        Self {
            method,
            path,
            fault,
            times: None,
        }
    }

    /// Only so many calls.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// What the proxy and its connections share.
#[derive(Debug)]
struct Shared {
    engine: PathBuf,
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    /// How many calls met a fault, by request line.
    met: Vec<String>,
    /// Ends what hangs when the rules are lifted.
    lifted: CancellationToken,
}

impl Shared {
    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What befalls a call, and what ends it.
    fn befalls(&self, method: &str, path: &str) -> (Option<Fault>, CancellationToken) {
        let mut rules = self.rules();
        let lifted = rules.lifted.clone();
        let found = rules.rules.iter_mut().find(|rule| {
            (rule.method.is_empty() || rule.method == method)
                && path.contains(rule.path)
                && rule.times != Some(0)
        });
        let fault = found.map(|rule| {
            rule.times = rule.times.map(|times| times - 1);
            rule.fault
        });
        if fault.is_some() {
            rules.met.push(format!("{method} {path}"));
        }
        (fault, lifted)
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
    listening: Option<CancellationToken>,
}

impl Proxy {
    /// A proxy in front of an engine that lets everything through.
    ///
    /// # Errors
    ///
    /// Where its socket cannot be made.
    pub fn before(engine: &Engine) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("p-")
            .tempdir_in(engine.dir())?
            .keep();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let mut proxy = Self {
            socket: dir.join("s"),
            shared: Arc::new(Shared {
                engine: PathBuf::from(engine.url().trim_start_matches("unix://")),
                rules: Mutex::default(),
            }),
            runtime: Some(runtime),
            listening: None,
        };
        proxy.listen()?;
        Ok(proxy)
    }

    /// Its address, as `runtime.socket` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Listens again after [`Proxy::vanish`].
    ///
    /// # Errors
    ///
    /// Where the socket cannot be made.
    pub fn listen(&mut self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("a proxy has its runtime")?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.socket).context("the proxy's socket")?
        };
        std::fs::set_permissions(&self.socket, PermissionsExt::from_mode(0o666))?;
        let end = CancellationToken::new();
        let (shared, ended) = (Arc::clone(&self.shared), end.clone());
        runtime.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = ended.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { return };
                let (shared, ended) = (Arc::clone(&shared), ended.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        // A connection that breaks is what this is for.
                        broken = exchange::serve(&shared, stream) => drop(broken),
                    }
                });
            }
        });
        self.listening = Some(end);
        Ok(())
    }

    /// Ends every connection and removes the socket: an engine that is not there.
    pub fn vanish(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.cancel();
        }
        drop(std::fs::remove_file(&self.socket));
    }

    /// Adds a rule; the first that picks a call decides.
    pub fn befall(&self, rule: Rule) {
        self.shared.rules().rules.push(rule);
    }

    /// Takes every rule away, and ends what hangs.
    pub fn lift(&self) {
        let mut rules = self.shared.rules();
        rules.rules.clear();
        std::mem::take(&mut rules.lifted).cancel();
    }

    /// The calls that met a fault so far.
    #[must_use]
    pub fn met(&self) -> Vec<String> {
        self.shared.rules().met.clone()
    }

    /// The directory of its socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.socket.parent().unwrap_or(&self.socket)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.vanish();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(std::fs::remove_dir_all(self.dir()));
    }
}
