//! `mcp-agent trust reset`: the node forgets its history and waits for another introduction.
//!
//! For the loss of every owner's key, or for a node that is to follow another repository. What the node
//! accepted is moved aside, not removed; containers, their specs and their journal stay, so what runs goes on
//! running and is compared with the new history once that is there.
//!
//! A reset that is cut off leaves a node that takes no changes, and is made again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{OwnerKeys, fingerprint};
use thiserror::Error;

use crate::config::{Config, ConfigError};
use crate::disk;
use crate::init::{KeyError, read_keys};
use crate::lock::{DataDirLock, LockError};
use crate::registry::{NewEvent, OpenError, Registry, RegistryError, is_blank};
use crate::revisions::{self, RevisionStore};

/// How the folder begins that keeps what was there before.
pub(crate) const ASIDE: &str = "before-reset-";
/// What makes up the accepted history.
const HISTORY: [&str; 3] = ["high-water", "accepted-commits", "repo.git"];

/// Where the new history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introduction {
    /// At this commit, whoever signed it, where its own signers name its signer.
    At(CommitId),
    /// At the oldest commit of the next push that is signed by a pinned owner.
    Found,
}

/// Why a node was not reset.
#[derive(Debug, Error)]
pub enum ResetError {
    /// An agent runs, or the data directory is not there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// An owner's key is refused.
    #[error(transparent)]
    Owner(#[from] KeyError),
    /// The configuration cannot be changed.
    #[error("cannot change {}", file.display())]
    Configuration {
        /// The configuration.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The changed configuration would be refused.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// A file cannot be written or moved.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The new repository could not be made.
    #[error("cannot make the new repository")]
    Init(#[from] revisions::OpenError),
    /// The registry cannot be opened.
    #[error(transparent)]
    OpenRegistry(#[from] OpenError),
    /// The registry cannot be written.
    #[error("the registry cannot be written")]
    Registry(#[from] RegistryError),
}

impl ResetError {
    fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Lock(error) => error.hint_for_command(),
            Self::Owner(error) => error.hint(),
            Self::Refused(error) => error.hint(),
            Self::Configuration { .. } => {
                "run it as the agent's user; or write [trust] introduction by hand, and reset with --introduction found"
                    .to_owned()
            }
            Self::OpenRegistry(_) => {
                "make a new registry first: mcp-agent rebuild --config FILE".to_owned()
            }
            Self::Io { .. } | Self::Init(_) | Self::Registry(_) => {
                "look at disk and permissions of the data directory, then reset again".to_owned()
            }
        }
    }
}

/// What a reset did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where the old history is; `None` where there was none.
    pub aside: Option<PathBuf>,
    /// Revisions that the registry forgot.
    pub forgotten: usize,
    /// The owners who are pinned now.
    pub owners: Vec<String>,
}

/// Forgets the accepted history, pins where the next one begins, and, where keys are given, its owners.
///
/// # Errors
///
/// [`ResetError`].
pub async fn reset(
    config: &Config,
    introduction: Introduction,
    owners: &[String],
    now: Timestamp,
) -> Result<Reset, ResetError> {
    let _lock = DataDirLock::take(&config.data_dir)?;
    let owners = if owners.is_empty() {
        None
    } else {
        Some(read_keys(owners)?)
    };
    let registry = if is_blank(&config.database()) {
        None
    } else {
        Some(Registry::open(&config.database())?)
    };
    // The trust first: from here on a reset that is cut off leaves mark, repository and registry in
    // disagreement, and so no change is taken, under old or new owners.
    if let Some(owners) = &owners {
        replace(&config.trust.owners, owners.to_text().as_bytes())
            .map_err(ResetError::io("write the owners"))?;
    }
    pin(&config.file, introduction)?;
    let aside = move_aside(&config.data_dir, now)?;
    RevisionStore::init(&config.data_dir)?;
    let mut forgotten = 0;
    if let Some(registry) = registry {
        let gone = registry.commits().await?;
        forgotten = gone.len();
        let event = NewEvent {
            at: now,
            service: None,
            component: None,
            kind: "trust-reset".to_owned(),
            reason: "operator".to_owned(),
            message: format!(
                "the history was reset on the node: {forgotten} revisions are forgotten, and the next one begins {}",
                match introduction {
                    Introduction::At(commit) => format!("at {}", commit.short()),
                    Introduction::Found => "with the next push that an owner signed".to_owned(),
                }
            ),
            revision: None,
            data: serde_json::json!({ "forgotten": forgotten }),
        };
        registry.set_back(None, gone, vec![event]).await?;
        crate::blocking::blocking(move || registry.close()).await;
    }
    let pinned = match owners {
        Some(owners) => Some(owners),
        None => fs::read_to_string(&config.trust.owners)
            .ok()
            .and_then(|text| OwnerKeys::parse(&text).ok()),
    };
    Ok(Reset {
        aside,
        forgotten,
        owners: pinned
            .iter()
            .flat_map(OwnerKeys::iter)
            .map(|key| {
                format!("{} {}", fingerprint(key), key.comment())
                    .trim_end()
                    .to_owned()
            })
            .collect(),
    })
}

/// Moves what makes up the history into a folder of its own.
fn move_aside(data_dir: &Path, now: Timestamp) -> Result<Option<PathBuf>, ResetError> {
    let there: Vec<&str> = HISTORY
        .into_iter()
        .filter(|name| data_dir.join(name).symlink_metadata().is_ok())
        .collect();
    if there.is_empty() {
        return Ok(None);
    }
    let stamp = now.strftime("%Y%m%dT%H%M%SZ");
    let mut aside = data_dir.join(format!("{ASIDE}{stamp}"));
    for more in 1.. {
        if !aside.exists() {
            break;
        }
        aside = data_dir.join(format!("{ASIDE}{stamp}-{more}"));
    }
    let failed = ResetError::io("move the old history aside");
    disk::create_dir(&aside).map_err(&failed)?;
    for name in there {
        disk::rename(&data_dir.join(name), &aside.join(name)).map_err(&failed)?;
    }
    disk::sync_dir(&aside).map_err(&failed)?;
    disk::sync_dir(data_dir).map_err(&failed)?;
    Ok(Some(aside))
}

/// Writes where history begins into the configuration, with every other line as it is.
fn pin(file: &Path, introduction: Introduction) -> Result<(), ResetError> {
    let failed = |source| ResetError::Configuration {
        file: file.to_owned(),
        source,
    };
    let before = fs::read_to_string(file).map_err(failed)?;
    let after = pinned(&before, introduction);
    if after == before {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    // Read as it would be, from beside it, since relative paths count from there.
    let trial = tempfile::Builder::new()
        .prefix(".agent.toml-")
        .tempfile_in(folder)
        .map_err(failed)?;
    fs::write(trial.path(), &after).map_err(failed)?;
    Config::load(trial.path())?;
    drop(trial);
    replace(file, after.as_bytes()).map_err(failed)
}

/// The configuration's text with another introduction.
fn pinned(text: &str, introduction: Introduction) -> String {
    let wanted = match introduction {
        Introduction::At(commit) => Some(format!("introduction    = \"{commit}\"")),
        Introduction::Found => None,
    };
    let mut lines: Vec<String> = Vec::new();
    let mut section = String::new();
    let mut is_written = wanted.is_none();
    for line in text.lines() {
        let bare = line.trim();
        if bare.starts_with('[') {
            section = bare.split(['#', ' ']).next().unwrap_or(bare).to_owned();
            lines.push(line.to_owned());
            continue;
        }
        let key = bare.split('=').next().map_or("", str::trim);
        if section != "[trust]" || key != "introduction" {
            lines.push(line.to_owned());
            continue;
        }
        if let (Some(wanted), false) = (&wanted, is_written) {
            lines.push(wanted.clone());
            is_written = true;
        }
    }
    if let (Some(wanted), false) = (wanted, is_written) {
        let header = lines.iter().position(|line| {
            let bare = line.trim();
            bare.split(['#', ' ']).next() == Some("[trust]")
        });
        if let Some(header) = header {
            lines.insert(header + 1, wanted);
        } else {
            lines.extend([String::new(), "[trust]".to_owned(), wanted]);
        }
    }
    lines.join("\n") + "\n"
}

/// Puts the bytes in a file's place, whole or not at all, with its mode and owner where it is there.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt as _, chown};

    let folder = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
    fresh.write_all(bytes)?;
    if let Ok(before) = fs::metadata(file) {
        chown(fresh.path(), Some(before.uid()), Some(before.gid()))?;
        fresh.as_file().set_permissions(before.permissions())?;
    }
    disk::sync(fresh.as_file(), fresh.path())?;
    let (_, path) = fresh.keep().map_err(|error| error.error)?;
    disk::rename(&path, file)?;
    disk::sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> CommitId {
        CommitId::from_bytes([0xab; 20])
    }

    #[test]
    fn introduction_is_pinned_where_it_stood_or_below_its_heading() {
        let line = format!("introduction    = \"{}\"", "ab".repeat(20));
        let found = |text: &str| pinned(text, Introduction::Found);
        let at = |text: &str| pinned(text, Introduction::At(commit()));
        let old = "node = \"rift\" # mine\n\n[trust]   # whom\nowners = \"x\"\n# introduction = \"COMMIT\"\nintroduction=\"0\"\n\n[watch]\nintroduction = 1\n";
        let new = at(old);
        assert_eq!(new, old.replace("introduction=\"0\"", &line));
        assert_eq!(at(&new), new);
        assert_eq!(found(&new), old.replace("introduction=\"0\"\n", ""));
        assert_eq!(
            at("[trust]\nowners = \"x\"\n"),
            format!("[trust]\n{line}\nowners = \"x\"\n")
        );
        assert_eq!(
            at("node = \"rift\"\n"),
            format!("node = \"rift\"\n\n[trust]\n{line}\n")
        );
    }

    #[test]
    fn history_is_moved_aside_and_never_over_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(move_aside(dir.path(), now).unwrap(), None);
        let mut folders = Vec::new();
        for _ in 0..2 {
            fs::write(dir.path().join("high-water"), "x").unwrap();
            fs::create_dir(dir.path().join("repo.git")).unwrap();
            let aside = move_aside(dir.path(), now).unwrap().unwrap();
            assert!(aside.join("repo.git").is_dir() && aside.join("high-water").is_file());
            assert!(!dir.path().join("repo.git").exists());
            folders.push(aside);
        }
        assert_ne!(folders[0], folders[1]);
    }
}
