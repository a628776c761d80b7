//! What tests put in the place of the world: engines, and the pace of a simulation.

mod engine;
mod pace;

pub use engine::ScriptedEngine;
pub(crate) use pace::pace;
pub use pace::{Pace, Work, set_pace};
