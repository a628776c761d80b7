//! Making a desired-state repository, or making one of a git repository that exists.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::configure::{self, Setting};
use mcp_spec::tree::{EntryMode, TreeFault, parse_tree};

use super::{
    At, ChangesError, CommitError, CommitId, DesiredRepo, GitFailure, HistoryError, Identity,
    OpenError, ReadError, Refusal, Selection, oid,
};
use crate::sign::SigningKey;
use mcp_spec::signature::{
    ALLOWED_SIGNERS_PATH, AllowedSigners, AllowedSignersError, GIT_NAMESPACE, OWNER_NAMESPACE,
    REQUEST_NAMESPACE, Signer,
};

/// The workstation's own settings lie beside the default repository's files and belong to nobody else.
const EXCLUDED: &str = "/mcp.toml";
/// What the key of a repository's first owner may do.
const OWNER: [&str; 3] = [GIT_NAMESPACE, OWNER_NAMESPACE, REQUEST_NAMESPACE];

/// What [`DesiredRepo::init`] did.
#[derive(Debug)]
pub struct InitOutcome {
    /// The repository, opened.
    pub repo: DesiredRepo,
    /// Whether there was no git repository before.
    pub created: bool,
    /// The branch that it is on.
    pub branch: String,
    /// The signed first commit; `None` where the repository held signers already.
    pub commit: Option<CommitId>,
    /// Whether the key is among the repository's signers; where not, an owner has to add it.
    pub key_listed: bool,
    /// Git's settings that were made in the repository's own configuration.
    pub configured: Vec<&'static str>,
    /// Those among them that had another value before.
    pub replaced: Vec<ReplacedSetting>,
    /// What lies in a repository that was taken over and no node will accept in a revision, such as
    /// symlinks outside the managed folders: to be removed from the tree before the first sync.
    pub unfit: Vec<UnfitPath>,
}

/// A path in a commit that no node accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} {fault}")]
pub struct UnfitPath {
    /// The path, with everything unprintable escaped.
    pub path: String,
    /// The rule that it breaks.
    pub fault: TreeFault,
}

/// A setting of git's that was another before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplacedSetting {
    /// The setting, such as `gpg.format`.
    pub key: &'static str,
    /// Its value before.
    pub previous: String,
}

impl InitOutcome {
    /// Whether everything was in place already.
    pub fn nothing_to_do(&self) -> bool {
        !self.created && self.commit.is_none() && self.configured.is_empty()
    }
}

/// Why no desired-state repository could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The principal cannot stand in an `allowed_signers` file.
    #[error("`{principal}` cannot name a signer")]
    Principal {
        /// What was given.
        principal: String,
        /// What is wrong with it, where its line alone tells.
        #[source]
        problem: Option<AllowedSignersError>,
    },
    /// The git repository that is there cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The git repository could not be made.
    #[error("{} cannot become a git repository", dir.display())]
    Create {
        /// The folder.
        dir: PathBuf,
        /// What git said.
        source: GitFailure,
    },
    /// A file could not be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Git's configuration could not be changed.
    #[error("git's configuration of {} cannot be changed", dir.display())]
    Configure {
        /// The repository.
        dir: PathBuf,
        /// What git said.
        source: GitFailure,
    },
    /// There is an `allowed_signers` file that is not committed, and the key is not in it as an owner's.
    #[error("{} is there, not committed, and does not make {fingerprint} an owner", path.display())]
    ForeignSigners {
        /// The file.
        path: PathBuf,
        /// The key.
        fingerprint: String,
    },
    /// A managed path is a symlink, or something else that cannot be committed.
    #[error("{path} is in the way: {reason}")]
    InTheWay {
        /// The path.
        path: String,
        /// Why it cannot be committed.
        reason: Refusal,
    },
    /// The repository's ignore rules leave out a path that has to be committed.
    #[error("{path} is ignored by the repository's own rules, so it cannot be committed")]
    Ignored {
        /// The path.
        path: String,
    },
    /// The work tree cannot be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The repository's files cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The repository's history cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The first commit could not be made.
    #[error("the first commit could not be made")]
    Commit {
        /// Why.
        source: CommitError,
    },
}

