//! Starts by the restart policy.

use mcp_spec::observed::DesiredState;
use tokio::time::Instant;

use super::context::{Context, Settled};
use crate::runtime::RuntimeError;
use crate::watch::{Revive, Revived};

/// How long the engine may take for a start by the restart policy.
const REVIVE_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

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
    let deadline = Instant::now() + REVIVE_WAIT;
    let settled = context
        .settle(
            revive.container.as_str(),
            deadline,
            || context.runtime.start(&revive.container),
            |live| live.is_some_and(|live| live.state.is_running()),
        )
        .await;
    if let Settled::Failed(error) = settled {
        return Revived::Failed(error);
    }
    match context.runtime.inspect(revive.container.as_str()).await {
        Ok(Some(live)) => Revived::Running(Box::new(live)),
        Ok(None) => Revived::Failed(RuntimeError::NotFound {
            what: format!("container {}", revive.container.short()),
        }),
        Err(error) => Revived::Failed(error),
    }
}
