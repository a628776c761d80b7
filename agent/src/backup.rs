//! `mcp-agent backup`: everything that is needed to be the same node again, in one file, also while the
//! agent runs.
//!
//! The file is a plain tar archive: `data/` is the data directory, `outside/N` the files that the
//! configuration names elsewhere, and `manifest.json`, the last entry, has size and SHA-256 of each. The
//! registry is copied first, as SQLite gives a consistent copy of it; then the repository's refs before the
//! mark, and the mark before the objects. So what was copied earlier never names what is not in the
//! archive, however much the agent writes meanwhile.
//!
//! It holds private keys: mode 0600. It is written beside its name, flushed and renamed, so that it is there
//! whole or not at all. Services' own data is not in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::config::Config;
use crate::disk;
use crate::registry::{OpenError, RegistryFacts, copy, is_blank};
use crate::restore::ASIDE;

/// The archive's format.
pub(crate) const FORMAT: u32 = 1;
/// The last entry.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Below it lies the data directory.
pub(crate) const DATA: &str = "data";
/// Below it lie files of the configuration that are elsewhere.
pub(crate) const OUTSIDE: &str = "outside";
/// The registry's file.
pub(crate) const DATABASE: &str = "mcp.db";

/// How long a backup waits for a moment without a deployment, so that a restore has none to go on with.
const CALM_WAIT: Duration = Duration::from_secs(30);

/// Pause between two copies of the registry.
const CALM_PAUSE: Duration = Duration::from_millis(500);

/// What the archive holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The agent that wrote it.
    pub version: String,
    /// The node.
    pub node: String,
    /// When it was made.
    pub at: Timestamp,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
    /// The registry's schema; `None` without a registry.
    pub schema: Option<i64>,
    /// The registry's head.
    pub head: Option<CommitId>,
    /// Deployments that were under way.
    pub unfinished: u64,
    /// Folders below `data/`, parents first.
    pub folders: Vec<Folder>,
    /// Files, in their order.
    pub files: Vec<Entry>,
}

/// A folder of the archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Folder {
    /// Its path in the archive.
    pub path: PathBuf,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file of the archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its path in the archive.
    pub path: PathBuf,
    /// Where it belongs, where that is outside the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belongs: Option<PathBuf>,
    /// Length.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Why there is no backup. Nothing was left behind.
#[derive(Debug, Error)]
pub enum BackupError {
    /// There is a file of that name.
    #[error("{} exists already", file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// The registry cannot be copied.
    #[error("cannot copy the registry")]
    Registry(#[from] OpenError),
    /// A file of the node cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The backup cannot be written.
    #[error("cannot write {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BackupError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Exists { .. } => "give another name, or overwrite it with --force".to_owned(),
            Self::Registry(OpenError::Full { .. }) => {
                "make room where the backup is to lie, or give a file on another disk".to_owned()
            }
            Self::Registry(_) => {
                "see mcp-agent check; a damaged registry is not worth a backup: mcp-agent rebuild makes a new one"
                    .to_owned()
            }
            Self::Read { .. } => "run the backup as the agent's user, or as root".to_owned(),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room there, or give a file on another disk".to_owned()
            }
            Self::Write { .. } => "give a file in a folder that can be written".to_owned(),
        }
    }
}

/// What was backed up.
#[derive(Debug, Clone)]
pub struct BackedUp {
    /// The node.
    pub node: String,
    /// The archive's length.
    pub bytes: u64,
    /// How many files it holds.
    pub files: usize,
    /// The registry's head.
    pub head: Option<CommitId>,
    /// Deployments that were under way all the time.
    pub unfinished: u64,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// Removes a file with the scope, unless it got its name.
struct Unfinished {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes the backup. Blocking.
///
/// # Errors
///
/// [`BackupError`], with nothing left behind.
pub fn backup(config: &Config, file: &Path, force: bool) -> Result<BackedUp, BackupError> {
    let write = |source| BackupError::Write {
        file: file.to_owned(),
        source,
    };
    let file = std::path::absolute(file).map_err(write)?;
    if !force && file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { file });
    }
    let beside = |end: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{}.{end}", std::process::id()));
        Unfinished {
            path: PathBuf::from(name),
            is_kept: false,
        }
    };
    let database = beside("db");
    let facts = registry(config, &database.path)?;
    let mut partial = beside("partial");
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial.path)
        .map_err(write)?;
    let mut archive = Archive {
        tar: tar::Builder::new(BufWriter::new(out)),
        file: file.clone(),
        files: Vec::new(),
        folders: Vec::new(),
        left_out: Vec::new(),
        own: vec![file.clone(), database.path.clone(), partial.path.clone()],
    };
    if facts.is_some() {
        let name = Path::new(DATA).join(DATABASE);
        archive.add(&database.path, &name, None)?;
    }
    archive.add_data_dir(&config.data_dir)?;
    archive.add_outside(config)?;
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: config.node.to_string(),
        at: Timestamp::now(),
        data_dir: config.data_dir.clone(),
        config: config.file.clone(),
        schema: facts.as_ref().map(|facts| facts.schema),
        head: facts.as_ref().and_then(|facts| facts.head),
        unfinished: facts.as_ref().map_or(0, |facts| facts.unfinished),
        folders: std::mem::take(&mut archive.folders),
        files: std::mem::take(&mut archive.files),
    };
    let left_out = std::mem::take(&mut archive.left_out);
    let bytes = archive.finish(&manifest)?;
    disk::rename(&partial.path, &file).map_err(write)?;
    partial.is_kept = true;
    let folder = file.parent().unwrap_or(Path::new("/"));
    disk::sync_dir(folder).map_err(write)?;
    Ok(BackedUp {
        node: manifest.node,
        bytes,
        files: manifest.files.len(),
        head: manifest.head,
        unfinished: manifest.unfinished,
        left_out,
    })
}

