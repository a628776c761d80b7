//! Watching: what runs, and how it differs from what was deployed.
//!
//! [`Watch`] holds the current [`Snapshot`] and asks the engine for a new one; [`Sightings`] takes in
//! what deployments see of containers, so that nothing is asked twice; [`Busy`] says which services are
//! being changed, since nothing follows from what is seen of those.
//!
//! The engine's events are hints that cause one fresh look at the containers concerned; a full list at
//! every resync is the truth. A pidfd tells of a death at once, and overrides a look for that
//! container and start: inspect goes on saying that it runs for 10 to 50 ms.

mod busy;
mod component;
mod current;
mod emptied;
mod exits;
mod flapping;
mod health;
mod meeting;
mod news;
pub mod process;
mod recorder;
mod restart;
mod revive;
mod sight;
mod snapshot;
mod stream;
mod task;

pub use busy::{Busy, BusyGuard};
pub(crate) use current::KILLED;
pub use current::{Sightings, Watch};
pub use revive::{Revive, Revived, Reviver};
pub use sight::first_sight;
pub use snapshot::{EngineState, Snapshot};
pub use task::{Setup, run};

#[cfg(test)]
mod tests;
