//! What a node lacks, as a git pack: the objects that one commit reaches and others do not.
//!
//! A commit's objects are found by comparing its tree with its parents' trees, name by name, so the
//! cost follows what was changed. The library's own tree diff is not used: it follows renames by
//! configuration, and then leaves objects out. The pack is never thin, and goes to a temporary file
//! once it is larger than [`IN_MEMORY_BYTES`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Seek, SeekFrom, Write};

use gix::ObjectId;
use gix::hash::Kind as HashKind;
use gix::objs::tree::{EntryKind, EntryRef};
use gix::objs::{Kind, TreeRefIter};
use gix_pack::data::output::{self, count::PackLocation};

use super::{CommitId, DesiredRepo, GitFailure, oid};

/// Larger packs are written to a file; one commit's pack is some kilobytes.
const IN_MEMORY_BYTES: usize = 1024 * 1024;
/// As deep as a path of 4,096 bytes can go, and far from the end of the stack.
const MAX_TREE_DEPTH: usize = 512;
/// What is kept of decoded objects while a history is walked: some dozens of large trees.
const DELTA_BASES_BYTES: usize = 16 * 1024 * 1024;
/// Below this many objects the threads cost more than they bring.
const SINGLE_THREAD_OBJECTS: usize = 1_000;

/// A finished pack, to be read from its beginning.
#[derive(Debug)]
pub struct Pack {
    data: tempfile::SpooledTempFile,
    bytes: u64,
    objects: u32,
    commits: usize,
}

impl Pack {
    /// The pack's length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it holds no object; a pack of no new commits is empty, and valid.
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// How many objects it holds.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// How many commits are among them.
    pub fn commits(&self) -> usize {
        self.commits
    }
}

impl Read for Pack {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.data.read(buffer)
    }
}

impl Seek for Pack {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.data.seek(to)
    }
}

/// Why no pack could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The commit to send is not here.
    #[error("the commit {id} is not in this repository")]
    UnknownCommit {
        /// The commit.
        id: CommitId,
    },
    /// An object of the history is missing here.
    #[error("the object {id} is missing from this repository")]
    Missing {
        /// The object.
        id: String,
    },
    /// A tree is nested too deep.
    #[error("the tree {id} lies more than {MAX_TREE_DEPTH} folders deep")]
    TooDeep {
        /// The tree.
        id: String,
    },
    /// More objects than a pack can count.
    #[error("{objects} objects are more than one pack can hold")]
    TooMany {
        /// How many.
        objects: usize,
    },
    /// The repository cannot be read.
    #[error("the repository cannot be packed")]
    Read {
        /// What git said.
        source: GitFailure,
    },
    /// The temporary file cannot be written.
    #[error("the pack cannot be written to a temporary file")]
    Write {
        /// The system's reason.
        source: std::io::Error,
    },
}

impl PackError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownCommit { .. } => "get others' commits first: mcp fetch".to_owned(),
            Self::Write { .. } => "is there space in TMPDIR? df \"${TMPDIR:-/tmp}\"".to_owned(),
            _ => "check the repository with: git fsck".to_owned(),
        }
    }
}

fn unreadable(source: gix::Error) -> PackError {
    PackError::Read {
        source: source.into(),
    }
}

impl DesiredRepo {
    /// Packs every object that `new` reaches and the commits in `have` do not.
    ///
    /// Commits in `have` that are unknown here are left out of account; with none left, the whole
    /// history is packed. The pack may hold a little more than needed, never less.
    ///
    /// # Errors
    ///
    /// See [`PackError`].
    pub fn pack(&self, new: CommitId, have: &[CommitId]) -> Result<Pack, PackError> {
        if !self.contains(new) {
            return Err(PackError::UnknownCommit { id: new });
        }
        let have: Vec<_> = have
            .iter()
            .filter(|id| self.contains(**id))
            .map(|id| oid(*id))
            .collect();
        // Newest first, as git lays out deltas: an older tree is then made from the one just read.
        let commits = self.between(&have, oid(new)).map_err(unreadable)?;
        let mut git = self.git.clone();
        git.objects.set_pack_cache(|| Box::<DeltaBases>::default());
        let mut objects = NewObjects {
            repo: &git,
            seen: HashSet::new(),
            ids: Vec::new(),
        };
        for &id in &commits {
            objects.commit(id)?;
        }
        self.write_pack(&objects.ids, commits.len())
    }