/// Copies the registry, at a moment without a deployment where there is one soon.
fn registry(config: &Config, to: &Path) -> Result<Option<RegistryFacts>, BackupError> {
    let database = config.database();
    if is_blank(&database) {
        return Ok(None);
    }
    let until = Instant::now() + CALM_WAIT;
    loop {
        let facts = copy(&database, to)?;
        if facts.unfinished == 0 || Instant::now() >= until {
            return Ok(Some(facts));
        }
        fs::remove_file(to).map_err(|source| BackupError::Write {
            file: to.to_owned(),
            source,
        })?;
        std::thread::sleep(CALM_PAUSE);
    }
}

/// What belongs to nobody but the process that is at work, or was copied in another way.
fn is_left_out(name: &str) -> bool {
    matches!(name, "lock" | "quarantine")
        || name.starts_with(DATABASE)
        || name.starts_with("mcp.new")
        || name.starts_with(ASIDE)
        || name.starts_with(crate::trust::ASIDE)
        || name.starts_with('.')
        || Path::new(name)
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("lock"))
}

/// The archive as it grows.
struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    file: PathBuf,
    files: Vec<Entry>,
    folders: Vec<Folder>,
    left_out: Vec<String>,
    /// Files of the backup itself.
    own: Vec<PathBuf>,
}

impl Archive {
    fn add_data_dir(&mut self, data_dir: &Path) -> Result<(), BackupError> {
        self.add_folder(data_dir, Path::new(DATA))?;
        let mut names = BTreeMap::new();
        for path in entries(data_dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_left_out(&name) {
                continue;
            }
            // What is copied earlier names only what is copied later.
            let turn = match name.as_ref() {
                "accepted-commits" => 0,
                "high-water" => 2,
                _ => 3,
            };
            names.insert((turn, name.into_owned()), path);
        }
        let refs = data_dir.join("repo.git/refs");
        let repo = Path::new(DATA).join("repo.git");
        let mut is_repo_begun = false;
        for ((turn, name), path) in names {
            if turn > 0 && !is_repo_begun && refs.is_dir() {
                is_repo_begun = true;
                self.add_folder(&data_dir.join("repo.git"), &repo)?;
                self.add_tree(&refs, &repo.join("refs"), &[])?;
            }
            let target = Path::new(DATA).join(&name);
            if name == "repo.git" && is_repo_begun {
                self.add_tree(&path, &target, &["refs"])?;
            } else if path.is_dir() {
                self.add_tree(&path, &target, &[])?;
            } else {
                self.add(&path, &target, None)?;
            }
        }
        Ok(())
    }

    /// Files that the configuration names outside the data directory.
    fn add_outside(&mut self, config: &Config) -> Result<(), BackupError> {
        let mut files = vec![
            config.file.clone(),
            config.tls.cert.clone(),
            config.tls.key.clone(),
            config.trust.owners.clone(),
            config.trust.denied_keys.clone(),
        ];
        files.extend(
            config
                .auth
                .external
                .iter()
                .map(|issuer| issuer.keys.file.clone()),
        );
        files.retain(|path| !path.starts_with(&config.data_dir));
        files.dedup();
        for (number, path) in files.into_iter().enumerate() {
            let name = Path::new(OUTSIDE).join(number.to_string());
            self.add(&path, &name, Some(path.clone()))?;
        }
        Ok(())
    }

