//! Walking trees: the rules on all of them, what two of them differ in, and listing one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gix::objs::TreeRefIter;
use mcp_spec::revision::CommitId;
use mcp_spec::tree::{EntryMode, TreeEntry, TreeFault, parse_like, parse_tree};

use super::error::ReceiveError;
use super::faults::Bound;
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Kind, ObjectError, Objects};

/// Entries of parsed trees that are kept at hand: twenty times those of a large revision, in some
/// megabytes.
const CACHED_ENTRIES: usize = 200_000;

/// Most bytes of a name from before the introduction that an error repeats.
const SHOWN_BYTES: usize = 80;

/// What is known of a tree that was walked: enough to judge what holds it without another walk.
#[derive(Clone, Copy, Default)]
struct Extent {
    height: u32,
    paths: u64,
    longest: usize,
}

impl Extent {
    fn add_file(&mut self, entry: &TreeEntry) {
        self.paths = self.paths.saturating_add(1);
        self.longest = self.longest.max(entry.name.len());
    }

    fn add_directory(&mut self, entry: &TreeEntry, sub: Extent) {
        self.height = self.height.max(sub.height + 1);
        self.paths = self.paths.saturating_add(sub.paths);
        self.longest = self.longest.max(entry.name.len() + 1 + sub.longest);
    }
}

/// A parsed tree. Most commits change contents alone, so trees share their names and modes.
#[derive(Clone)]
struct Listing {
    /// Names and modes; the ids in it are those of the first tree of this shape.
    shape: Arc<Vec<TreeEntry>>,
    ids: Rc<Vec<Id>>,
}

impl Listing {
    fn iter(&self) -> impl Iterator<Item = (&TreeEntry, &Id)> {
        self.shape.iter().zip(self.ids.iter())
    }

    fn has_shape_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shape, &other.shape)
    }

    /// What differs from another tree of the same shape.
    fn differing<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'a TreeEntry, &'a Id, &'a Id)> {
        self.iter()
            .zip(other.ids.iter())
            .filter(|((_, id), other)| id != other)
            .map(|((entry, id), other)| (entry, id, other))
    }
}

/// The names of trees that kept the rules, by path: what a walk can hand on to the next.
#[derive(Debug, Default)]
pub(super) struct Shapes(Mutex<HashMap<String, Arc<Vec<TreeEntry>>>>);

impl Shapes {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Vec<TreeEntry>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, path: &str) -> Option<Arc<Vec<TreeEntry>>> {
        self.lock().get(path).cloned()
    }

    fn keep(&self, path: &str, shape: &Arc<Vec<TreeEntry>>) {
        let mut shapes = self.lock();
        let held: usize = shapes.values().map(|shape| shape.len() + 1).sum();
        if held + shape.len() > CACHED_ENTRIES {
            shapes.clear();
        }
        shapes.insert(path.to_owned(), Arc::clone(shape));
    }
}

/// A walk over the trees of one repository, remembering what it has seen.
pub(super) struct Trees<'a> {
    objects: &'a Objects,
    shapes: Arc<Shapes>,
    parsed: RefCell<HashMap<Id, Listing>>,
    /// Entries of the parsed trees.
    held: Cell<usize>,
    extents: RefCell<HashMap<Id, Extent>>,
    /// The tree of each path whose extent was told last.
    last: RefCell<HashMap<String, (Listing, Extent)>>,
    /// Entries of those trees.
    held_last: Cell<usize>,
    blobs: RefCell<HashSet<Id>>,
    present: RefCell<HashSet<Id>>,
}

/// Why a tree could not be listed or compared.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeWalkError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{path} {reason}")]
    Hostile {
        path: String,
        rule: &'static str,
        reason: String,
    },
    #[error("the files exceed the limit of {limit}")]
    TooMany { limit: u64 },
}

impl TreeWalkError {
    pub(super) fn at(self, commit: CommitId) -> ReceiveError {
        match self {
            Self::Object(source) => ReceiveError::object(commit, "the tree", source),
            Self::Hostile { path, rule, reason } => ReceiveError::HostileTree {
                commit,
                path,
                rule,
                reason,
            },
            Self::TooMany { limit } => ReceiveError::TooLarge {
                what: Bound::TreePaths,
                limit,
            },
        }
    }
}

