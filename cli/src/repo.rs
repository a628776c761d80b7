//! The operator's desired-state repository: a git work tree with definitions, files and secrets.
//!
//! This module owns everything that touches git on the workstation: opening and making the
//! repository, finding out what changed below the managed paths, committing it with a signature,
//! reading definitions from the work tree or from a commit, and packing what a node lacks. It is
//! the only one in the CLI that knows `gix` and `gix-pack`. It leaves to others what a definition
//! means, what a commit's message says, and how a pack travels.
//!
//! Rules that hold throughout:
//!
//! - Only the managed paths ([`MANAGED`]) are ever committed. What else changed in the work tree or
//!   the index stays exactly as it is, staged changes included: trees are built from `HEAD`'s tree,
//!   never from the index.
//! - Bytes are stored as they are on disk. Filters and line-ending conversion
//!   (`.gitattributes`, `core.autocrlf`) are not applied, since what is signed has to be what is
//!   deployed; hooks are not run.
//! - Replacement objects are ignored (`core.useReplaceRefs` is off), as a signature covers the real ones.
//! - `index.lock` is honoured and waited for, up to [`LOCK_WAIT`]; a branch moves by compare-and-swap.
//!   A crash leaves at worst unreferenced objects, or a commit whose index entries look modified.

mod changes;
mod commit;
mod configure;
mod fetched;
mod files;
mod history;
mod index_entries;
mod init;
mod pack;
mod scan;
mod unrelated;

pub use changes::{
    ChangeKind, Changes, ChangesError, Refusal, RefusedPath, Selection, WorktreeChange,
};
pub use commit::CommitError;
pub use configure::{git_person, git_signing_key};
pub use fetched::{FetchedError, node_reference};
pub use files::{At, ManagedFiles, ReadError};
pub use history::{CommitInfo, HistoryError};
pub use init::{InitError, InitOutcome, ReplacedSetting, UnfitPath};
pub use pack::{Pack, PackError};
pub use unrelated::{UnrelatedChange, UnrelatedChanges};

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gix::ObjectId;
use mcp_spec::revision::CommitId;

/// The folders that hold the desired state; nothing outside them is read or committed.
pub const MANAGED: [&str; 4] = [".mcp", "files", "secrets", "services"];

/// How long a held `index.lock` is waited for: an editor's `git status` lets go of it much sooner.
pub const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Larger files are refused before they are read: a configuration file of this size is a mistake.
pub const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Whether `path`, relative to the repository's top, lies below a managed folder.
pub fn is_managed(path: &str) -> bool {
    path.split_once('/')
        .is_some_and(|(top, _)| MANAGED.contains(&top))
}

fn oid(id: CommitId) -> ObjectId {
    ObjectId::Sha1(*id.as_bytes())
}

fn commit_id(id: impl Into<ObjectId>) -> CommitId {
    let id = id.into();
    let bytes = id.as_slice().try_into();
    CommitId::from_bytes(bytes.expect("only SHA-1 repositories are opened"))
}

/// What git's own machinery said; always the source of an error that says what failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct GitFailure(Box<gix::Error>);

impl From<gix::Error> for GitFailure {
    fn from(error: gix::Error) -> Self {
        Self(Box::new(error))
    }
}

/// A name and an address, as a commit carries them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The person's name.
    pub name: String,
    /// The person's address.
    pub email: String,
}

impl Identity {
    /// What a commit says of a principal for whom git's configuration has no name.
    pub fn of_principal(principal: &str) -> Self {
        match principal.split_once('@') {
            Some((name, _)) => Self {
                name: name.to_owned(),
                email: principal.to_owned(),
            },
            None => Self {
                name: principal.to_owned(),
                email: format!("{principal}@localhost"),
            },
        }
    }
}

/// A desired-state repository, opened.
pub struct DesiredRepo {
    git: gix::Repository,
    dir: PathBuf,
}

impl fmt::Debug for DesiredRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DesiredRepo")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Why a repository could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no repository in the folder (or above it, where that was asked for).
    #[error("{} is no git repository", dir.display())]
    NotARepository {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder lies within a repository, and is not its top.
    #[error("{} lies within the git repository {} and is none itself", dir.display(), top.display())]
    Within {
        /// The folder.
        dir: PathBuf,
        /// The repository's top.
        top: PathBuf,
    },
    /// The repository has no work tree.
    #[error("{} is a bare repository, with no work tree to hold definitions", dir.display())]
    Bare {
        /// The repository.
        dir: PathBuf,
    },
    /// The repository's history is cut off.
    #[error("{} is a shallow clone: its older history is missing", dir.display())]
    Shallow {
        /// The repository.
        dir: PathBuf,
    },
    /// The repository's objects are named by SHA-256.
    #[error("{} names its objects by {format}; only sha1 is supported", dir.display())]
    ObjectFormat {
        /// The repository.
        dir: PathBuf,
        /// The object format that its configuration names.
        format: String,
    },
    /// The repository belongs to someone else, so its configuration is not to be trusted.
    #[error("{} belongs to another user", dir.display())]
    Untrusted {
        /// The repository.
        dir: PathBuf,
    },
    /// The environment or the configuration points git elsewhere.
    #[error("{} is to be used, but git is pointed at {}", dir.display(), elsewhere.display())]
    Redirected {
        /// The repository.
        dir: PathBuf,
        /// The other work tree, or the other index.
        elsewhere: PathBuf,
    },
    /// The repository is damaged, or cannot be read.
    #[error("the repository {} cannot be opened", dir.display())]
    Broken {
        /// The repository.
        dir: PathBuf,
        /// What git said.
        source: GitFailure,
    },
}

