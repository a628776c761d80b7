//! Reading what was accepted: trees, files, history. Nothing outside the accepted set is readable.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use mcp_spec::definition::{DefinitionError, SHARED_PATH, Sharing};
use mcp_spec::image::Digest;
use mcp_spec::revision::{CommitId, ParsedCommit};
use mcp_spec::secret::{MAX_SEALED_BYTES, secret_at};
use mcp_spec::signature::{ALLOWED_SIGNERS_PATH, AllowedSigners};
use mcp_spec::tree::EntryMode;
use thiserror::Error;

use super::accepted::{AcceptedLog, Past, Record};
use super::faults::Bound;
use super::history::Verification;
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Kind, ObjectError, Objects};
use super::pack::{self, PackWriteError};
use super::tree_files::{DraftError, TreeFiles, is_definition};
use super::trees::{self, TreeWalkError, Trees};
use super::{ReceiveError, RevisionStore, VerifiedRevision};

/// Most bytes of all definitions of a revision together: three kilobytes for each of ten thousand.
pub(super) const MAX_DEFINITIONS_BYTES: u64 = 32 * 1024 * 1024;

/// Most bytes of secrets that are held at once: hundreds of the largest, tens of thousands of usual ones.
const MAX_HELD_SECRETS_BYTES: u64 = 64 * 1024 * 1024;

/// Most bytes of the files of a revision that are read for their digests, those that are alike once: as
/// many as one pack may inflate to.
const MAX_FILES_BYTES: u64 = 1024 * 1024 * 1024;

/// Fewest hexadecimal digits that name a commit.
const MIN_PREFIX_CHARS: usize = 4;

/// Why something of an accepted revision could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The commit is not among the accepted.
    #[error("{} is not an accepted revision", commit.short())]
    NotAccepted {
        /// The commit.
        commit: CommitId,
    },
    /// An object is missing or corrupt.
    #[error("{} cannot be read from the repository", commit.short())]
    Object {
        /// The commit.
        commit: CommitId,
        /// What is wrong.
        source: ObjectError,
    },
    /// A tree or commit breaks the rules, though it was accepted: the repository was changed.
    #[error("{} is damaged: {reason}", commit.short())]
    Damaged {
        /// The commit.
        commit: CommitId,
        /// What is wrong.
        reason: String,
    },
    /// More than is ever read at once.
    #[error("{what} exceed the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: Bound,
        /// The bound.
        limit: u64,
    },
    /// A draft was refused.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// A pack could not be written.
    #[error(transparent)]
    Pack(#[from] PackWriteError),
    /// The disk failed.
    #[error("could not open the repository")]
    Io {
        /// The system's reason.
        source: io::Error,
    },
}

/// Why a text names no accepted revision.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// No revision was accepted yet.
    #[error("this node has no revision yet: run `mcp sync`")]
    Empty,
    /// Not a way to name a revision.
    #[error(
        "`{rev}` names no revision: write a commit id, at least four digits of one, HEAD or HEAD~N"
    )]
    Syntax {
        /// The refused text.
        rev: String,
    },
    /// No accepted commit of that name.
    #[error("`{rev}` is not an accepted revision of this node")]
    Unknown {
        /// The refused text.
        rev: String,
    },
    /// Several commits start alike.
    #[error("`{rev}` could be {} or {}: write more digits", candidates.0, candidates.1)]
    Ambiguous {
        /// The refused text.
        rev: String,
        /// Two that it could be.
        candidates: (CommitId, CommitId),
    },
    /// The history does not go back that far.
    #[error("`{rev}` goes back further than the accepted history")]
    BeforeHistory {
        /// The refused text.
        rev: String,
    },
}

impl RevisionStore {
    /// The definitions of a revision and the digests of its files, straight from its tree.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; `NotAccepted` for anything that did not pass the door.
    pub fn read_definitions(&self, commit: CommitId) -> Result<TreeFiles, ReadError> {
        self.must_be_accepted(commit)?;
        tree_files(&self.open_objects()?, commit, Limits::default().tree_paths)
    }

