//! What happened, line by line: shown when a seed fails, compared when a seed is run twice.

use std::sync::{Arc, Mutex};

use super::clock::SimClock;

#[derive(Debug)]
pub(crate) struct Trace {
    clock: Arc<SimClock>,
    lines: Mutex<Vec<String>>,
    /// The first rule that was broken.
    broken: Mutex<Option<String>>,
    aloud: bool,
}

impl Trace {
    pub(crate) fn new(clock: Arc<SimClock>, aloud: bool) -> Self {
        Self {
            clock,
            lines: Mutex::default(),
            broken: Mutex::default(),
            aloud,
        }
    }

    pub(crate) fn line(&self, text: impl FnOnce() -> String) {
        let line = format!("{:>10.3} {}", self.clock.elapsed().as_secs_f64(), text());
        if self.aloud {
            println!("{line}");
        }
        self.lines.lock().unwrap().push(line);
    }

    /// A rule was broken: the first one counts.
    pub(crate) fn violation(&self, rule: String) {
        self.line(|| format!("VIOLATION: {rule}"));
        self.broken.lock().unwrap().get_or_insert(rule);
    }

    pub(crate) fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}
