//! What every command is given: settings, printer and time limit.

use std::time::Duration;

use crate::client::signing::OpenedKey;
use crate::config::Settings;
use crate::output::Printer;

/// The surroundings of one command.
#[derive(Debug)]
pub(crate) struct Context {
    /// The workstation's settings.
    pub(crate) settings: Settings,
    /// The only way to print.
    pub(crate) out: Printer,
    /// `--timeout`.
    pub(crate) timeout: Option<Duration>,
    /// The operator's key, from when a command needs it on.
    pub(crate) key: OpenedKey,
}
