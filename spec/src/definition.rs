//! From TOML text to resolved services: parsing, validation, defaults.
//!
//! All errors of all files are found in one pass, each with its place and its mend. The same code
//! runs in the CLI before a commit and in the agent on receipt. Reading files is left to others:
//! they hand over bytes, and a lookup for the digests of the files that components mount.

mod component;
mod crosscheck;
mod error;
mod health;
mod host;
mod incremental;
mod limits;
mod networks;
mod ports;
mod reader;
mod secrets;
mod service;
mod sharing;
mod suggest;
mod values;
mod volumes;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

pub use error::{DefinitionError, DefinitionErrorKind};
pub use incremental::{Compiled, ContentId, ReadBytes};

pub(crate) use component::{READY_FOR, STOP_TIMEOUT};
pub(crate) use health::{INTERVAL, RETRIES, START_PERIOD, TIMEOUT};
pub(crate) use limits::PIDS;
pub(crate) use networks::implied_aliases;
pub(crate) use secrets::SECRET_MODE;
pub(crate) use service::DEADLINE;
pub use sharing::{SHARED_PATH, Sharing};
pub use values::{SizeError, size_bytes, size_text};
pub(crate) use volumes::FILE_MODE;

use crate::component::ServiceSpec;
use crate::image::Digest;
use crate::name::{NodeName, ServiceName};
use error::Errors;

/// Most services of one repository: twice the largest fleet that is measured.
pub const MAX_SERVICES: usize = 10_000;

/// One definition as it stands in the repository.
#[derive(Debug, Clone, Copy)]
pub struct DefinitionFile<'a> {
    /// Its path from the repository's root, as in `services/metacrypt.toml`.
    pub path: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// The digest of a repository file at the revision in question, if the revision holds it.
pub type FileLookup<'a> = dyn Fn(&str) -> Option<Digest> + 'a;

/// The services that a set of definitions asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredSet {
    /// The services by name.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
}

/// Compiles all definitions of a repository in full, and checks them against each other.
///
/// # Errors
///
/// Every error of every file, by file and place.
pub fn compile(
    files: &[DefinitionFile<'_>],
    lookup: &FileLookup<'_>,
) -> Result<DesiredSet, Vec<DefinitionError>> {
    bounded(files)?;
    compile_full(files, lookup, Vec::new())
}

/// Compiles the definitions of one node in full; of all others only name and node are read, and
/// the set leaves them out.
///
/// # Errors
///
/// Every error of the node's own files, and of the others those that leave name or node in doubt.
pub fn compile_for_node(
    files: &[DefinitionFile<'_>],
    node: &NodeName,
    lookup: &FileLookup<'_>,
) -> Result<DesiredSet, Vec<DefinitionError>> {
    bounded(files)?;
    let mut own = Vec::new();
    let mut doubtful = Vec::new();
    for file in files {
        let head = service::read_head(file);
        match head.node {
            Some(other) if other != *node => doubtful.push(head.errors),
            // Ours, or nobody's: the full read reports all that is wrong with it.
            _ => own.push(*file),
        }
    }
    compile_full(&own, lookup, doubtful)
}

/// Tells which node runs which service; nothing else of the definitions is read.
///
/// # Errors
///
/// Every file whose name or node cannot be told.
pub fn placements(
    files: &[DefinitionFile<'_>],
) -> Result<BTreeMap<ServiceName, NodeName>, Vec<DefinitionError>> {
    bounded(files)?;
    let mut placed = BTreeMap::new();
    let mut all = Vec::new();
    for file in files {
        let mut head = service::read_head(file);
        if let (Some(name), Some(node)) = (head.name, head.node) {
            match placed.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(node);
                }
                Entry::Occupied(taken) => head.errors.push(
                    DefinitionErrorKind::Duplicate,
                    head.name_place,
                    format!("the service `{}` is defined already", taken.key()),
                    "keep one of the files",
                ),
            }
        }
        all.push(head.errors);
    }
    let errors = sorted(all);
    if errors.is_empty() {
        Ok(placed)
    } else {
        Err(errors)
    }
}

/// Compiles one definition and checks it against itself.
#[must_use]
pub fn parse_one(
    file: DefinitionFile<'_>,
    lookup: &FileLookup<'_>,
) -> (Option<ServiceSpec>, Vec<DefinitionError>) {
    let mut read = [service::read(&file, lookup)];
    crosscheck::check(&mut read);
    let [read] = read;
    if read.errors.is_empty() {
        (read.into_spec(), Vec::new())
    } else {
        (None, read.errors.into_sorted())
    }
}

fn compile_full<'a>(
    files: &[DefinitionFile<'a>],
    lookup: &FileLookup<'_>,
    mut all: Vec<Errors<'a>>,
) -> Result<DesiredSet, Vec<DefinitionError>> {
    let mut read: Vec<_> = files
        .iter()
        .map(|file| service::read(file, lookup))
        .collect();
    crosscheck::check(&mut read);
    if all.iter().all(Errors::is_empty) && read.iter().all(|service| service.errors.is_empty()) {
        let services = read
            .into_iter()
            .filter_map(service::ReadService::into_spec)
            .map(|service| (service.name.clone(), service))
            .collect();
        return Ok(DesiredSet { services });
    }
    all.extend(read.into_iter().map(|service| service.errors));
    Err(sorted(all))
}

fn sorted(all: Vec<Errors<'_>>) -> Vec<DefinitionError> {
    let mut errors: Vec<_> = all.into_iter().flat_map(Errors::into_sorted).collect();
    // Stable: within a file the order stays that of the places.
    errors.sort_by(|a, b| a.file.cmp(&b.file));
    errors
}

fn bounded(files: &[DefinitionFile<'_>]) -> Result<(), Vec<DefinitionError>> {
    let Some(beyond) = files.get(MAX_SERVICES) else {
        return Ok(());
    };
    let mut errors = Errors::new(beyond.path, "");
    errors.push(
        DefinitionErrorKind::Bound,
        0..0,
        format!(
            "the repository defines {} services; at most {MAX_SERVICES} are read",
            files.len()
        ),
        "split the fleet into several repositories",
    );
    Err(errors.into_sorted())
}
