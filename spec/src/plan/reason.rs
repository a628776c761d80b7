//! Why an action is taken, or why none is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::revision::CommitId;

/// Why an action is taken, or why none is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "because", content = "of")]
pub enum Reason {
    /// It was never deployed.
    New,
    /// Fields of its spec changed.
    Changed(Vec<String>),
    /// Its tag stands for another image now.
    ImageMoved,
    /// Its container is gone.
    ContainerMissing,
    /// The engine's store was emptied, its container with it.
    EngineEmptied,
    /// It does not run; the exit code where it is known.
    NotRunning(Option<i32>),
    /// Its container is frozen.
    Paused,
    /// It was stopped by this operator.
    StoppedBy(String),
    /// Its container is not what was made: the fields that differ.
    Drifted(Vec<String>),
    /// The operator asked for it.
    Forced,
    /// The operator asked for a start, a stop or a restart.
    Asked,
    /// The service is not active.
    Inactive,
    /// The revision no longer defines it.
    NoLongerDefined,
    /// It is held at a revision.
    Held(CommitId),
    /// It is what is wanted.
    UpToDate,
    /// A job that is not run here.
    JobNotRun,
    /// Its spec failed its gate before.
    Quarantined,
    /// It has ended, as its restart policy allows.
    Finished,
    /// Its container was taken over: these are the fields in which it departs from what is wanted.
    Adopted(Vec<String>),
    /// Its container was taken over and is what is wanted.
    AdoptedAsItIs,
    /// Its container was taken over, and what follows is an operator's to say.
    OnlyAdopted,
    /// Somebody has changed its container to what is wanted now.
    Accepted(Vec<String>),
    /// The operator has to deploy it: it never ran here, or on another node before.
    NotDeployed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Changed(fields) => write!(f, "{} changed", list(fields)),
            Self::ImageMoved => f.write_str("image moved"),
            Self::ContainerMissing => f.write_str("container missing"),
            Self::EngineEmptied => f.write_str("engine store emptied"),
            Self::NotRunning(Some(code)) => write!(f, "not running (exit {code})"),
            Self::NotRunning(None) => f.write_str("not running"),
            Self::Paused => f.write_str("paused"),
            Self::StoppedBy(who) => write!(f, "stopped by {who}"),
            Self::Drifted(fields) => write!(f, "{} drifted", list(fields)),
            Self::Forced => f.write_str("forced"),
            Self::Asked => f.write_str("asked for"),
            Self::Inactive => f.write_str("service is inactive"),
            Self::NoLongerDefined => f.write_str("no longer defined"),
            Self::Held(revision) => write!(f, "held at {}", revision.short()),
            Self::UpToDate => f.write_str("up to date"),
            Self::JobNotRun => f.write_str("job, not run here"),
            Self::Quarantined => f.write_str("quarantined: this spec failed its gate here"),
            Self::Finished => f.write_str("finished"),
            Self::Adopted(fields) => write!(f, "adopted: {} differ", list(fields)),
            Self::AdoptedAsItIs => f.write_str("adopted as it is"),
            Self::OnlyAdopted => f.write_str("adopted, never deployed"),
            Self::Accepted(fields) => write!(f, "{} so already", list(fields)),
            Self::NotDeployed => f.write_str("not deployed yet"),
        }
    }
}

/// At most three names, then how many more.
fn list(fields: &[String]) -> String {
    match fields {
        [a] => a.clone(),
        [a, b] => format!("{a}, {b}"),
        [a, b, c] => format!("{a}, {b}, {c}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more", rest.len()),
        [] => "spec".to_owned(),
    }
}
