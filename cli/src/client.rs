//! Talking to agents: one authenticated connection a node, all nodes at once.
//!
//! This module and those beneath it are the only ones that know `tonic` and `rustls`. A connection is
//! made here in steps (name, TCP, TLS, HTTP/2), so that each way to fail has its own words; requests
//! have a time limit of their own, and every status becomes a [`Failure`] with its exit code.

mod connect;
mod failure;
pub(crate) mod files;
pub(crate) mod follow;
pub(crate) mod mcias;
mod renewal;
pub(crate) mod signing;
mod tls;
pub(crate) mod token;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use mcp_proto::v1;
use mcp_proto::v1::deployments_client::DeploymentsClient;
use mcp_proto::v1::node_client::NodeClient as NodeService;
use mcp_proto::v1::registry_client::RegistryClient;
use mcp_proto::v1::revisions_client::RevisionsClient;
use mcp_proto::v1::secrets_client::SecretsClient;
use mcp_proto::v1::workloads_client::WorkloadsClient;
use mcp_spec::name::NodeName;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure};
use signing::Signatures;

pub(crate) use connect::parse_address;
pub(crate) use tls::{parse_fingerprint, read_certificates};

/// How many nodes are talked to at once: each costs a socket and a handshake's worth of CPU.
const NODES_AT_ONCE: usize = 64;

/// Longest time for one request and its answer, where `--timeout` says nothing else.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// Longest time for a pushed pack and its verification: the first push of a long history takes minutes.
const PUSH_TIME: Duration = Duration::from_secs(300);

/// Largest answer that is taken: two thousand components with their drift fit many times over.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The bearer token of a connection, added to every request.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A connection to one node's agent; clones share it.
#[derive(Clone)]
pub(crate) struct NodeClient {
    name: NodeName,
    channel: Channel,
    bearer: Bearer,
    limit: Option<Duration>,
    signatures: Arc<Signatures>,
}

/// Calls with one answer. Those with a path change something, and are signed.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident in $client:ident $(as $path:literal)?;)*) => {
        $(
            $(#[$doc])*
            pub(crate) async fn $name(&self, message: v1::$request) -> Result<v1::$response, Failure> {
                let mut client = $client::with_interceptor(self.channel.clone(), self.bearer.clone())
                    .max_decoding_message_size(MAX_ANSWER_BYTES);
                let request = request!(self, message $(, $path)?);
                self.within(REQUEST_TIME, client.$name(request)).await
            }
        )*
    };
}

/// Calls that are answered with a stream. Those with a path change something, and are signed.
macro_rules! streaming {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $item:ident in $client:ident $(as $path:literal)?;)*) => {
        $(
            $(#[$doc])*
            pub(crate) async fn $name(&self, message: v1::$request) -> Result<Updates<v1::$item>, Failure> {
                let mut client = $client::with_interceptor(self.channel.clone(), self.bearer.clone())
                    .max_decoding_message_size(MAX_ANSWER_BYTES);
                let request = request!(self, message $(, $path)?);
                // The headers of a stream may come with its first item, so only the connection is
                // watched here (by HTTP/2 pings), and not the clock.
                let stream = client.$name(request).await.map_err(|status| self.failure(&status))?;
                Ok(Updates { node: self.name.to_string(), stream: stream.into_inner() })
            }
        )*
    };
}

macro_rules! request {
    ($client:ident, $message:ident) => {
        Request::new($message)
    };
    ($client:ident, $message:ident, $path:literal) => {{
        let first = $message.clone();
        $client
            .signatures
            .request(&$client.name, $path, &first, $message)
            .await?
    }};
}

impl NodeClient {
    /// Connects to `node` with its token; what it signs it signs for this node alone.
    pub(crate) async fn connect(context: &Context, node: &NodeEntry) -> Result<Self, Failure> {
        let signatures = Signatures::new(&context.key, [node.name.clone()]);
        Self::connect_signing(context, node, &signatures).await
    }

