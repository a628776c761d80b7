//! The one thread that writes, and its group commit.
//!
//! All jobs that wait when a transaction begins share it and its one sync. The queue is bounded: a
//! caller waits for its turn. Jobs run in the order in which they were queued.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::RegistryError;

/// Jobs that may wait. One commit takes a millisecond or two, so a full queue is half a second's work.
const QUEUE: usize = 256;

/// Most jobs in one transaction, so that the first of them does not wait for long.
const GROUP: usize = 128;

/// What SQLite calls the level from which on it syncs the log at each commit.
#[cfg(any(test, feature = "testing"))]
const FULL: i64 = 2;

/// The transaction that a job writes in.
#[derive(Debug)]
pub(super) struct WriteTx<'c> {
    connection: &'c Connection,
    newest_event: Cell<u64>,
    components_changed: Cell<bool>,
}

impl WriteTx<'_> {
    /// Notes the number of an event that this transaction appended.
    pub(super) fn appended_event(&self, seq: u64) {
        self.newest_event.set(seq);
    }

    /// Notes that what is deployed or observed changes.
    pub(super) fn change_components(&self) {
        self.components_changed.set(true);
    }
}

impl Deref for WriteTx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// One queued call.
trait Job: Send {
    /// Does its part inside the open transaction; an error means that its part is to be undone.
    fn run(&mut self, tx: &WriteTx<'_>) -> Result<(), RegistryError>;

    /// Answers the caller: the job's own result, or the error that took the whole transaction.
    fn answer(self: Box<Self>, committed: Result<(), RegistryError>);
}

struct Call<F, T> {
    work: Option<F>,
    result: Option<Result<T, RegistryError>>,
    reply: oneshot::Sender<Result<T, RegistryError>>,
}

impl<F, T> Job for Call<F, T>
where
    T: Send,
    F: FnOnce(&WriteTx<'_>) -> Result<T, RegistryError> + Send,
{
    fn run(&mut self, tx: &WriteTx<'_>) -> Result<(), RegistryError> {
        let Some(work) = self.work.take() else {
            return Err(RegistryError::Closed);
        };
        let result = work(tx);
        let verdict = result.as_ref().map(|_| ()).map_err(Clone::clone);
        self.result = Some(result);
        verdict
    }

    fn answer(self: Box<Self>, committed: Result<(), RegistryError>) {
        let answer = match (self.result, committed) {
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(RegistryError::Closed),
        };
        // A caller that went away does not want to know.
        let _ = self.reply.send(answer);
    }
}

/// How jobs reach the connection.
#[derive(Debug)]
enum Way {
    /// Over the queue of the thread, which ends when its sender is dropped. Joined by [`Writer::close`]
    /// alone: what it acknowledged is on the disk already.
    Thread {
        jobs: mpsc::Sender<Box<dyn Job>>,
        thread: thread::JoinHandle<()>,
    },
    /// At once: in a simulation, where no thread may run.
    #[cfg(any(test, feature = "testing"))]
    Inline(std::sync::Mutex<Committer>),
}

/// The way to the one connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    way: Way,
    newest_event: watch::Receiver<u64>,
    failure: watch::Receiver<Option<RegistryError>>,
    components_version: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection, newest_event: u64) -> std::io::Result<Self> {
        let (event_tx, event_rx) = watch::channel(newest_event);
        let (failure_tx, failure_rx) = watch::channel(None);
        let components_version = Arc::new(AtomicU64::new(0));
        let committer = Committer {
            connection,
            newest_event: event_tx,
            failure: failure_tx,
            components_version: Arc::clone(&components_version),
        };
        Ok(Self {
            way: Way::to(committer)?,
            newest_event: event_rx,
            failure: failure_rx,
            components_version,
        })
    }

    /// Ends the thread and waits for it. Blocking.
    pub(super) fn close(self) {
        match self.way {
            Way::Thread { jobs, thread } => {
                drop(jobs);
                if thread.join().is_err() {
                    tracing::error!("the registry's thread panicked");
                }
            }
            #[cfg(any(test, feature = "testing"))]
            Way::Inline(_) => {}
        }
    }

