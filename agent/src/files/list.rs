//! What lies below a service's folder.

use jiff::Timestamp;
use mcp_spec::name::ServiceName;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::handle::{Folder, Places, Root, kind, links};
use super::path::{FilePath, MAX_PARTS, shown_name};

/// Most entries of one answer: the wire's bound for lists.
const MAX_ENTRIES: usize = 10_000;
/// Most bytes of their paths, so that the answer fits a message.
const MAX_NAME_BYTES: usize = 2 * 1024 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) service: ServiceName,
    pub(crate) path: FilePath,
    pub(crate) recursive: bool,
}

/// The answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    pub(crate) truncated: bool,
    /// Whether the path is a folder.
    pub(crate) folder: bool,
}

/// One file, folder, or what else there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) bytes: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u64,
    pub(crate) modified: i64,
    pub(crate) unnameable: bool,
}

impl Entry {
    pub(crate) fn of(path: String, stat: &Stat, unnameable: bool) -> Self {
        let kind = kind(stat);
        Self {
            path,
            bytes: match kind {
                "file" => u64::try_from(stat.st_size).unwrap_or_default(),
                _ => 0,
            },
            kind: kind.to_owned(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: links(stat),
            modified: stat.st_mtime,
            unnameable,
        }
    }

    /// When it was last written, as the wire has times.
    pub(crate) fn modified_at(&self) -> String {
        Timestamp::from_second(self.modified)
            .map(|at| at.to_string())
            .unwrap_or_default()
    }
}

/// Lists. Blocking.
///
/// # Errors
///
/// [`FileError`].
pub(crate) fn run(places: &Places, list: &List) -> Result<Listing, FileError> {
    let root = match Root::open(places, &list.service, false) {
        // A service that was never deployed has no folder yet, and so no files.
        Err(FileError::NotFound { .. }) if list.path.parts().is_empty() => {
            return Ok(Listing {
                folder: true,
                ..Listing::default()
            });
        }
        root => root?,
    };
    let mut gathered = Gathered {
        listing: Listing::default(),
        name_bytes: 0,
        recursive: list.recursive,
    };
    if let Some((parents, name)) = list.path.split() {
        let folder = root.folder(parents)?;
        let stat = folder
            .stat_of(name.as_bytes())?
            .ok_or_else(|| FileError::NotFound {
                place: root.place(&list.path),
            })?;
        if kind(&stat) != "folder" {
            let entry = Entry::of(list.path.to_string(), &stat, false);
            gathered.listing.entries.push(entry);
            return Ok(gathered.listing);
        }
    }
    let folder = root.folder(list.path.parts())?;
    gathered.listing.folder = true;
    let prefix = match list.path.to_string() {
        path if path.is_empty() => path,
        path => format!("{path}/"),
    };
    gathered.folder(&root, &folder, &prefix, list.path.parts().len(), false)?;
    Ok(gathered.listing)
}

struct Gathered {
    listing: Listing,
    name_bytes: usize,
    recursive: bool,
}

impl Gathered {
    /// One handle a level is open at a time.
    fn folder(
        &mut self,
        root: &Root,
        folder: &Folder,
        prefix: &str,
        depth: usize,
        is_unnameable: bool,
    ) -> Result<(), FileError> {
        let mut names = folder.names()?;
        names.sort_unstable();
        for name in names {
            let Some(stat) = folder.stat_of(&name)? else {
                continue;
            };
            let (shown, nameable) = shown_name(&name);
            let path = format!("{prefix}{shown}");
            self.name_bytes += path.len();
            if self.listing.entries.len() == MAX_ENTRIES || self.name_bytes > MAX_NAME_BYTES {
                self.listing.truncated = true;
                return Ok(());
            }
            let is_unnameable = is_unnameable || !nameable || path.parse::<FilePath>().is_err();
            let mut entry = Entry::of(path.clone(), &stat, is_unnameable);
            let mut below = None;
            if entry.kind == "folder" {
                match root.below(folder, &name, &shown) {
                    Ok(opened) => below = Some(opened),
                    Err(FileError::OtherDisk { .. }) => "mount".clone_into(&mut entry.kind),
                    // Not the caller's business at all.
                    Err(FileError::Agents { .. }) => continue,
                    Err(_) => {}
                }
            }
            self.listing.entries.push(entry);
            if let Some(below) = below
                && self.recursive
                && !self.listing.truncated
            {
                if depth + 1 >= MAX_PARTS {
                    self.listing.truncated = true;
                } else {
                    let prefix = format!("{path}/");
                    self.folder(root, &below, &prefix, depth + 1, is_unnameable)?;
                }
            }
        }
        Ok(())
    }
}
