//! Live progress on standard error: a bar a component on a terminal, a line a step elsewhere.
//!
//! The durations of steps are taken here, from when their reports arrive, and told in the end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anstream::ColorChoice;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcp_proto::v1;
use unicode_width::UnicodeWidthStr as _;

use super::clean;
use super::plan::path;
use super::style::{bytes, dim, milliseconds};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bars that move.
    Bars,
    /// A line a step.
    Plain,
    /// Not at all.
    Quiet,
}

/// A component on a node; empty component: the whole deployment.
type Key = (String, String, String);

/// What is known of one component's way through a deployment.
#[derive(Debug, Default)]
struct Steps {
    bar: Option<ProgressBar>,
    name: String,
    last: String,
    stopping: Option<Instant>,
    starting: Option<Instant>,
    probing: Option<Instant>,
    tenth: Option<u64>,
}

/// Shows what goes on while a command waits.
#[derive(Debug)]
pub(crate) struct Progress {
    mode: Mode,
    colour: ColorChoice,
    bars: MultiProgress,
    steps: RefCell<BTreeMap<Key, Steps>>,
}

impl Progress {
    /// Progress in this mode.
    pub(crate) fn new(mode: Mode, colour: ColorChoice) -> Self {
        let target = match mode {
            Mode::Bars => ProgressDrawTarget::stderr_with_hz(15),
            Mode::Plain | Mode::Quiet => ProgressDrawTarget::hidden(),
        };
        Self {
            mode,
            colour,
            bars: MultiProgress::with_draw_target(target),
            steps: RefCell::new(BTreeMap::new()),
        }
    }

    /// Writes a whole line above the bars.
    fn line(&self, text: &str) {
        let write = || {
            use std::io::Write as _;
            let mut err = anstream::AutoStream::new(std::io::stderr().lock(), self.colour);
            // Progress that cannot be shown is no reason to stop.
            let _ = writeln!(err, "{text}");
        };
        match self.mode {
            Mode::Bars => self.bars.suspend(write),
            Mode::Plain => write(),
            Mode::Quiet => {}
        }
    }

