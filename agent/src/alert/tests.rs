//! The rules of alerts, with a real registry and a real command.

mod conditions;
mod delivery;
