//! What is under way in services' folders, so that a start can clear away what was cut off.
//!
//! A file takes the place of another under a name of the agent's for an instant, and on file systems without nameless
//! files for longer. The name is written down in `DATA/.file-transfers` before it is made, and forgotten once it is gone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use mcp_spec::name::ServiceName;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::handle::{Places, Root};
use super::path::{FilePath, OWN_PREFIX};
use super::versions;
use crate::disk;

/// The folder's name; what begins with a dot is in no backup.
const FOLDER: &str = ".file-transfers";

/// A name of the agent's, written down.
#[derive(Debug)]
pub(crate) struct Intent {
    file: PathBuf,
    /// The name in the service's folder.
    pub(crate) name: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    service: ServiceName,
    /// The folder that the name is in, or one above it.
    folder: FilePath,
    name: String,
}

impl Intent {
    /// Writes down that a name is going to be made on the way to `folder`.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub(crate) fn write(
        places: &Places,
        service: &ServiceName,
        folder: &[String],
    ) -> Result<Self, FileError> {
        let id = format!(
            "{:016x}{:016x}",
            rand::random::<u64>(),
            rand::random::<u64>()
        );
        let name = format!("{OWN_PREFIX}{id}");
        let dir = places.data_dir.join(FOLDER);
        let file = dir.join(&id);
        let failed = |error: io::Error| FileError::io("write", file.display().to_string(), &error);
        let folder: FilePath = folder
            .join("/")
            .parse()
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let written = Written {
            service: service.clone(),
            folder,
            name: name.clone(),
        };
        let write = || -> io::Result<()> {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)?;
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)?;
            out.write_all(&serde_json::to_vec(&written)?)?;
            disk::sync(&out, &file)?;
            disk::sync_dir(&dir)
        };
        write().map_err(failed)?;
        Ok(Self { file, name })
    }
}

impl Drop for Intent {
    /// The name is gone, or whoever made it has removed it.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.file) {
            tracing::warn!(file = %self.file.display(), %error, "cannot forget a transfer");
        }
    }
}

/// Clears away what transfers left that were cut off. Not to be called while one is under way.
///
/// # Errors
///
/// The last failure; what could be cleared away is.
pub(crate) fn sweep(places: &Places) -> Result<(), FileError> {
    versions::sweep(places);
    let mut failed = Ok(());
    let entries = fs::read_dir(places.data_dir.join(FOLDER))
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        let file = entry.path();
        // One that was cut off in the middle was written before anything was made.
        let written: Option<Written> = fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let cleared = written.map_or(Ok(()), |written| clear(places, &written));
        match cleared {
            Ok(()) => drop(fs::remove_file(&file)),
            Err(error) => failed = Err(error),
        }
    }
    failed
}

fn clear(places: &Places, written: &Written) -> Result<(), FileError> {
    if !written.name.starts_with(OWN_PREFIX) || written.name.contains('/') {
        return Ok(());
    }
    let parts = written.folder.parts();
    for depth in 0..=parts.len() {
        let removed = Root::open(places, &written.service, false)
            .and_then(|root| root.folder(&parts[..depth]))
            .and_then(|folder| {
                folder.remove(&written.name)?;
                folder.sync()
            });
        match removed {
            Ok(()) => {}
            // Whoever owns the folder has removed or exchanged it.
            Err(
                FileError::NotFound { .. }
                | FileError::Link { .. }
                | FileError::NotFolder { .. }
                | FileError::OtherDisk { .. },
            ) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
