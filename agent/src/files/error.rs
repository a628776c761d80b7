//! Why a file is neither read nor written. It travels between processes, so it is all plain data.

use std::io;

use mcp_spec::name::ServiceName;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A refusal or a failure; `place` is `SERVICE:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileError {
    /// Nothing is there.
    #[error("{place} is not there")]
    NotFound {
        /// Where.
        place: String,
    },
    /// A part of the path is no folder.
    #[error("{place} is no folder")]
    NotFolder {
        /// Where.
        place: String,
    },
    /// A folder where a file is meant.
    #[error("{place} is a folder")]
    IsFolder {
        /// Where.
        place: String,
    },
    /// A symlink, which is never followed.
    #[error("{place} is a symlink, or has one on its way")]
    Link {
        /// Where.
        place: String,
    },
    /// Something that is neither file nor folder.
    #[error("{place} is a {kind}, and no file")]
    Special {
        /// Where.
        place: String,
        /// What it is.
        kind: String,
    },
    /// A file with another name somewhere.
    #[error("{place} has {links} names, so it may be another's file")]
    HardLinks {
        /// Where.
        place: String,
        /// How many.
        links: u64,
    },
    /// Another file system.
    #[error("another file system is mounted at {place}")]
    OtherDisk {
        /// Where.
        place: String,
    },
    /// The agent's own.
    #[error("{place} belongs to the agent itself")]
    Agents {
        /// Where.
        place: String,
    },
    /// More than a file may have.
    #[error("the file has {bytes} bytes, and this node takes {limit} at most")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More than a service may have.
    #[error(
        "{service} holds {held} bytes below its folder, and with {bytes} more it exceeds its quota of {quota}"
    )]
    Quota {
        /// The service.
        service: ServiceName,
        /// What is there.
        held: u64,
        /// What would come.
        bytes: u64,
        /// What is allowed.
        quota: u64,
    },
    /// More than can be counted for the quota.
    #[error("{service} has more than {limit} files and folders, so its quota cannot be told")]
    Uncounted {
        /// The service.
        service: ServiceName,
        /// The limit.
        limit: usize,
    },
    /// Too little room.
    #[error(
        "the disk of {place} has {free} bytes left; {bytes} are needed, and {reserve} stay free"
    )]
    Full {
        /// Where.
        place: String,
        /// What is left.
        free: u64,
        /// What is needed.
        bytes: u64,
        /// What stays free.
        reserve: u64,
    },
    /// Other bytes than were signed for.
    #[error("what arrived for {place} is not what its request was signed for: {what}")]
    OtherBytes {
        /// Where.
        place: String,
        /// Its length, or its digest.
        what: String,
    },
    /// It changed while it was read.
    #[error("{place} changed while it was read")]
    Changed {
        /// Where.
        place: String,
    },
    /// Somebody else changes the folder.
    #[error("somebody else changed {place} at the same moment")]
    Disturbed {
        /// Where.
        place: String,
    },
    /// Another push or undo of the same file.
    #[error("{place} is being pushed by somebody else")]
    Busy {
        /// Where.
        place: String,
    },
    /// Nothing to put back.
    #[error("nothing is kept of what {place} was before")]
    NothingKept {
        /// Where.
        place: String,
    },
    /// It is not what the push left.
    #[error("{place} was changed since it was pushed")]
    NotAsPushed {
        /// Where.
        place: String,
    },
    /// It cannot be given to its owner.
    #[error("cannot give {place} to {uid}:{gid}")]
    Owner {
        /// Where.
        place: String,
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// The disk refused.
    #[error("cannot {doing} {place}: {}", io::Error::from_raw_os_error(*errno))]
    Io {
        /// What was being done.
        doing: String,
        /// Where.
        place: String,
        /// The kernel's number.
        errno: i32,
    },
    /// The engine's user namespace cannot be entered.
    #[error("cannot reach the files as the engine's containers see them: {why}")]
    Namespace {
        /// Why.
        why: String,
    },
}

impl FileError {
    /// A failure of the disk.
    pub(crate) fn io(doing: &str, place: impl Into<String>, error: &io::Error) -> Self {
        Self::Io {
            doing: doing.to_owned(),
            place: place.into(),
            errno: error
                .raw_os_error()
                .unwrap_or(rustix::io::Errno::IO.raw_os_error()),
        }
    }

    /// The stable word for it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "file-not-found",
            Self::NotFolder { .. } => "not-a-folder",
            Self::IsFolder { .. } => "is-a-folder",
            Self::Link { .. } => "symlink",
            Self::Special { .. } => "not-a-file",
            Self::HardLinks { .. } => "hard-links",
            Self::OtherDisk { .. } => "mount",
            Self::Agents { .. } => "agents-own",
            Self::TooLarge { .. } => "file-too-large",
            Self::Quota { .. } | Self::Uncounted { .. } => "quota",
            Self::Full { .. } => "disk-full",
            Self::Io { errno, .. } if is_full(*errno) => "disk-full",
            Self::OtherBytes { .. } => "request-other-bytes",
            Self::Changed { .. } => "file-changed",
            Self::Disturbed { .. } => "file-disturbed",
            Self::Busy { .. } => "file-busy",
            Self::NothingKept { .. } => "nothing-kept",
            Self::NotAsPushed { .. } => "not-as-pushed",
            Self::Owner { .. } => "file-owner",
            Self::Io { .. } => "io",
            Self::Namespace { .. } => "namespace",
        }
    }

    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { place } => format!("see what is there: mcp files {}", folder_of(place)),
            Self::NotFolder { .. } => "name a path whose parts but the last are folders".to_owned(),
            Self::IsFolder { place } => {
                format!("name a file in it, as in {}/NAME, or take -r for the whole folder", place.trim_end_matches('/'))
            }
            Self::Link { .. } => "symlinks are never followed; name the file that it leads to".to_owned(),
            Self::Special { .. } => "only regular files are read and replaced".to_owned(),
            Self::HardLinks { .. } => {
                "copy it in its container and remove the original (cp F G && mv G F), or name another file".to_owned()
            }
            Self::OtherDisk { .. } => {
                "files are reached on the file system of the service's folder alone; use a path beside it".to_owned()
            }
            Self::Agents { .. } => "nobody reaches the agent's own files through its API".to_owned(),
            Self::TooLarge { .. } => "raise max_file under [files] in agent.toml on the node".to_owned(),
            Self::Quota { .. } => "remove files of the service, or raise quota under [files] in agent.toml on the node".to_owned(),
            Self::Uncounted { .. } => "write quota = \"none\" under [files] in agent.toml on the node".to_owned(),
            Self::Full { .. } => "make room on the disk of the node, or lower reserve under [files] in agent.toml".to_owned(),
            Self::Io { errno, .. } if is_full(*errno) => "make room on the disk of the node; nothing was changed".to_owned(),
            Self::OtherBytes { .. } => "push it anew; nothing was changed".to_owned(),
            Self::Changed { .. } => "try again when nobody writes to it".to_owned(),
            Self::Disturbed { .. } | Self::Busy { .. } => "see what is there with mcp files, then try again".to_owned(),
            Self::NothingKept { .. } => "one earlier version is kept, of what was pushed; push the file that you want".to_owned(),
            Self::NotAsPushed { .. } => "look at it with mcp pull; with --force it is put back all the same, and what is there now is kept".to_owned(),
            Self::Owner { .. } => {
                "run the agent as root or as the user of an engine without root, or have the container's user own the folder".to_owned()
            }
            Self::Io { .. } => "look at the folder on the node: its permissions, its disk".to_owned(),
            Self::Namespace { .. } => "see the engine's state: mcp node info".to_owned(),
        }
    }
}

fn is_full(errno: i32) -> bool {
    use rustix::io::Errno;
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|full| full.raw_os_error() == errno)
}

/// The folder that a place lies in, as it is asked for.
fn folder_of(place: &str) -> &str {
    match place.rsplit_once('/') {
        Some((folder, _)) => folder,
        None => place.split_once(':').map_or(place, |(service, _)| service),
    }
}
