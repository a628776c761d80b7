//! Walking trees: the rules on all of them, what two of them differ in, and listing one.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use gix::objs::TreeRefIter;
use mcp_spec::revision::CommitId;
use mcp_spec::tree::{EntryMode, TreeEntry, parse_tree};

use super::error::ReceiveError;
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Kind, ObjectError, Objects};

/// How many parsed trees are kept at hand: a large repository has about as many in one revision.
const CACHED_TREES: usize = 4096;

/// What is known of a tree that was walked: enough to judge what holds it without another walk.
#[derive(Clone, Copy)]
struct Extent {
    height: u32,
    paths: u64,
    longest: usize,
}

/// A walk over the trees of one repository, remembering what it has seen.
pub(super) struct Trees<'a> {
    objects: &'a Objects,
    parsed: RefCell<HashMap<Id, Rc<Vec<TreeEntry>>>>,
    extents: RefCell<HashMap<Id, Extent>>,
    blobs: RefCell<HashSet<Id>>,
    present: RefCell<HashSet<Id>>,
}

/// Why a tree could not be listed or compared.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeWalkError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{path} {reason}")]
    Hostile { path: String, reason: String },
    #[error("the files exceed the limit of {limit}")]
    TooMany { limit: u64 },
}

impl TreeWalkError {
    pub(super) fn at(self, commit: CommitId) -> ReceiveError {
        match self {
            Self::Object(source) => ReceiveError::object(commit, "the tree", source),
            Self::Hostile { path, reason } => ReceiveError::HostileTree {
                commit,
                path,
                reason,
            },
            Self::TooMany { limit } => ReceiveError::TooLarge {
                what: "the revision's files",
                limit,
            },
        }
    }
}

