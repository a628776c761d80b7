//! The MCP agent: verifies revisions, plans and deploys them, and watches what runs.

pub mod auth;
pub mod config;
pub mod revisions;
pub mod runtime;
