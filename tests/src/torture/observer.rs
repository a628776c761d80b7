//! A foreign observer: it sees every moment at which a component does not run, and each at which two
//! generations of it do.
//!
//! It asks neither the agent nor the engine, but the kernel: the first process of a container has the
//! component's name in its environment. So it goes on seeing while the engine is away, and costs nobody
//! anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the observer looks.
const PACE: Duration = Duration::from_millis(20);

/// How often it looks for a second generation while all is well: every look walks all processes.
const WALK: u32 = 5;

/// A time in which nothing of a component ran.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The component.
    pub component: String,
    /// When it began.
    pub began: Instant,
    /// When something ran again.
    pub ended: Option<Instant>,
}

impl Gap {
    /// How long it took, up to now where it has not ended.
    #[must_use]
    pub fn lasted(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now) - self.began
    }
}

/// A moment at which several generations of a component ran.
#[derive(Debug, Clone)]
pub struct Doubled {
    /// The component.
    pub component: String,
    /// When.
    pub at: Instant,
}

#[derive(Debug, Default)]
struct Sights {
    gaps: Vec<Gap>,
    doubled: Vec<Doubled>,
}

/// The observer; ends when it is dropped.
#[derive(Debug)]
pub struct Observer {
    variable: String,
    sights: Arc<Mutex<Sights>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Watches the components whose first processes have the observer's variable in their environment,
    /// with the component's name as its value.
    #[must_use]
    pub fn start() -> Self {
        // The kernel shows the processes of other observers' engines too.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let variable = format!("MCP_OBSERVED_{}_{number}", std::process::id());
        let sights = Arc::new(Mutex::new(Sights::default()));
        let ends = Arc::new(AtomicBool::new(false));
        let marker = format!("{variable}=").into_bytes();
        let (seen, end) = (Arc::clone(&sights), Arc::clone(&ends));
        let thread = std::thread::spawn(move || watch(&marker, &seen, &end));
        Self {
            variable,
            sights,
            ends,
            thread: Some(thread),
        }
    }

    /// The name of the variable, which no other observer has.
    #[must_use]
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// The gaps that began at `since` or later, with those that have not ended.
    #[must_use]
    pub fn gaps(&self, since: Instant) -> Vec<Gap> {
        let sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = sights.gaps.iter().filter(|gap| gap.began >= since);
        gaps.cloned().collect()
    }

    /// When several generations of a component ran at `since` or later.
    #[must_use]
    pub fn doubled(&self, since: Instant) -> Vec<Doubled> {
        let sights = self.sights.lock().unwrap_or_else(PoisonError::into_inner);
        let doubled = sights.doubled.iter().filter(|doubled| doubled.at >= since);
        doubled.cloned().collect()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn watch(marker: &[u8], sights: &Mutex<Sights>, ends: &AtomicBool) {
    let mut running: BTreeMap<u32, String> = BTreeMap::new();
    // Every component that ever ran, with its open gap.
    let mut components: BTreeMap<String, Option<usize>> = BTreeMap::new();
    // Seen twice in a row: one walk can meet both of two containers that follow each other.
    let mut doubted: BTreeSet<String> = BTreeSet::new();
    let mut round = 0_u32;
    while !ends.load(Ordering::Acquire) {
        let now = Instant::now();
        let was = running.len();
        running.retain(|pid, _| lives(*pid));
        let any_down = components.values().any(Option::is_some);
        let is_due = round.is_multiple_of(WALK) || !doubted.is_empty();
        if running.len() < was || any_down || is_due {
            running = walk(marker);
            let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
            for component in running.values() {
                *counts.entry(component).or_default() += 1;
                components.entry(component.clone()).or_default();
            }
            let mut sights = sights.lock().unwrap_or_else(PoisonError::into_inner);
            for (component, open) in &mut components {
                match (*open, counts.contains_key(component)) {
                    (Some(gap), true) => {
                        sights.gaps[gap].ended = Some(now);
                        *open = None;
                    }
                    (None, false) => {
                        *open = Some(sights.gaps.len());
                        sights.gaps.push(Gap {
                            component: component.clone(),
                            began: now,
                            ended: None,
                        });
                    }
                    _ => {}
                }
            }
            let twice: BTreeSet<String> = counts
                .into_iter()
                .filter(|(_, count)| *count > 1)
                .map(|(component, _)| component.clone())
                .collect();
            sights
                .doubled
                .extend(twice.intersection(&doubted).map(|component| Doubled {
                    component: component.clone(),
                    at: now,
                }));
            doubted = twice;
        }
        round = round.wrapping_add(1);
        std::thread::sleep(PACE.saturating_sub(now.elapsed()));
    }
}

/// Whether a process is there and no zombie.
fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

/// The first processes of containers that bear the marker, by process id.
fn walk(marker: &[u8]) -> BTreeMap<u32, String> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let value = environment
                .split(|byte| *byte == 0)
                .find_map(|variable| variable.strip_prefix(marker))?;
            let component = String::from_utf8_lossy(value).into_owned();
            (is_first(pid) && lives(pid)).then_some((pid, component))
        })
        .collect()
}

/// Whether a process is the first of a PID namespace of its own, as a container's is and what is run
/// inside it is not.
fn is_first(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .is_some_and(|ids| {
                let ids: Vec<&str> = ids.split_whitespace().collect();
                ids.len() > 1 && ids.last() == Some(&"1")
            })
    })
}
