//! What changed below the managed paths: the work tree compared with `HEAD`'s tree.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use gix::ObjectId;
use gix::index::entry::Stat;

use mcp_spec::name::ServiceName;
use mcp_spec::tree::TreeFault;

use super::{CommitId, DesiredRepo, GitFailure, commit_id, scan};

/// All that a commit of the managed paths could take in, found at one moment.
///
/// A commit made from it holds exactly the contents that were seen then: a file that changes
/// in between is an error.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The commit that the work tree was compared with; `None` before the first one.
    pub head: Option<CommitId>,
    /// The changes, sorted by path.
    pub changes: Vec<WorktreeChange>,
    /// What lies below the managed paths and cannot be committed, sorted by path.
    pub refused: Vec<RefusedPath>,
    /// Files that had to be read to see that they are as the index says; their times are refreshed
    /// in the index by the next commit, so that they are not read again.
    pub(super) unchanged: Vec<(String, ObjectId, Stat)>,
    /// All managed files that were seen, changed or not.
    pub(super) worktree: Worktree,
}

/// The managed files of the work tree at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Worktree {
    pub(super) files: BTreeMap<String, Content>,
    /// Paths that git was told not to look at: theirs is what the index says.
    pub(super) of_index: HashSet<String>,
}

impl Worktree {
    pub(super) fn of(scan: &scan::Scan) -> Self {
        let mut files: BTreeMap<_, _> = scan
            .files
            .iter()
            .map(|file| (file.path.clone(), file.content))
            .collect();
        for path in &scan.not_checked_out {
            // What git was told to keep out of the work tree still belongs to the next commit.
            if let Some(Some(content)) = scan.head_files.get(path) {
                files.entry(path.clone()).or_insert(*content);
            }
        }
        Self {
            files,
            of_index: scan.not_checked_out.clone(),
        }
    }
}

/// One file that differs from `HEAD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorktreeChange {
    /// The path, relative to the repository's top, with slashes.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
    /// The content and executable bit that it now has; `None` for a deletion.
    pub(super) now: Option<Content>,
}

/// What a file is in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) blob: ObjectId,
    pub(super) executable: bool,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content or its executable bit is another.
    Modified,
    /// It is gone.
    Deleted,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
        })
    }
}

/// A path below a managed folder that cannot be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", printable(path))]
pub struct RefusedPath {
    /// The path, relative to the repository's top; what is not UTF-8 in it is replaced.
    pub path: String,
    /// Why.
    pub reason: Refusal,
}

/// The path in one line, whatever its name holds.
fn printable(path: &str) -> String {
    let active = |c: char| c.is_control();
    path.chars()
        .flat_map(|c| {
            if active(c) {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// Why a path cannot be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is a symbolic link.
    #[error("a symlink is refused unread; put a regular file there")]
    Symlink,
    /// It is a pipe, socket or device.
    #[error("a {kind} is refused unread; only regular files are managed")]
    Special {
        /// What it is.
        kind: &'static str,
    },
    /// A managed folder's name is taken by a file.
    #[error("a folder is expected here")]
    NotAFolder,
    /// It is a folder with a git repository of its own.
    #[error("a git repository within the repository is refused; move it elsewhere")]
    NestedRepository,
    /// Its name would be refused by every node.
    #[error("its name {fault}; rename it")]
    Name {
        /// The rule that it breaks.
        fault: TreeFault,
    },
    /// It differs from another only by letter case or by how accents are encoded.
    #[error("differs from {other} only by letter case or Unicode form; rename one")]
    NameClash {
        /// The other path.
        other: String,
    },
    /// It is larger than [`super::MAX_FILE_BYTES`].
    #[error("{bytes} bytes are more than the {} MiB that a managed file may have; keep it out of the repository", super::MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Folders lie too deep within each other.
    #[error("lies too deep; folders may be nested {limit} deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// Why the changes could not be found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangesError {
    /// The repository cannot be read.
    #[error("the repository cannot be compared with its work tree")]
    Git {
        /// What git said.
        source: GitFailure,
    },
    /// A file or folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ChangesError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Git { .. } => "check the repository with: git status".to_owned(),
            Self::Read { .. } => "look at the file's owner and mode".to_owned(),
        }
    }
}

impl From<gix::Error> for ChangesError {
    fn from(source: gix::Error) -> Self {
        Self::Git {
            source: source.into(),
        }
    }
}

/// Which changes a commit takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every one.
    All,
    /// Those at these paths or below them.
    Only(Vec<String>),
}