    /// Queues `work` and waits for its commit.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTx<'_>) -> Result<T, RegistryError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call {
            work: Some(work),
            result: None,
            reply,
        };
        match &self.way {
            Way::Thread { jobs, .. } => jobs
                .send(Box::new(call))
                .await
                .map_err(|_| RegistryError::Closed)?,
            #[cfg(any(test, feature = "testing"))]
            Way::Inline(committer) => {
                let pace = crate::testing::pace().ok_or(RegistryError::Closed)?;
                let name = crate::testing::Work::Write(std::any::type_name::<F>());
                pace.before(name).await?;
                committer
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .take(vec![Box::new(call)]);
                pace.after(name).await;
            }
        }
        answer.await.map_err(|_| RegistryError::Closed)?
    }

    /// Whether a commit is on the disk when it is acknowledged, as the connection itself says. Only in a
    /// simulation, where no thread has it.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn syncs_commits(&self) -> Option<bool> {
        let Way::Inline(committer) = &self.way else {
            return None;
        };
        let committer = committer
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let connection = &committer.connection;
        let journal: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .ok()?;
        let synchronous: i64 = connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .ok()?;
        Some(journal == "wal" && synchronous >= FULL)
    }

    pub(super) fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.clone()
    }

    /// Grows with each commit that changes what is deployed or observed, before the commit is acknowledged.
    pub(super) fn components_version(&self) -> u64 {
        self.components_version.load(Ordering::Acquire)
    }

    /// Returns when no write is taken any more.
    pub(super) async fn failed(&self) -> RegistryError {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or(RegistryError::Closed),
            // The thread is gone without a word: it panicked.
            Err(_) => RegistryError::Closed,
        }
    }
}

impl Way {
    fn to(committer: Committer) -> std::io::Result<Self> {
        #[cfg(any(test, feature = "testing"))]
        if crate::testing::pace().is_some() {
            return Ok(Self::Inline(std::sync::Mutex::new(committer)));
        }
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || work_off(queue, &committer))?;
        Ok(Self::Thread { jobs, thread })
    }
}

/// Commits what is queued until the queue is closed.
fn work_off(mut queue: mpsc::Receiver<Box<dyn Job>>, committer: &Committer) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        committer.take(group);
    }
}

/// The connection that writes, and those who are told of its commits.
#[derive(Debug)]
struct Committer {
    connection: Connection,
    newest_event: watch::Sender<u64>,
    failure: watch::Sender<Option<RegistryError>>,
    components_version: Arc<AtomicU64>,
}

impl Committer {
    /// Commits a group and answers its callers.
    fn take(&self, mut group: Vec<Box<dyn Job>>) {
        let committed = if self.failure.borrow().is_some() {
            Err(RegistryError::WritesStopped)
        } else {
            self.commit(&mut group)
        };
        if let Err(error) = &committed
            && error.stops_writes()
        {
            tracing::error!(%error, "the registry takes no more writes");
            self.failure.send_replace(Some(error.clone()));
        }
        for job in group {
            job.answer(committed.clone());
        }
    }

    /// Runs a group in one transaction. An error is the whole transaction's: nothing of it was written.
    fn commit(&self, group: &mut [Box<dyn Job>]) -> Result<(), RegistryError> {
        self.execute("BEGIN IMMEDIATE")?;
        let outcome = self.run_group(group).and_then(|done| {
            self.execute("COMMIT")?;
            Ok(done)
        });
        match outcome {
            Ok((newest, components_changed)) => {
                if components_changed {
                    self.components_version.fetch_add(1, Ordering::Release);
                }
                self.newest_event.send_if_modified(|seen| {
                    let newer = newest > *seen;
                    *seen = newest.max(*seen);
                    newer
                });
                Ok(())
            }
            Err(error) => {
                // SQLite has ended the transaction by itself after some errors (a full disk).
                if !self.connection.is_autocommit() {
                    self.execute("ROLLBACK")?;
                }
                Err(error)
            }
        }
    }

    /// Returns the newest event and whether what is deployed or observed changes.
    fn run_group(&self, group: &mut [Box<dyn Job>]) -> Result<(u64, bool), RegistryError> {
        let mut newest = *self.newest_event.borrow();
        let mut components_changed = false;
        for job in group {
            self.execute("SAVEPOINT job")?;
            let tx = WriteTx {
                connection: &self.connection,
                newest_event: Cell::new(newest),
                components_changed: Cell::new(false),
            };
            match job.run(&tx) {
                Ok(()) => {
                    newest = tx.newest_event.get();
                    components_changed |= tx.components_changed.get();
                }
                // The transaction is gone, and with it what other jobs of the group wrote.
                Err(error) if self.connection.is_autocommit() || error.stops_writes() => {
                    return Err(error);
                }
                Err(_) => self.execute("ROLLBACK TO job")?,
            }
            self.execute("RELEASE job")?;
        }
        Ok((newest, components_changed))
    }

    fn execute(&self, statement: &'static str) -> Result<(), RegistryError> {
        self.connection.prepare_cached(statement)?.execute([])?;
        Ok(())
    }
}
