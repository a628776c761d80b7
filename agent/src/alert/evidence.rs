//! What was seen around an alert: the last events, the exit code, the container's last lines.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use mcp_spec::name::Target;
use mcp_spec::observed::ContainerId;
use tokio::time::timeout;

use super::conditions::{Alert, Evidence};
use crate::registry::{EventQuery, Registry};
use crate::runtime::{LogOptions, Runtime};

/// Events that are told.
const EVENTS: u32 = 10;

/// Lines of the container that are told.
const LINES: u32 = 20;

/// Longest line, in bytes.
const LINE_BYTES: usize = 512;

/// How long the engine may take for the lines: an alert without them is better than a late one.
const LIMIT: Duration = Duration::from_secs(2);

/// Looks around; what cannot be had is left out.
pub(super) async fn gather(
    registry: &Registry,
    runtime: &Arc<dyn Runtime>,
    alert: &Alert,
) -> Evidence {
    let Some(service) = &alert.key.service else {
        return Evidence::default();
    };
    let target = Target {
        node: None,
        service: service.clone(),
        component: alert.key.component.clone(),
    };
    let events = registry
        .events(EventQuery {
            targets: vec![target],
            limit: EVENTS,
            newest: true,
            ..EventQuery::default()
        })
        .await
        .unwrap_or_default();
    let exit_code = events
        .iter()
        .rev()
        .find_map(|event| event.data.get("exit_code")?.as_i64());
    let container = alert
        .data
        .get("container")
        .and_then(|container| container.as_str());
    let log = match container {
        Some(container) => timeout(LIMIT, lines(runtime, container))
            .await
            .unwrap_or_default(),
        None => Vec::new(),
    };
    Evidence {
        events: events
            .iter()
            .map(|event| format!("{} {}", event.at, event.message))
            .collect(),
        exit_code,
        log,
    }
}

async fn lines(runtime: &Arc<dyn Runtime>, container: &str) -> Vec<String> {
    let options = LogOptions {
        follow: false,
        tail: Some(LINES),
        since: None,
    };
    let Ok(stream) = runtime.logs(&ContainerId::new(container), &options).await else {
        return Vec::new();
    };
    stream
        .take(LINES as usize)
        .filter_map(|line| std::future::ready(line.ok()))
        .map(|line| {
            let cut = &line.line[..line.line.len().min(LINE_BYTES)];
            String::from_utf8_lossy(cut).into_owned()
        })
        .collect()
        .await
}
