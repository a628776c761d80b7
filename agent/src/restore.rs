//! `mcp-agent restore`: a data directory from a backup, while no agent runs.
//!
//! The whole archive is read and held against its manifest before anything is written. What the data
//! directory holds is moved aside and never removed, but for two things: staged files, which running
//! containers mount, stay where they are; and a high-water mark that the backup does not know stays too, and
//! so do keys that were denied since. So an old backup never lets the node go back unnoticed: the agent then takes no changes until a push brings
//! what the mark names, or `mcp-agent trust confirm` lets it fall.
//!
//! A file tells of a restore under way. Where one was cut off no agent starts, until it was made again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::DeniedKeys;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::backup::{DATA, Entry, FORMAT, MANIFEST, Manifest};
use crate::config::Config;
use crate::disk;
use crate::lock::{DataDirLock, LockError};
use crate::registry;
use crate::revisions::RevisionStore;

/// How the folder begins that keeps what was there before.
pub(crate) const ASIDE: &str = "before-restore-";
/// The denylist, where the configuration names no other place.
const DENIED: &str = "denied_keys";
/// Where a restore puts its files together.
const NEW: &str = ".restore-new";
/// Stands in the data directory while a restore is under way.
const UNDER_WAY: &str = ".restore-under-way";
/// Largest manifest: some hundred bytes a file.
const MAX_MANIFEST_BYTES: u64 = 256 * 1024 * 1024;

/// Whether a restore was cut off.
pub(crate) fn is_unfinished(data_dir: &Path) -> bool {
    data_dir.join(UNDER_WAY).exists()
}

/// Why nothing was restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The archive cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The archive.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no backup, or not as it was written.
    #[error("{} is refused: {fault}", file.display())]
    Refused {
        /// The archive.
        file: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The data directory is not empty.
    #[error("{} is not empty: it holds {found}", data_dir.display())]
    Occupied {
        /// The folder.
        data_dir: PathBuf,
        /// One of its entries.
        found: String,
    },
    /// The data directory is another node's.
    #[error("{} belongs to node {found}, and the backup is of {wanted}", data_dir.display())]
    OtherNode {
        /// The folder.
        data_dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose the backup is.
        wanted: String,
    },
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Something cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// Nothing tells what it holds: it was cut off, or is something else.
    #[error("it has no manifest; it is no backup, or was cut off")]
    NoManifest,
    /// The manifest cannot be read.
    #[error("its manifest cannot be read: {0}")]
    Manifest(String),
    /// A newer agent wrote it.
    #[error("it has format {0}, and this agent knows {FORMAT}")]
    Format(u32),
    /// A path that leads elsewhere, or no plain file.
    #[error("the entry {0} is none that a backup has")]
    Entry(String),
    /// A file's bytes are not those that were written.
    #[error("{0} is damaged: its SHA-256 is another")]
    Checksum(String),
    /// A file is missing.
    #[error("{0} is missing")]
    Missing(String),
    /// The registry is of a newer agent.
    #[error("its registry has schema {found}, and this agent knows schemas up to {known}")]
    NewerSchema {
        /// The schema.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
}

impl RestoreError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "give a file that mcp-agent backup wrote".to_owned(),
            Self::Refused {
                fault: Fault::NewerSchema { .. } | Fault::Format(_),
                ..
            } => "install the agent that wrote it, or a newer one".to_owned(),
            Self::Refused { .. } => "use another backup; nothing was changed".to_owned(),
            Self::Occupied { .. } => {
                "to replace it write --force: what is there is moved aside, not removed".to_owned()
            }
            Self::OtherNode { .. } => "give another --config: one folder, one node".to_owned(),
            Self::Lock(error) => error.hint_for_command(),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room on that disk, then restore again".to_owned()
            }
            Self::Write { .. } => "run it as the agent's user, or as root".to_owned(),
        }
    }
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The node.
    pub node: String,
    /// When the backup was made.
    pub at: Timestamp,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
    /// The registry's head.
    pub head: Option<CommitId>,
    /// The mark that the backup does not know, and that stays.
    pub mark_ahead: Option<CommitId>,
    /// Where the old files are, where there were any.
    pub aside: Option<PathBuf>,
    /// Files outside the data directory that were there and stay.
    pub kept: Vec<PathBuf>,
}

