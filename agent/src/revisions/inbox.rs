//! Reading the inbox: the bare repository on this machine that people push into with plain git.
//!
//! Whoever can push there can write any object and any ref, and whoever owns it any file; it is read like a
//! hostile remote. Only three things of it are looked at, each by handle: the file of the one branch, the
//! packed refs, and its objects, which are copied first. Its configuration, hooks, alternates, replacements,
//! grafts and shallow files are not opened, and no program runs. What leads from our history to its branch is
//! made a pack in quarantine, as of an upstream, and goes to the one door.

use std::path::Path;

use mcp_spec::revision::CommitId;

use super::limits::{Clockwork, Limits};
use super::source::Fetched;
use super::{ReceiveError, RevisionStore};
use crate::disk;

mod copy;
mod error;
mod handle;

pub use error::InboxError;
use handle::Folder;

/// Most bytes of a branch's file: an id is 41 with its end of line.
const MAX_REF_BYTES: u64 = 1024;

/// Most bytes of the packed refs: some hundred thousand.
const MAX_PACKED_REFS_BYTES: u64 = 64 * 1024 * 1024;

/// What a look at the inbox found.
#[derive(Debug)]
pub enum InboxLook {
    /// Nothing was pushed to it yet.
    Empty,
    /// Its branch stands at what is accepted.
    Known(CommitId),
    /// What is new, in quarantine.
    New(Fetched),
}

/// Where the inbox's branch stands; `None` where nothing was pushed to it yet.
///
/// # Errors
///
/// [`InboxError`], never `Refused`.
pub fn inbox_tip(path: &Path, branch: &str) -> Result<Option<CommitId>, InboxError> {
    tip_of(&open(path, branch)?, path, branch)
}

fn open(path: &Path, branch: &str) -> Result<Folder, InboxError> {
    Folder::repository(path)?.ok_or_else(|| InboxError::Missing {
        path: path.to_owned(),
        branch: branch.to_owned(),
    })
}

fn tip_of(repository: &Folder, path: &Path, branch: &str) -> Result<Option<CommitId>, InboxError> {
    let lacks = |lacks| InboxError::NoRepository {
        path: path.to_owned(),
        lacks,
    };
    if repository.has("reftable")? {
        return Err(InboxError::Format {
            path: path.to_owned(),
            what: "its branches stand in a reftable",
        });
    }
    let refs = repository.folder("refs")?.ok_or_else(|| lacks("refs"))?;
    let bad = |what| InboxError::BadRef {
        path: path.to_owned(),
        branch: branch.to_owned(),
        what,
    };
    let name = format!("heads/{branch}");
    match refs.read(&name, MAX_REF_BYTES) {
        Ok(None) => {}
        // Where another branch was packed, the folder of its name may still be there.
        Err(InboxError::Odd {
            what: "a folder" | "no folder",
            ..
        }) => {}
        read => return parse_id(&read?.unwrap_or_default()).map(Some).map_err(bad),
    }
    let packed = repository
        .read("packed-refs", MAX_PACKED_REFS_BYTES)?
        .unwrap_or_default();
    let full = format!("refs/{name}");
    let mut others = false;
    for line in packed.split(|c| *c == b'\n') {
        let mut parts = line.splitn(2, |c| *c == b' ');
        let (Some(id), Some(named)) = (parts.next(), parts.next()) else {
            continue;
        };
        if named == full.as_bytes() {
            return parse_id(id).map(Some).map_err(bad);
        }
        others |= named.starts_with(b"refs/heads/");
    }
    if !others && let Some(heads) = refs.folder("heads")? {
        for name in heads.names()? {
            // A lock is a push that is under way.
            others |= Path::new(&name?)
                .extension()
                .is_none_or(|end| end != "lock");
        }
    }
    if others {
        return Err(InboxError::NoBranch {
            path: path.to_owned(),
            branch: branch.to_owned(),
        });
    }
    Ok(None)
}

fn parse_id(bytes: &[u8]) -> Result<CommitId, &'static str> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if text.starts_with(b"ref:") {
        return Err("a symbolic ref");
    }
    if text.len() == 64 {
        return Err("no SHA-1 id");
    }
    let text = std::str::from_utf8(text).map_err(|_| "no id")?;
    text.parse().map_err(|_| "no id")
}

impl RevisionStore {
    /// Looks at the inbox. `since` is what its branch was last known to stand at: a branch that stands at
    /// accepted history which leads on from there only lags behind, as after a push past the inbox.
    ///
    /// The caller may give the call up: nothing is held meanwhile that anybody waits for, and the copy goes
    /// with its return.
    ///
    /// # Errors
    ///
    /// [`InboxError`]; `Refused` with the door's own reason, `Older` among them where the branch was set back.
    pub fn read_inbox(
        &self,
        path: &Path,
        branch: &str,
        since: Option<CommitId>,
        limits: &Limits,
    ) -> Result<InboxLook, InboxError> {
        let repository = open(path, branch)?;
        let Some(tip) = tip_of(&repository, path, branch)? else {
            return Ok(InboxLook::Empty);
        };
        match self.answered_by_head(self.head(), tip) {
            Ok(Some(_)) => return Ok(InboxLook::Known(tip)),
            Ok(None) => {}
            Err(ReceiveError::Older { .. }) if self.leads_on(since, tip) => {
                return Ok(InboxLook::Known(tip));
            }
            Err(refused) => return Err(refused.into()),
        }
        let objects = repository
            .folder("objects")?
            .ok_or_else(|| InboxError::NoRepository {
                path: path.to_owned(),
                lacks: "objects",
            })?;
        // Not followed in any case; said, since objects would be missing.
        if objects.has("info/alternates")? {
            return Err(InboxError::Borrows {
                path: path.to_owned(),
            });
        }
        let quarantine = self.quarantine_dir();
        let not_copied = |source| InboxError::NotCopied {
            path: path.to_owned(),
            source,
        };
        disk::create_dir(&quarantine).map_err(not_copied)?;
        // Removed when it goes out of scope, whatever the verdict.
        let scratch = tempfile::Builder::new()
            .prefix("inbox-")
            .tempdir_in(&quarantine)
            .map_err(not_copied)?;
        let copied = scratch.path().join("objects");
        copy::copy(path, &objects, &copied, limits, &Clockwork::start(limits))?;
        let spooled = self.copy_objects(&copied, tip, limits)?;
        Ok(InboxLook::New(Fetched { spooled, tip }))
    }

    /// Whether accepted history leads from one commit to the other; from nowhere it leads anywhere.
    fn leads_on(&self, from: Option<CommitId>, to: CommitId) -> bool {
        from.is_none_or(|from| {
            from == to || self.read_state().accepted.ancestry(to).contains(&from)
        })
    }
}
