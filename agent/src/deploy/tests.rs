//! Deployments over the scripted engine, a real registry and real revisions.

mod faults;
mod invariants;
mod node;
mod race;
mod scenarios;
mod sweep;
