//! One pass over the managed folders of the work tree, beside `HEAD`'s tree and the index.
//!
//! The index is used as git uses it, as a cache of contents by file times; what is staged in it is
//! of no account here. Symlinks are never followed, and nothing that is no regular file is opened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use gix::ObjectId;
use gix::bstr::{BStr, ByteSlice};
use gix::index::entry::{Flags, Mode, Stage, Stat};
use gix::objs::tree::EntryKind;

use mcp_spec::tree::{check_name, fold};

use super::changes::Content;
use super::{ChangesError, DesiredRepo, MANAGED, MAX_FILE_BYTES, Refusal, RefusedPath};

/// Deeper folders are refused: nobody nests configuration files so far.
pub(super) const MAX_DEPTH: usize = 32;

/// A regular file below a managed folder that is tracked, or new and not ignored.
pub(super) struct ScannedFile {
    pub(super) path: String,
    pub(super) content: Content,
    pub(super) stat: Stat,
    /// Whether its times alone did not tell what it holds.
    pub(super) was_read: bool,
}

pub(super) struct Scan {
    pub(super) head: Option<ObjectId>,
    /// What `HEAD` holds below the managed folders; `None` for what is no regular file there.
    pub(super) head_files: BTreeMap<String, Option<Content>>,
    /// The files of the work tree, sorted by path.
    pub(super) files: Vec<ScannedFile>,
    pub(super) refused: Vec<RefusedPath>,
    /// Paths that git was told to keep out of the work tree (sparse checkout), so their absence says nothing.
    pub(super) not_checked_out: HashSet<String>,
}

pub(super) fn scan(repo: &DesiredRepo) -> Result<Scan, ChangesError> {
    let head = repo
        .git
        .head()
        .and_then(|head| head.try_into_peeled_id())?
        .map(gix::Id::detach);
    let head_files = match head {
        Some(id) => tree_files(repo, id)?,
        None => BTreeMap::new(),
    };
    let index = repo.git.index_or_empty()?;
    let not_checked_out = not_checked_out(&index, &head_files);
    let mut walk = Walk {
        repo,
        index: &index,
        head_files: &head_files,
        excludes: None,
        trusts_executable_bit: repo
            .git
            .config_snapshot()
            .boolean("core.fileMode")
            .unwrap_or(true),
        files: Vec::with_capacity(head_files.len()),
        refused: Vec::new(),
    };
    for folder in MANAGED {
        let path = repo.dir.join(folder);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => walk.folder(&path, folder, 1)?,
            Ok(metadata) if metadata.is_symlink() => walk.refuse(folder, Refusal::Symlink),
            Ok(_) => walk.refuse(folder, Refusal::NotAFolder),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ChangesError::Read { path, source }),
        }
    }
    let (mut files, mut refused) = (walk.files, walk.refused);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    refuse_clashes(&files, &mut refused);
    Ok(Scan {
        head,
        head_files,
        files,
        refused,
        not_checked_out,
    })
}

/// The files below the managed folders in the tree of `commit`.
pub(super) fn tree_files(
    repo: &DesiredRepo,
    commit: ObjectId,
) -> Result<BTreeMap<String, Option<Content>>, gix::Error> {
    let root = repo.git.find_commit(commit)?.tree()?;
    let mut files = BTreeMap::new();
    for folder in MANAGED {
        if let Some(entry) = root.find_entry(folder)
            && entry.mode().is_tree()
        {
            collect_tree(repo, entry.object_id(), folder, 1, &mut files)?;
        }
    }
    Ok(files)
}

fn collect_tree(
    repo: &DesiredRepo,
    tree: ObjectId,
    prefix: &str,
    depth: usize,
    files: &mut BTreeMap<String, Option<Content>>,
) -> Result<(), gix::Error> {
    let tree = repo.git.find_tree(tree)?;
    for entry in tree.iter() {
        let entry = entry?;
        // A name that is not UTF-8 cannot be written by us, and no node would take it.
        let Ok(name) = entry.filename().to_str() else {
            continue;
        };
        let path = format!("{prefix}/{name}");
        let content = |executable| {
            Some(Content {
                blob: entry.object_id(),
                executable,
            })
        };
        match entry.mode().kind() {
            EntryKind::Tree if depth < MAX_DEPTH => {
                collect_tree(repo, entry.object_id(), &path, depth + 1, files)?;
            }
            EntryKind::Blob => drop(files.insert(path, content(false))),
            EntryKind::BlobExecutable => drop(files.insert(path, content(true))),
            EntryKind::Tree | EntryKind::Link | EntryKind::Commit => drop(files.insert(path, None)),
        }
    }
    Ok(())
}

