//! What a pack can be wrong in, and which bound it can exceed: each has a name of its own, which events and
//! audit tell.

use std::fmt;

use thiserror::Error;

/// A bound on what is received, as [`super::Limits`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Bytes of the pack as it is sent.
    PackBytes,
    /// Objects in it, or of what it is made from.
    Objects,
    /// Bytes of one object, inflated.
    ObjectBytes,
    /// Bytes of all objects together, inflated.
    InflatedBytes,
    /// Deltas upon deltas.
    DeltaDepth,
    /// Bytes of what the deltas upon one another make.
    DeltaChainBytes,
    /// Commits that are new.
    Commits,
    /// Directories within directories.
    TreeDepth,
    /// Files in one revision.
    TreePaths,
    /// Bytes of one path.
    PathBytes,
    /// Bytes of all definitions of a revision.
    DefinitionBytes,
    /// Bytes of all files of a revision, those that are alike counted once.
    FileBytes,
}

impl Bound {
    /// What is said where it is exceeded.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PackBytes => "pack-too-large",
            Self::Objects => "too-many-objects",
            Self::ObjectBytes => "object-too-large",
            Self::InflatedBytes => "inflates-too-large",
            Self::DeltaDepth => "deltas-too-deep",
            Self::DeltaChainBytes => "delta-chain-too-large",
            Self::Commits => "too-many-commits",
            Self::TreeDepth => "tree-too-deep",
            Self::TreePaths => "too-many-files",
            Self::PathBytes => "path-too-long",
            Self::DefinitionBytes => "definitions-too-large",
            Self::FileBytes => "files-too-large",
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PackBytes => "the pack's bytes",
            Self::Objects => "the objects",
            Self::ObjectBytes => "an object's bytes",
            Self::InflatedBytes => "the pack's inflated bytes",
            Self::DeltaDepth => "the deltas upon deltas",
            Self::DeltaChainBytes => "the bytes of deltas upon deltas",
            Self::Commits => "the new commits",
            Self::TreeDepth => "the directories within directories",
            Self::TreePaths => "the revision's files",
            Self::PathBytes => "the bytes of a path",
            Self::DefinitionBytes => "the definitions' bytes",
            Self::FileBytes => "the bytes of the revision's files",
        })
    }
}

/// What is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PackFault {
    /// Other bytes than a pack's.
    #[error("it does not start with PACK")]
    NotAPack,
    /// Another version than git writes.
    #[error("it is of version {0}, not 2")]
    Version(u32),
    /// No object in it.
    #[error("it is empty")]
    Empty,
    /// Its end is missing.
    #[error("it ends early")]
    Truncated,
    /// Something follows it, or it holds more objects than it says.
    #[error("it goes on after the last of its {0} objects")]
    Trailing(u32),
    /// A delta against an object that it names by id, which may be anywhere.
    #[error("it holds reference deltas; only offset deltas are accepted")]
    ReferenceDelta,
    /// A delta against nothing that stands before it.
    #[error("a delta has no base")]
    DeltaBase,
    /// A delta whose head cannot be read.
    #[error("a delta is garbled")]
    Delta,
    /// An entry that is longer or shorter than its head says.
    #[error("an entry has {found} bytes, which is {relation} than it says", relation = if found > said { "more" } else { "less" })]
    EntrySize {
        /// What it says.
        said: u64,
        /// As far as it was read.
        found: u64,
    },
    /// An entry whose size is no number.
    #[error("an entry's size is out of range")]
    SizeRange,
    /// An entry that is neither commit, tree, blob, tag nor delta.
    #[error("an entry has the unknown kind {0}")]
    Kind(u8),
    /// An entry that is not compressed as it has to be.
    #[error("an entry cannot be inflated")]
    Inflate,
    /// The same object twice.
    #[error("it holds the object {0} twice")]
    Duplicate(String),
    /// An object made to collide with another.
    #[error("it holds an object made for a SHA-1 collision")]
    Collision,
    /// The checksum at its end is another.
    #[error("its checksum does not fit")]
    Checksum,
    /// The indexer refuses it.
    #[error("{0}")]
    Index(String),
}

impl PackFault {
    /// The fault's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotAPack => "not-a-pack",
            Self::Version(_) => "pack-version",
            Self::Empty => "empty-pack",
            Self::Truncated => "truncated-pack",
            Self::Trailing(_) => "pack-goes-on",
            Self::ReferenceDelta => "reference-delta",
            Self::DeltaBase => "delta-without-base",
            Self::Delta => "garbled-delta",
            Self::EntrySize { .. } => "entry-size",
            Self::SizeRange => "entry-size-range",
            Self::Kind(_) => "entry-kind",
            Self::Inflate => "garbled-entry",
            Self::Duplicate(_) => "duplicate-object",
            Self::Collision => "sha1-collision",
            Self::Checksum => "pack-checksum",
            Self::Index(_) => "corrupt-pack",
        }
    }
}
