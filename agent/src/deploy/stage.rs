//! Staged files: the agent's own copies of repository files that components mount.
//!
//! A copy lies at `DATA/files/SERVICE/COMPONENT/gN/NAME`, where `gN` is the generation of the container
//! that mounts it and NAME the digest of the target path. A new generation gets copies of its own. For
//! a restart a copy is renamed into place (the engine mounts the path anew); for a signal it is
//! written in place, since the running container holds the file itself. The bytes that stood there
//! are kept beside it until the deployment ends, for compensation.
//!
//! An owner is one of the container's. Under an engine without root those ids are another namespace's, and what
//! is to be owned is written from within it ([`inside`]).
//!
//! Every path below `DATA/files` is made of checked names and digests: none comes from a definition.

pub mod inside;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mcp_spec::component::FileMount;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use thiserror::Error;

use self::inside::Work;
use crate::disk;
use crate::runtime::UserNamespace;

/// Where staged files lie.
#[derive(Debug, Clone)]
pub struct Staging {
    root: PathBuf,
    users: UserNamespace,
}

/// Why a file could not be staged.
#[derive(Debug, Error)]
pub enum StageError {
    /// The disk refused.
    #[error("cannot stage {from} at {path}")]
    Io {
        /// Path in the repository.
        from: String,
        /// Path on the node.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The owner cannot be given.
    #[error("cannot give {from} to {uid}:{gid}: the agent does not run as root")]
    Owner {
        /// Path in the repository.
        from: String,
        /// Wanted user id.
        uid: u32,
        /// Wanted group id.
        gid: u32,
    },
    /// The owner cannot be given under an engine without root.
    #[error("cannot give {from} to its owner: {why}")]
    Inside {
        /// Path in the repository.
        from: String,
        /// What is missing.
        why: String,
    },
    /// The revision's bytes are not those that the spec names.
    #[error("{from} is not the file that the spec was made of: {found} instead of {wanted}")]
    Digest {
        /// Path in the repository.
        from: String,
        /// Digest of the bytes that were found.
        found: Digest,
        /// Digest that the spec names.
        wanted: Digest,
    },
}

impl Staging {
    /// Staging below `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            root: data_dir.join("files"),
            users: UserNamespace::Shared,
        }
    }

    /// Staging in a folder, as secrets have it.
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self {
            root,
            users: UserNamespace::Shared,
        }
    }

    /// The same, for containers whose users are numbered so.
    #[must_use]
    pub fn among(&self, users: UserNamespace) -> Self {
        Self {
            root: self.root.clone(),
            users,
        }
    }

    fn generation_dir(&self, key: &ComponentKey, generation: u64) -> PathBuf {
        self.root
            .join(key.service.as_str())
            .join(key.component.as_str())
            .join(format!("g{generation}"))
    }

    fn path(&self, key: &ComponentKey, generation: u64, target: &str) -> PathBuf {
        self.generation_dir(key, generation)
            .join(&Digest::of(target.as_bytes()).hex()[..16])
    }

    /// Whether a file of a generation is there. Blocking.
    #[must_use]
    pub fn has(&self, key: &ComponentKey, generation: u64, target: &str) -> bool {
        self.path(key, generation, target).is_file()
    }

    /// The staged paths of a generation by target, whether or not they are there.
    #[must_use]
    pub fn paths(
        &self,
        key: &ComponentKey,
        generation: u64,
        files: &BTreeMap<String, FileMount>,
    ) -> BTreeMap<String, PathBuf> {
        files
            .keys()
            .map(|target| (target.clone(), self.path(key, generation, target)))
            .collect()
    }

    /// Writes one file of a generation that has not started yet. Blocking.
    ///
    /// # Errors
    ///
    /// [`StageError`], with nothing left at the path but a complete file or none.
    pub fn write(
        &self,
        key: &ComponentKey,
        generation: u64,
        target: &str,
        file: &FileMount,
        bytes: &[u8],
    ) -> Result<(), StageError> {
        let path = self.path(key, generation, target);
        check(file, bytes)?;
        if file.owner.is_some() && self.users != UserNamespace::Shared {
            let work = Work::Write { file: file.clone() };
            return inside::send(
                &self.users,
                self.errand(key, generation, target, work),
                bytes,
            );
        }
        let write = || -> io::Result<()> {
            let dir = self.generation_dir(key, generation);
            disk::create_dir(&dir)?;
            write_beside(&path, bytes, file.mode)
        };
        write().map_err(|source| StageError::Io {
            from: file.from.clone(),
            path: path.clone(),
            source,
        })?;
        give(&path, file)
    }

    /// Puts new bytes where a generation mounts the file, and keeps the old ones for
    /// [`Self::restore`]. `in_place` writes into the same file, which a running container sees.
    /// Blocking; doing it twice keeps the first old bytes.
    ///
    /// # Errors
    ///
    /// [`StageError`].
    pub fn exchange(
        &self,
        key: &ComponentKey,
        generation: u64,
        target: &str,
        file: &FileMount,
        bytes: &[u8],
        in_place: bool,
    ) -> Result<(), StageError> {
        let path = self.path(key, generation, target);
        check(file, bytes)?;
        if file.owner.is_some() && self.users != UserNamespace::Shared {
            let work = Work::Exchange {
                file: file.clone(),
                in_place,
            };
            return inside::send(
                &self.users,
                self.errand(key, generation, target, work),
                bytes,
            );
        }
        let exchange = || -> io::Result<()> {
            let kept = kept(&path);
            if !kept.exists() {
                let old = fs::read(&path)?;
                let was = fs::metadata(&path)?;
                write_beside(&kept, &old, was.permissions().mode() & 0o7777)?;
                keep_owner(&kept, &was)?;
            }
            if in_place {
                write_through(&path, bytes, file.mode)
            } else {
                write_beside(&path, bytes, file.mode)
            }
        };
        exchange().map_err(|source| StageError::Io {
            from: file.from.clone(),
            path: path.clone(),
            source,
        })?;
        give(&path, file)
    }

    /// Puts the bytes back that [`Self::exchange`] kept; nothing where none are kept. Blocking.
    ///
    /// # Errors
    ///
    /// [`StageError::Io`].
    pub fn restore(
        &self,
        key: &ComponentKey,
        generation: u64,
        target: &str,
        in_place: bool,
    ) -> Result<(), StageError> {
        let path = self.path(key, generation, target);
        let kept = kept(&path);
        if self.users != UserNamespace::Shared && is_others(&kept) {
            let work = Work::Restore { in_place };
            return inside::send(&self.users, self.errand(key, generation, target, work), &[]);
        }
        let restore = || -> io::Result<()> {
            let old = match fs::read(&kept) {
                Ok(old) => old,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            };
            let was = fs::metadata(&kept)?;
            let mode = was.permissions().mode() & 0o7777;
            if in_place {
                write_through(&path, &old, mode)?;
            } else {
                write_beside(&path, &old, mode)?;
            }
            keep_owner(&path, &was)?;
            fs::remove_file(&kept)
        };
        restore().map_err(|source| StageError::Io {
            from: target.to_owned(),
            path,
            source,
        })
    }

    fn errand(
        &self,
        key: &ComponentKey,
        generation: u64,
        target: &str,
        work: Work,
    ) -> inside::Errand {
        inside::Errand {
            root: self.root.clone(),
            key: key.clone(),
            generation,
            target: target.to_owned(),
            work,
        }
    }

    /// Forgets the kept bytes of a generation: its deployment has ended well. Blocking.
    pub fn settle(&self, key: &ComponentKey, generation: u64, files: &BTreeMap<String, FileMount>) {
        for target in files.keys() {
            // One that is not there is no failure. One that came back with a power cut would be put
            // back by a later compensation, so its removal is flushed.
            let kept = kept(&self.path(key, generation, target));
            if fs::remove_file(&kept).is_ok() {
                drop(kept.parent().map(disk::sync_dir));
            }
        }
    }

    /// The generations that have a folder. Blocking.
    #[must_use]
    pub fn generations(&self) -> Vec<(ComponentKey, u64)> {
        let below = |dir: &Path| -> Vec<(String, PathBuf)> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
                .collect()
        };
        let mut found = Vec::new();
        for (service, dir) in below(&self.root) {
            for (component, dir) in below(&dir) {
                let (Ok(service), Ok(component)) = (service.parse(), component.parse()) else {
                    continue;
                };
                let key = ComponentKey::new(service, component);
                let generations = below(&dir).into_iter();
                found.extend(
                    generations
                        .filter_map(|(name, _)| name.strip_prefix('g')?.parse().ok())
                        .map(|generation| (key.clone(), generation)),
                );
            }
        }
        found
    }

    /// Removes a generation's files; missing ones are no error. Blocking.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub fn remove(&self, key: &ComponentKey, generation: u64) -> io::Result<()> {
        match fs::remove_dir_all(self.generation_dir(key, generation)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whether a file is there and belongs to another user.
fn is_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.uid() != rustix::process::geteuid().as_raw())
}

