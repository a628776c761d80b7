//! Refused tokens by address and by the name in them: a bound on what one peer can make the agent say and log.
//!
//! A good token always passes, whatever else comes from its address or in its name: a neighbour cannot lock an
//! operator out. Only refusals are counted. The counts are kept in a file of the data directory, so that a
//! restart forgives nothing; what it tells of subjects is a hash.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::disk;

/// Refusals of one peer within [`WINDOW`] that are answered in full.
const ALLOWED: u32 = 20;
/// The time over which refusals are counted.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// Most peers that are remembered; the oldest goes first. About 100 bytes each.
const MAX_PEERS: usize = 4096;
/// Least time between two writes of the file, where nobody's patience ended.
const WRITE_EVERY: SignedDuration = SignedDuration::from_secs(1);
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Who sent a token that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    /// A network address; of IPv6 the first half, which one customer has whole.
    Address(IpAddr),
    /// The hash of the subject that the token names, true or not.
    Subject(String),
}

impl Sender {
    /// Whoever sits at `address`.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        Self::Address(network_of(address))
    }

    /// Whoever goes by the name of `subject`.
    #[must_use]
    pub fn named(subject: &str) -> Self {
        let hash = Sha256::digest(subject);
        Self::Subject(hex::encode(&hash[..16]))
    }
}

/// What an address counts as: itself, or the /64 of IPv6 that it lies in.
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

/// Counts refused tokens.
#[derive(Debug)]
pub struct Refusals {
    file: PathBuf,
    counts: Mutex<Counts>,
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Counts {
    by_sender: HashMap<Sender, Counted>,
    written: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Counted {
    since: Timestamp,
    count: u32,
}

/// What follows from one refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How long the sender has to wait, where it had too many.
    pub wait: Option<Duration>,
    /// Whether the counts should be written down now.
    pub write: bool,
}

impl Refusals {
    /// The counts that were kept in `data_dir`; a file that is missing or broken holds none.
    #[must_use]
    pub fn load(data_dir: &Path, now: Timestamp) -> Self {
        let file = data_dir.join("refusals.json");
        let fits = fs::metadata(&file).is_ok_and(|file| file.len() <= MAX_FILE_BYTES);
        let kept: Vec<(Sender, Counted)> = fits
            .then(|| fs::read(&file).ok())
            .flatten()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let by_sender = kept
            .into_iter()
            .filter(|(_, counted)| counted.age(now).is_some())
            .take(MAX_PEERS)
            .collect();
        Self {
            file,
            counts: Mutex::new(Counts {
                by_sender,
                written: None,
            }),
            writing: Mutex::default(),
        }
    }

    /// Counts one refusal for each of `senders`.
    pub fn count(&self, senders: &[Sender], now: Timestamp) -> Verdict {
        let mut counts = self
            .counts
            .lock()
            .expect("nothing panics while it holds this lock");
        let mut verdict = Verdict {
            wait: None,
            write: counts
                .written
                .is_none_or(|written| now.duration_since(written).abs() >= WRITE_EVERY),
        };
        for sender in senders {
            counts.make_room(sender, now);
            let counted = counts.by_sender.entry(sender.clone()).or_insert(Counted {
                since: now,
                count: 0,
            });
            let age = counted.age(now).unwrap_or_else(|| {
                *counted = Counted {
                    since: now,
                    count: 0,
                };
                SignedDuration::ZERO
            });
            counted.count = counted.count.saturating_add(1);
            if counted.count > ALLOWED {
                let wait = (WINDOW - age).unsigned_abs();
                verdict.wait = verdict.wait.max(Some(wait));
                verdict.write |= counted.count == ALLOWED + 1;
            }
        }
        if verdict.write {
            counts.written = Some(now);
        }
        verdict
    }

