//! Fetching from an upstream: its objects are copied into a pack, and the pack goes to the door.
//!
//! A path or `file://` URL is opened directly. No program is started and nothing of the other
//! repository's configuration is followed: its branch is read, and its objects, each re-hashed. Git's
//! own way would run `git-upload-pack` as configured over there. Other transports come later.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use mcp_spec::duration::Span;
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;
use thiserror::Error;

use super::door::Spooled;
use super::faults::{Bound, PackFault};
use super::history::Verification;
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Objects};
use super::pack::{self, PackWriteError};
use super::trees;
use super::{Accepted, ReceiveError, RevisionStore};

/// Most bytes of a file of another repository that is read whole: its configuration, a ref.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most bytes of its packed refs: some hundred thousand.
const MAX_PACKED_REFS_BYTES: u64 = 64 * 1024 * 1024;

/// Why nothing could be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// A transport that does not exist yet.
    #[error(
        "`{url}` needs {transport}, which is not supported yet: use an absolute path or a file:// URL"
    )]
    Transport {
        /// The source.
        url: String,
        /// What it would need.
        transport: String,
    },
    /// Not a way to name a source.
    #[error("`{url}` is no source: use an absolute path or a file:// URL")]
    Url {
        /// The source.
        url: String,
    },
    /// No repository there.
    #[error("there is no git repository at {}: {reason}", path.display())]
    NoRepository {
        /// Where.
        path: PathBuf,
        /// What git's library said.
        reason: String,
    },
    /// A repository with something in it that no git writes there.
    #[error("{} cannot be read: it is {what}", path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A repository that borrows its objects.
    #[error("{} borrows objects from another repository; repack it with `git repack -a -d` and remove objects/info/alternates", path.display())]
    Borrows {
        /// Where.
        path: PathBuf,
    },
    /// No such branch, or no name for one.
    #[error("{} has no branch `{branch}`", path.display())]
    NoBranch {
        /// Where.
        path: PathBuf,
        /// The branch.
        branch: String,
    },
    /// It did not answer in time.
    #[error("the upstream {url} gave no answer within {limit}")]
    Stalled {
        /// The source.
        url: String,
        /// How long it was waited for.
        limit: Span,
    },
    /// So many earlier looks hang that no other is begun.
    #[error("the upstream {url} hangs: {looks} earlier fetches have not ended")]
    Hangs {
        /// The source.
        url: String,
        /// How many.
        looks: usize,
    },
    /// The look at it broke off.
    #[error("the fetch of {url} broke off")]
    BrokeOff {
        /// The source.
        url: String,
    },
    /// What was fetched is refused.
    #[error(transparent)]
    Refused(#[from] ReceiveError),
}

/// What was read of an upstream or the inbox: a pack in quarantine, of what leads from our history to its tip.
#[derive(Debug)]
pub struct Fetched {
    pub(super) spooled: Spooled,
    pub(super) tip: CommitId,
}

impl Fetched {
    /// The commit that it leads to.
    #[must_use]
    pub const fn tip(&self) -> CommitId {
        self.tip
    }
}

impl FetchError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(refused) => refused.hint(),
            Self::NoBranch { .. } => "push to that branch, or set `[source] branch`".to_owned(),
            Self::Stalled { .. } | Self::Hangs { .. } => {
                "look at the file system that it lies on; it is tried again at the next poll"
                    .to_owned()
            }
            Self::BrokeOff { .. } => "look at the agent's log, and report it".to_owned(),
            _ => "check `[source] url` in the agent's configuration".to_owned(),
        }
    }

    /// The refusal's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Transport { .. } => "unsupported-transport",
            Self::Url { .. } => "bad-url",
            Self::NoRepository { .. } => "no-repository",
            Self::Odd { .. } => "odd-repository",
            Self::Borrows { .. } => "borrowed-objects",
            Self::NoBranch { .. } => "no-branch",
            Self::Stalled { .. } => "stalled",
            Self::Hangs { .. } => "hangs",
            Self::BrokeOff { .. } => "broke-off",
            Self::Refused(refused) => refused.name(),
        }
    }
}