    fn write_pack(&self, ids: &[ObjectId], commits: usize) -> Result<Pack, PackError> {
        let objects =
            u32::try_from(ids.len()).map_err(|_| PackError::TooMany { objects: ids.len() })?;
        let mut odb = self.git.objects.clone().into_inner();
        // Packs must stay where they are while their entries are copied.
        odb.prevent_pack_unload();
        odb.ignore_replacements = true;
        let counts = ids
            .iter()
            .map(|&id| output::Count {
                id,
                entry_pack_location: PackLocation::NotLookedUp,
            })
            .collect();
        let options = output::entry::iter_from_counts::Options {
            thread_limit: (objects as usize <= SINGLE_THREAD_OBJECTS).then_some(1),
            // Most of what is sent is hashes, which do not compress.
            compression: gix::zlib::Compression::BEST_SPEED,
            ..Default::default()
        };
        let entries =
            output::entry::iter_from_counts(counts, odb, Box::new(gix::progress::Discard), options)
                .map_err(unreadable)?;
        let is_complete = std::cell::Cell::new(true);
        let in_order = gix::parallel::InOrderIter::from(entries).inspect(|chunk| {
            if let Ok(chunk) = chunk
                && chunk.iter().any(output::Entry::is_invalid)
            {
                is_complete.set(false);
            }
        });
        let data = tempfile::spooled_tempfile(IN_MEMORY_BYTES);
        let mut writer = output::bytes::FromEntriesIter::new(
            in_order,
            std::io::BufWriter::with_capacity(64 * 1024, data),
            objects,
            gix_pack::data::Version::V2,
            HashKind::Sha1,
        );
        let mut bytes = 0;
        for written in writer.by_ref() {
            bytes += written.map_err(unreadable)?;
        }
        let mut buffered = writer.into_write();
        let failed = |source| PackError::Write { source };
        buffered.flush().map_err(failed)?;
        if !is_complete.get() {
            // The library leaves such entries out, and forgets which they were.
            let lost = ids.iter().find(|id| !self.git.has_object(id));
            let id = lost.map_or_else(|| "unknown".to_owned(), ToString::to_string);
            return Err(PackError::Missing { id });
        }
        let mut data = buffered
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        data.rewind().map_err(failed)?;
        Ok(Pack {
            data,
            bytes,
            objects,
            commits,
        })
    }
}

struct NewObjects<'a> {
    repo: &'a gix::Repository,
    seen: HashSet<ObjectId>,
    ids: Vec<ObjectId>,
}

