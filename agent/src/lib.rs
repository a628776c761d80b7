//! The MCP agent: verifies revisions, plans and deploys them, and watches what runs.

pub mod auth;
pub mod clock;
pub mod config;
pub mod revisions;
pub mod runtime;
pub mod watch;