    /// Connects to `node` with its token, and with the statements of a command about several nodes.
    pub(crate) async fn connect_signing(
        context: &Context,
        node: &NodeEntry,
        signatures: &Arc<Signatures>,
    ) -> Result<Self, Failure> {
        let token = token::for_node(context, node).await?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.reveal()).parse().map_err(|_| {
                Failure::new(
                    Exit::Refused,
                    format!("the token for {} is malformed", node.name),
                )
                .hint(format!("mcp login --node {} --token-stdin", node.name))
            })?;
        value.set_sensitive(true);
        let channel = connect::connect(node, context.timeout).await?;
        Ok(Self {
            name: node.name.clone(),
            channel,
            bearer: Bearer(Some(value)),
            limit: context.timeout,
            signatures: Arc::clone(signatures),
        })
    }

    /// The node's name.
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    fn failure(&self, status: &Status) -> Failure {
        failure::of(self.name.as_str(), status)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let limit = self.limit.unwrap_or(limit);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(failure::no_answer(self.name.as_str(), limit)),
        }
    }

    unary! {
        /// The node's head.
        negotiate(NegotiateRequest) -> NegotiateResponse in RevisionsClient;
        /// Accepted revisions.
        list_revisions(ListRevisionsRequest) -> ListRevisionsResponse in RevisionsClient;
        /// What a deploy would do.
        get_plan(PlanRequest) -> Plan in DeploymentsClient;
        /// Cancels a deployment before the point of no return.
        cancel(CancelRequest) -> CancelResponse in DeploymentsClient as "/mcp.v1.Deployments/Cancel";
        /// Holds components at what they run.
        set_hold(HoldRequest) -> HoldResponse in DeploymentsClient as "/mcp.v1.Deployments/SetHold";
        /// Lets held components go.
        release_hold(ReleaseRequest) -> ReleaseResponse in DeploymentsClient as "/mcp.v1.Deployments/ReleaseHold";
        /// Deployments of the past.
        history(HistoryRequest) -> HistoryResponse in DeploymentsClient;
        /// Why a target runs what it runs.
        why(WhyRequest) -> WhyResponse in DeploymentsClient;
        /// The registry alone.
        list(ListRequest) -> ListResponse in RegistryClient;
        /// A live query of the engine.
        ps(ListRequest) -> ListResponse in RegistryClient;
        /// Live query, drift, events and the node's health.
        status(StatusRequest) -> StatusResponse in RegistryClient;
        /// Who asked for what.
        audit(AuditRequest) -> AuditResponse in RegistryClient;
        /// Drift, field by field.
        get_drift(DriftRequest) -> ListResponse in RegistryClient;
        /// A service's definition, from the registry.
        export(ExportRequest) -> ExportResponse in WorkloadsClient;
        /// Takes containers over.
        adopt(AdoptRequest) -> AdoptResponse in WorkloadsClient as "/mcp.v1.Workloads/Adopt";
        /// Lets go of components.
        forget(ForgetRequest) -> ForgetResponse in WorkloadsClient as "/mcp.v1.Workloads/Forget";
        /// The machine and its agent.
        info(InfoRequest) -> InfoResponse in NodeService;
        /// Has the agent fetch from its upstream at once.
        fetch_source(FetchSourceRequest) -> FetchSourceResponse in NodeService as "/mcp.v1.Node/FetchSource";
        /// Runs the node's alert command with a test alert.
        test_alert(TestAlertRequest) -> TestAlertResponse in NodeService as "/mcp.v1.Node/TestAlert";
        /// Has a node encrypt anew what is encrypted to it.
        reseal(ResealRequest) -> ResealResponse in SecretsClient as "/mcp.v1.Secrets/Reseal";
    }

    streaming! {
        /// Deploys, and reports until the end.
        deploy(DeployRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Deploy";
        /// Follows a deployment that is under way.
        attach(AttachRequest) -> DeployUpdate in DeploymentsClient;
        /// Back to what ran before.
        rollback(RollbackRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Rollback";
        /// Starts services.
        start(LifecycleRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Start";
        /// Stops services.
        stop(LifecycleRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Stop";
        /// Stops and starts services.
        restart(LifecycleRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Restart";
        /// Removes what the head does not want.
        purge(PurgeRequest) -> DeployUpdate in DeploymentsClient as "/mcp.v1.Deployments/Purge";
        /// Events after a sequence number.
        watch_events(WatchEventsRequest) -> WatchEventsResponse in RegistryClient;
        /// Lines of logs.
        logs(LogsRequest) -> LogLine in WorkloadsClient;
    }

    /// Pulls what the commits in `have` lack.
    pub(crate) async fn pull_pack(&self, have: Vec<String>) -> Result<Pulled, Failure> {
        /// As much as an agent takes in one push.
        const MAX_PACK_BYTES: usize = 256 * 1024 * 1024;
        let mut client =
            RevisionsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES);
        let pull = async {
            let mut stream = client
                .pull_pack(v1::PullPackRequest { have })
                .await?
                .into_inner();
            let mut pulled = Pulled {
                head: String::new(),
                pack: Vec::new(),
            };
            while let Some(part) = stream.message().await? {
                if pulled.pack.len() + part.chunk.len() > MAX_PACK_BYTES {
                    return Err(Status::resource_exhausted("the pack has more than 256 MiB"));
                }
                pulled.pack.extend_from_slice(&part.chunk);
                if !part.head.is_empty() {
                    pulled.head = part.head;
                }
            }
            Ok(Response::new(pulled))
        };
        self.within(PUSH_TIME, pull).await
    }

    /// Pushes a pack: the header, then the bytes in chunks of at most 1 MiB.
    pub(crate) async fn push_pack(
        &self,
        mut header: v1::PushHeader,
        pack: Arc<[u8]>,
    ) -> Result<v1::PushPackResponse, Failure> {
        use v1::push_pack_request::Part;
        const CHUNK_BYTES: usize = 1024 * 1024;
        // The header is what is signed, so it has to say what follows it.
        header.pack_sha256 = Sha256::digest(&pack).to_vec();
        let first = v1::PushPackRequest {
            part: Some(Part::Header(header)),
        };
        let chunks = (0..pack.len()).step_by(CHUNK_BYTES).map(move |start| {
            let end = (start + CHUNK_BYTES).min(pack.len());
            Part::Chunk(pack[start..end].to_vec())
        });
        let chunks = chunks.map(|part| v1::PushPackRequest { part: Some(part) });
        let parts = tokio_stream::iter(std::iter::once(first.clone()).chain(chunks));
        let request = self
            .signatures
            .request(&self.name, "/mcp.v1.Revisions/PushPack", &first, parts)
            .await?;
        let mut client =
            RevisionsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES);
        self.within(PUSH_TIME, client.push_pack(request)).await
    }
}

/// What a node sent of its history.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// The node's head; empty where it has none.
    pub(crate) head: String,
    /// The pack that leads to it.
    pub(crate) pack: Vec<u8>,
}

/// The items of one of the agent's streams.
pub(crate) struct Updates<T> {
    node: String,
    stream: tonic::Streaming<T>,
}

impl<T> Updates<T> {
    /// The next item; none at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Failure> {
        self.stream
            .message()
            .await
            .map_err(|status| failure::of(&self.node, &status))
    }
}

/// What one node answered, and how long that took.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// The node.
    pub(crate) node: String,
    /// Its answer.
    pub(crate) result: Result<T, Failure>,
    /// From the start of the command to the answer.
    pub(crate) took: Duration,
}

/// Asks every item's node at once, and gives the answers in the items' order.
pub(crate) async fn ask<'a, I, T>(
    context: &Context,
    items: &'a [I],
    node: impl Fn(&'a I) -> &'a NodeEntry,
    request: impl AsyncFn(&NodeClient, &'a I) -> Result<T, Failure>,
) -> Vec<Answer<T>> {
    let request = &request;
    let signatures = &Signatures::new(
        &context.key,
        items.iter().map(|item| node(item).name.clone()),
    );
    futures_util::stream::iter(items.iter().map(|item| {
        let entry = node(item);
        async move {
            let began = Instant::now();
            let result = match NodeClient::connect_signing(context, entry, signatures).await {
                Ok(client) => request(&client, item).await,
                Err(failure) => Err(failure),
            };
            Answer {
                node: entry.name.to_string(),
                result,
                took: began.elapsed(),
            }
        }
    }))
    .buffered(NODES_AT_ONCE)
    .collect()
    .await
}
