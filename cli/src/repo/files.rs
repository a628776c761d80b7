//! Reading the managed files of the work tree or of a commit, alike.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use mcp_spec::image::Digest;

use super::changes::{Content, Worktree};
use super::{Changes, ChangesError, CommitId, DesiredRepo, GitFailure, HistoryError, oid, scan};

/// Which state of the managed files is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The files as they lie in the work tree, tracked or not, without ignored and refused ones.
    WorkTree,
    /// The files as the commit holds them.
    Commit(CommitId),
}

/// The managed files of the work tree or of one commit; contents are read when asked for.
pub struct ManagedFiles<'a> {
    repo: &'a DesiredRepo,
    at: At,
    files: BTreeMap<String, Content>,
    /// Paths of the work tree that git was told not to look at: theirs is what the index says.
    of_index: HashSet<String>,
}

/// Why a managed file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The work tree cannot be looked through.
    #[error(transparent)]
    WorkTree(#[from] ChangesError),
    /// The commit is not here.
    #[error(transparent)]
    Commit(#[from] HistoryError),
    /// A file of the work tree cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the commit cannot be read.
    #[error("{path} of the commit {commit} cannot be read")]
    Object {
        /// The path within the commit.
        path: String,
        /// The commit.
        commit: CommitId,
        /// What git said.
        source: GitFailure,
    },
}

impl ReadError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::WorkTree(error) => error.hint(),
            Self::Commit(error) => error.hint(),
            Self::File { .. } => "look at the file's owner and mode".to_owned(),
            Self::Object { .. } => "check the repository with: git fsck".to_owned(),
        }
    }
}

impl DesiredRepo {
    /// The managed files of the work tree or of a commit.
    ///
    /// # Errors
    ///
    /// [`ReadError::WorkTree`] or [`ReadError::Commit`].
    pub fn files(&self, at: At) -> Result<ManagedFiles<'_>, ReadError> {
        let worktree = match at {
            At::WorkTree => Worktree::of(&scan::scan(self)?),
            At::Commit(id) => {
                if !self.contains(id) {
                    return Err(HistoryError::UnknownCommit { id }.into());
                }
                let files =
                    scan::tree_files(self, oid(id)).map_err(|source| HistoryError::Read {
                        source: source.into(),
                    })?;
                Worktree {
                    files: files
                        .into_iter()
                        .filter_map(|(path, content)| Some((path, content?)))
                        .collect(),
                    of_index: HashSet::new(),
                }
            }
        };
        Ok(ManagedFiles {
            repo: self,
            at,
            files: worktree.files,
            of_index: worktree.of_index,
        })
    }

    /// The managed files of the work tree as they were when its changes were looked for.
    pub fn files_seen(&self, changes: &Changes) -> ManagedFiles<'_> {
        let Worktree { files, of_index } = changes.worktree.clone();
        ManagedFiles {
            repo: self,
            at: At::WorkTree,
            files,
            of_index,
        }
    }

    /// Every definition as the next commit would hold it: `services/*.toml` with its bytes, sorted by path.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub fn read_definitions(&self, at: At) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let files = self.files(at)?;
        files
            .definitions()
            .map(|path| Ok((path.to_owned(), files.read(path)?.unwrap_or_default())))
            .collect()
    }
}

impl Changes {
    /// Whether a definition is among the changes.
    pub fn touches_definitions(&self) -> bool {
        self.changes
            .iter()
            .any(|change| is_definition(&change.path))
    }
}

/// Whether the path is where a service's definition lies: `services/NAME.toml`.
pub(super) fn is_definition(path: &str) -> bool {
    path.strip_prefix("services/")
        .and_then(|name| name.strip_suffix(".toml"))
        .is_some_and(|stem| !stem.is_empty() && !stem.contains('/'))
}

impl ManagedFiles<'_> {
    /// The paths of all managed files, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The paths of the definitions, sorted.
    pub fn definitions(&self) -> impl Iterator<Item = &str> {
        self.paths().filter(|path| is_definition(path))
    }

    /// Whether there is such a file.
    pub fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// The id of the file's content, which equal contents share: a key for caches.
    pub fn content_id(&self, path: &str) -> Option<String> {
        self.files.get(path).map(|content| content.blob.to_string())
    }

    /// The file's bytes; `None` where there is no such file.
    ///
    /// # Errors
    ///
    /// [`ReadError::File`] or [`ReadError::Object`].
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(content) = self.files.get(path) else {
            return Ok(None);
        };
        if self.at == At::WorkTree && !self.of_index.contains(path) {
            let file = self.repo.dir.join(path);
            match scan::read_regular(&file) {
                Ok((bytes, _)) => return Ok(Some(bytes)),
                Err(source) => return Err(ReadError::File { path: file, source }),
            }
        }
        match self.repo.git.find_blob(content.blob) {
            Ok(mut blob) => Ok(Some(blob.take_data())),
            Err(source) => Err(match self.at {
                At::Commit(commit) => ReadError::Object {
                    path: path.to_owned(),
                    commit,
                    source: source.into(),
                },
                At::WorkTree => ReadError::File {
                    path: self.repo.dir.join(path),
                    source: std::io::ErrorKind::NotFound.into(),
                },
            }),
        }
    }

    /// The SHA-256 of the file's bytes; `None` where there is no such file.
    ///
    /// # Errors
    ///
    /// As for [`ManagedFiles::read`].
    pub fn file_digest(&self, path: &str) -> Result<Option<Digest>, ReadError> {
        Ok(self.read(path)?.map(|bytes| Digest::of(&bytes)))
    }
}
