//! What was measured: samples, their medians, the bars that they are held against.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// What a result is promised to be.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    /// At most so many times the first contender of its group.
    Ratio(f64),
    /// At most this, in the row's own unit.
    Most(f64),
}

/// One line of the table.
pub(crate) struct Row {
    /// What it was measured on: an engine, or what else stands for the place.
    pub(crate) place: String,
    /// How many components or services.
    pub(crate) size: usize,
    /// What was done.
    pub(crate) what: String,
    /// Who did it.
    pub(crate) contender: String,
    /// The unit of the samples.
    pub(crate) unit: &'static str,
    /// What was measured, a round each.
    pub(crate) samples: Vec<f64>,
    /// What it is compared with, in the same unit.
    pub(crate) floor: Option<f64>,
    /// What was promised.
    pub(crate) bar: Option<Bar>,
}

impl Row {
    pub(crate) fn median(&self) -> f64 {
        median(&self.samples)
    }

    fn ratio(&self) -> Option<f64> {
        self.floor
            .filter(|floor| *floor > 0.0)
            .map(|floor| self.median() / floor)
    }

    fn is_met(&self) -> Option<bool> {
        match self.bar? {
            Bar::Ratio(most) => self.ratio().map(|ratio| ratio <= most),
            Bar::Most(most) => Some(self.median() <= most),
        }
    }

    fn document(&self) -> Value {
        json!({
            "place": self.place, "size": self.size, "what": self.what, "contender": self.contender,
            "unit": self.unit, "median": round(self.median()), "min": round(least(&self.samples)),
            "max": round(most(&self.samples)), "samples": self.samples.len(),
            "ratio": self.ratio().map(round),
            "bar": self.bar.map(|bar| match bar {
                Bar::Ratio(most) => json!({ "ratio": most }),
                Bar::Most(most) => json!({ "most": most }),
            }),
            "met": self.is_met(),
        })
    }
}

/// The middle of the samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A duration in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// All results.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    pub(crate) fn rows(&self) -> Vec<Value> {
        self.rows.iter().map(Row::document).collect()
    }
}

fn line(row: &Row) -> String {
    let bar = match row.bar {
        Some(Bar::Ratio(most)) => format!("{most} x"),
        Some(Bar::Most(most)) => format!("{most} {}", row.unit),
        None => String::new(),
    };
    let verdict = match row.is_met() {
        Some(true) => "met",
        Some(false) => "missed",
        None => "",
    };
    let ratio = row
        .ratio()
        .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    format!(
        "| {} | {} | {} | {} | {} {} | {} | {} | {ratio} | {bar} | {verdict} |",
        row.place,
        row.size,
        row.what,
        row.contender,
        shown(row.median()),
        row.unit,
        shown(least(&row.samples)),
        shown(most(&row.samples)),
    )
}

fn shown(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| on | size | what | contender | median | min | max | ratio | bar | |"
        )?;
        writeln!(
            f,
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for row in &self.rows {
            writeln!(f, "{}", line(row))?;
        }
        Ok(())
    }
}
