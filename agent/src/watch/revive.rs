//! The request to start a container again, as its restart policy asks.
//!
//! The watch decides when; whoever owns the containers does it, looks at the registry right before,
//! and refuses where an operator's stop or a deployment came first.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, LiveContainer};

use crate::runtime::RuntimeError;

/// A start by the restart policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revive {
    /// The component.
    pub key: ComponentKey,
    /// The registered container that ended.
    pub container: ContainerId,
}

/// What came of a start by the restart policy.
#[derive(Debug)]
pub enum Revived {
    /// It runs again.
    Running(Box<LiveContainer>),
    /// It is not wanted any more, or a deployment has the lane: nothing was done.
    NotNow,
    /// The engine failed.
    Failed(RuntimeError),
}

/// Whoever starts containers again. Called for one component of a service at a time.
pub type Reviver = Arc<dyn Fn(Revive) -> BoxFuture<'static, Revived> + Send + Sync>;