impl NewObjects<'_> {
    fn commit(&mut self, id: ObjectId) -> Result<(), PackError> {
        let commit = self.repo.find_commit(id).map_err(unreadable)?;
        self.add(id);
        let tree = commit.tree_id().map_err(unreadable)?.detach();
        let mut bases = Vec::new();
        for parent in commit.parent_ids() {
            let parent = self.repo.find_commit(parent).map_err(unreadable)?;
            bases.push(parent.tree_id().map_err(unreadable)?.detach());
        }
        self.tree(tree, &bases, 0)
    }

    fn add(&mut self, id: ObjectId) -> bool {
        let is_new = self.seen.insert(id);
        if is_new {
            self.ids.push(id);
        }
        is_new
    }

    /// Adds what lies in `tree` and not at the same name in one of `bases`, which the other side
    /// has or gets: they belong to parents.
    fn tree(&mut self, tree: ObjectId, bases: &[ObjectId], depth: usize) -> Result<(), PackError> {
        if bases.contains(&tree) || tree.is_empty_tree() && depth > 0 && !self.repo.has_object(tree)
        {
            return Ok(());
        }
        if depth > MAX_TREE_DEPTH {
            return Err(PackError::TooDeep {
                id: tree.to_string(),
            });
        }
        if !self.add(tree) {
            return Ok(());
        }
        let data = self.repo.find_tree(tree).map_err(unreadable)?;
        let base_data = bases
            .iter()
            .map(|base| self.repo.find_tree(*base).map_err(unreadable))
            .collect::<Result<Vec<_>, _>>()?;
        // Trees are sorted alike, so all of them are walked once, side by side.
        let mut base_entries: Vec<_> = base_data
            .iter()
            .map(|base| TreeRefIter::from_bytes(&base.data, HashKind::Sha1).peekable())
            .collect();
        for entry in TreeRefIter::from_bytes(&data.data, HashKind::Sha1) {
            let entry = entry.map_err(unreadable)?;
            let mut base_trees = Vec::new();
            let mut is_known = false;
            for base in &mut base_entries {
                if let Some(at_base) = entry_at(base, &entry)? {
                    is_known |= at_base.oid == entry.oid;
                    if at_base.mode.is_tree() {
                        base_trees.push(at_base.oid.to_owned());
                    }
                }
            }
            if is_known {
                continue;
            }
            match entry.mode.kind() {
                EntryKind::Tree => self.tree(entry.oid.to_owned(), &base_trees, depth + 1)?,
                EntryKind::Blob | EntryKind::BlobExecutable | EntryKind::Link => {
                    self.add(entry.oid.to_owned());
                }
                // A submodule's commit lives in another repository.
                EntryKind::Commit => {}
            }
        }
        Ok(())
    }
}

/// Objects just decoded from packs, as bases for the next: without them each step through a history
/// would go through a whole chain of deltas.
#[derive(Default)]
struct DeltaBases {
    objects: HashMap<(u32, u64), (Kind, Vec<u8>, usize)>,
    order: VecDeque<(u32, u64)>,
    bytes: usize,
}

impl gix_pack::cache::DecodeEntry for DeltaBases {
    fn put(&mut self, pack_id: u32, offset: u64, data: &[u8], kind: Kind, packed_bytes: usize) {
        let key = (pack_id, offset);
        if data.len() > DELTA_BASES_BYTES / 4 || self.objects.contains_key(&key) {
            return;
        }
        self.bytes += data.len();
        self.objects
            .insert(key, (kind, data.to_vec(), packed_bytes));
        self.order.push_back(key);
        while self.bytes > DELTA_BASES_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            let gone = self.objects.remove(&oldest);
            self.bytes -= gone.map_or(0, |(_, data, _)| data.len());
        }
    }

    fn get(&mut self, pack_id: u32, offset: u64, out: &mut Vec<u8>) -> Option<(Kind, usize)> {
        let (kind, data, packed_bytes) = self.objects.get(&(pack_id, offset))?;
        out.clear();
        out.extend_from_slice(data);
        Some((*kind, *packed_bytes))
    }
}

/// Steps forward to the entry of the same name and kind, if the tree has it.
fn entry_at<'a>(
    base: &mut std::iter::Peekable<TreeRefIter<'a>>,
    wanted: &EntryRef<'_>,
) -> Result<Option<EntryRef<'a>>, PackError> {
    loop {
        let ordering = match base.peek() {
            None => return Ok(None),
            Some(Ok(entry)) => entry.cmp(wanted),
            Some(Err(_)) => std::cmp::Ordering::Less,
        };
        match ordering {
            std::cmp::Ordering::Greater => return Ok(None),
            found => {
                let entry = base
                    .next()
                    .expect("it was just looked at")
                    .map_err(unreadable)?;
                if found.is_eq() {
                    return Ok(Some(entry));
                }
            }
        }
    }
}