impl InitError {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Principal { .. } => {
                "give a plain name such as alice or alice@example.net".to_owned()
            }
            Self::Open(error) => error.hint(),
            Self::Create { .. } | Self::Write { .. } => {
                "look at the folder's owner and mode, and at the disk".to_owned()
            }
            Self::Configure { .. } => {
                "is another git command at work? look for .git/config.lock".to_owned()
            }
            Self::ForeignSigners { path, .. } => {
                format!(
                    "add the key with namespaces=\"{}\", or move {} away",
                    OWNER.join(","),
                    path.display()
                )
            }
            Self::InTheWay { path, .. } => format!("move it away: mv {path} {path}.old"),
            Self::Ignored { path } => format!("see which rule it is: git check-ignore -v {path}"),
            Self::Changes(error) => error.hint(),
            Self::Read(error) => error.hint(),
            Self::History(error) => error.hint(),
            Self::Commit { source } => return source.hint(),
        })
    }
}

impl DesiredRepo {
    /// Makes a desired-state repository of `dir`: the managed folders, the signers' file with `key`
    /// as its owner under the name `principal`, git's settings, and a signed first commit.
    ///
    /// A git repository whose top is `dir` is taken over: its history stays, and so does all that is
    /// changed or staged in it. Done a second time it changes nothing; on a repository that has
    /// signers already (a clone) it only makes the settings.
    ///
    /// # Errors
    ///
    /// See [`InitError`]. What was made before the error stays, and is used by the next attempt.
    pub fn init(
        dir: &Path,
        key: &SigningKey,
        principal: &str,
        identity: Option<&Identity>,
    ) -> Result<InitOutcome, InitError> {
        let line = owner_line(principal, key)?;
        let (repo, created) = open_or_create(dir)?;
        let has_signers = match repo.head()? {
            Some(head) => {
                let committed = repo.files(At::Commit(head))?.read(ALLOWED_SIGNERS_PATH)?;
                committed.map(|text| standing(&text, key).0)
            }
            None => None,
        };
        let commit = match has_signers {
            Some(_) => None,
            None => Some(repo.first_commit(key, principal, &line, identity)?),
        };
        let written = |path: &str| {
            let path = repo.git.common_dir().join(path);
            move |source| InitError::Write { path, source }
        };
        configure::exclude(repo.git.common_dir(), EXCLUDED).map_err(written("info/exclude"))?;
        let applied =
            configure::apply(&repo, &settings(key)).map_err(|source| InitError::Configure {
                dir: repo.dir.clone(),
                source,
            })?;
        let configured = applied.iter().map(|setting| setting.key).collect();
        let replaced = applied
            .into_iter()
            .filter_map(|setting| {
                Some(ReplacedSetting {
                    key: setting.key,
                    previous: setting.previous?,
                })
            })
            .collect();
        let unfit = match commit {
            Some(commit) if !created => repo.unfit_paths(commit)?,
            _ => Vec::new(),
        };
        let branch = repo.branch()?.unwrap_or_else(|| "HEAD".to_owned());
        // Opened anew, so that the settings just made hold in it.
        let repo = Self::open_at(&repo.dir)?;
        Ok(InitOutcome {
            repo,
            created,
            branch,
            commit,
            key_listed: has_signers.unwrap_or(true),
            configured,
            replaced,
            unfit,
        })
    }

    /// What no node accepts in the tree of `commit`: the first such path of each folder.
    ///
    /// # Errors
    ///
    /// [`HistoryError`] where the commit is not here or cannot be read.
    pub fn unfit_paths(&self, commit: CommitId) -> Result<Vec<UnfitPath>, HistoryError> {
        let unreadable = |source: gix::Error| HistoryError::Read {
            source: source.into(),
        };
        let found = self.git.find_commit(oid(commit));
        let tree = found.and_then(|commit| Ok(commit.tree_id()?.detach()));
        let mut unfit = Vec::new();
        let mut folders = vec![(String::new(), tree.map_err(unreadable)?)];
        while let Some((prefix, id)) = folders.pop() {
            let tree = self.git.find_tree(id).map_err(unreadable)?;
            match parse_tree(&tree.data) {
                Ok(entries) => folders.extend(
                    entries
                        .into_iter()
                        .filter(|entry| entry.mode == EntryMode::Directory)
                        .map(|entry| {
                            (
                                format!("{prefix}{}/", entry.name),
                                gix::ObjectId::Sha1(entry.id),
                            )
                        }),
                ),
                Err(error) => unfit.push(UnfitPath {
                    path: format!("{prefix}{}", error.name),
                    fault: error.fault,
                }),
            }
        }
        unfit.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(unfit)
    }

