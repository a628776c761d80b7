//! Specs in the formats of others and in our own.

pub mod toml;