impl<'a> Trees<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        Self::with_shapes(objects, Arc::default())
    }

    /// A walk that starts with the names that earlier ones have seen.
    pub(super) fn with_shapes(objects: &'a Objects, shapes: Arc<Shapes>) -> Self {
        Self {
            objects,
            shapes,
            parsed: RefCell::default(),
            held: Cell::default(),
            extents: RefCell::default(),
            last: RefCell::default(),
            held_last: Cell::default(),
            blobs: RefCell::default(),
            present: RefCell::default(),
        }
    }

    /// The entries of a tree, held against the rules.
    fn entries(&self, id: &Id, path: &str) -> Result<Listing, TreeWalkError> {
        if let Some(listing) = self.parsed.borrow().get(id) {
            return Ok(listing.clone());
        }
        let raw = self.objects.read_kind(id, Kind::Tree)?;
        let alike = self
            .shapes
            .get(path)
            .and_then(|shape| Some((parse_like(&raw, &shape)?, shape)));
        let listing = if let Some((ids, shape)) = alike {
            Listing {
                shape,
                ids: Rc::new(ids),
            }
        } else {
            let entries = parse_tree(&raw).map_err(|error| TreeWalkError::Hostile {
                path: format!("`{}`", join(path, &error.name)),
                rule: error.fault.name(),
                reason: error.fault.to_string(),
            })?;
            let ids = entries.iter().map(|entry| entry.id).collect();
            let shape = Arc::new(entries);
            self.shapes.keep(path, &shape);
            Listing {
                shape,
                ids: Rc::new(ids),
            }
        };
        let mut parsed = self.parsed.borrow_mut();
        let held = self.held.get() + listing.ids.len() + 1;
        if held > CACHED_ENTRIES {
            parsed.clear();
            self.held.set(listing.ids.len() + 1);
        } else {
            self.held.set(held);
        }
        parsed.insert(*id, listing.clone());
        Ok(listing)
    }

    /// Takes over what an accepted commit's tree holds, so that it is not looked up again: it passed
    /// the door before.
    pub(super) fn adopt(&self, root: &Id) -> Result<(), TreeWalkError> {
        self.adopt_below(root, "").map(|_| ())
    }

    fn adopt_below(&self, id: &Id, path: &str) -> Result<Extent, TreeWalkError> {
        if let Some(known) = self.extents.borrow().get(id) {
            return Ok(*known);
        }
        let listing = self.entries(id, path)?;
        let mut extent = Extent::default();
        for (entry, id) in listing.iter() {
            if entry.mode == EntryMode::Directory {
                let sub = self.adopt_below(id, &join(path, &entry.name))?;
                extent.add_directory(entry, sub);
            } else {
                self.blobs.borrow_mut().insert(*id);
                extent.add_file(entry);
            }
        }
        self.keep_extent(id, path, &listing, extent);
        Ok(extent)
    }

    fn keep_extent(&self, id: &Id, path: &str, listing: &Listing, extent: Extent) {
        self.extents.borrow_mut().insert(*id, extent);
        let mut last = self.last.borrow_mut();
        let before = last.insert(path.to_owned(), (listing.clone(), extent));
        let before = before.map_or(0, |(before, _)| before.ids.len() + 1);
        let held = (self.held_last.get() + listing.ids.len() + 1).saturating_sub(before);
        if held > CACHED_ENTRIES {
            last.clear();
            self.held_last.set(0);
        } else {
            self.held_last.set(held);
        }
    }

    /// The extent of a tree that differs in the contents of files alone from the last one of its path.
    fn like_the_last(
        &self,
        commit: CommitId,
        path: &str,
        listing: &Listing,
    ) -> Result<Option<Extent>, ReceiveError> {
        let last = self.last.borrow().get(path).cloned();
        let Some((before, extent)) = last.filter(|(before, _)| before.has_shape_of(listing)) else {
            return Ok(None);
        };
        for (entry, id, _) in listing.differing(&before) {
            if entry.mode == EntryMode::Directory {
                return Ok(None);
            }
            self.check_blob(commit, id, path, &entry.name)?;
        }
        Ok(Some(extent))
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
        self.extent(commit, root, "", 0, limits, clock).map(|_| ())
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
            what: Bound::TreeDepth,
            limit: limits.tree_depth.into(),
        };
        let too_long = || ReceiveError::TooLarge {
            what: Bound::PathBytes,
            limit: limits.path_bytes as u64,
        };
        // At once, and not where the whole is known: what a bomb holds is never in memory together.
        let fits = |extent: &Extent| {
            if extent.paths > limits.tree_paths {
                return Err(ReceiveError::TooLarge {
                    what: Bound::TreePaths,
                    limit: limits.tree_paths,
                });
            }
            Ok(())
        };
        if path.len() > limits.path_bytes {
            return Err(too_long());
        }
        let known = self.extents.borrow().get(id).copied();
        let extent = if let Some(known) = known {
            known
        } else {
            clock.check()?;
            if depth > limits.tree_depth {
                return Err(too_deep());
            }
            let listing = self.entries(id, path).map_err(|error| error.at(commit))?;
            if listing.ids.is_empty() && depth > 0 {
                return Err(ReceiveError::HostileTree {
                    commit,
                    path: format!("`{path}`"),
                    rule: "empty-directory",
                    reason: "is an empty directory".to_owned(),
                });
            }
            let extent = if let Some(extent) = self.like_the_last(commit, path, &listing)? {
                extent
            } else {
                let mut extent = Extent::default();
                for (entry, id) in listing.iter() {
                    if entry.mode == EntryMode::Directory {
                        let below = join(path, &entry.name);
                        let sub = self.extent(commit, id, &below, depth + 1, limits, clock)?;
                        extent.add_directory(entry, sub);
                    } else {
                        self.check_blob(commit, id, path, &entry.name)?;
                        extent.add_file(entry);
                    }
                    fits(&extent)?;
                }
                extent
            };
            self.keep_extent(id, path, &listing, extent);
            extent
        };
        fits(&extent)?;
        if depth.saturating_add(extent.height) > limits.tree_depth {
            return Err(too_deep());
        }
        if path.len() + 1 + extent.longest > limits.path_bytes {
            return Err(too_long());
        }
        Ok(extent)
    }

    fn check_blob(
        &self,
        commit: CommitId,
        id: &Id,
        folder: &str,
        name: &str,
    ) -> Result<(), ReceiveError> {
        if self.blobs.borrow().contains(id) {
            return Ok(());
        }
        self.objects.blob_size(id).map_err(|error| {
            ReceiveError::object(commit, &format!("the file {}", join(folder, name)), error)
        })?;
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
        // Once each: a bomb names one tree a million times.
        let mut waiting = Vec::new();
        let wait = |waiting: &mut Vec<Id>, id: Id| {
            if self.present.borrow_mut().insert(id) {
                waiting.push(id);
            }
        };
        wait(&mut waiting, *root);
        while let Some(id) = waiting.pop() {
            clock.check()?;
            let raw = self
                .objects
                .read_kind(&id, Kind::Tree)
                .map_err(|error| ReceiveError::object(commit, "the tree", error))?;
            for entry in TreeRefIter::from_bytes(&raw, gix::hash::Kind::Sha1) {
                let entry = entry.map_err(|error| ReceiveError::HostileTree {
                    commit,
                    path: format!("the tree {}", hex::encode(id)),
                    rule: TreeFault::Garbled.name(),
                    reason: format!("cannot be read: {error}"),
                })?;
                let Ok(below) = Id::try_from(entry.oid.as_bytes()) else {
                    continue;
                };
                if entry.mode.is_tree() {
                    wait(&mut waiting, below);
                } else if !entry.mode.is_commit() {
                    // Its name has not been looked at.
                    let name = entry.filename.iter().take(SHOWN_BYTES);
                    let name: String = name
                        .flat_map(|c| c.escape_ascii())
                        .map(char::from)
                        .collect();
                    self.check_blob(commit, &below, "", &name)?;
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
        let sides = [old, new]
            .into_iter()
            .map(|id| id.map(|id| self.entries(id, path)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let with_id = |entry: &TreeEntry, id: &Id| {
            let mut entry = entry.clone();
            entry.id = *id;
            Some(entry)
        };
        if let [Some(old), Some(new)] = sides.as_slice()
            && old.has_shape_of(new)
        {
            for (entry, before, after) in old.differing(new) {
                let both = [with_id(entry, before), with_id(entry, after)];
                names.insert(entry.name.clone(), both);
            }
        } else {
            for (side, listing) in sides.iter().enumerate() {
                for (entry, id) in listing.iter().flat_map(Listing::iter) {
                    names.entry(entry.name.clone()).or_default()[side] = with_id(entry, id);
                }
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
            let Some((entry, id)) = entries.iter().find(|(entry, _)| entry.name == part) else {
                return Ok(None);
            };
            if parts.peek().is_none() {
                let mut entry = entry.clone();
                entry.id = *id;
                return Ok(Some(entry));
            }
            if entry.mode != EntryMode::Directory {
                return Ok(None);
            }
            at = *id;
            walked = join(&walked, part);
        }
        Ok(None)
    }

    /// All files below a directory, by path, with the ids of their blobs.
    pub(super) fn files(
        &self,
        root: &Id,
        directory: &str,
        limit: u64,
    ) -> Result<Vec<(String, Id)>, TreeWalkError> {
        let mut files = Vec::new();
        let mut waiting = match self.find(root, directory)? {
            Some(entry) if entry.mode == EntryMode::Directory => {
                vec![(directory.to_owned(), entry.id)]
            }
            _ => Vec::new(),
        };
        while let Some((path, id)) = waiting.pop() {
            for (entry, id) in self.entries(&id, &path)?.iter() {
                let below = join(&path, &entry.name);
                if entry.mode == EntryMode::Directory {
                    waiting.push((below, *id));
                } else {
                    files.push((below, *id));
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
    // Once each: a bomb names one tree a million times.
    let mut waiting = Vec::new();
    if held.insert(*root) {
        waiting.push(*root);
    }
    while let Some(id) = waiting.pop() {
        clock.check()?;
        if reached.len() as u64 >= limits.objects {
            return Err(ReceiveError::TooLarge {
                what: Bound::Objects,
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
                rule: TreeFault::Garbled.name(),
                reason: format!("cannot be read: {error}"),
            })?;
            let Ok(below) = Id::try_from(entry.oid.as_bytes()) else {
                continue;
            };
            if entry.mode.is_tree() {
                if held.insert(below) {
                    waiting.push(below);
                }
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