impl<'a> Trees<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        Self {
            objects,
            parsed: RefCell::default(),
            extents: RefCell::default(),
            blobs: RefCell::default(),
            present: RefCell::default(),
        }
    }

    /// The entries of a tree, held against the rules.
    fn entries(&self, id: &Id, path: &str) -> Result<Rc<Vec<TreeEntry>>, TreeWalkError> {
        if let Some(entries) = self.parsed.borrow().get(id) {
            return Ok(Rc::clone(entries));
        }
        let raw = self.objects.read_kind(id, Kind::Tree)?;
        let entries = Rc::new(parse_tree(&raw).map_err(|error| TreeWalkError::Hostile {
            path: format!("`{}`", join(path, &error.name)),
            reason: error.fault.to_string(),
        })?);
        let mut parsed = self.parsed.borrow_mut();
        if parsed.len() >= CACHED_TREES {
            parsed.clear();
        }
        parsed.insert(*id, Rc::clone(&entries));
        Ok(entries)
    }

    /// Walks a whole tree: every rule, every bound, every object present. A tree that was seen is
    /// not walked again, so a bomb that names one tree ten thousand times costs one look at it.
    pub(super) fn check(
        &self,
        commit: CommitId,
        root: &Id,
        limits: &Limits,
        clock: &Clockwork,
    ) -> Result<(), ReceiveError> {
        let extent = self.extent(commit, root, "", 0, limits, clock)?;
        if extent.paths > limits.tree_paths {
            return Err(ReceiveError::TooLarge {
                what: "the revision's files",
                limit: limits.tree_paths,
            });
        }
        Ok(())
    }

    fn extent(
        &self,
        commit: CommitId,
        id: &Id,
        path: &str,
        depth: u32,
        limits: &Limits,
        clock: &Clockwork,
    ) -> Result<Extent, ReceiveError> {
        let too_deep = || ReceiveError::TooLarge {
            what: "directories within directories",
            limit: limits.tree_depth.into(),
        };
        let too_long = || ReceiveError::TooLarge {
            what: "the bytes of a path",
            limit: limits.path_bytes as u64,
        };
        let known = self.extents.borrow().get(id).copied();
        let extent = if let Some(known) = known {
            known
        } else {
            clock.check()?;
            if depth > limits.tree_depth {
                return Err(too_deep());
            }
            let entries = self.entries(id, path).map_err(|error| error.at(commit))?;
            if entries.is_empty() && depth > 0 {
                return Err(ReceiveError::HostileTree {
                    commit,
                    path: format!("`{path}`"),
                    reason: "is an empty directory".to_owned(),
                });
            }
            let mut extent = Extent {
                height: 0,
                paths: 0,
                longest: 0,
            };
            for entry in entries.iter() {
                let below = join(path, &entry.name);
                let mut longest = entry.name.len();
                if entry.mode == EntryMode::Directory {
                    let sub = self.extent(commit, &entry.id, &below, depth + 1, limits, clock)?;
                    extent.height = extent.height.max(sub.height + 1);
                    extent.paths = extent.paths.saturating_add(sub.paths);
                    longest += 1 + sub.longest;
                } else {
                    self.check_blob(commit, &entry.id, &below)?;
                    extent.paths = extent.paths.saturating_add(1);
                }
                extent.longest = extent.longest.max(longest);
            }
            self.extents.borrow_mut().insert(*id, extent);
            extent
        };
        if depth.saturating_add(extent.height) > limits.tree_depth {
            return Err(too_deep());
        }
        if path.len() + 1 + extent.longest > limits.path_bytes {
            return Err(too_long());
        }
        Ok(extent)
    }

    fn check_blob(&self, commit: CommitId, id: &Id, path: &str) -> Result<(), ReceiveError> {
        if self.blobs.borrow().contains(id) {
            return Ok(());
        }
        self.objects
            .blob_size(id)
            .map_err(|error| ReceiveError::object(commit, &format!("the file {path}"), error))?;
        self.blobs.borrow_mut().insert(*id);
        Ok(())
    }

    /// Checks that everything below a tree is there, whatever it is called. For what lies before
    /// the introduction: it is kept for those who clone, and never read as a revision.
    pub(super) fn check_present(
        &self,
        commit: CommitId,
        root: &Id,
        clock: &Clockwork,
    ) -> Result<(), ReceiveError> {
        let mut waiting = vec![*root];
        while let Some(id) = waiting.pop() {
            if !self.present.borrow_mut().insert(id) {
                continue;
            }
            clock.check()?;
            let raw = self
                .objects
                .read_kind(&id, Kind::Tree)
                .map_err(|error| ReceiveError::object(commit, "the tree", error))?;
            for entry in TreeRefIter::from_bytes(&raw, gix::hash::Kind::Sha1) {
                let entry = entry.map_err(|error| ReceiveError::HostileTree {
                    commit,
                    path: format!("the tree {}", hex::encode(id)),
                    reason: format!("cannot be read: {error}"),
                })?;
                let Ok(below) = Id::try_from(entry.oid.as_bytes()) else {
                    continue;
                };
                if entry.mode.is_tree() {
                    waiting.push(below);
                } else if !entry.mode.is_commit() {
                    self.check_blob(commit, &below, &entry.filename.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Every path that differs between two trees: added, changed in bytes or mode, removed.
    pub(super) fn touched(
        &self,
        old: &Id,
        new: &Id,
        limit: u64,
    ) -> Result<Vec<String>, TreeWalkError> {
        let mut touched = Vec::new();
        self.differ(Some(old), Some(new), "", limit, &mut touched)?;
        Ok(touched)
    }

    fn differ(
        &self,
        old: Option<&Id>,
        new: Option<&Id>,
        path: &str,
        limit: u64,
        touched: &mut Vec<String>,
    ) -> Result<(), TreeWalkError> {
        if old == new {
            return Ok(());
        }
        let mut names: BTreeMap<String, [Option<TreeEntry>; 2]> = BTreeMap::new();
        for (side, id) in [old, new].into_iter().enumerate() {
            let Some(id) = id else { continue };
            for entry in self.entries(id, path)?.iter() {
                names.entry(entry.name.clone()).or_default()[side] = Some(entry.clone());
            }
        }
        for (name, [old, new]) in names {
            if old == new {
                continue;
            }
            let below = join(path, &name);
            let is_file = |entry: &Option<TreeEntry>| {
                entry
                    .as_ref()
                    .is_some_and(|entry| entry.mode != EntryMode::Directory)
            };
            if is_file(&old) || is_file(&new) {
                touched.push(below.clone());
                if touched.len() as u64 > limit {
                    return Err(TreeWalkError::TooMany { limit });
                }
            }
            let directory = |entry: &Option<TreeEntry>| {
                entry
                    .as_ref()
                    .filter(|entry| entry.mode == EntryMode::Directory)
                    .map(|entry| entry.id)
            };
            let (old, new) = (directory(&old), directory(&new));
            self.differ(old.as_ref(), new.as_ref(), &below, limit, touched)?;
        }
        Ok(())
    }

    /// The entry at a path, if the tree has one.
    pub(super) fn find(&self, root: &Id, path: &str) -> Result<Option<TreeEntry>, TreeWalkError> {
        let mut at = *root;
        let mut walked = String::new();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let entries = self.entries(&at, &walked)?;
            let Some(entry) = entries.iter().find(|entry| entry.name == part) else {
                return Ok(None);
            };
            if parts.peek().is_none() {
                return Ok(Some(entry.clone()));
            }
            if entry.mode != EntryMode::Directory {
                return Ok(None);
            }
            at = entry.id;
            walked = join(&walked, part);
        }
        Ok(None)
    }

    /// All files below a directory, by path.
    pub(super) fn files(
        &self,
        root: &Id,
        directory: &str,
        limit: u64,
    ) -> Result<Vec<(String, TreeEntry)>, TreeWalkError> {
        let mut files = Vec::new();
        let mut waiting = match self.find(root, directory)? {
            Some(entry) if entry.mode == EntryMode::Directory => {
                vec![(directory.to_owned(), entry.id)]
            }
            _ => Vec::new(),
        };
        while let Some((path, id)) = waiting.pop() {
            for entry in self.entries(&id, &path)?.iter() {
                let below = join(&path, &entry.name);
                if entry.mode == EntryMode::Directory {
                    waiting.push((below, entry.id));
                } else {
                    files.push((below, entry.clone()));
                }
                if (files.len() + waiting.len()) as u64 > limit {
                    return Err(TreeWalkError::TooMany { limit });
                }
            }
        }
        files.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(files)
    }
}

/// Adds to `reached` all that lies below a tree and is not in `held` yet, read leniently: trees
/// first met first, then their files.
pub(super) fn reach(
    objects: &Objects,
    commit: CommitId,
    root: &Id,
    held: &mut HashSet<Id>,
    reached: &mut Vec<Id>,
    limits: &Limits,
    clock: &Clockwork,
) -> Result<(), ReceiveError> {
    let mut waiting = vec![*root];
    while let Some(id) = waiting.pop() {
        if !held.insert(id) {
            continue;
        }
        clock.check()?;
        if reached.len() as u64 >= limits.objects {
            return Err(ReceiveError::TooLarge {
                what: "the objects",
                limit: limits.objects,
            });
        }
        reached.push(id);
        let raw = objects
            .read_kind(&id, Kind::Tree)
            .map_err(|error| ReceiveError::object(commit, "the tree", error))?;
        for entry in TreeRefIter::from_bytes(&raw, gix::hash::Kind::Sha1) {
            let entry = entry.map_err(|error| ReceiveError::HostileTree {
                commit,
                path: format!("the tree {}", hex::encode(id)),
                reason: format!("cannot be read: {error}"),
            })?;
            let Ok(below) = Id::try_from(entry.oid.as_bytes()) else {
                continue;
            };
            if entry.mode.is_tree() {
                waiting.push(below);
            } else if !entry.mode.is_commit() && held.insert(below) {
                reached.push(below);
            }
        }
    }
    Ok(())
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}
