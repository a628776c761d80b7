//! The API: one file a gRPC service. Each decodes, calls, and encodes; nothing is decided here.
//!
//! Every call goes through [`authenticate`] first. Bounds: a message has at most
//! [`MAX_MESSAGE_BYTES`] after decompression, a connection at most [`STREAMS`] calls at a time, the
//! headers of a call at most [`MAX_HEADER_BYTES`].

use std::sync::Arc;
use std::time::Duration;

use mcp_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::Agent;
use crate::tls::Incoming;

pub mod authenticate;
mod components;
mod deployments;
mod files;
mod node;
mod registry;
mod revisions;
mod secrets;
mod signed;
pub mod status;
mod workloads;

use authenticate::Authenticate;

/// Largest message after decompression.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most calls of one connection at a time: a CLI that works on every service at once has a few dozen.
const STREAMS: u32 = 128;
/// Most bytes of one call's headers: a token has at most 8 KiB, a statement 24, in base64. A token that is far too
/// long still gets the answer of a token that is refused, and what is longer than this one of HTTP.
const MAX_HEADER_BYTES: u32 = 96 * 1024;
/// A quiet connection is asked whether it still lives.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(20);
/// Streams that a peer may reset before they are taken up (CVE-2023-44487).
const PENDING_RESETS: usize = 20;

/// Applies the bounds that hold for every service.
macro_rules! bounded {
    ($server:expr) => {
        $server
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Zstd)
    };
}

/// All services of the agent.
async fn routes(agent: &Arc<Agent>) -> Routes {
    let mut routes = RoutesBuilder::default();
    routes.add_service(bounded!(v1::node_server::NodeServer::new(node::Node::new(
        Arc::clone(agent)
    ))));
    routes.add_service(bounded!(v1::revisions_server::RevisionsServer::new(
        revisions::Revisions::new(Arc::clone(agent))
    )));
    routes.add_service(bounded!(v1::deployments_server::DeploymentsServer::new(
        deployments::Deployments::new(Arc::clone(agent))
    )));
    routes.add_service(bounded!(v1::registry_server::RegistryServer::new(
        registry::Registry::new(Arc::clone(agent))
    )));
    routes.add_service(bounded!(v1::workloads_server::WorkloadsServer::new(
        workloads::Workloads::new(Arc::clone(agent))
    )));
    // Not compressed: most of what is large is so already, and the rest would cost more time than the line.
    routes.add_service(
        v1::files_server::FilesServer::new(files::Files::new(Arc::clone(agent)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    );
    routes.add_service(bounded!(v1::secrets_server::SecretsServer::new(
        secrets::Secrets::new(Arc::clone(agent))
    )));
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::Serving).await;
    routes.add_service(health_server);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(mcp_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are the compiler's own");
    routes.add_service(reflection);
    routes.routes()
}

/// Serves the API over `incoming` until `shutdown`, then lets running calls end.
///
/// # Errors
///
/// The transport's, where the server cannot go on.
pub async fn serve(
    agent: Arc<Agent>,
    incoming: Incoming,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .layer(Authenticate::new(Arc::clone(&agent)))
        .add_routes(routes(&agent).await)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests;