    /// The bytes of one file of a revision, `None` where it has no such file.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn read_file(&self, commit: CommitId, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
        self.must_be_accepted(commit)?;
        let objects = self.open_objects()?;
        file_of(&objects, commit, &root_tree(&objects, commit)?, path)
    }

    /// A revision's definitions with uncommitted edits laid over; nothing is written.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; `Draft` where the edits are too many, too large or out of place.
    pub fn with_draft(
        &self,
        base: CommitId,
        files: &[(String, Option<Vec<u8>>)],
    ) -> Result<TreeFiles, ReadError> {
        Ok(self.read_definitions(base)?.with_draft(files)?)
    }

    /// Finds the accepted commit that a person means: an id, its first digits (four at least),
    /// `HEAD` or `@`, each followed by any number of `~N` and `^`.
    ///
    /// # Errors
    ///
    /// [`ResolveError`].
    pub fn resolve(&self, rev: &str) -> Result<CommitId, ResolveError> {
        let state = self.read_state();
        let head = state.head.ok_or(ResolveError::Empty)?;
        let shown = || rev.chars().take(80).collect::<String>();
        let syntax = || ResolveError::Syntax { rev: shown() };
        let end = rev.find(['~', '^']).unwrap_or(rev.len());
        let (base, steps) = rev.split_at(end);
        let mut commit = if base == "HEAD" || base == "@" {
            head
        } else {
            let digits = base.to_ascii_lowercase();
            if !(MIN_PREFIX_CHARS..=40).contains(&digits.len())
                || !digits.bytes().all(|c| c.is_ascii_hexdigit())
            {
                return Err(syntax());
            }
            match state.accepted.with_prefix(&digits).as_slice() {
                [] => return Err(ResolveError::Unknown { rev: shown() }),
                [commit] => *commit,
                [one, other, ..] => {
                    return Err(ResolveError::Ambiguous {
                        rev: shown(),
                        candidates: (*one, *other),
                    });
                }
            }
        };
        for _ in 0..steps_back(steps).ok_or_else(syntax)? {
            let record = state
                .accepted
                .get(commit)
                .filter(|record| !record.introduction);
            commit = record
                .and_then(|record| record.parents.first().copied())
                .ok_or_else(|| ResolveError::BeforeHistory { rev: shown() })?;
        }
        Ok(commit)
    }

    /// Whether the commit is among the accepted.
    #[must_use]
    pub fn is_accepted(&self, commit: CommitId) -> bool {
        self.read_state().accepted.contains(commit)
    }

    /// Whether `ancestor` is `commit` itself or an accepted ancestor of it.
    #[must_use]
    pub fn is_ancestor(&self, ancestor: CommitId, commit: CommitId) -> bool {
        self.read_state()
            .accepted
            .ancestry(commit)
            .contains(&ancestor)
    }

    /// The accepted commits that `new` has and `old` has not, oldest first.
    #[must_use]
    pub fn commits_between(&self, old: Option<CommitId>, new: CommitId) -> Vec<CommitId> {
        let state = self.read_state();
        let behind = old.map_or_else(HashSet::new, |old| state.accepted.ancestry(old));
        let ahead = state.accepted.ancestry(new);
        state
            .accepted
            .records()
            .iter()
            .map(|record| record.commit)
            .filter(|commit| ahead.contains(commit) && !behind.contains(commit))
            .collect()
    }

    /// How many accepted commits `new` is ahead of `old`.
    #[must_use]
    pub fn distance(&self, old: CommitId, new: CommitId) -> usize {
        let state = self.read_state();
        let behind = state.accepted.ancestry(old);
        let ahead = state.accepted.ancestry(new);
        ahead.difference(&behind).count()
    }

    /// One accepted revision.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn revision(&self, commit: CommitId) -> Result<VerifiedRevision, ReadError> {
        let record = self
            .read_state()
            .accepted
            .get(commit)
            .cloned()
            .ok_or(ReadError::NotAccepted { commit })?;
        described(&self.open_objects()?, record)
    }

    /// The authors' names of commits, in their order; nothing where one is not here.
    ///
    /// # Errors
    ///
    /// [`ReadError`] where the store cannot be opened.
    pub fn authors(&self, commits: &[CommitId]) -> Result<Vec<Option<String>>, ReadError> {
        let objects = self.open_objects()?;
        let author = |commit: &CommitId| {
            let commit = parsed(&objects, *commit).ok()?;
            Some(commit.author.name)
        };
        Ok(commits.iter().map(author).collect())
    }

    /// The newest accepted revisions first, at most `limit`; with paths, those alone that changed
    /// something at or below one of them.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn log(&self, limit: usize, paths: &[&str]) -> Result<Vec<VerifiedRevision>, ReadError> {
        let records = self.read_state().accepted.records().to_vec();
        let objects = self.open_objects()?;
        let trees = Trees::new(&objects);
        let mut log = Vec::new();
        for record in records.into_iter().rev() {
            if log.len() == limit {
                break;
            }
            if paths.is_empty() || changes(&objects, &trees, &record, paths)? {
                log.push(described(&objects, record)?);
            }
        }
        Ok(log)
    }

    /// The revisions accepted after this one, oldest first; all of them for `None` or a commit that
    /// is not known. With it the registry catches up after a crash.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn accepted_since(
        &self,
        commit: Option<CommitId>,
    ) -> Result<Vec<VerifiedRevision>, ReadError> {
        let records = self.read_state().accepted.after(commit).to_vec();
        let objects = self.open_objects()?;
        records
            .into_iter()
            .map(|record| described(&objects, record))
            .collect()
    }

    /// Writes the pack that takes a clone from `have` to the head; the whole history, what lies
    /// before the introduction included, for `None`.
    ///
    /// Gives the head that it leads to, or `None` with nothing written where there is nothing new.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; `NotAccepted` where `have` is unknown here.
    pub fn pack_since(
        &self,
        have: Option<CommitId>,
        to: impl Write,
    ) -> Result<Option<CommitId>, ReadError> {
        let Some(head) = self.head().filter(|head| Some(*head) != have) else {
            return Ok(None);
        };
        if let Some(have) = have {
            self.must_be_accepted(have)?;
        }
        let objects = self.open_objects()?;
        let limits = Limits {
            objects: u64::from(u32::MAX),
            commits: usize::MAX,
            ..Limits::default()
        };
        let clock = Clockwork::start(&limits);
        let trust = self.trust().clone();
        let nothing = AcceptedLog::default();
        let verification = Verification {
            objects: &objects,
            shapes: &self.shapes,
            accepted: &nothing,
            past: &Past::default(),
            trust: &trust,
            limits: &limits,
            clock: &clock,
            denylist: false,
        };
        let mut held = HashSet::new();
        let mut discarded = Vec::new();
        let commits: Vec<(CommitId, Id)> = if let Some(have) = have {
            let tree = root_tree(&objects, have)?;
            trees::reach(
                &objects,
                have,
                &tree,
                &mut held,
                &mut discarded,
                &limits,
                &clock,
            )
            .map_err(|error| receive_error(have, &error))?;
            self.commits_between(Some(have), head)
                .into_iter()
                .map(|commit| Ok((commit, root_tree(&objects, commit)?)))
                .collect::<Result<_, ReadError>>()?
        } else {
            verification
                .new_commits(head)
                .map_err(|error| receive_error(head, &error))?
                .commits()
                .collect()
        };
        let mut ids: Vec<Id> = commits
            .iter()
            .map(|(commit, _)| *commit.as_bytes())
            .collect();
        for (commit, tree) in &commits {
            trees::reach(
                &objects, *commit, tree, &mut held, &mut ids, &limits, &clock,
            )
            .map_err(|error| receive_error(*commit, &error))?;
        }
        pack::write(&objects, &ids, to)?;
        Ok(Some(head))
    }

    pub(super) fn must_be_accepted(&self, commit: CommitId) -> Result<(), ReadError> {
        if self.is_accepted(commit) {
            Ok(())
        } else {
            Err(ReadError::NotAccepted { commit })
        }
    }

    /// Opened anew for each call: a handle that lives on would run out of slots for packs.
    pub(super) fn open_objects(&self) -> Result<Objects, ReadError> {
        let limit = usize::try_from(Limits::default().object_bytes).unwrap_or(usize::MAX);
        Objects::open(&self.objects_dir(), limit).map_err(|source| ReadError::Io { source })
    }
}

