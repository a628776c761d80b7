//! Every fault at every call of a deployment, one after the other.
//!
//! A cell is one call that one fault befalls while an operator deploys. Afterwards the fault is gone, and
//! the node comes to order by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::bed::Bed;
use super::{Fault, Rule};
use crate::engine::Lane;

/// A call of a deployment, by its request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What the report calls it.
    pub name: &'static str,
    method: &'static str,
    path: &'static str,
}

const fn call(name: &'static str, method: &'static str, path: &'static str) -> Call {
    Call { name, method, path }
}

/// The calls that a deployment makes on either engine.
pub const CALLS: [Call; 9] = [
    call("create", "POST", "/containers/create"),
    call("start", "POST", "/start"),
    call("stop", "POST", "/stop"),
    call("rename", "POST", "/rename"),
    call("remove", "DELETE", "/containers/"),
    call("inspect", "GET", "/json"),
    call("list", "GET", "/containers/json"),
    call("tag", "POST", "/tag"),
    call("network", "GET", "/networks"),
];

/// What befalls a call, with its name in the report.
pub const FAULTS: [(&str, Fault); 11] = [
    ("refused", Fault::Refuse(500, "something broke")),
    ("closed", Fault::Close),
    ("answer-lost", Fault::DropAnswer),
    ("answer-held", Fault::HoldAnswer),
    ("half-answer", Fault::HalfAnswer),
    ("half-and-hang", Fault::HalfAndHang),
    ("half-document", Fault::HalfDocument),
    ("garbage", Fault::Garbage),
    ("drip", Fault::Drip(Duration::from_millis(10))),
    ("slow", Fault::Delay(Duration::from_millis(1500))),
    ("hung", Fault::Hang),
];

/// What came of a cell.
#[derive(Debug)]
pub struct Cell {
    /// The call.
    pub call: &'static str,
    /// The fault.
    pub fault: &'static str,
    /// Whether the call was made at all.
    pub met: usize,
    /// How the deployment ended.
    pub outcome: String,
    /// How long the deployment took.
    pub took: Duration,
    /// How long the node took to be in order after that.
    pub order: Duration,
    /// The longest time that nothing of a component ran.
    pub down: Duration,
    /// What was not in order.
    pub wrong: Vec<String>,
}

/// One fault at one call of a deployment of two of the components.
///
/// # Errors
///
/// Where something fails that was not under test.
pub fn cell(bed: &mut Bed, at: Call, name: &'static str, fault: Fault, times: u32) -> Result<Cell> {
    let before = bed.look()?;
    let untouched = bed.pid("worker")?;
    bed.change(&["api", "web"]);
    let met_before = bed.proxy.met().len();
    bed.proxy
        .befall(Rule::new(at.method, at.path, fault).times(times));
    let began = Instant::now();
    let deployed = bed
        .fleet
        .mcp(&["-o", "json", "deploy", bed.name(), "--yes"]);
    let took = began.elapsed();
    bed.proxy.lift();
    let met = bed.proxy.met().len() - met_before;
    let (order, mut wrong) = match bed.in_order(&before) {
        Ok(took) => (took, Vec::new()),
        Err(error) => (began.elapsed(), vec![format!("{error:#}")]),
    };
    let outcome = bed.last_outcome();
    if !["deployed", "rolled-back", "aborted", "failed", "unchanged"].contains(&outcome.as_str()) {
        wrong.push(format!("the deployment ended as {outcome:?}: {deployed}"));
    }
    if bed.pid("worker")? != untouched {
        wrong.push("an untouched component has another process".to_owned());
    }
    for doubled in bed.observer.doubled(began) {
        wrong.push(format!("two generations of {} ran", doubled.component));
    }
    let down = bed.down(began).into_values().max().unwrap_or_default();
    Ok(Cell {
        call: at.name,
        fault: name,
        met,
        outcome,
        took,
        order,
        down,
        wrong,
    })
}

/// Goes through the cells that `picks` picks; tells each to `report`.
///
/// # Errors
///
/// Where something fails that was not under test.
pub fn sweep(
    lane: Lane,
    name: &str,
    picks: impl Fn(&str, &str) -> bool,
    mut report: impl FnMut(&Cell),
) -> Result<usize> {
    let mut bed = Bed::new(lane, name)?;
    let mut wrong = 0;
    for at in CALLS {
        for (fault_name, fault) in FAULTS {
            if !picks(at.name, fault_name) {
                continue;
            }
            let cell = cell(&mut bed, at, fault_name, fault, 1)
                .with_context(|| format!("{} {fault_name}", at.name))?;
            wrong += cell.wrong.len();
            report(&cell);
        }
    }
    // An ordinary deployment goes through afterwards.
    bed.change(&["api", "web", "worker"]);
    let last = bed.fleet.mcp(&["deploy", name, "--yes"]);
    if last.code != Some(0) {
        anyhow::bail!("the last deployment failed: {last}");
    }
    Ok(wrong)
}
