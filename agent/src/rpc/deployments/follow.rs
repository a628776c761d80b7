//! Following deployments: their steps as they come, and their results.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use mcp_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Agent;
use crate::deploy::{Ended, Feed, Step, Taken};
use crate::rpc::components::deployment;

/// Steps that wait for a slow client before the oldest are dropped from its view.
const UPDATES: usize = 256;

/// What a follower gets.
pub(super) type Updates = Pin<Box<dyn Stream<Item = Result<v1::DeployUpdate, Status>> + Send>>;

fn progress(step: &Step) -> v1::DeployUpdate {
    v1::DeployUpdate {
        update: Some(v1::deploy_update::Update::Progress(v1::Progress {
            deployment_id: step.deployment.to_string(),
            service: step.service.to_string(),
            component: step
                .component
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            step: step.step.to_owned(),
            detail: step.detail.clone(),
            current: step.current,
            total: step.total,
            elapsed_ms: step.elapsed_ms,
        })),
    }
}

/// Streams the plan, the steps of all deployments, and their results. A client that goes away ends
/// the stream and nothing else.
pub(super) fn follow(
    agent: &Arc<Agent>,
    plan: Option<v1::Plan>,
    parts: Vec<Taken>,
    settled: Vec<v1::Deployment>,
) -> Updates {
    let (updates, stream) = mpsc::channel(UPDATES);
    let node = agent.config.node.clone();
    let shutdown = agent.shutdown.clone();
    let following = async move {
        if let Some(plan) = plan {
            let first = v1::DeployUpdate {
                update: Some(v1::deploy_update::Update::Plan(plan)),
            };
            if updates.send(Ok(first)).await.is_err() {
                return;
            }
        }
        let ends = futures_util::future::join_all(parts.into_iter().map(|part| {
            let updates = updates.clone();
            async move {
                match part {
                    Taken::Ended(ended) => Some(ended),
                    Taken::Feed(feed) => relay(&feed, &updates).await,
                }
            }
        }))
        .await;
        let mut deployments = settled;
        deployments.extend(
            ends.into_iter()
                .flatten()
                .map(|ended| deployment(&node, &ended.row, &ended.components)),
        );
        deployments.sort_by(|a, b| a.service.cmp(&b.service));
        let last = v1::DeployUpdate {
            update: Some(v1::deploy_update::Update::Result(v1::DeployResult {
                deployments,
            })),
        };
        // A client that is gone has no use for the result; the registry keeps it.
        drop(updates.send(Ok(last)).await);
    };
    agent.work.spawn(async move {
        tokio::select! {
            // The agent's end cuts followers off; the deployment goes on by its journal.
            () = shutdown.cancelled() => {}
            () = following => {}
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

/// Relays the steps of one deployment until its end.
async fn relay(
    feed: &Feed,
    updates: &mpsc::Sender<Result<v1::DeployUpdate, Status>>,
) -> Option<Arc<Ended>> {
    let (kept, mut steps) = feed.follow();
    let ended = feed.ended();
    tokio::pin!(ended);
    for step in &kept {
        updates.send(Ok(progress(step))).await.ok()?;
    }
    loop {
        tokio::select! {
            biased;
            // Both arms only receive, and may be cancelled.
            step = steps.recv() => match step {
                Ok(step) => updates.send(Ok(progress(&step))).await.ok()?,
                // A slow client loses steps; the end comes by its own way.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                    return ended.await;
                }
            },
            end = &mut ended => return end,
        }
    }
}
