//! `mcp.v1.Node`: the machine and its agent.

use std::sync::Arc;

use jiff::Timestamp;
use mcp_proto::v1;
use tonic::{Request, Response, Status};

use crate::Agent;
use crate::node::{NodeFacts, Usage};

/// The service.
#[derive(Debug)]
pub(super) struct Node {
    agent: Arc<Agent>,
}

impl Node {
    pub(super) const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

/// How much is in use, on the wire.
pub(super) const fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        used_bytes: usage.used_bytes,
        total_bytes: usage.total_bytes,
    }
}

#[tonic::async_trait]
impl v1::node_server::Node for Node {
    async fn info(
        &self,
        _: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        let agent = &self.agent;
        let facts = NodeFacts::read(&agent.config.data_dir);
        let config = &agent.config;
        Ok(Response::new(v1::InfoResponse {
            node: config.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: None,
            disk: Some(usage(facts.disk)),
            memory: Some(usage(facts.memory)),
            cpus: facts.cpus,
            load_millis: facts.load_millis,
            head_revision: String::new(),
            started_at: agent.started_at.to_string(),
            now: Timestamp::now().to_string(),
            services: 0,
            components: 0,
            source_url: config
                .source
                .as_ref()
                .map(|source| source.url.clone())
                .unwrap_or_default(),
            source_checked_at: String::new(),
            source_error: String::new(),
            os: facts.os,
            kernel: facts.kernel,
            architecture: facts.architecture,
        }))
    }

    async fn fetch_source(
        &self,
        _: Request<v1::FetchSourceRequest>,
    ) -> Result<Response<v1::FetchSourceResponse>, Status> {
        Err(Status::unavailable("not yet"))
    }
}