/// Reads definitions and digests from the tree of any commit at hand, accepted or in quarantine.
pub(super) fn tree_files(
    objects: &Objects,
    commit: CommitId,
    limit: u64,
) -> Result<TreeFiles, ReadError> {
    let root = root_tree(objects, commit)?;
    let trees = Trees::new(objects);
    let mut files = TreeFiles::new(sharing(objects, commit)?);
    let mut left = MAX_DEFINITIONS_BYTES;
    // A hundred thousand names may stand for one large file, which is read once.
    let mut digests: HashMap<Id, Digest> = HashMap::new();
    let mut read: u64 = 0;
    let mut sealed: u64 = 0;
    for directory in ["services", "files", "secrets"] {
        let found = trees
            .files(&root, directory, limit)
            .map_err(|error| walk_error(commit, error))?;
        for (path, id) in found {
            let is_definition = is_definition(&path);
            let is_secret = secret_at(&path).is_some();
            if let Some(digest) = digests.get(&id).filter(|_| !is_definition && !is_secret) {
                files.insert_digest(path, *digest);
                continue;
            }
            let bytes = objects
                .read_kind(&id, Kind::Blob)
                .map_err(|source| ReadError::Object { commit, source })?;
            if is_definition {
                left = left
                    .checked_sub(bytes.len() as u64)
                    .ok_or_else(too_many_bytes)?;
                files.insert_definition(path, bytes);
                continue;
            }
            read = read.saturating_add(bytes.len() as u64);
            if read > MAX_FILES_BYTES {
                return Err(ReadError::TooLarge {
                    what: Bound::FileBytes,
                    limit: MAX_FILES_BYTES,
                });
            }
            if is_secret {
                // What is too large is none, and is not held.
                let is_held = bytes.len() <= MAX_SEALED_BYTES;
                sealed += if is_held { bytes.len() as u64 } else { 0 };
                if sealed > MAX_HELD_SECRETS_BYTES {
                    return Err(ReadError::TooLarge {
                        what: Bound::FileBytes,
                        limit: MAX_HELD_SECRETS_BYTES,
                    });
                }
                files.insert_sealed(path, if is_held { bytes } else { Vec::new() });
                continue;
            }
            let digest = Digest::of(&bytes);
            digests.insert(id, digest);
            files.insert_digest(path, digest);
        }
    }
    Ok(files)
}