impl RevisionStore {
    /// Reads a branch of another repository. `None` where it stands at the head already.
    ///
    /// The other repository may hang: nothing is held meanwhile that anybody else waits for, and whoever
    /// gives the call up leaves nothing behind but what goes with its return.
    ///
    /// # Errors
    ///
    /// [`FetchError`]; `Refused` with the door's own reason.
    pub fn read_source(
        &self,
        url: &str,
        branch: &str,
        limits: &Limits,
    ) -> Result<Option<Fetched>, FetchError> {
        let path = local_path(url)?;
        let (objects_dir, tip) = branch_tip(&path, branch)?;
        if self.answered_by_head(self.head(), tip)?.is_some() {
            return Ok(None);
        }
        let spooled = self.copy_objects(&objects_dir, tip, limits)?;
        Ok(Some(Fetched { spooled, tip }))
    }

    /// Takes what was read of an upstream or the inbox through the door. `None` where the head came there meanwhile.
    ///
    /// # Errors
    ///
    /// The door's own; nothing has changed then.
    pub fn receive_fetched(
        &self,
        fetched: Fetched,
        node: &NodeName,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<Option<Accepted>, ReceiveError> {
        let Fetched { spooled, tip } = fetched;
        let _door = self.lock_door();
        if self.answered_by_head(self.head(), tip)?.is_some() {
            return Ok(None);
        }
        Ok(Some(self.receive_spooled(spooled, tip, node, limits, now)?))
    }

    /// Makes a pack, in quarantine, of what leads from our history to the tip.
    pub(super) fn copy_objects(
        &self,
        objects_dir: &Path,
        tip: CommitId,
        limits: &Limits,
    ) -> Result<Spooled, ReceiveError> {
        // Copies: reading theirs may take for ever, and no lock may be held meanwhile.
        let (head, accepted, past) = {
            let state = self.read_state();
            (state.head, state.accepted.clone(), state.past.clone())
        };
        let trust = self.trust().clone();
        let clock = Clockwork::start(limits);
        let limit = usize::try_from(limits.object_bytes).unwrap_or(usize::MAX);
        let theirs = Objects::open(objects_dir, limit)
            .map_err(ReceiveError::io("open the source's objects"))?;
        let ours = Objects::open(&self.objects_dir(), limit)
            .map_err(ReceiveError::io("open the repository"))?;
        let verification = |objects| Verification {
            objects,
            shapes: &self.shapes,
            accepted: &accepted,
            past: &past,
            trust: &trust,
            limits,
            clock: &clock,
            denylist: true,
        };
        let new = verification(&theirs).new_commits(tip)?;
        let mut held = std::collections::HashSet::new();
        if let Some(head) = head {
            let tree = verification(&ours).tree_of(head)?;
            trees::reach(
                &ours,
                head,
                &tree,
                &mut held,
                &mut Vec::new(),
                limits,
                &clock,
            )?;
        }
        let mut ids: Vec<Id> = new
            .commits()
            .map(|(commit, _)| *commit.as_bytes())
            .collect();
        for (commit, tree) in new.commits() {
            trees::reach(&theirs, commit, &tree, &mut held, &mut ids, limits, &clock)?;
        }
        let spooled = self.spool(io::empty(), limits)?;
        let file =
            File::create(&spooled.incoming).map_err(ReceiveError::io("write the fetched pack"))?;
        let mut bounded = Bounded {
            inner: io::BufWriter::new(file),
            left: limits.pack_bytes,
            clock: &clock,
            exceeded: false,
        };
        let written = pack::write(&theirs, &ids, &mut bounded);
        clock.check()?;
        if bounded.exceeded {
            return Err(ReceiveError::TooLarge {
                what: Bound::PackBytes,
                limit: limits.pack_bytes,
            });
        }
        written.map_err(|error| match error {
            PackWriteError::Object(source) => ReceiveError::object(tip, "an object", source),
            PackWriteError::Io(source) => ReceiveError::io("write the fetched pack")(source),
            other => ReceiveError::Corrupt {
                fault: PackFault::Index(other.to_string()),
            },
        })?;
        Ok(spooled)
    }
}

struct Bounded<'a, W> {
    inner: W,
    left: u64,
    /// Every object is written in a few pieces, however much it inflates to.
    clock: &'a Clockwork,
    exceeded: bool,
}

