//! What nodes hold: their packs taken in, and their heads remembered as `refs/remotes/NODE/head`.
//!
//! Nothing is merged and no work tree changes. What a pack holds is not believed here: the objects are
//! hashed as they are indexed, and whoever merges looks at the signatures as git shows them.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use gix::refs::transaction::{PreviousValue, RefEdit};
use mcp_spec::name::NodeName;

use super::{CommitId, DesiredRepo, GitFailure, commit_id, oid};

/// A pack of no object: its header and its checksum.
const EMPTY_PACK_BYTES: usize = 12 + 20;
/// The largest object that is taken in: a managed file is at most half of this.
const MAX_OBJECT_BYTES: usize = 64 * 1024 * 1024;

/// Why a node's commits could not be taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchedError {
    /// The pack is damaged, or holds what no pack may hold.
    #[error("the pack cannot be taken in")]
    Pack {
        /// What git said.
        source: GitFailure,
    },
    /// The pack does not hold the commit that it was sent for.
    #[error("the commit {id} did not come with the pack")]
    Missing {
        /// The commit.
        id: CommitId,
    },
    /// The head could not be remembered.
    #[error("{name} cannot be written")]
    Reference {
        /// The reference.
        name: String,
        /// What git said.
        source: GitFailure,
    },
}

impl FetchedError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Pack { .. } | Self::Missing { .. } => {
                "try again; if it stays, look at the node: mcp-agent check".to_owned()
            }
            Self::Reference { .. } => "check the repository with: git fsck".to_owned(),
        }
    }
}

/// Where a node's head is remembered.
pub fn node_reference(node: &NodeName) -> String {
    format!("refs/remotes/{node}/head")
}

impl DesiredRepo {
    /// Takes a pack's objects into the repository, and makes certain that `head` is among them or was here.
    ///
    /// # Errors
    ///
    /// [`FetchedError::Pack`] or [`FetchedError::Missing`]; what was taken in stays, unreferenced.
    pub fn receive_pack(&self, pack: &[u8], head: CommitId) -> Result<(), FetchedError> {
        if pack.len() > EMPTY_PACK_BYTES {
            self.index(&mut std::io::Cursor::new(pack))
                .map_err(|source| FetchedError::Pack {
                    source: source.into(),
                })?;
        }
        // The object store looks for new packs again where an object is not found.
        match self.contains(head) {
            true => Ok(()),
            false => Err(FetchedError::Missing { id: head }),
        }
    }

    fn index(&self, pack: &mut dyn BufRead) -> Result<(), gix::Error> {
        let folder = self.git.common_dir().join("objects/pack");
        let options = gix_pack::bundle::write::Options {
            thread_limit: Some(2),
            iteration_mode: gix_pack::data::input::Mode::Verify,
            alloc_limit_bytes: Some(MAX_OBJECT_BYTES),
            ..Default::default()
        };
        let outcome = gix_pack::Bundle::write_to_directory(
            pack,
            Some(&folder as &Path),
            &mut gix::progress::Discard,
            &AtomicBool::new(false),
            None::<gix::odb::Handle>,
            gix::hash::Kind::Sha1,
            options,
        )?;
        if let Some(keep) = outcome.keep_path {
            // A pack that is kept for ever costs disk, and nothing else.
            let _ = std::fs::remove_file(keep);
        }
        Ok(())
    }

    /// The head that the node had when it was last talked to; `None` where it never was.
    pub fn node_head(&self, node: &NodeName) -> Option<CommitId> {
        let mut reference = self
            .git
            .try_find_reference(node_reference(node).as_str())
            .ok()??;
        let id = reference.peel_to_id().ok()?;
        Some(commit_id(id.detach()))
    }

    /// Remembers the node's head.
    ///
    /// # Errors
    ///
    /// [`FetchedError::Reference`] where the reference cannot be written.
    pub fn set_node_head(&self, node: &NodeName, head: CommitId) -> Result<(), FetchedError> {
        if self.node_head(node) == Some(head) {
            return Ok(());
        }
        let name = node_reference(node);
        let failed = |source: gix::Error| FetchedError::Reference {
            name: name.clone(),
            source: source.into(),
        };
        let full = name
            .as_str()
            .try_into()
            .expect("a node's name fits into a reference");
        let edit = RefEdit::update(full, oid(head), PreviousValue::Any, "mcp: told by the node");
        let mut time = gix::date::parse::TimeBuf::default();
        let committer = gix::actor::Signature {
            name: "mcp".into(),
            email: "mcp@localhost".into(),
            time: gix::date::Time::now_utc(),
        };
        self.git
            .edit_references_as([edit], Some(committer.to_ref(&mut time)))
            .map_err(failed)?;
        Ok(())
    }
}
