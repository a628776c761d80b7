//! What the revisions want of this node: compiled definitions, kept for the revisions in use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_spec::definition::{DefinitionError, DesiredSet};
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::revisions::{ReadError, RevisionStore};

/// Compiled revisions that are kept: the head, a few that are held at, and one being planned.
const KEPT: usize = 8;

/// Why a revision's definitions cannot be had.
#[derive(Debug, Error)]
pub enum DesiredError {
    /// The revision cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its definitions are not valid for this node.
    #[error("the definitions of {} are not valid: {} errors", commit.short(), errors.len())]
    Definitions {
        /// The revision.
        commit: CommitId,
        /// What is wrong.
        errors: Vec<DefinitionError>,
    },
}

/// The compiled definitions of this node, by revision.
#[derive(Debug)]
pub struct Desired {
    node: NodeName,
    revisions: Arc<RevisionStore>,
    kept: Mutex<VecDeque<(CommitId, Arc<DesiredSet>)>>,
}

impl Desired {
    /// Nothing compiled yet.
    #[must_use]
    pub fn new(node: NodeName, revisions: Arc<RevisionStore>) -> Self {
        Self {
            node,
            revisions,
            kept: Mutex::new(VecDeque::new()),
        }
    }

    /// What `commit` wants of this node. Blocking where it is not kept.
    ///
    /// # Errors
    ///
    /// [`DesiredError`].
    pub fn at(&self, commit: CommitId) -> Result<Arc<DesiredSet>, DesiredError> {
        if let Some(set) = self.kept(commit) {
            return Ok(set);
        }
        let set = self
            .revisions
            .desired(commit, &self.node)?
            .map(Arc::new)
            .map_err(|errors| DesiredError::Definitions { commit, errors })?;
        let keyring = self.revisions.keyring();
        let is_sealed = set
            .services
            .values()
            .flat_map(|service| service.components.values())
            .flat_map(|spec| spec.used_secrets())
            .any(|(_, digest)| keyring.trouble(&digest).is_some());
        if is_sealed {
            // The node's keys may come back at any time.
            return Ok(set);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((commit, set.clone()));
        Ok(set)
    }

    /// What the head wants of this node, where there is one that can be read. Blocking where it is not kept.
    #[must_use]
    pub fn head(&self) -> Option<Arc<DesiredSet>> {
        self.at(self.revisions.head()?).ok()
    }

    /// What `commit` with uncommitted edits wants of this node. Blocking.
    ///
    /// # Errors
    ///
    /// [`DesiredError`].
    pub fn with_draft(
        &self,
        commit: CommitId,
        edits: &[(String, Option<Vec<u8>>)],
    ) -> Result<DesiredSet, DesiredError> {
        let files = self.revisions.with_draft(commit, edits)?;
        files
            .compile_for_node(&self.node, self.revisions.keyring())
            .map_err(|errors| DesiredError::Definitions { commit, errors })
    }

    fn kept(&self, commit: CommitId) -> Option<Arc<DesiredSet>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| *known == commit)?;
        let entry = kept.remove(at)?;
        let set = entry.1.clone();
        kept.push_back(entry);
        Some(set)
    }
}
