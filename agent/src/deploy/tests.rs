//! Deployments over the scripted engine, a real registry and real revisions.

mod back;
mod convergence;
mod faults;
mod invariants;
mod node;
mod race;
mod scenarios;
mod stuck;
mod sweep;
mod sweeping;