/// The bytes of one file below a revision's root tree, `None` where it has no such file.
fn file_of(
    objects: &Objects,
    commit: CommitId,
    root: &Id,
    path: &str,
) -> Result<Option<Vec<u8>>, ReadError> {
    let found = Trees::new(objects)
        .find(root, path)
        .map_err(|error| walk_error(commit, error))?;
    found
        .filter(|entry| entry.mode != EntryMode::Directory)
        .map(|entry| objects.read_kind(&entry.id, Kind::Blob))
        .transpose()
        .map_err(|source| ReadError::Object { commit, source })
}

/// What a revision's services may share, or every error of the file that says so.
pub(super) fn sharing(
    objects: &Objects,
    commit: CommitId,
) -> Result<Result<Sharing, Vec<DefinitionError>>, ReadError> {
    let root = root_tree(objects, commit)?;
    let bytes = |path: &str| file_of(objects, commit, &root, path);
    // The door took no signers that cannot be read. To read them as none would lift every limit.
    let signers = bytes(ALLOWED_SIGNERS_PATH)?
        .map(|bytes| AllowedSigners::parse_bytes(&bytes))
        .transpose()
        .map_err(|fault| ReadError::Damaged {
            commit,
            reason: format!("{ALLOWED_SIGNERS_PATH}, {fault}"),
        })?;
    let shared = bytes(SHARED_PATH)?;
    Ok(Sharing::read(signers.as_ref(), shared.as_deref()))
}