fn kept(path: &Path) -> PathBuf {
    path.with_extension("before")
}

fn check(file: &FileMount, bytes: &[u8]) -> Result<(), StageError> {
    let found = Digest::of(bytes);
    if found == file.digest {
        Ok(())
    } else {
        Err(StageError::Digest {
            from: file.from.clone(),
            found,
            wanted: file.digest,
        })
    }
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    disk::sync(&file, &beside)?;
    disk::rename(&beside, path)?;
    path.parent().map_or(Ok(()), disk::sync_dir)
}

fn write_through(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    disk::sync(&file, path)
}

/// Gives a file the owner that another has; nothing where it has it already.
fn keep_owner(path: &Path, was: &fs::Metadata) -> io::Result<()> {
    let is = fs::metadata(path)?;
    if (is.uid(), is.gid()) == (was.uid(), was.gid()) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(was.uid()), Some(was.gid()))
}

fn give(path: &Path, file: &FileMount) -> Result<(), StageError> {
    let Some((uid, gid)) = file.owner else {
        return Ok(());
    };
    match std::os::unix::fs::chown(path, Some(uid), Some(gid)) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(StageError::Owner {
            from: file.from.clone(),
            uid,
            gid,
        }),
        Err(source) => Err(StageError::Io {
            from: file.from.clone(),
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