    fn add_tree(&mut self, from: &Path, to: &Path, but: &[&str]) -> Result<(), BackupError> {
        let mut waiting = vec![(from.to_owned(), to.to_owned())];
        while let Some((from, to)) = waiting.pop() {
            if !self.folders.iter().any(|folder| folder.path == to) {
                match self.add_folder(&from, &to) {
                    Ok(()) => {}
                    Err(error) if self.may_go(&error, &to) => continue,
                    Err(error) => return Err(error),
                }
            }
            let found = match entries(&from) {
                Ok(found) => found,
                Err(error) if self.may_go(&error, &to) => continue,
                Err(error) => return Err(error),
            };
            for path in found {
                let name = path.file_name().unwrap_or_default();
                if but.iter().any(|but| name == *but) && to.parent() == Some(Path::new(DATA)) {
                    continue;
                }
                if path.is_dir() && !path.is_symlink() {
                    waiting.push((path.clone(), to.join(name)));
                } else {
                    self.add(&path, &to.join(name), None)?;
                }
            }
        }
        Ok(())
    }

    /// Whether something may be missing: staged files go with their containers, and those of another
    /// user's namespace cannot be read without root. Both are made anew by a deployment.
    fn may_go(&mut self, error: &BackupError, name: &Path) -> bool {
        let BackupError::Read { source, .. } = error else {
            return false;
        };
        let is_staged = name.starts_with(Path::new(DATA).join("files"));
        match source.kind() {
            io::ErrorKind::NotFound => true,
            io::ErrorKind::PermissionDenied if is_staged => {
                self.left_out.push(format!("{}: {source}", name.display()));
                true
            }
            _ => false,
        }
    }

    fn add_folder(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let found = fs::metadata(from).map_err(|source| BackupError::Read {
            path: from.to_owned(),
            source,
        })?;
        self.folders.push(Folder {
            path: to.to_owned(),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
        });
        Ok(())
    }

    fn add(&mut self, from: &Path, to: &Path, belongs: Option<PathBuf>) -> Result<(), BackupError> {
        if self.own.iter().any(|own| own == from) && to.file_name() != Some(DATABASE.as_ref()) {
            return Ok(());
        }
        let read = |source| BackupError::Read {
            path: from.to_owned(),
            source,
        };
        let opened = File::open(from).and_then(|file| {
            let found = file.metadata()?;
            Ok((file, found))
        });
        let (file, found) = match opened.map_err(read) {
            Ok(opened) => opened,
            Err(error) if belongs.is_none() && self.may_go(&error, to) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !found.is_file() {
            self.left_out
                .push(format!("{}: no regular file", to.display()));
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(found.len());
        header.set_mode(found.mode() & 0o7777);
        header.set_uid(u64::from(found.uid()));
        header.set_gid(u64::from(found.gid()));
        header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
        header.set_entry_type(tar::EntryType::Regular);
        let mut hashed = Hashed {
            // What an agent appends meanwhile is not part of it.
            inner: file.take(found.len()),
            sha256: Sha256::new(),
            failure: None,
            bytes: 0,
        };
        let appended = self.tar.append_data(&mut header, to, &mut hashed);
        if let Some(source) = hashed.failure {
            return Err(read(source));
        }
        if hashed.bytes != found.len() {
            return Err(read(io::Error::other(
                "it became shorter while it was read",
            )));
        }
        appended.map_err(|source| BackupError::Write {
            file: self.file.clone(),
            source,
        })?;
        self.files.push(Entry {
            path: to.to_owned(),
            belongs,
            bytes: found.len(),
            sha256: hex::encode(hashed.sha256.finalize()),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
        });
        Ok(())
    }

    /// Writes the manifest and flushes; gives the archive's length.
    fn finish(mut self, manifest: &Manifest) -> Result<u64, BackupError> {
        let text = serde_json::to_vec_pretty(manifest)
            .expect("a manifest holds only strings, numbers and lists of UTF-8 paths");
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_entry_type(tar::EntryType::Regular);
        let file = self.file;
        self.tar
            .append_data(&mut header, MANIFEST, text.as_slice())
            .and_then(|()| self.tar.into_inner())
            .and_then(|mut out| {
                out.flush()?;
                let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
                disk::sync(&out, &file)?;
                Ok(out.metadata()?.len())
            })
            .map_err(|source| BackupError::Write {
                file: file.clone(),
                source,
            })
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let read = |source| BackupError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut found = fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(read)?;
    found.sort();
    Ok(found)
}

/// Hashes what is read through it, and tells its own failures from the writer's.
struct Hashed<R> {
    inner: R,
    sha256: Sha256,
    failure: Option<io::Error>,
    bytes: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.sha256.update(&buffer[..count]);
                self.bytes += count as u64;
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}
