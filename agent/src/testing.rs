//! What tests put in the place of the world: engines, and the pace of a simulation.

mod engine;
mod pace;
mod witness;

pub use engine::ScriptedEngine;
pub(crate) use pace::pace;
pub use pace::{Pace, Work, set_pace};
pub(crate) use witness::witness;
pub use witness::{Witness, set_witness};