pub(super) fn too_many_bytes() -> ReadError {
    ReadError::TooLarge {
        what: Bound::DefinitionBytes,
        limit: MAX_DEFINITIONS_BYTES,
    }
}

/// `~N` and `^`, added up.
fn steps_back(mut steps: &str) -> Option<usize> {
    let mut total: usize = 0;
    while !steps.is_empty() {
        if let Some(rest) = steps.strip_prefix('^') {
            total = total.checked_add(1)?;
            steps = rest;
        } else {
            let rest = steps.strip_prefix('~')?;
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let count = if end == 0 {
                1
            } else {
                rest[..end].parse().ok()?
            };
            total = total.checked_add(count)?;
            steps = &rest[end..];
        }
    }
    Some(total)
}

/// Whether the commit differs from each of its parents at or below one of the paths.
fn changes(
    objects: &Objects,
    trees: &Trees<'_>,
    record: &Record,
    paths: &[&str],
) -> Result<bool, ReadError> {
    let commit = record.commit;
    let root = root_tree(objects, commit)?;
    // What an introduction has was there before in no verified revision.
    let parents = if record.introduction {
        Vec::new()
    } else {
        record
            .parents
            .iter()
            .map(|parent| root_tree(objects, *parent))
            .collect::<Result<_, _>>()?
    };
    for path in paths {
        let path = path.trim_end_matches('/');
        let at = |root: &Id| {
            trees
                .find(root, path)
                .map(|entry| entry.map(|entry| (entry.mode, entry.id)))
                .map_err(|error| walk_error(commit, error))
        };
        let own = at(&root)?;
        let mut changed = !parents.is_empty() || own.is_some();
        for parent in &parents {
            changed &= at(parent)? != own;
        }
        if changed {
            return Ok(true);
        }
    }
    Ok(false)
}

fn parsed(objects: &Objects, commit: CommitId) -> Result<ParsedCommit, ReadError> {
    let raw = objects
        .read_kind(commit.as_bytes(), Kind::Commit)
        .map_err(|source| ReadError::Object { commit, source })?;
    ParsedCommit::parse(&raw).map_err(|error| ReadError::Damaged {
        commit,
        reason: error.to_string(),
    })
}

pub(super) fn root_tree(objects: &Objects, commit: CommitId) -> Result<Id, ReadError> {
    Ok(parsed(objects, commit)?.tree)
}

fn described(objects: &Objects, record: Record) -> Result<VerifiedRevision, ReadError> {
    let parsed = parsed(objects, record.commit)?;
    Ok(VerifiedRevision::new(
        record,
        parsed.subject(),
        parsed.author.time,
    ))
}

pub(super) fn walk_error(commit: CommitId, error: TreeWalkError) -> ReadError {
    match error {
        TreeWalkError::Object(source) => ReadError::Object { commit, source },
        TreeWalkError::TooMany { limit } => ReadError::TooLarge {
            what: Bound::TreePaths,
            limit,
        },
        error @ TreeWalkError::Hostile { .. } => ReadError::Damaged {
            commit,
            reason: error.to_string(),
        },
    }
}

fn receive_error(commit: CommitId, error: &ReceiveError) -> ReadError {
    ReadError::Damaged {
        commit,
        reason: error.to_string(),
    }
}
