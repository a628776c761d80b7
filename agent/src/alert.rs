//! Alerts: from the event log to an operator's own command.
//!
//! Three steps, none of which a deployment ever waits for. [`judge`] follows the event log and keeps
//! which conditions hold; what is worth telling goes into the registry's outbox in the transaction
//! that records the condition. [`deliver`] takes from the outbox, one alert at a time, and runs
//! `[alert] command`. [`conditions`] is the pure part: which event begins or ends which condition, and
//! when it is told.
//!
//! After a crash the log is read on from the last recorded event: an alert may be delivered twice
//! (the command ended and the agent died before it was written down), and is never lost.

mod command;
mod conditions;
mod deliver;
mod evidence;
mod failing;
mod judge;

#[cfg(test)]
mod tests;

pub use command::{Delivered, DeliveryError};
pub use conditions::{Alert, AlertState};
pub use deliver::Delivery;
pub use judge::{Judge, JudgeError};
