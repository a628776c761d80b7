//! `mcp.v1.Node`: the machine and its agent.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use mcp_proto::v1;
use mcp_spec::revision::CommitId;
use tonic::{Request, Response, Status};

use super::authenticate::{About, caller};
use super::registry::engine_status;
use super::status;
use crate::Agent;
use crate::alert::DeliveryError;
use crate::node::{NodeFacts, Usage};
use crate::source::{self, Way};

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
        request: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        let identity = caller(&request)?;
        let agent = &self.agent;
        let config = &agent.config;
        let facts = NodeFacts::read(&config.data_dir);
        let (source, inbox) = (agent.source.last(), agent.inbox.last());
        let (age_recipient, age_error) = match agent.revisions.keyring().recipient() {
            Ok(recipient) => (recipient, String::new()),
            Err(error) => (String::new(), error.to_string()),
        };
        let rows = agent
            .registry
            .deployed_all()
            .await
            .map_err(|error| status::registry(&error))?;
        let services: BTreeSet<_> = rows.iter().map(|row| &row.key.service).collect();
        Ok(Response::new(v1::InfoResponse {
            node: config.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: Some(engine_status(agent, &agent.watch.current())),
            disk: Some(usage(facts.disk)),
            memory: Some(usage(facts.memory)),
            cpus: facts.cpus,
            load_millis: facts.load_millis,
            head_revision: agent
                .revisions
                .head()
                .map(|head| head.to_string())
                .unwrap_or_default(),
            started_at: agent.started_at.to_string(),
            now: Timestamp::now().to_string(),
            services: u32::try_from(services.len()).unwrap_or(u32::MAX),
            components: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            source_url: config
                .source
                .as_ref()
                .map(|source| source.url.clone())
                .unwrap_or_default(),
            source_checked_at: source.at.map(|at| at.to_string()).unwrap_or_default(),
            source_error: source.error.unwrap_or_default(),
            inbox_path: config
                .inbox
                .as_ref()
                .map(|inbox| inbox.path.display().to_string())
                .unwrap_or_default(),
            inbox_checked_at: inbox.at.map(|at| at.to_string()).unwrap_or_default(),
            inbox_error: inbox.error.unwrap_or_default(),
            os: facts.os,
            kernel: facts.kernel,
            architecture: facts.architecture,
            caller: Some(v1::Caller {
                narrowed: identity.services.is_some(),
                services: identity
                    .services
                    .iter()
                    .flatten()
                    .map(ToString::to_string)
                    .collect(),
                role: identity.role.to_string(),
                subject: identity.subject,
                issuer: identity.issuer,
            }),
            age_recipient,
            age_error,
        }))
    }

    async fn fetch_source(
        &self,
        request: Request<v1::FetchSourceRequest>,
    ) -> Result<Response<v1::FetchSourceResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let agent = Arc::clone(&self.agent);
        let Some(source) = agent.config.source.clone() else {
            return Err(status::no_source());
        };
        about.say(&source.url, "");
        // As with a push: a client that goes away changes nothing.
        let fetching = self.agent.work.spawn(async move {
            let before = agent.revisions.head();
            let fetched = source::fetch(&agent, &source)
                .await
                .map_err(|error| status::fetch(&error, agent.revisions.head()))?;
            if let Some(accepted) = &fetched {
                tracing::info!(by = identity.subject, head = %accepted.head, "fetched");
                agent.arrived(Way::Fetch, &source.url, accepted).await;
            }
            let shown = |commit: Option<CommitId>| {
                commit.map(|commit| commit.to_string()).unwrap_or_default()
            };
            Ok::<_, Status>(v1::FetchSourceResponse {
                previous: shown(before),
                revision: shown(agent.revisions.head()),
                new_commits: fetched.map_or(0, |accepted| {
                    u32::try_from(accepted.new_commits.len()).unwrap_or(u32::MAX)
                }),
            })
        });
        let fetched = fetching.await.map_err(|_| status::stopping())??;
        Ok(Response::new(fetched))
    }

    async fn test_alert(
        &self,
        request: Request<v1::TestAlertRequest>,
    ) -> Result<Response<v1::TestAlertResponse>, Status> {
        let identity = caller(&request)?;
        About::of(&request).say("alert command", "");
        let agent = Arc::clone(&self.agent);
        let shutdown = agent.shutdown.clone();
        let testing = agent.alerts.clone();
        let delivered = tokio::select! {
            // The command is killed with its attempt.
            () = shutdown.cancelled() => Err(DeliveryError::Stopping),
            delivered = async { testing.test(&identity.subject).await } => delivered,
        }
        .map_err(|error| status::delivery(&error))?;
        Ok(Response::new(v1::TestAlertResponse {
            output: delivered.output,
            duration_ms: u64::try_from(delivered.took.as_millis()).unwrap_or(u64::MAX),
        }))
    }
}