/// Restores. Blocking.
///
/// `config` is where the configuration is or is to be: one that is there names the data directory; without
/// it the backup does.
///
/// # Errors
///
/// [`RestoreError`]; but for `Write` nothing has changed then.
pub fn restore(file: &Path, config: Option<&Path>, force: bool) -> Result<Restored, RestoreError> {
    let manifest = verify(file)?;
    let present = config.and_then(|config| Config::load(config).ok());
    let data_dir = present.as_ref().map_or_else(
        || manifest.data_dir.clone(),
        |config| config.data_dir.clone(),
    );
    let is_there = data_dir.is_dir();
    let held = is_there.then(|| DataDirLock::take(&data_dir)).transpose()?;
    may_take(&data_dir, &manifest, force)?;
    make_folder(&data_dir)?;
    let _lock = match held {
        Some(held) => held,
        None => DataDirLock::take(&data_dir)?,
    };
    let fresh = data_dir.join(NEW);
    remove_tree(&fresh)?;
    let unpacked = unpack(file, &manifest, &fresh).inspect_err(|_| drop(remove_tree(&fresh)))?;
    let at = Timestamp::now().as_second();
    write(&data_dir.join(UNDER_WAY), 0o600, manifest.node.as_bytes())?;
    sync(&data_dir)?;
    let (aside, mark_ahead) = exchange(&data_dir, &fresh.join(DATA), at)?;
    let mut kept = Vec::new();
    for (entry, path) in unpacked {
        let target = match config {
            // The configuration goes where the operator says.
            Some(config) if entry == manifest.config => config.to_owned(),
            _ => entry,
        };
        if target.symlink_metadata().is_ok() {
            kept.push(target);
        } else {
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).map_err(failed(folder))?;
            }
            copy_over(&path, &target)?;
        }
    }
    remove_tree(&fresh)?;
    let marker = data_dir.join(UNDER_WAY);
    fs::remove_file(&marker).map_err(failed(&marker))?;
    sync(&data_dir)?;
    let config = match (config, manifest.config.strip_prefix(&manifest.data_dir)) {
        (Some(config), _) => config.to_owned(),
        (None, Ok(below)) => data_dir.join(below),
        (None, Err(_)) => manifest.config.clone(),
    };
    Ok(Restored {
        node: manifest.node,
        at: manifest.at,
        data_dir,
        config,
        head: manifest.head,
        mark_ahead,
        aside,
        kept,
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Write { path, source }
}

/// Reads the whole archive and holds it against its manifest.
fn verify(file: &Path) -> Result<Manifest, RestoreError> {
    let refused = |fault| RestoreError::Refused {
        file: file.to_owned(),
        fault,
    };
    let mut sums: BTreeMap<PathBuf, (u64, String)> = BTreeMap::new();
    let mut manifest: Option<Manifest> = None;
    each(file, |path, bytes, entry| {
        if manifest.is_some() {
            return Err(refused(Fault::Entry(path.display().to_string())));
        }
        if path == Path::new(MANIFEST) {
            let mut text = Vec::new();
            entry
                .take(MAX_MANIFEST_BYTES)
                .read_to_end(&mut text)
                .map_err(read(file))?;
            manifest = Some(
                serde_json::from_slice(&text)
                    .map_err(|error| refused(Fault::Manifest(error.to_string())))?,
            );
            return Ok(());
        }
        let sum = hash(entry, &mut io::sink()).map_err(read(file))?;
        if sums.insert(path.to_owned(), (bytes, sum)).is_some() {
            return Err(refused(Fault::Entry(path.display().to_string())));
        }
        Ok(())
    })?;
    let manifest = manifest.ok_or_else(|| refused(Fault::NoManifest))?;
    if manifest.format != FORMAT {
        return Err(refused(Fault::Format(manifest.format)));
    }
    if let Some(found) = manifest.schema
        && found > registry::SCHEMA
    {
        let known = registry::SCHEMA;
        return Err(refused(Fault::NewerSchema { found, known }));
    }
    for entry in &manifest.files {
        let name = entry.path.display().to_string();
        match sums.remove(&entry.path) {
            None => return Err(refused(Fault::Missing(name))),
            Some(found) if found != (entry.bytes, entry.sha256.clone()) => {
                return Err(refused(Fault::Checksum(name)));
            }
            Some(_) => {}
        }
    }
    if let Some(path) = sums.keys().next() {
        return Err(refused(Fault::Entry(path.display().to_string())));
    }
    for folder in &manifest.folders {
        if !is_plain(&folder.path) {
            return Err(refused(Fault::Entry(folder.path.display().to_string())));
        }
    }
    Ok(manifest)
}

fn read(file: &Path) -> impl Fn(io::Error) -> RestoreError {
    let file = file.to_owned();
    move |source| RestoreError::Read {
        file: file.clone(),
        source,
    }
}

/// Whether a path stays where it is told to: plain names below `data`, `outside`, or the manifest.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    let first = match parts.next() {
        Some(Component::Normal(first)) => first,
        _ => return false,
    };
    let is_known = first == DATA || first == crate::backup::OUTSIDE || path == Path::new(MANIFEST);
    is_known && parts.all(|part| matches!(part, Component::Normal(_)))
}