impl OpenError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NotARepository { dir } => format!("make one: mcp init {}", dir.display()),
            Self::Within { top, .. } => format!("use its top: --repo {}", top.display()),
            Self::Bare { .. } => "clone it, and work in the clone".to_owned(),
            Self::Shallow { dir } => format!("git -C {} fetch --unshallow", dir.display()),
            Self::ObjectFormat { .. } => {
                "make a new repository: git init --object-format=sha1".to_owned()
            }
            Self::Untrusted { dir } => {
                format!(
                    "if you trust it: git config --global --add safe.directory {}",
                    dir.display()
                )
            }
            Self::Redirected { .. } => {
                "unset GIT_WORK_TREE GIT_INDEX_FILE; and is core.worktree set?".to_owned()
            }
            Self::Broken { dir, .. } => format!("git -C {} fsck", dir.display()),
        }
    }
}

impl DesiredRepo {
    /// Opens the repository whose top is `dir`.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]: no repository, bare, shallow, SHA-256, someone else's, or broken.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        // `.git` is a folder, or a file in a linked work tree. A bare repository has neither.
        if dir.join(".git").symlink_metadata().is_err() {
            let looks_bare = dir.join("objects").is_dir() && dir.join("HEAD").is_file();
            let dir = dir.to_owned();
            return Err(match (looks_bare, repository_above(&dir)) {
                (true, _) => OpenError::Bare { dir },
                (false, Some(top)) if dir.is_dir() => OpenError::Within { dir, top },
                (false, _) => OpenError::NotARepository { dir },
            });
        }
        Self::open_at(dir)
    }

    /// Opens the repository that `start` lies in, looking upwards.
    ///
    /// # Errors
    ///
    /// As for [`DesiredRepo::open`].
    pub fn discover(start: &Path) -> Result<Self, OpenError> {
        let absolute = std::path::absolute(start).unwrap_or_else(|_| start.to_owned());
        match absolute
            .ancestors()
            .find(|dir| dir.join(".git").symlink_metadata().is_ok())
        {
            Some(dir) => Self::open_at(dir),
            None => Err(OpenError::NotARepository {
                dir: start.to_owned(),
            }),
        }
    }

    /// The repository's top folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn open_at(dir: &Path) -> Result<Self, OpenError> {
        let options = gix::open::Options::default()
            .bail_if_untrusted(true)
            .config_overrides(["core.useReplaceRefs=false"]);
        let git = gix::open_opts(dir, options).map_err(|source| classify_open(dir, source))?;
        Self::from_git(git, dir)
    }

    fn from_git(mut git: gix::Repository, dir: &Path) -> Result<Self, OpenError> {
        let failed = |source: gix::Error| OpenError::Broken {
            dir: dir.to_owned(),
            source: source.into(),
        };
        if git.object_hash() != gix::hash::Kind::Sha1 {
            let format = git.object_hash().to_string();
            return Err(OpenError::ObjectFormat {
                dir: dir.to_owned(),
                format,
            });
        }
        if git.is_shallow().map_err(failed)? {
            return Err(OpenError::Shallow {
                dir: dir.to_owned(),
            });
        }
        let Some(top) = git.workdir().map(Path::to_owned) else {
            return Err(OpenError::Bare {
                dir: dir.to_owned(),
            });
        };
        // Set in git's hooks, for one: a definition must not be committed to another repository by it.
        let index = git.index_path();
        for (expected, found) in [(dir, &top), (&git.git_dir().join("index"), &index)] {
            if !is_same_file(expected, found) {
                return Err(OpenError::Redirected {
                    dir: dir.to_owned(),
                    elsewhere: found.clone(),
                });
            }
        }
        // Tree diffs along a history read nearly the same trees again and again.
        git.object_cache_size_if_unset(8 * 1024 * 1024);
        Ok(Self { git, dir: top })
    }
}

/// The top of the repository that the folder lies in, not being it.
fn repository_above(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    let mut above = absolute.ancestors().skip(1);
    above
        .find(|folder| folder.join(".git").symlink_metadata().is_ok())
        .map(Path::to_owned)
}

/// Whether both paths lead to the same file, or, where there is none yet, are the same path.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        absolute.canonicalize().unwrap_or(absolute)
    };
    one == other || real(one) == real(other)
}

fn classify_open(dir: &Path, source: gix::Error) -> OpenError {
    // The library's errors for these two are texts, so the facts are looked at once more.
    let config = gix::config::File::from_path_no_includes(
        dir.join(".git").join("config"),
        gix::config::Source::Local,
    );
    let format = config
        .ok()
        .and_then(|config| config.string("extensions.objectFormat"));
    if let Some(format) = format.filter(|format| !format.eq_ignore_ascii_case(b"sha1")) {
        return OpenError::ObjectFormat {
            dir: dir.to_owned(),
            format: format.to_string(),
        };
    }
    let owned =
        |path: &Path| gix::sec::identity::is_path_owned_by_current_user(path).unwrap_or(true);
    if !owned(dir) || !owned(&dir.join(".git")) {
        return OpenError::Untrusted {
            dir: dir.to_owned(),
        };
    }
    OpenError::Broken {
        dir: dir.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests;
