//! The agent's `Runtime` against real engines: every key of a component that it compiles is proved
//! by inspect or from inside the container, and asking twice shows the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod belongings;
mod bench;
mod health;
mod keys;
mod life;
mod refusals;