type Visit<'a> = dyn FnMut(&Path, u64, &mut dyn Read) -> Result<(), RestoreError> + 'a;

/// Goes through the entries of an archive; refuses all but regular files with plain paths.
fn each(
    file: &Path,
    mut visit: impl FnMut(&Path, u64, &mut dyn Read) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let visit: &mut Visit<'_> = &mut visit;
    let open = File::open(file).map_err(read(file))?;
    let mut archive = tar::Archive::new(BufReader::new(open));
    let damaged = |source: io::Error| match source.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            RestoreError::Refused {
                file: file.to_owned(),
                fault: Fault::NoManifest,
            }
        }
        _ => read(file)(source),
    };
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        if !is_plain(&path) || entry.header().entry_type() != tar::EntryType::Regular {
            return Err(RestoreError::Refused {
                file: file.to_owned(),
                fault: Fault::Entry(path.display().to_string().escape_default().to_string()),
            });
        }
        let bytes = entry.size();
        visit(&path, bytes, &mut entry)?;
    }
    Ok(())
}

/// Copies and hashes.
fn hash(from: &mut dyn Read, to: &mut dyn io::Write) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(sha256.finalize()));
        }
        sha256.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

/// Whether the folder may be taken for this backup.
fn may_take(data_dir: &Path, manifest: &Manifest, force: bool) -> Result<(), RestoreError> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(data_dir)(source)),
    };
    if let Ok(found) = fs::read_to_string(data_dir.join("node"))
        && found.trim() != manifest.node
    {
        return Err(RestoreError::OtherNode {
            data_dir: data_dir.to_owned(),
            found: found.trim().chars().take(63).collect(),
            wanted: manifest.node.clone(),
        });
    }
    let found = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name != "lock");
    match found {
        Some(found) if !force => Err(RestoreError::Occupied {
            data_dir: data_dir.to_owned(),
            found,
        }),
        _ => Ok(()),
    }
}

/// Unpacks below `fresh`, flushed; gives the files that belong outside, with where they are now.
fn unpack(
    file: &Path,
    manifest: &Manifest,
    fresh: &Path,
) -> Result<Vec<(PathBuf, PathBuf)>, RestoreError> {
    make_folder(fresh)?;
    for folder in &manifest.folders {
        make_folder(&fresh.join(&folder.path))?;
    }
    let entries: BTreeMap<&Path, &Entry> = manifest
        .files
        .iter()
        .map(|entry| (entry.path.as_path(), entry))
        .collect();
    let mut outside = Vec::new();
    each(file, |path, _, content| {
        let Some(entry) = entries.get(path) else {
            return Ok(());
        };
        let target = fresh.join(path);
        if let Some(folder) = target.parent() {
            make_folder(folder)?;
        }
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .map_err(failed(&target))?;
        let sum = hash(content, &mut out).map_err(failed(&target))?;
        if sum != entry.sha256 {
            return Err(RestoreError::Refused {
                file: file.to_owned(),
                fault: Fault::Checksum(path.display().to_string()),
            });
        }
        own(&target, entry.mode, entry.uid, entry.gid)?;
        disk::sync(&out, &target).map_err(failed(&target))?;
        if let Some(belongs) = &entry.belongs {
            outside.push((belongs.clone(), target));
        }
        Ok(())
    })?;
    // From the innermost: a folder that may not be written is no hindrance then.
    for folder in manifest.folders.iter().rev() {
        let path = fresh.join(&folder.path);
        own(&path, folder.mode, folder.uid, folder.gid)?;
        sync(&path)?;
    }
    sync(fresh)?;
    Ok(outside)
}

/// Gives mode and, where that is allowed, owner.
fn own(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), RestoreError> {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(uid), Some(gid)).map_err(failed(path))?;
    }
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(failed(path))
}

