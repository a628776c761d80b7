//! Engines for tests.

mod engine;

pub use engine::ScriptedEngine;
