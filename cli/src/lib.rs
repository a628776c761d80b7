//! The MCP command line as a library: the desired-state repository and its signatures.
//!
//! What talks to nodes and prints lies beside these modules; neither of them writes to a terminal
//! (but for the question for a passphrase).

pub mod repo;
pub mod sign;
