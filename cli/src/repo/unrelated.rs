//! What else changed in the work tree: listed for a note, and never touched.

use gix::bstr::ByteSlice;
use gix::status::{Item, UntrackedFiles};

use super::{ChangesError, DesiredRepo, is_managed};

/// More are counted, but not listed.
const MAX_LISTED: usize = 100;

/// A change outside the managed folders.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnrelatedChange {
    /// The path, relative to the repository's top; a folder of nothing but new files ends in a slash.
    pub path: String,
    /// Whether it is staged for the operator's own next `git commit`.
    pub staged: bool,
}

/// The changes outside the managed folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnrelatedChanges {
    /// At most a hundred of them, sorted.
    pub listed: Vec<UnrelatedChange>,
    /// How many there are in all.
    pub count: usize,
}

impl DesiredRepo {
    /// What changed outside the managed folders, staged or not.
    ///
    /// # Errors
    ///
    /// [`ChangesError::Git`] where the comparison fails.
    pub fn other_changes(&self) -> Result<UnrelatedChanges, ChangesError> {
        let status = self
            .git
            .status(gix::progress::Discard)?
            .untracked_files(UntrackedFiles::Collapsed)
            .index_worktree_rewrites(None)
            .index_worktree_submodules(None)
            .tree_index_track_renames(gix::status::tree_index::TrackRenames::Disabled);
        let mut found = UnrelatedChanges::default();
        for item in status.into_iter(None)? {
            let item = item?;
            let path = item.location().to_str_lossy();
            // A managed folder of nothing but new files is one item, without its slash.
            let path = path.trim_end_matches('/');
            if is_managed(&format!("{path}/")) {
                continue;
            }
            found.count += 1;
            if found.listed.len() < MAX_LISTED {
                let staged = matches!(item, Item::TreeIndex(_));
                found.listed.push(UnrelatedChange {
                    path: path.to_owned(),
                    staged,
                });
            }
        }
        found.listed.sort();
        found.listed.dedup();
        Ok(found)
    }
}
