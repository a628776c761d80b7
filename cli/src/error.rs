//! How a command ends: exit codes, and failures with their causes and hints.
//!
//! Libraries have an error type an operation; here, at the call site, each becomes a [`Failure`] with
//! the exit code that scripts rely on. Nothing is printed here: `output` does that.

use std::error::Error;

/// How the process ends; the numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All of it was done.
    Done = 0,
    /// It failed; a degraded or blocked target counts as failed.
    Failed = 1,
    /// There are changes, or drift; with `--exit-code` only.
    Changes = 2,
    /// It failed and was rolled back: the old version runs.
    RolledBack = 3,
    /// The client's wait ended; the deployment goes on.
    WaitEnded = 4,
    /// A stale plan, a superseded deployment, or a repository that is behind or has diverged.
    Stale = 5,
    /// Some nodes failed, some did not.
    SomeNodes = 6,
    /// Refused: token, role, signature, policy or unrelated history.
    Refused = 7,
    /// The node was not reached.
    Unreachable = 8,
    /// The command line is wrong, or consent is missing.
    Usage = 64,
}

impl Exit {
    /// The number that the process ends with.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// How a command over several nodes ends, from how it ended on each: the common end where all
    /// agree, [`Exit::SomeNodes`] where some are done and some are not, and else the gravest.
    pub(crate) fn over_nodes(ends: impl IntoIterator<Item = Self>) -> Self {
        let ends: Vec<Self> = ends.into_iter().collect();
        let good = |end: &Self| matches!(end, Self::Done | Self::Changes);
        if ends.iter().all(good) {
            return ends.into_iter().max().unwrap_or(Self::Done);
        }
        if ends.iter().any(good) {
            return Self::SomeNodes;
        }
        match ends.iter().min().zip(ends.iter().max()) {
            Some((least, most)) if least == most => *least,
            _ => Self::Failed,
        }
    }
}

/// A command's failure as it is told: what failed with the value, why, and the next command.
///
/// It is boxed, since nearly every function may return one and few do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(Box<Story>);

impl std::ops::Deref for Failure {
    type Target = Story;

    fn deref(&self) -> &Story {
        &self.0
    }
}

impl std::ops::DerefMut for Failure {
    fn deref_mut(&mut self) -> &mut Story {
        &mut self.0
    }
}

/// What there is to say of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Story {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// What failed, with the value.
    pub(crate) message: String,
    /// Why, the nearest cause first.
    pub(crate) causes: Vec<String>,
    /// The next command.
    pub(crate) hint: Option<String>,
    /// The agent's word for the reason, where an agent gave one.
    pub(crate) reason: Option<String>,
    /// The deployment that it is about.
    pub(crate) deployment_id: Option<String>,
    /// The node's head, where the failure is about it.
    pub(crate) head: Option<String>,
    /// Set where the node does not know what it was asked about.
    pub(crate) unknown: bool,
    /// Set where everything was already told and only the exit code is left.
    pub(crate) told: bool,
}

impl Failure {
    /// A failure with this exit code and message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self(Box::new(Story {
            exit,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            reason: None,
            deployment_id: None,
            head: None,
            unknown: false,
            told: false,
        }))
    }

    /// A failure with exit code 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A wrong command line or setting, or missing consent: exit code 64.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// An end whose story was already told.
    pub(crate) fn told(exit: Exit) -> Self {
        let mut failure = Self::new(exit, "");
        failure.told = true;
        failure
    }

    /// The same failure with another exit code.
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.0.exit = exit;
        self
    }

    /// Adds the chain of `error` to the causes.
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Wrappers that show their source as their own text would say it twice.
            if self.causes.last().is_none_or(|last| *last != text) && self.message != text {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Adds one cause.
    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Sets the next command.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the next command where there is one.
    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        if hint.is_some() {
            self.hint = hint;
        }
        self
    }

    /// A failure made of `error` itself: its text the message, its sources the causes.
    pub(crate) fn of(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        let failure = Self::new(exit, error.to_string());
        match error.source() {
            Some(source) => failure.because(source),
            None => failure,
        }
    }
}

/// What a command returns.
pub(crate) type Outcome = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_all_agree_give_their_own_exit_code() {
        assert_eq!(Exit::over_nodes([]), Exit::Done);
        assert_eq!(Exit::over_nodes([Exit::Done, Exit::Done]), Exit::Done);
        assert_eq!(
            Exit::over_nodes([Exit::Unreachable, Exit::Unreachable]),
            Exit::Unreachable
        );
        assert_eq!(Exit::over_nodes([Exit::Done, Exit::Changes]), Exit::Changes);
    }

    #[test]
    fn nodes_that_differ_give_exit_6_only_where_one_is_done() {
        assert_eq!(
            Exit::over_nodes([Exit::Done, Exit::Unreachable]),
            Exit::SomeNodes
        );
        assert_eq!(
            Exit::over_nodes([Exit::Refused, Exit::Unreachable]),
            Exit::Failed
        );
    }

    #[test]
    fn causes_that_repeat_the_message_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let failure = Failure::failed("disk on fire").because(&inner);
        assert!(failure.causes.is_empty());
    }
}
