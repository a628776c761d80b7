//! Definitions of revisions, compiled: what did not change since the last time is not read again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use mcp_spec::definition::{Compiled, ContentId, DefinitionError, DesiredSet};
use mcp_spec::image::Digest;
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;

use super::RevisionStore;
use super::limits::Limits;
use super::objects::{Id, Kind, Objects};
use super::query::{self, MAX_DEFINITIONS_BYTES, ReadError};
use super::tree_files::is_definition;
use super::trees::Trees;

/// Digests of mounted files that are kept; where there are more, all are read again.
const DIGESTS: usize = 10_000;

/// What was compiled, and the digests of the files that were mounted, by the ids of their blobs.
#[derive(Debug, Default)]
pub(super) struct CompiledDefinitions {
    definitions: Compiled,
    digests: HashMap<Id, Digest>,
}

/// Why a revision's definitions are not there.
#[derive(Debug)]
pub(super) enum CompileError {
    /// They cannot be read.
    Read(ReadError),
    /// They are not in order.
    Definitions(Vec<DefinitionError>),
}

impl RevisionStore {
    /// What an accepted revision wants of a node. Blocking.
    ///
    /// # Errors
    ///
    /// [`ReadError`], or every error of every file.
    pub fn desired(
        &self,
        commit: CommitId,
        node: &NodeName,
    ) -> Result<Result<DesiredSet, Vec<DefinitionError>>, ReadError> {
        self.must_be_accepted(commit)?;
        let objects = self.open_objects()?;
        match self.compile(&objects, commit, node, Limits::default().tree_paths) {
            Ok(set) => Ok(Ok(set)),
            Err(CompileError::Definitions(errors)) => Ok(Err(errors)),
            Err(CompileError::Read(error)) => Err(error),
        }
    }

    /// Compiles the definitions of any commit at hand, accepted or in quarantine.
    pub(super) fn compile(
        &self,
        objects: &Objects,
        commit: CommitId,
        node: &NodeName,
        limit: u64,
    ) -> Result<DesiredSet, CompileError> {
        let changed = self
            .compile_changed(objects, commit, node, limit)
            .map_err(CompileError::Read)?;
        if let Some(set) = changed {
            let sharing = query::sharing(objects, commit).map_err(CompileError::Read)?;
            if sharing.is_ok_and(|sharing| sharing.allows(&set)) {
                return Ok(set);
            }
        }
        // Something is wrong: the full compilation tells what.
        query::tree_files(objects, commit, limit)
            .map_err(CompileError::Read)?
            .compile_for_node(node, &self.keyring)
            .map_err(CompileError::Definitions)
    }

    fn compile_changed(
        &self,
        objects: &Objects,
        commit: CommitId,
        node: &NodeName,
        limit: u64,
    ) -> Result<Option<DesiredSet>, ReadError> {
        let root = query::root_tree(objects, commit)?;
        let trees = Trees::with_shapes(objects, Arc::clone(&self.shapes));
        let mut blobs: HashMap<String, Id> = HashMap::new();
        let mut definitions: Vec<(String, ContentId)> = Vec::new();
        for directory in ["services", "files", "secrets"] {
            let found = trees
                .files(&root, directory, limit)
                .map_err(|error| query::walk_error(commit, error))?;
            for (path, id) in found {
                if is_definition(&path) {
                    definitions.push((path, id));
                } else {
                    blobs.insert(path, id);
                }
            }
        }
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let CompiledDefinitions {
            definitions: known,
            digests,
        } = &mut *compiled;
        if digests.len() > DIGESTS {
            digests.clear();
        }
        let read = |id: &Id| {
            objects
                .read_kind(id, Kind::Blob)
                .map_err(|source| ReadError::Object { commit, source })
        };
        let left = Cell::new(MAX_DEFINITIONS_BYTES);
        let bytes = |_: &str, id: &ContentId| {
            let bytes = read(id)?;
            let rest = left.get().checked_sub(bytes.len() as u64);
            left.set(rest.ok_or_else(query::too_many_bytes)?);
            Ok(bytes)
        };
        let (digests, failed) = (RefCell::new(digests), RefCell::new(None));
        let lookup = |path: &str| {
            // A definition may be mounted like any other file.
            let id = blobs
                .get(path)
                .or_else(|| definition_id(&definitions, path))?;
            let is_secret = path.starts_with("secrets/");
            if let Some(digest) = digests.borrow().get(id).filter(|_| !is_secret) {
                return Some(*digest);
            }
            match read(id) {
                // The keyring remembers what opened, by place: the same bytes may lie at two.
                Ok(bytes) if is_secret => Some(self.keyring.digest(path, &bytes)),
                Ok(bytes) => {
                    let digest = Digest::of(&bytes);
                    digests.borrow_mut().insert(*id, digest);
                    Some(digest)
                }
                Err(error) => {
                    failed.borrow_mut().get_or_insert(error);
                    None
                }
            }
        };
        let files: Vec<(&str, ContentId)> = definitions
            .iter()
            .map(|(path, id)| (path.as_str(), *id))
            .collect();
        let set = known.compile_for_node(&files, node, &bytes, &lookup);
        match failed.into_inner() {
            Some(error) => Err(error),
            None => set,
        }
    }
}

fn definition_id<'a>(definitions: &'a [(String, ContentId)], path: &str) -> Option<&'a Id> {
    // Sorted as the tree gave them.
    let at = definitions
        .binary_search_by(|(known, _)| known.as_str().cmp(path))
        .ok()?;
    Some(&definitions[at].1)
}