    fn first_commit(
        &self,
        key: &SigningKey,
        principal: &str,
        line: &str,
        identity: Option<&Identity>,
    ) -> Result<CommitId, InitError> {
        // Before anything is written: nobody wants a symlinked folder to be followed.
        let in_the_way = self.changes()?.refused.into_iter().find(|refused| {
            super::MANAGED.contains(&refused.path.as_str()) || refused.path == ALLOWED_SIGNERS_PATH
        });
        if let Some(refused) = in_the_way {
            return Err(InitError::InTheWay {
                path: refused.path,
                reason: refused.reason,
            });
        }
        let mut paths = vec![ALLOWED_SIGNERS_PATH.to_owned()];
        let signers = self.dir.join(ALLOWED_SIGNERS_PATH);
        match std::fs::read(&signers) {
            Ok(text) if standing(&text, key).1 => {}
            Ok(_) => {
                return Err(InitError::ForeignSigners {
                    path: signers,
                    fingerprint: key.fingerprint(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_new(&signers, line.as_bytes())?;
            }
            Err(source) => {
                return Err(InitError::Write {
                    path: signers,
                    source,
                });
            }
        }
        for folder in ["services", "files"] {
            let is_empty = match std::fs::read_dir(self.dir.join(folder)) {
                Ok(mut entries) => entries.next().is_none(),
                Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            };
            if is_empty {
                // Git keeps no empty folder.
                let path = format!("{folder}/.gitkeep");
                write_new(&self.dir.join(&path), b"")?;
                paths.push(path);
            }
        }
        let changes = self.changes()?;
        if let Some(path) = paths
            .iter()
            .find(|path| changes.changes.iter().all(|change| change.path != **path))
        {
            return Err(InitError::Ignored { path: path.clone() });
        }
        let fallback = identity
            .cloned()
            .unwrap_or_else(|| Identity::of_principal(principal));
        let message = format!("mcp: desired state, owned by {principal}");
        self.commit(&changes, &Selection::Only(paths), &message, key, &fallback)
            .map_err(|source| InitError::Commit { source })
    }
}

fn settings(key: &SigningKey) -> [Setting; 4] {
    let setting = |key, value: &str, only_if_unset| Setting {
        key,
        value: value.to_owned(),
        only_if_unset,
    };
    [
        setting("gpg.format", "ssh", false),
        // Relative, so that the repository can be moved: git runs ssh-keygen at the work tree's top.
        setting("gpg.ssh.allowedSignersFile", ALLOWED_SIGNERS_PATH, false),
        Setting {
            key: "user.signingkey",
            value: key.git_signing_key(),
            only_if_unset: true,
        },
        // A plain `git commit` is refused by the nodes unless it is signed.
        setting("commit.gpgsign", "true", true),
    ]
}

fn open_or_create(dir: &Path) -> Result<(DesiredRepo, bool), InitError> {
    match DesiredRepo::open(dir) {
        Ok(repo) => return Ok((repo, false)),
        Err(OpenError::NotARepository { .. } | OpenError::Within { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let failed = |source: gix::Error| InitError::Create {
        dir: dir.to_owned(),
        source: source.into(),
    };
    std::fs::create_dir_all(dir).map_err(|source| failed(gix::Error::from_error(source)))?;
    gix::init(dir).map_err(failed)?;
    Ok((DesiredRepo::open_at(dir)?, true))
}

/// The line that makes `key` an owner under the name `principal`, as every node will read it.
fn owner_line(principal: &str, key: &SigningKey) -> Result<String, InitError> {
    let line = AllowedSigners::line_for(principal, key.public(), &OWNER);
    let refused = |problem| InitError::Principal {
        principal: principal.to_owned(),
        problem,
    };
    let signers = AllowedSigners::parse(&line).map_err(|source| refused(Some(source)))?;
    match signers
        .iter()
        .map(|signer| signer.principal.as_str())
        .collect::<Vec<_>>()[..]
    {
        [alone] if alone == principal => Ok(line + "\n"),
        // A line end or a comment sign within it.
        _ => Err(refused(None)),
    }
}

/// Whether the text makes the key a signer, and an owner.
fn standing(text: &[u8], key: &SigningKey) -> (bool, bool) {
    let signers = AllowedSigners::parse_bytes(text).ok();
    let signer = signers
        .as_ref()
        .and_then(|signers| signers.get(key.public()));
    (
        signer.is_some_and(Signer::may_sign),
        signer.is_some_and(Signer::is_owner),
    )
}

/// Writes a file that is not there yet, with the folders above it.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    let failed = |source| InitError::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = std::fs::File::create_new(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)
}
