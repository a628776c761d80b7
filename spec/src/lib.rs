//! The pure domain of MCP: names, definitions, component specs, revisions, plans.
//!
//! Nothing here does I/O, reads a clock, draws random numbers, logs or waits: time and randomness
//! are arguments. The CLI and the agent run the same code, so that neither has to trust the other.

pub mod capture;
pub mod component;
pub mod definition;
pub mod diff;
pub mod drift;
pub mod duration;
pub mod export;
pub mod image;
pub mod name;
pub mod observed;
pub mod plan;
pub mod policy;
pub mod request;
pub mod revision;
#[cfg(test)]
mod samples;
pub mod secret;
pub mod signal;
pub mod signature;
pub mod tree;
