//! Starts by the restart policy.

use std::time::Duration;

use super::context::{Context, Settled};
use super::remake::revive_registered;
use crate::runtime::RuntimeError;
use crate::watch::{Revive, Revived};
use mcp_spec::observed::DesiredState;

/// How long the engine may take for a start by the restart policy.
const REVIVE_WAIT: Duration = Duration::from_secs(60);

/// Starts a registered container again, if it is still wanted and still the one.
pub(super) async fn start_again(context: &Context, revive: &Revive) -> Revived {
    let row = match context.registry.deployed(revive.key.clone()).await {
        Ok(Some(row)) => row,
        Ok(None) | Err(_) => return Revived::NotNow,
    };
    let wanted = row.desired == DesiredState::Running
        && row.stopped_by.is_none()
        && row.container == revive.container;
    if !wanted {
        return Revived::NotNow;
    }
    let (settled, anew) = revive_registered(context, &row, REVIVE_WAIT).await;
    if anew.is_some() && matches!(settled, Settled::Done) {
        // Another container than the one that was asked for: the rows have to be read again.
        return Revived::NotNow;
    }
    if let Settled::Failed(error) = settled {
        return Revived::Failed(error);
    }
    match context.runtime.inspect(row.container.as_str()).await {
        Ok(Some(live)) => Revived::Running(Box::new(live)),
        Ok(None) => Revived::Failed(RuntimeError::NotFound {
            what: format!("container {}", row.container.short()),
        }),
        Err(error) => Revived::Failed(error),
    }
}
