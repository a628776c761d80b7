//! A file leaves: its digest is told before its bytes.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use mcp_spec::image::Digest;
use mcp_spec::name::ServiceName;
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::FileError;
use super::handle::{Places, Root};
use super::list::Entry;
use super::path::FilePath;

/// Bytes that are read and sent at a time.
pub(crate) const CHUNK_BYTES: usize = 512 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) service: ServiceName,
    pub(crate) path: FilePath,
    /// Bytes that a file may have.
    pub(crate) limit: u64,
}

/// What is told before the bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) entry: Entry,
    pub(crate) sha256: Digest,
}

/// Where a file goes to.
pub(crate) trait Outlet {
    /// Tells what comes.
    fn begin(&mut self, facts: Facts) -> io::Result<()>;
    /// Takes the next bytes.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Reads a file twice: for its digest, and for whoever asked. Blocking.
///
/// # Errors
///
/// [`FileError`]; one that changes in between is not passed on as if it had not.
pub(crate) fn run(places: &Places, pull: &Pull, to: &mut dyn Outlet) -> Result<(), FileError> {
    let root = Root::open(places, &pull.service, false)?;
    let place = root.place(&pull.path);
    let Some((parents, name)) = pull.path.split() else {
        return Err(FileError::IsFolder { place });
    };
    let folder = root.folder(parents)?;
    let (mut file, stat) = root.read(&folder, name)?;
    let entry = Entry::of(pull.path.to_string(), &stat, false);
    let bytes = entry.bytes;
    if bytes > pull.limit {
        return Err(FileError::TooLarge {
            bytes,
            limit: pull.limit,
        });
    }
    let failed = |error: &io::Error| FileError::io("read", &place, error);
    let changed = || FileError::Changed {
        place: place.clone(),
    };
    let sha256 = digest(&mut file, bytes, &place)?;
    let gone = |_| FileError::Io {
        doing: "send".to_owned(),
        place: place.clone(),
        errno: rustix::io::Errno::PIPE.raw_os_error(),
    };
    to.begin(Facts { entry, sha256 }).map_err(gone)?;
    file.rewind().map_err(|error| failed(&error))?;
    let mut hash = Sha256::new();
    let mut left = bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let read = match file.read(&mut chunk[..most]) {
            Ok(0) => return Err(changed()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error)),
        };
        hash.update(&chunk[..read]);
        left -= read as u64;
        to.bytes(&chunk[..read]).map_err(gone)?;
    }
    let after = fstat(&file).map_err(|errno| failed(&errno.into()))?;
    let same_size = u64::try_from(after.st_size) == Ok(bytes);
    if !same_size || Digest::from_bytes(hash.finalize().into()) != sha256 {
        return Err(changed());
    }
    Ok(())
}

/// The digest of so many bytes of a file.
///
/// # Errors
///
/// [`FileError::Changed`] where there are fewer, and what the disk said.
pub(crate) fn digest(file: &mut File, bytes: u64, place: &str) -> Result<Digest, FileError> {
    let mut hash = Sha256::new();
    let mut limited = io::Read::take(file, bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut read_bytes: u64 = 0;
    loop {
        match limited.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&chunk[..read]);
                read_bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::io("read", place, &error)),
        }
    }
    if read_bytes < bytes {
        return Err(FileError::Changed {
            place: place.to_owned(),
        });
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}