/// Moves the old aside and the new into place, an entry at a time. Gives where the old is, and the mark that
/// stays since the new does not know it.
fn exchange(
    data_dir: &Path,
    fresh: &Path,
    at: i64,
) -> Result<(Option<PathBuf>, Option<CommitId>), RestoreError> {
    let ahead = RevisionStore::mark_beyond(data_dir, fresh).map_err(failed(data_dir))?;
    if let Some(mark) = ahead {
        // It may stand in the registry alone.
        write_over(&data_dir.join("high-water"), format!("{mark}\n").as_bytes())?;
    }
    keep_denied(&data_dir.join(DENIED), &fresh.join(DENIED))?;
    let is_mark_kept = ahead.is_some();
    let aside = data_dir.join(format!("{ASIDE}{at}"));
    let stays = |name: &str| {
        matches!(name, "lock" | "files" | NEW | UNDER_WAY)
            || name.starts_with(ASIDE)
            || (name == "high-water" && is_mark_kept)
    };
    let mut old = BTreeSet::new();
    for entry in fs::read_dir(data_dir).map_err(failed(data_dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !stays(&name) {
            old.insert(entry.file_name());
        }
    }
    if !old.is_empty() {
        make_folder(&aside)?;
    }
    for name in &old {
        rename(&data_dir.join(name), &aside.join(name))?;
    }
    for entry in fs::read_dir(fresh).map_err(failed(fresh))?.flatten() {
        let name = entry.file_name();
        let (from, to) = (entry.path(), data_dir.join(&name));
        if name == "files" && to.exists() {
            merge(&from, &to, 3)?;
        } else if !stays(&name.to_string_lossy()) || !to.exists() {
            rename(&from, &to)?;
        }
    }
    sync(data_dir)?;
    Ok((if old.is_empty() { None } else { Some(aside) }, ahead))
}

/// Adds to a restored denylist what was denied here since: a backup must not give a stolen key back.
fn keep_denied(present: &Path, restored: &Path) -> Result<(), RestoreError> {
    let parsed = |file: &Path| {
        let text = fs::read_to_string(file).ok()?;
        Some((DeniedKeys::parse(&text).ok()?, text))
    };
    let (Some((present, _)), Some((known, mut text))) = (parsed(present), parsed(restored)) else {
        return Ok(());
    };
    let known: BTreeSet<&str> = known.fingerprints().collect();
    let mut is_longer = false;
    for print in present
        .fingerprints()
        .filter(|print| !known.contains(print))
    {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(print);
        text.push_str(" denied when a backup was restored\n");
        is_longer = true;
    }
    if is_longer {
        let mode = fs::metadata(restored)
            .map_err(failed(restored))?
            .permissions();
        write(restored, mode.mode(), text.as_bytes())?;
    }
    Ok(())
}

/// Adds the generations that are not there: files/SERVICE/COMPONENT/gN.
fn merge(from: &Path, to: &Path, depth: u32) -> Result<(), RestoreError> {
    for entry in fs::read_dir(from).map_err(failed(from))?.flatten() {
        let target = to.join(entry.file_name());
        if !target.exists() {
            rename(&entry.path(), &target)?;
        } else if depth > 1 && entry.path().is_dir() {
            merge(&entry.path(), &target, depth - 1)?;
        }
    }
    sync(to)
}

fn rename(from: &Path, to: &Path) -> Result<(), RestoreError> {
    disk::rename(from, to).map_err(failed(to))
}

fn make_folder(path: &Path) -> Result<(), RestoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(path))
}

fn remove_tree(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(path)(source)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), RestoreError> {
    disk::sync_dir(path).map_err(failed(path))
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), RestoreError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            disk::sync(&file, path)
        })
        .map_err(failed(path))
}

/// Writes beside and renames.
fn write_over(path: &Path, bytes: &[u8]) -> Result<(), RestoreError> {
    let beside = path.with_extension("restored");
    write(&beside, 0o644, bytes)?;
    rename(&beside, path)
}

/// Copies a file with its mode and owner.
fn copy_over(from: &Path, to: &Path) -> Result<(), RestoreError> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(from).map_err(failed(from))?;
    let bytes = fs::read(from).map_err(failed(from))?;
    write(to, 0o600, &bytes)?;
    own(to, found.mode() & 0o7777, found.uid(), found.gid())
}
