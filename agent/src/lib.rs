//! The MCP agent: verifies revisions, plans and deploys them, and watches what runs.

pub mod runtime;