    /// Prints something else with the bars out of the way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match self.mode {
            Mode::Bars => self.bars.suspend(print),
            Mode::Plain | Mode::Quiet => print(),
        }
    }

    /// Says something about the way, as a line of its own.
    pub(crate) fn say(&self, text: &str) {
        self.line(&dim(text));
    }

    /// Takes one report of the agent.
    pub(crate) fn update(&self, node: &str, report: &v1::Progress) {
        let key = (
            node.to_owned(),
            report.service.clone(),
            report.component.clone(),
        );
        let mut all = self.steps.borrow_mut();
        let steps = all.entry(key).or_default();
        let now = Instant::now();
        match report.step.as_str() {
            "stopping" => steps.stopping = steps.stopping.or(Some(now)),
            "starting" => steps.starting = steps.starting.or(Some(now)),
            "probing" | "healthy" => steps.probing = steps.probing.or(Some(now)),
            _ => {}
        }
        let text = said(report);
        match self.mode {
            Mode::Quiet => {}
            Mode::Plain => {
                // Pulls report many times a second: a line a tenth of the way is enough for a log.
                let tenth = (report.total > 0).then(|| report.current * 10 / report.total.max(1));
                let again = steps.last == report.step && tenth.is_some() && steps.tenth == tenth;
                if !again && (steps.last != text || tenth.is_some()) {
                    let who = path(&report.service, &report.component);
                    self.line(&format!(
                        "{} {} {}",
                        dim(node),
                        clean::line(&who),
                        clean::line(&text)
                    ));
                }
                steps.tenth = tenth;
                steps.last = if tenth.is_some() {
                    report.step.clone()
                } else {
                    text
                };
            }
            Mode::Bars => {
                let who = format!("{node} {}", path(&report.service, &report.component));
                let is_new = steps.bar.is_none();
                let bar = steps
                    .bar
                    .get_or_insert_with(|| self.bars.add(ProgressBar::new_spinner()));
                if report.total > 0 && report.step == "pulling" {
                    bar.set_style(pull_bar());
                    bar.set_length(report.total);
                    bar.set_position(report.current);
                } else {
                    bar.set_style(standing(&report.step));
                }
                bar.set_message(clean::line(&text).into_owned());
                if is_new {
                    bar.enable_steady_tick(Duration::from_millis(100));
                    steps.name = clean::line(&who).into_owned();
                    align(&all);
                }
            }
        }
    }

    /// The parts of a component's switch, as far as they were seen: `stop 104ms · start 79ms`.
    pub(crate) fn told(&self, node: &str, service: &str, component: &str) -> String {
        let key = (node.to_owned(), service.to_owned(), component.to_owned());
        let all = self.steps.borrow();
        let Some(steps) = all.get(&key) else {
            return String::new();
        };
        let mut parts = Vec::new();
        let mut part = |name: &str, from: Option<Instant>, to: Option<Instant>| {
            if let (Some(from), Some(to)) = (from, to) {
                let took = to.saturating_duration_since(from).as_millis();
                parts.push(format!(
                    "{name} {}",
                    milliseconds(u64::try_from(took).unwrap_or(u64::MAX))
                ));
            }
        };
        part("stop", steps.stopping, steps.starting);
        part("start", steps.starting, steps.probing);
        parts.join(" · ")
    }

    /// A spinner for something of the command's own; it goes when the handle is dropped.
    pub(crate) fn spin(&self, label: &str) -> Spinner {
        if self.mode != Mode::Bars {
            return Spinner(None);
        }
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(spinner());
        bar.set_prefix(clean::line(label).into_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Spinner(Some(bar))
    }

    /// A bar for a file on its way; it goes when its last handle is dropped.
    pub(crate) fn transfer(&self, label: &str, bytes: u64) -> Transfer {
        if self.mode != Mode::Bars {
            return Transfer(None);
        }
        let bar = self.bars.add(ProgressBar::new(bytes));
        bar.set_style(transfer_bar());
        bar.set_prefix(clean::line(label).into_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Transfer(Some(Arc::new(Clearing(bar))))
    }

    /// Takes all bars away.
    pub(crate) fn finish(&self) {
        for steps in self.steps.borrow_mut().values_mut() {
            if let Some(bar) = steps.bar.take() {
                bar.finish_and_clear();
            }
        }
        // Clearing an already empty set of bars can only fail where the terminal is gone.
        let _ = self.bars.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A bar for a file on its way; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Transfer(Option<Arc<Clearing>>);

/// Takes its bar away in the end.
#[derive(Debug)]
struct Clearing(ProgressBar);

impl Drop for Clearing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Transfer {
    /// Says how many bytes there are.
    pub(crate) fn of(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.0.set_length(bytes);
        }
    }

    /// Says that so many more have moved.
    pub(crate) fn moved(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.0.inc(bytes);
        }
    }
}

/// A spinner that is shown while it lives.
#[derive(Debug)]
pub(crate) struct Spinner(Option<ProgressBar>);

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Puts what bars say one below the other: their names are as wide as the widest.
fn align(all: &BTreeMap<Key, Steps>) {
    let widest = all.values().map(|steps| steps.name.width()).max();
    for steps in all.values() {
        if let Some(bar) = &steps.bar {
            let padding = widest.unwrap_or(0) - steps.name.width();
            bar.set_prefix(format!("{}{}", steps.name, " ".repeat(padding)));
        }
    }
}

/// A sign that stands still where a component is through, good or bad, and a spinner before.
fn standing(step: &str) -> ProgressStyle {
    let sign = match step {
        "healthy" | "completed" | "committed" | "cleaned" | "stopped" | "removed" => "✓",
        "failed" => "✗",
        "restored" => "↩",
        _ => return spinner(),
    };
    ProgressStyle::with_template(&format!("{sign} {{prefix}}  {{wide_msg}}"))
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn pull_bar() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {bar:24} {bytes}/{total_bytes}  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn transfer_bar() -> ProgressStyle {
    ProgressStyle::with_template(
        "{spinner} {prefix}  {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A report in words: `pulling 12 MiB of 38 MiB`.
fn said(report: &v1::Progress) -> String {
    let mut text = report.step.clone();
    if report.total > 0 {
        if report.step == "pulling" {
            text.push_str(&format!(
                " {} of {}",
                bytes(report.current),
                bytes(report.total)
            ));
        } else {
            text.push_str(&format!(" {}/{}", report.current, report.total));
        }
    }
    if !report.detail.is_empty() {
        text.push_str(": ");
        text.push_str(&report.detail);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_said_with_its_amount_and_detail() {
        let mut report = v1::Progress {
            step: "pulling".to_owned(),
            current: 12 << 20,
            total: 38 << 20,
            ..v1::Progress::default()
        };
        assert_eq!(said(&report), "pulling 12 MiB of 38 MiB");
        report.step = "unhealthy".to_owned();
        report.current = 3;
        report.total = 3;
        report.detail = "exit 1".to_owned();
        assert_eq!(said(&report), "unhealthy 3/3: exit 1");
    }

    #[test]
    fn only_parts_that_were_seen_are_told() {
        let progress = Progress::new(Mode::Quiet, ColorChoice::Never);
        progress.update(
            "rift",
            &v1::Progress {
                service: "shop".to_owned(),
                component: "web".to_owned(),
                step: "starting".to_owned(),
                ..v1::Progress::default()
            },
        );
        assert_eq!(progress.told("rift", "shop", "web"), "");
    }
}