    /// Writes the counts down. It blocks for a moment.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub fn write(&self) -> io::Result<()> {
        let _one_at_a_time = self
            .writing
            .lock()
            .expect("nothing panics while it holds this lock");
        let bytes = {
            let counts = self
                .counts
                .lock()
                .expect("nothing panics while it holds this lock");
            let all: Vec<_> = counts.by_sender.iter().collect();
            serde_json::to_vec(&all)?
        };
        let beside = self.file.with_extension("new");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| io::Write::write_all(&mut file, &bytes))
            // Not flushed: after a power cut everybody begins anew.
            .and_then(|()| disk::rename(&beside, &self.file));
        if written.is_err() {
            // What cannot be removed either is overwritten by the next write.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

impl Counted {
    /// How old the window is; nothing where it is over, or the clock was set back behind it.
    fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let age = now.duration_since(self.since);
        (age >= SignedDuration::ZERO && age < WINDOW).then_some(age)
    }
}

impl Counts {
    fn make_room(&mut self, sender: &Sender, now: Timestamp) {
        if self.by_sender.len() < MAX_PEERS || self.by_sender.contains_key(sender) {
            return;
        }
        self.by_sender
            .retain(|_, counted| counted.age(now).is_some());
        if self.by_sender.len() >= MAX_PEERS
            && let Some(oldest) = self
                .by_sender
                .iter()
                .min_by_key(|(_, counted)| counted.since)
                .map(|(sender, _)| sender.clone())
        {
            self.by_sender.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn wait(refusals: &Refusals, sender: &Sender, now: Timestamp) -> Option<Duration> {
        refusals.count(std::slice::from_ref(sender), now).wait
    }

    #[test]
    fn sender_with_many_refusals_waits_for_the_window_over_a_restart_too() {
        let folder = tempfile::tempdir().unwrap();
        let refusals = Refusals::load(folder.path(), start());
        let (bad, other) = (
            Sender::at([10, 0, 0, 1].into()),
            Sender::at([10, 0, 0, 2].into()),
        );
        for _ in 0..ALLOWED {
            assert_eq!(wait(&refusals, &bad, start()), None);
        }
        let verdict = refusals.count(std::slice::from_ref(&bad), start());
        assert_eq!(verdict.wait, Some(WINDOW.unsigned_abs()));
        assert!(verdict.write, "the end of patience is written at once");
        assert_eq!(wait(&refusals, &other, start()), None);
        refusals.write().unwrap();
        let later = start() + SignedDuration::from_secs(10);
        let again = Refusals::load(folder.path(), later);
        assert_eq!(
            wait(&again, &bad, later),
            Some(Duration::from_secs(50)),
            "a restart forgives nothing"
        );
        assert_eq!(wait(&again, &bad, start() + WINDOW), None);
        // A clock that was set back does not lock anybody out for years.
        assert_eq!(
            wait(&again, &bad, start() - SignedDuration::from_hours(9)),
            None
        );
    }

    #[test]
    fn subjects_are_counted_wherever_they_come_from() {
        let folder = tempfile::tempdir().unwrap();
        let refusals = Refusals::load(folder.path(), start());
        let mut last = None;
        for n in 0..=ALLOWED {
            let from = Sender::at(IpAddr::V4(n.into()));
            last = refusals
                .count(&[from, Sender::named("alice")], start())
                .wait;
        }
        assert!(last.is_some());
        refusals.write().unwrap();
        let text = fs::read_to_string(folder.path().join("refusals.json")).unwrap();
        assert!(!text.contains("alice"), "{text}");
    }

    #[test]
    fn one_network_of_ipv6_is_one_sender() {
        let at = |text: &str| Sender::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    }

    #[test]
    fn memory_and_file_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let refusals = Refusals::load(folder.path(), start());
        for n in 0..20_000u32 {
            refusals.count(&[Sender::at(IpAddr::V4(n.into()))], start());
        }
        assert!(refusals.counts.lock().unwrap().by_sender.len() <= MAX_PEERS);
        refusals.write().unwrap();
        let file = folder.path().join("refusals.json");
        assert!(fs::metadata(&file).unwrap().len() < MAX_FILE_BYTES);
        fs::write(&file, "broken").unwrap();
        drop(Refusals::load(folder.path(), start()));
    }
}
