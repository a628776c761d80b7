//! What one look says of a component, without anything remembered of it.

use jiff::Timestamp;
use mcp_spec::drift::{Expected, drift, observed_state};
use mcp_spec::observed::{ContainerState, Observed, ObservedState};

use crate::registry::{DeployedRow, DriftRow, HealthWord, ObservedRow};

/// What is seen of a component that was never watched before: for the commit of a deployment.
#[must_use]
pub fn first_sight(row: &DeployedRow, observed: &Observed, at: Timestamp) -> ObservedRow {
    let mut seen = blank(row, at);
    let live = match observed {
        Observed::Present(live) => Some(live.as_ref()),
        Observed::Absent | Observed::Unknown { .. } => None,
    };
    let expected = expected(row, 0);
    seen.state = observed_state(&expected, observed);
    if let Some(live) = live {
        seen.started_at = live.started_at;
        match live.state {
            ContainerState::Exited { code, oom } => {
                seen.exit_code = Some(code);
                seen.oom = oom;
                seen.finished_at = live.finished_at;
            }
            // It has passed its gate.
            _ if seen.state == ObservedState::Running && row.spec.health.is_some() => {
                seen.health = Some(HealthWord::Healthy);
            }
            _ => {}
        }
    }
    seen.drift = drift_rows(&expected, observed, &[], at);
    seen
}

/// A row of a component of which nothing is known.
pub(super) fn blank(row: &DeployedRow, at: Timestamp) -> ObservedRow {
    ObservedRow {
        key: row.key.clone(),
        state: ObservedState::Unknown,
        health: None,
        exit_code: None,
        oom: false,
        started_at: None,
        finished_at: None,
        restarts: 0,
        next_restart_at: None,
        backoff_attempt: 0,
        drift: Vec::new(),
        flapping: None,
        observed_at: at,
    }
}

/// What the row says that is to be.
pub(super) fn expected(row: &DeployedRow, attempts: u32) -> Expected<'_> {
    Expected {
        spec: &row.spec,
        wanted: row.wanted(),
        baseline: &row.baseline,
        attempts,
    }
}

/// The drift, each difference since when it was first seen.
pub(super) fn drift_rows(
    expected: &Expected<'_>,
    observed: &Observed,
    before: &[DriftRow],
    at: Timestamp,
) -> Vec<DriftRow> {
    drift(expected, observed)
        .into_iter()
        .map(|difference| {
            let same = before.iter().find(|row| {
                row.field == difference.field
                    && row.live == difference.live
                    && row.baseline == difference.deployed
            });
            DriftRow {
                since: same.map_or(at, |row| row.since),
                field: difference.field,
                baseline: difference.deployed,
                live: difference.live,
            }
        })
        .collect()
}