impl Selection {
    /// Whether the path is taken in.
    pub fn takes(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(paths) => paths
                .iter()
                .any(|chosen| covers(chosen.trim_end_matches('/'), path)),
        }
    }
}

impl Selection {
    /// The files that belong to a service: its definition, and its own files and secrets.
    pub fn of_service(service: &ServiceName) -> Self {
        Self::Only(vec![
            format!("services/{service}.toml"),
            format!("files/{service}"),
            format!("secrets/{service}"),
        ])
    }

    /// What either takes in.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Only(mut paths), Self::Only(more)) => {
                paths.extend(more);
                Self::Only(paths)
            }
            _ => Self::All,
        }
    }
}

/// Whether `path` is `folder` or lies below it.
fn covers(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Changes {
    /// Whether there is nothing to commit and nothing refused.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refused.is_empty()
    }

    /// The changes that `selection` takes in.
    pub fn selected<'a>(
        &'a self,
        selection: &'a Selection,
    ) -> impl Iterator<Item = &'a WorktreeChange> {
        self.changes
            .iter()
            .filter(move |change| selection.takes(&change.path))
    }

    /// The refused paths that stand in the way of a commit of `selection`.
    pub fn refused_in<'a>(
        &'a self,
        selection: &'a Selection,
    ) -> impl Iterator<Item = &'a RefusedPath> {
        self.refused.iter().filter(move |refused| match selection {
            Selection::All => true,
            // A refused folder stands in the way of everything chosen below it, too.
            Selection::Only(paths) => {
                selection.takes(&refused.path)
                    || paths.iter().any(|chosen| covers(&refused.path, chosen))
            }
        })
    }
}

impl DesiredRepo {
    /// What changed below the managed paths since `HEAD`, new files included, ignored ones left out.
    ///
    /// A file whose size, times and inode are as the index recorded them is not read.
    ///
    /// # Errors
    ///
    /// [`ChangesError`]: the repository or a file cannot be read. Paths that cannot be committed
    /// are no error here, but are listed in [`Changes::refused`].
    pub fn changes(&self) -> Result<Changes, ChangesError> {
        let scan = scan::scan(self)?;
        let worktree = Worktree::of(&scan);
        let mut changes = Vec::new();
        let mut unchanged = Vec::new();
        let mut in_head = scan.head_files;
        for file in scan.files {
            let before = in_head.remove(&file.path);
            let now = file.content;
            let kind = match before {
                None => ChangeKind::Added,
                Some(before) if before != Some(now) => ChangeKind::Modified,
                Some(_) => {
                    if file.was_read {
                        unchanged.push((file.path, now.blob, file.stat));
                    }
                    continue;
                }
            };
            changes.push(WorktreeChange {
                path: file.path,
                kind,
                now: Some(now),
            });
        }
        let gone = in_head.into_keys().filter(|path| {
            !scan.not_checked_out.contains(path)
                && !scan
                    .refused
                    .iter()
                    .any(|refused| covers(&refused.path, path))
        });
        changes.extend(gone.map(|path| WorktreeChange {
            path,
            kind: ChangeKind::Deleted,
            now: None,
        }));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        let mut refused = scan.refused;
        refused.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Changes {
            head: scan.head.map(commit_id),
            changes,
            refused,
            unchanged,
            worktree,
        })
    }
}
