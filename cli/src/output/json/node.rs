//! The documents about nodes: what `status` says of each, and the facts that `node info` shares.

use mcp_proto::v1;
use serde::Serialize;

use super::{Component, Event, Held, some};

/// Used of total, in bytes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Usage {
    used_bytes: u64,
    total_bytes: u64,
}

impl From<&v1::Usage> for Usage {
    fn from(usage: &v1::Usage) -> Self {
        Self {
            used_bytes: usage.used_bytes,
            total_bytes: usage.total_bytes,
        }
    }
}

/// A node's cores and its load of the last minute.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cpu {
    cores: u32,
    load: f64,
}

impl Cpu {
    /// From the agent's thousandths.
    pub(crate) fn new(cores: u32, load_millis: u32) -> Self {
        Self {
            cores,
            load: f64::from(load_millis) / 1000.0,
        }
    }
}

/// A node's engine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Engine {
    name: String,
    version: Option<String>,
    reachable: bool,
    error: Option<String>,
    socket: Option<String>,
    rootless: bool,
}

impl From<&v1::EngineStatus> for Engine {
    fn from(engine: &v1::EngineStatus) -> Self {
        Self {
            name: engine.name.clone(),
            version: some(&engine.version),
            reachable: engine.reachable,
            error: some(&engine.error),
            socket: some(&engine.socket),
            rootless: engine.rootless,
        }
    }
}

/// A container that nobody manages.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Unmanaged {
    container: String,
    container_id: String,
    image: String,
    state: String,
}

impl From<&v1::Unmanaged> for Unmanaged {
    fn from(unmanaged: &v1::Unmanaged) -> Self {
        Self {
            container: unmanaged.container.clone(),
            container_id: unmanaged.container_id.clone(),
            image: unmanaged.image.clone(),
            state: unmanaged.state.clone(),
        }
    }
}

/// One service of a node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServiceStatus {
    service: String,
    revision: Option<String>,
    behind: u32,
    held: Option<Held>,
    drift: bool,
    orphaned: bool,
    active: bool,
    blocked: Option<String>,
    next_try_at: Option<String>,
    components: Vec<Component>,
}

impl ServiceStatus {
    fn new(node: &str, service: &v1::ServiceStatus) -> Self {
        Self {
            service: service.service.clone(),
            revision: some(&service.revision),
            behind: service.behind,
            held: service.held.as_ref().map(Held::from),
            drift: service.drift,
            orphaned: service.orphaned,
            active: service.active,
            blocked: some(&service.blocked),
            next_try_at: some(&service.next_try_at),
            components: service
                .components
                .iter()
                .map(|c| Component::new(node, c))
                .collect(),
        }
    }
}

/// One node of `status`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeStatus {
    node: String,
    reachable: bool,
    error: Option<String>,
    version: Option<String>,
    head_revision: Option<String>,
    engine: Option<Engine>,
    disk: Option<Usage>,
    memory: Option<Usage>,
    cpu: Option<Cpu>,
    services: Vec<ServiceStatus>,
    unmanaged: Vec<Unmanaged>,
    events: Vec<Event>,
    warnings: Vec<String>,
}

impl NodeStatus {
    /// A node that answered.
    pub(crate) fn new(node: &str, status: &v1::StatusResponse) -> Self {
        Self {
            node: node.to_owned(),
            reachable: true,
            error: None,
            version: some(&status.version),
            head_revision: some(&status.head_revision),
            engine: status.engine.as_ref().map(Engine::from),
            disk: status.disk.as_ref().map(Usage::from),
            memory: status.memory.as_ref().map(Usage::from),
            cpu: Some(Cpu::new(status.cpus, status.load_millis)),
            services: status
                .services
                .iter()
                .map(|s| ServiceStatus::new(node, s))
                .collect(),
            unmanaged: status.unmanaged.iter().map(Unmanaged::from).collect(),
            events: status.events.iter().map(|e| Event::new(node, e)).collect(),
            warnings: status.warnings.clone(),
        }
    }

    /// A node that did not answer, or refused.
    pub(crate) fn failed(node: &str, reachable: bool, error: &str) -> Self {
        Self {
            node: node.to_owned(),
            reachable,
            error: Some(error.to_owned()),
            version: None,
            head_revision: None,
            engine: None,
            disk: None,
            memory: None,
            cpu: None,
            services: Vec::new(),
            unmanaged: Vec::new(),
            events: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// What `status` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Status {
    pub(crate) nodes: Vec<NodeStatus>,
}
