//! Reading git objects, each held against its own id.
//!
//! Reading re-hashes every object, so neither bit rot nor a repository that lies about its objects
//! gets further than an error that names the object.

use std::io;
use std::path::Path;

use gix::objs::Find as _;
use thiserror::Error;

/// A git object's id, as it lies in trees and commits.
pub(super) type Id = [u8; 20];

/// What an object is.
pub(super) use gix::objs::Kind;

/// Why an object could not be read.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It is not there.
    #[error("the object {id} is missing")]
    Missing {
        /// Its id, in hexadecimal.
        id: String,
    },
    /// It is there, and is not what was to be read.
    #[error("the object {id} is a {found}, not a {expected}")]
    Kind {
        /// Its id.
        id: String,
        /// What was expected.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// It is larger than the limit.
    #[error("the object {id} has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// Its id.
        id: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It is made to collide with another object under SHA-1.
    #[error("the object {id} is made for a SHA-1 collision")]
    Collision {
        /// Its id.
        id: String,
    },
    /// It cannot be decoded, or its bytes do not match its id.
    #[error("the object {id} is corrupt: {reason}")]
    Corrupt {
        /// Its id.
        id: String,
        /// What failed.
        reason: String,
    },
}

impl ObjectError {
    /// The fault's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing-object",
            Self::Kind { .. } => "wrong-object-kind",
            Self::TooLarge { .. } => "object-too-large",
            Self::Collision { .. } => "sha1-collision",
            Self::Corrupt { .. } => "corrupt-object",
        }
    }
}

/// One object database, with what it borrows from.
pub(super) struct Objects {
    odb: gix::odb::Handle,
    limit: usize,
}

impl Objects {
    /// Opens the `objects` directory; nothing in it is looked at yet.
    pub(super) fn open(objects_dir: &Path, limit: usize) -> io::Result<Self> {
        let options = gix::odb::store::init::Options {
            use_multi_pack_index: true,
            alloc_limit_bytes: Some(limit),
            ..Default::default()
        };
        let odb = gix::odb::at_opts(objects_dir, gix::hash::Kind::Sha1, None, options)?;
        Ok(Self { odb, limit })
    }

    /// The object's kind and bytes.
    pub(super) fn read(&self, id: &Id) -> Result<(Kind, Vec<u8>), ObjectError> {
        let mut buffer = Vec::new();
        let found = self
            .odb
            .try_find(&oid(id), &mut buffer)
            .map_err(|error| corrupt(id, &error.to_string()))?
            .ok_or_else(|| ObjectError::Missing {
                id: hex::encode(id),
            })?;
        let kind = found.kind;
        let length = found.data.len();
        self.check_size(id, length as u64)?;
        // It fails for what is made to collide, and for nothing else.
        let actual =
            gix::objs::compute_hash(gix::hash::Kind::Sha1, kind, found.data).map_err(|_| {
                ObjectError::Collision {
                    id: hex::encode(id),
                }
            })?;
        if actual.as_slice() != id {
            return Err(corrupt(id, "its bytes do not match its id"));
        }
        buffer.truncate(length);
        Ok((kind, buffer))
    }

    /// The bytes of an object of this kind.
    pub(super) fn read_kind(&self, id: &Id, expected: Kind) -> Result<Vec<u8>, ObjectError> {
        let (found, bytes) = self.read(id)?;
        if found != expected {
            return Err(wrong_kind(id, expected, found));
        }
        Ok(bytes)
    }

    /// Checks that the object is there and a blob within the limit, and gives its size.
    pub(super) fn blob_size(&self, id: &Id) -> Result<u64, ObjectError> {
        use gix::odb::Header as _;
        let header = self
            .odb
            .try_header(&oid(id))
            .map_err(|error| corrupt(id, &error.to_string()))?
            .ok_or_else(|| ObjectError::Missing {
                id: hex::encode(id),
            })?;
        if header.kind() != Kind::Blob {
            return Err(wrong_kind(id, Kind::Blob, header.kind()));
        }
        self.check_size(id, header.size())?;
        Ok(header.size())
    }

    fn check_size(&self, id: &Id, bytes: u64) -> Result<(), ObjectError> {
        let limit = self.limit as u64;
        if bytes > limit {
            return Err(ObjectError::TooLarge {
                id: hex::encode(id),
                bytes,
                limit,
            });
        }
        Ok(())
    }
}

pub(super) fn oid(id: &Id) -> gix::ObjectId {
    gix::ObjectId::Sha1(*id)
}

fn corrupt(id: &Id, reason: &str) -> ObjectError {
    ObjectError::Corrupt {
        id: hex::encode(id),
        reason: reason.to_owned(),
    }
}

fn wrong_kind(id: &Id, expected: Kind, found: Kind) -> ObjectError {
    ObjectError::Kind {
        id: hex::encode(id),
        expected: match expected {
            Kind::Commit => "commit",
            Kind::Tree => "tree",
            Kind::Blob => "blob",
            Kind::Tag => "tag",
        },
        found: found.to_string(),
    }
}