impl<W: Write> Write for Bounded<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.clock.check().map_err(io::Error::other)?;
        let count = self.inner.write(bytes)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::other("the pack is too large"));
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The path that a source names.
fn local_path(url: &str) -> Result<PathBuf, FetchError> {
    let bad = || FetchError::Url {
        url: url.to_owned(),
    };
    if url.chars().any(char::is_control) {
        return Err(FetchError::Url {
            url: url.escape_default().collect(),
        });
    }
    if url.starts_with('/') {
        return Ok(PathBuf::from(url));
    }
    if let Some((scheme, rest)) = url.split_once("://") {
        if scheme != "file" {
            return Err(FetchError::Transport {
                url: url.to_owned(),
                transport: format!("the transport {scheme}"),
            });
        }
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        return if path.starts_with('/') {
            percent_decoded(path).map(PathBuf::from).ok_or_else(bad)
        } else {
            Err(bad())
        };
    }
    // What git takes for `host:path`.
    let host = url.split('/').next().unwrap_or_default();
    if host.contains(':') {
        return Err(FetchError::Transport {
            url: url.to_owned(),
            transport: "the transport ssh".to_owned(),
        });
    }
    Err(bad())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            if byte[0] == 0 {
                return None;
            }
            bytes.extend(byte);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Looks at the files that git's library reads whole: a pipe would be waited for, and what is too large for a
/// file of its name would fill the memory.
fn check_files(path: &Path, branch: &gix::refs::FullName) -> Result<(), FetchError> {
    let reference = branch.as_bstr().to_string();
    for dir in [path.to_owned(), path.join(".git")] {
        for (name, most) in [
            ("", MAX_FILE_BYTES),
            ("HEAD", MAX_FILE_BYTES),
            ("config", MAX_FILE_BYTES),
            ("commondir", MAX_FILE_BYTES),
            ("gitdir", MAX_FILE_BYTES),
            ("shallow", MAX_FILE_BYTES),
            (reference.as_str(), MAX_FILE_BYTES),
            ("packed-refs", MAX_PACKED_REFS_BYTES),
        ] {
            // Of a work tree `.git` may be a file.
            let file = if name.is_empty() {
                dir.clone()
            } else {
                dir.join(name)
            };
            let Ok(found) = file.metadata() else { continue };
            let what = if found.is_dir() {
                continue;
            } else if !found.is_file() {
                "no regular file"
            } else if found.len() > most {
                "too large for what it is"
            } else {
                continue;
            };
            return Err(FetchError::Odd { path: file, what });
        }
    }
    Ok(())
}

/// Where the other repository's objects are, and where its branch stands.
fn branch_tip(path: &Path, branch: &str) -> Result<(PathBuf, CommitId), FetchError> {
    let missing = || FetchError::NoBranch {
        path: path.to_owned(),
        branch: branch
            .chars()
            .take(200)
            .flat_map(char::escape_default)
            .collect(),
    };
    let name = format!("refs/heads/{branch}");
    let name: gix::refs::FullName = name.as_str().try_into().map_err(|_| missing())?;
    check_files(path, &name)?;
    let borrows = |objects: PathBuf| {
        if objects.join("info/alternates").symlink_metadata().is_ok() {
            return Err(FetchError::Borrows {
                path: path.to_owned(),
            });
        }
        Ok(objects)
    };
    // Before it is opened, which follows them, and again of what was opened.
    borrows(path.join("objects"))?;
    borrows(path.join(".git/objects"))?;
    // Isolated: nothing of this user's or the system's configuration. Another owner is expected,
    // and gives the other repository's own configuration no say.
    let options = gix::open::Options::isolated().with(gix::sec::Trust::Reduced);
    let repository = gix::open_opts(path, options).map_err(|error| FetchError::NoRepository {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let objects = borrows(repository.common_dir().join("objects"))?;
    let mut reference = repository
        .try_find_reference(name.as_ref())
        .ok()
        .flatten()
        .ok_or_else(missing)?;
    let id = reference.peel_to_id().map_err(|_| missing())?.detach();
    let id = <[u8; 20]>::try_from(id.as_bytes()).map_err(|_| missing())?;
    Ok((objects, CommitId::from_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_path_or_a_file_url() {
        assert_eq!(local_path("/srv/a b").unwrap(), PathBuf::from("/srv/a b"));
        assert_eq!(
            local_path("file:///srv/a%20b").unwrap(),
            PathBuf::from("/srv/a b")
        );
        assert_eq!(
            local_path("file://localhost/srv").unwrap(),
            PathBuf::from("/srv")
        );
        for url in [
            "https://example.net/x.git",
            "ssh://h/x",
            "git@example.net:x.git",
            "ext::sh -c x",
        ] {
            assert!(
                matches!(local_path(url), Err(FetchError::Transport { .. })),
                "{url}"
            );
        }
        for url in [
            "",
            "relative",
            "./x",
            "file://other/x",
            "file:///%0",
            "file:///%00",
            "/a\nb",
        ] {
            assert!(
                matches!(local_path(url), Err(FetchError::Url { .. })),
                "{url}"
            );
        }
    }
}
