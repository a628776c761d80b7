//! Following a deployment to its end, over a lost connection too.
//!
//! The agent goes on without a client. A connection that is lost is taken up again for
//! [`TAKE_UP_TIME`] by the request's id, which names the same work however often it is sent.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use mcp_proto::v1;
use mcp_proto::v1::deploy_update::Update;
use tokio::time::Instant;

use super::signing::Signatures;
use super::{NodeClient, Updates, failure};
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure};
use crate::output::style::short;

/// How long a lost connection is taken up again: an agent that is restarted is back within this.
const TAKE_UP_TIME: Duration = Duration::from_secs(10);

/// Time between two attempts to take it up.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(250);

/// What the agent is asked to carry out and report on.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// A deployment.
    Deploy(v1::DeployRequest),
    /// Back to what ran before.
    Rollback(v1::RollbackRequest),
    /// Start of whole services.
    Start(v1::LifecycleRequest),
    /// Stop of whole services.
    Stop(v1::LifecycleRequest),
    /// Stop and start of whole services.
    Restart(v1::LifecycleRequest),
    /// Removal of what the head does not want.
    Purge(v1::PurgeRequest),
}

impl Work {
    fn request_id(&self) -> &str {
        match self {
            Self::Deploy(request) => &request.request_id,
            Self::Rollback(request) => &request.request_id,
            Self::Start(request) | Self::Stop(request) | Self::Restart(request) => {
                &request.request_id
            }
            Self::Purge(request) => &request.request_id,
        }
    }

    async fn send(&self, client: &NodeClient) -> Result<Updates<v1::DeployUpdate>, Failure> {
        match self.clone() {
            Self::Deploy(request) => client.deploy(request).await,
            Self::Rollback(request) => client.rollback(request).await,
            Self::Start(request) => client.start(request).await,
            Self::Stop(request) => client.stop(request).await,
            Self::Restart(request) => client.restart(request).await,
            Self::Purge(request) => client.purge(request).await,
        }
    }
}

/// A new request id: 128 random bits.
pub(crate) fn new_request_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// What is seen on the way.
#[derive(Debug)]
pub(crate) enum Seen {
    /// What will be done.
    Plan(v1::Plan),
    /// A step.
    Progress(v1::Progress),
    /// The connection was lost, and is being taken up again.
    Lost,
    /// The connection stands again.
    Back,
}

/// Has `work` done on `node` and tells `seen` of each update until the result; a break leaves the
/// agent to it.
///
/// # Errors
///
/// The agent's refusal, or exit code 8 where the connection was lost for good, with the deployment's id.
pub(crate) async fn follow(
    context: &Context,
    signatures: &Arc<Signatures>,
    node: &NodeEntry,
    work: &Work,
    mut seen: impl FnMut(Seen) -> ControlFlow<()>,
) -> Result<Option<Vec<v1::Deployment>>, Failure> {
    let mut deployment_id = String::new();
    let client = NodeClient::connect_signing(context, node, signatures).await?;
    let mut updates = work.send(&client).await;
    loop {
        let lost = match &mut updates {
            Ok(stream) => match stream.next().await {
                Ok(Some(v1::DeployUpdate {
                    update: Some(update),
                })) => {
                    let flow = match update {
                        Update::Result(result) => return Ok(Some(result.deployments)),
                        Update::Plan(plan) => seen(Seen::Plan(plan)),
                        Update::Progress(progress) => {
                            if !progress.deployment_id.is_empty() {
                                deployment_id.clone_from(&progress.deployment_id);
                            }
                            seen(Seen::Progress(progress))
                        }
                    };
                    if flow.is_break() {
                        return Ok(None);
                    }
                    continue;
                }
                // An update of a kind that this release does not know.
                Ok(Some(_)) => continue,
                Ok(None) => None,
                Err(failure) => Some(failure),
            },
            Err(failure) => Some(failure.clone()),
        };
        match lost {
            Some(failure) if !failure::may_come_back(&failure) => return Err(failure),
            _ => {}
        }
        if seen(Seen::Lost).is_break() {
            return Ok(None);
        }
        updates = Ok(take_up(context, signatures, node, work, &deployment_id).await?);
        if seen(Seen::Back).is_break() {
            return Ok(None);
        }
    }
}

/// Connects again and attaches to the work, or sends it again where the agent never saw it.
async fn take_up(
    context: &Context,
    signatures: &Arc<Signatures>,
    node: &NodeEntry,
    work: &Work,
    deployment_id: &str,
) -> Result<Updates<v1::DeployUpdate>, Failure> {
    let until = Instant::now() + TAKE_UP_TIME;
    loop {
        let failure = match attach(context, signatures, node, work).await {
            Ok(updates) => return Ok(updates),
            Err(failure) => failure,
        };
        if failure.exit != Exit::Unreachable {
            return Err(failure);
        }
        if Instant::now() + BETWEEN_ATTEMPTS >= until {
            let what = if deployment_id.is_empty() {
                "whether the deployment goes on is not known".to_owned()
            } else {
                format!(
                    "deployment {} goes on without this client",
                    short(deployment_id)
                )
            };
            let mut lost = Failure::new(
                Exit::Unreachable,
                format!(
                    "the connection to {} was lost for {}s; {what}",
                    node.name,
                    TAKE_UP_TIME.as_secs()
                ),
            )
            .cause(failure.message.clone())
            .hint(format!("mcp history --node {}", node.name));
            lost.causes.extend(failure.causes.iter().cloned());
            lost.deployment_id = (!deployment_id.is_empty()).then(|| deployment_id.to_owned());
            return Err(lost);
        }
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
}

async fn attach(
    context: &Context,
    signatures: &Arc<Signatures>,
    node: &NodeEntry,
    work: &Work,
) -> Result<Updates<v1::DeployUpdate>, Failure> {
    let client = NodeClient::connect_signing(context, node, signatures).await?;
    let request = v1::AttachRequest {
        deployment_id: String::new(),
        request_id: work.request_id().to_owned(),
    };
    match client.attach(request).await {
        Err(failure) if failure.unknown => work.send(&client).await,
        other => other,
    }
}
