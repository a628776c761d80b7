//! What tests put in the place of the world: engines, the pace of a simulation, folders in memory.

mod engine;
mod memory;
mod pace;
mod witness;

pub use engine::ScriptedEngine;
pub use memory::memory_dir;
pub(crate) use pace::pace;
pub use pace::{Pace, Work, set_pace};
pub(crate) use witness::witness;
pub use witness::{Witness, set_witness, steps_of};