fn not_checked_out(
    index: &gix::index::State,
    head_files: &BTreeMap<String, Option<Content>>,
) -> HashSet<String> {
    let mut paths = HashSet::new();
    for entry in index.entries() {
        let skipped = entry
            .flags
            .intersects(Flags::SKIP_WORKTREE | Flags::ASSUME_VALID);
        let Ok(path) = entry.path(index).to_str() else {
            continue;
        };
        if entry.mode == Mode::DIR {
            // A sparse index holds a whole folder that is not checked out as one entry.
            let below = head_files.range(path.to_owned()..).map(|(file, _)| file);
            paths.extend(below.take_while(|file| file.starts_with(path)).cloned());
        } else if skipped {
            paths.insert(path.to_owned());
        }
    }
    paths
}

struct Walk<'a> {
    repo: &'a DesiredRepo,
    index: &'a gix::index::State,
    head_files: &'a BTreeMap<String, Option<Content>>,
    /// Read at the first path that is neither in `HEAD` nor in the index.
    excludes: Option<gix::AttributeStack<'a>>,
    trusts_executable_bit: bool,
    files: Vec<ScannedFile>,
    refused: Vec<RefusedPath>,
}

impl Walk<'_> {
    fn refuse(&mut self, path: &str, reason: Refusal) {
        self.refused.push(RefusedPath {
            path: path.to_owned(),
            reason,
        });
    }

    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), ChangesError> {
        let failed = |source| ChangesError::Read {
            path: folder.to_owned(),
            source,
        };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let kind = entry.file_type().map_err(failed)?;
            let path = format!("{prefix}/{}", name.to_string_lossy());
            let is_tracked = self.is_tracked(&path, kind.is_dir());
            if !is_tracked && self.is_ignored(&path, kind.is_dir())? {
                continue;
            }
            let is_new = !is_tracked || !self.head_files.contains_key(&path);
            if is_new && let Err(fault) = check_name(name.as_bytes()) {
                // Said here, before it is signed: every node would refuse it.
                self.refuse(&path, Refusal::Name { fault });
            } else if kind.is_symlink() {
                self.refuse(&path, Refusal::Symlink);
            } else if kind.is_dir() {
                if depth >= MAX_DEPTH {
                    self.refuse(&path, Refusal::TooDeep { limit: MAX_DEPTH });
                } else if entry.path().join(".git").symlink_metadata().is_ok() {
                    self.refuse(&path, Refusal::NestedRepository);
                } else {
                    self.folder(&entry.path(), &path, depth + 1)?;
                }
            } else if kind.is_file() {
                self.file(&entry.path(), path)?;
            } else {
                let kind = if kind.is_fifo() {
                    "pipe"
                } else if kind.is_socket() {
                    "socket"
                } else {
                    "device"
                };
                self.refuse(&path, Refusal::Special { kind });
            }
        }
        Ok(())
    }

    fn is_tracked(&self, path: &str, is_folder: bool) -> bool {
        if is_folder {
            let below = format!("{path}/");
            let in_head = self
                .head_files
                .range(below.clone()..)
                .next()
                .is_some_and(|(file, _)| file.starts_with(&below));
            return in_head || self.index.path_is_directory(path.into());
        }
        self.head_files.contains_key(path) || self.index.entry_by_path(path.into()).is_some()
    }

    fn is_ignored(&mut self, path: &str, is_folder: bool) -> Result<bool, ChangesError> {
        let excludes = match &mut self.excludes {
            Some(excludes) => excludes,
            empty => {
                let source =
                    gix::worktree::stack::state::ignore::Source::WorktreeThenIdMappingIfNotSkipped;
                empty.insert(self.repo.git.excludes(self.index, None, source)?)
            }
        };
        let mode = if is_folder { Mode::DIR } else { Mode::FILE };
        Ok(excludes
            .at_entry(<&BStr>::from(path), Some(mode))?
            .is_excluded())
    }

    fn file(&mut self, file: &Path, path: String) -> Result<(), ChangesError> {
        let failed = |source| ChangesError::Read {
            path: file.to_owned(),
            source,
        };
        let metadata = match file.symlink_metadata() {
            Ok(metadata) => metadata,
            // Gone between the listing and now: an editor saving by rename, most likely.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        let entry = self
            .index
            .entry_by_path_and_stage(BStr::new(&path), Stage::Unconflicted);
        let stat = stat_of(&metadata);
        let executable = match self.trusts_executable_bit {
            true => metadata.mode() & 0o100 != 0,
            false => match (entry, self.head_files.get(&path)) {
                (Some(entry), _) => entry.mode == Mode::FILE_EXECUTABLE,
                (None, Some(Some(content))) => content.executable,
                (None, _) => false,
            },
        };
        let cached = entry.filter(|entry| {
            // Whoever marks a file `--assume-unchanged` wants its edits left alone.
            let is_trusted = entry.flags.contains(Flags::ASSUME_VALID)
                || same_stat(&entry.stat, &stat) && !may_be_stale(&entry.stat, self.index);
            is_trusted
                && !entry.flags.contains(Flags::INTENT_TO_ADD)
                && matches!(entry.mode, Mode::FILE | Mode::FILE_EXECUTABLE)
        });
        if let Some(entry) = cached {
            let content = Content {
                blob: entry.id,
                executable,
            };
            self.files.push(ScannedFile {
                path,
                content,
                stat,
                was_read: false,
            });
            return Ok(());
        }
        if metadata.len() > MAX_FILE_BYTES {
            self.refuse(
                &path,
                Refusal::TooLarge {
                    bytes: metadata.len(),
                },
            );
            return Ok(());
        }
        let (bytes, stat) = match read_regular(file) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        let blob = gix::objs::compute_hash(gix::hash::Kind::Sha1, gix::objs::Kind::Blob, &bytes)?;
        let content = Content { blob, executable };
        self.files.push(ScannedFile {
            path,
            content,
            stat,
            was_read: true,
        });
        Ok(())
    }
}

/// The bytes of a regular file with its times from before they were read; never follows a symlink.
pub(super) fn read_regular(path: &Path) -> std::io::Result<(Vec<u8>, Stat)> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("open flags fit the system's own type");
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other("no regular file, or too large"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != metadata.len() {
        return Err(std::io::Error::other("it changed while it was read"));
    }
    Ok((bytes, stat_of(&metadata)))
}

/// A file's times, size and inode as the index records them; git keeps the low 32 bits of each.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the index's own format: 32 bits each"
)]
fn stat_of(metadata: &std::fs::Metadata) -> Stat {
    use gix::index::entry::stat::Time;
    Stat {
        mtime: Time {
            secs: metadata.mtime() as u32,
            nsecs: metadata.mtime_nsec() as u32,
        },
        ctime: Time {
            secs: metadata.ctime() as u32,
            nsecs: metadata.ctime_nsec() as u32,
        },
        dev: metadata.dev() as u32,
        ino: metadata.ino() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size() as u32,
    }
}

/// Stricter than git, which leaves out fractions of seconds on some systems: where they differ
/// needlessly, a file is read once too often.
fn same_stat(recorded: &Stat, now: &Stat) -> bool {
    recorded.mtime == now.mtime
        && recorded.ctime == now.ctime
        && recorded.size == now.size
        && recorded.ino == now.ino
}

/// Whether a file may have changed after the index recorded it, within the clock's granularity.
fn may_be_stale(recorded: &Stat, index: &gix::index::State) -> bool {
    let options = gix::index::entry::stat::Options {
        use_nsec: true,
        ..Default::default()
    };
    recorded.is_racy(index.timestamp(), options)
}

/// Refuses what differs from another path, or its folder from another folder, by case or Unicode
/// form alone: `files/A/x` beside `files/a/y`.
fn refuse_clashes(files: &[ScannedFile], refused: &mut Vec<RefusedPath>) {
    let mut seen: HashMap<String, &str> = HashMap::with_capacity(files.len());
    let mut last_folder = "";
    for file in files {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut ends = vec![file.path.len()];
        if folder != last_folder {
            // Sorted as they are, files of one folder mostly follow each other.
            ends.extend(file.path.match_indices('/').map(|(at, _)| at));
            last_folder = folder;
        }
        for path in ends.into_iter().rev().map(|end| &file.path[..end]) {
            let other = *seen.entry(fold(path)).or_insert(path);
            if other != path && refused.iter().all(|known| known.path != path) {
                let other = other.to_owned();
                let reason = Refusal::NameClash { other };
                refused.push(RefusedPath {
                    path: path.to_owned(),
                    reason,
                });
            }
        }
    }
}
