//! Packs: looked through before they are believed, indexed in quarantine, and written.
//!
//! gix bounds a single object but not their sum, nor the depth of deltas. So a pack is looked
//! through first, once, with constant memory: count, kinds, sizes, delta chains. Only what passes
//! is handed to the indexer. Reference deltas are refused: with offset deltas alone every base
//! stands earlier in the same pack, so there can be no cycles and nothing is borrowed from outside.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use super::error::ReceiveError;
use super::faults::{Bound, PackFault};
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Objects, oid};

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of the checksum that ends a pack.
const TRAILER_BYTES: u64 = 20;

/// The indexer's own tables need more than one object may have: about 100 bytes an object.
const INDEXER_BYTES: usize = 64 * 1024 * 1024;

/// Writes what is read to `path`, at most so many bytes.
pub(super) fn store_bounded(
    mut from: impl Read,
    path: &Path,
    limits: &Limits,
    clock: &Clockwork,
) -> Result<(), ReceiveError> {
    let mut file =
        File::create_new(path).map_err(ReceiveError::io("create the quarantined pack"))?;
    let mut left = limits.pack_bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        clock.check()?;
        let count = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ReceiveError::io("read the pack")(error)),
        };
        left = left
            .checked_sub(count as u64)
            .ok_or(ReceiveError::TooLarge {
                what: Bound::PackBytes,
                limit: limits.pack_bytes,
            })?;
        file.write_all(&chunk[..count])
            .map_err(ReceiveError::io("write the quarantined pack"))?;
    }
    file.flush()
        .map_err(ReceiveError::io("write the quarantined pack"))
}

/// Looks through a pack without keeping anything of it.
pub(super) fn inspect(
    path: &Path,
    limits: &Limits,
    clock: &Clockwork,
) -> Result<u32, ReceiveError> {
    let file = File::open(path).map_err(ReceiveError::io("open the quarantined pack"))?;
    let length = file
        .metadata()
        .map_err(ReceiveError::io("open the quarantined pack"))?
        .len();
    let mut reader = Counted {
        inner: BufReader::with_capacity(CHUNK_BYTES, file),
        offset: 0,
    };
    let mut header = [0; 12];
    reader.fill(&mut header)?;
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if &header[..4] != b"PACK" {
        return Err(corrupt(PackFault::NotAPack));
    }
    if word(4) != 2 {
        return Err(corrupt(PackFault::Version(word(4))));
    }
    let count = word(8);
    if count == 0 {
        return Err(corrupt(PackFault::Empty));
    }
    limit(Bound::Objects, u64::from(count), limits.objects)?;

    let mut inflate = gix::zlib::Decompress::new();
    let mut scratch = vec![0; CHUNK_BYTES];
    let mut chains: HashMap<u64, Chain> = HashMap::new();
    let mut total: u64 = 0;
    for _ in 0..count {
        clock.check()?;
        let start = reader.offset;
        let (kind, size) = entry_header(&mut reader)?;
        let base = match kind {
            1..=3 => None,
            4 => return Err(ReceiveError::Tag),
            6 => {
                let distance = base_distance(&mut reader)?;
                let base = start
                    .checked_sub(distance)
                    .and_then(|base| chains.get(&base))
                    .ok_or_else(|| corrupt(PackFault::DeltaBase))?;
                limit(
                    Bound::DeltaDepth,
                    u64::from(base.depth) + 1,
                    limits.delta_depth.into(),
                )?;
                Some(*base)
            }
            7 => return Err(corrupt(PackFault::ReferenceDelta)),
            other => return Err(corrupt(PackFault::Kind(other))),
        };
        limit(Bound::ObjectBytes, size, limits.object_bytes)?;
        let first = inflate_entry(&mut reader, &mut inflate, &mut scratch, size)?;
        let (chain, result) = match base {
            None => (
                Chain {
                    depth: 0,
                    bytes: size,
                },
                size,
            ),
            Some(base) => {
                let result = delta_result(&first)?;
                let chain = Chain {
                    depth: base.depth + 1,
                    bytes: base.bytes.saturating_add(result),
                };
                (chain, result)
            }
        };
        limit(Bound::ObjectBytes, result, limits.object_bytes)?;
        limit(
            Bound::DeltaChainBytes,
            chain.bytes,
            limits.delta_chain_bytes,
        )?;
        chains.insert(start, chain);
        total = total.saturating_add(result);
        limit(Bound::InflatedBytes, total, limits.inflated_bytes)?;
    }
    match (reader.offset + TRAILER_BYTES).cmp(&length) {
        std::cmp::Ordering::Equal => Ok(count),
        std::cmp::Ordering::Less => Err(corrupt(PackFault::Trailing(count))),
        std::cmp::Ordering::Greater => Err(corrupt(PackFault::Truncated)),
    }
}

/// The deltas that lead to an object.
#[derive(Clone, Copy)]
struct Chain {
    depth: u32,
    /// Of all that they make on the way, which the indexer may hold at a time.
    bytes: u64,
}

/// Kind and inflated size of the next entry.
fn entry_header(reader: &mut Counted) -> Result<(u8, u64), ReceiveError> {
    let mut byte = reader.byte()?;
    let kind = (byte >> 4) & 0b111;
    let mut size = u64::from(byte & 0b1111);
    let mut shift = 4;
    while byte & 0x80 != 0 {
        byte = reader.byte()?;
        if shift > 53 {
            return Err(corrupt(PackFault::SizeRange));
        }
        size |= u64::from(byte & 0x7f) << shift;
        shift += 7;
    }
    Ok((kind, size))
}

/// How far before a delta its base starts.
fn base_distance(reader: &mut Counted) -> Result<u64, ReceiveError> {
    let mut byte = reader.byte()?;
    let mut distance = u64::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        byte = reader.byte()?;
        if distance >= 1 << 48 {
            return Err(corrupt(PackFault::DeltaBase));
        }
        distance = ((distance + 1) << 7) | u64::from(byte & 0x7f);
    }
    if distance == 0 {
        return Err(corrupt(PackFault::DeltaBase));
    }
    Ok(distance)
}

/// Inflates one entry to nowhere and gives its first bytes.
fn inflate_entry(
    reader: &mut Counted,
    inflate: &mut gix::zlib::Decompress,
    scratch: &mut [u8],
    size: u64,
) -> Result<Vec<u8>, ReceiveError> {
    use gix::zlib::{FlushDecompress, Status};
    inflate.reset();
    let mut first = Vec::new();
    loop {
        let before = (inflate.total_in(), inflate.total_out());
        let input = reader
            .inner
            .fill_buf()
            .map_err(ReceiveError::io("read the quarantined pack"))?;
        let ended = input.is_empty();
        let status = inflate
            .decompress(input, scratch, FlushDecompress::None)
            .map_err(|_| corrupt(PackFault::Inflate))?;
        let consumed = inflate.total_in() - before.0;
        let produced = inflate.total_out() - before.1;
        reader.consume(consumed);
        let found = inflate.total_out();
        if found > size {
            return Err(corrupt(PackFault::EntrySize { said: size, found }));
        }
        if first.len() < 32 {
            let take = usize::try_from(produced).unwrap_or(0).min(32);
            first.extend(&scratch[..take]);
        }
        if status == Status::StreamEnd {
            break;
        }
        if consumed == 0 && produced == 0 || ended {
            return Err(corrupt(PackFault::Truncated));
        }
    }
    let found = inflate.total_out();
    if found != size {
        return Err(corrupt(PackFault::EntrySize { said: size, found }));
    }
    Ok(first)
}

/// The size of what a delta makes, from its first bytes.
fn delta_result(first: &[u8]) -> Result<u64, ReceiveError> {
    let mut bytes = first.iter();
    let mut number = || {
        let mut value: u64 = 0;
        for shift in (0..56).step_by(7) {
            let byte = bytes.next().ok_or_else(|| corrupt(PackFault::Delta))?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt(PackFault::Delta))
    };
    number()?;
    number()
}

struct Counted {
    inner: BufReader<File>,
    offset: u64,
}

impl Counted {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ReceiveError> {
        self.inner.read_exact(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                corrupt(PackFault::Truncated)
            } else {
                ReceiveError::io("read the quarantined pack")(error)
            }
        })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, ReceiveError> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    fn consume(&mut self, count: u64) {
        // What was consumed lay in the buffer, so it fits.
        self.inner.consume(usize::try_from(count).unwrap_or(0));
        self.offset += count;
    }
}

/// A pack and its index in the quarantine.
pub(super) struct Indexed {
    pub(super) pack: PathBuf,
    pub(super) index: PathBuf,
}

/// Indexes the pack into `pack_dir`, with SHA-1 collision detection, until the deadline.
pub(super) fn index(
    path: &Path,
    pack_dir: &Path,
    limits: &Limits,
    clock: &Clockwork,
) -> Result<Indexed, ReceiveError> {
    let file = File::open(path).map_err(ReceiveError::io("open the quarantined pack"))?;
    let allocation = usize::try_from(limits.object_bytes).unwrap_or(usize::MAX);
    let options = gix_pack::bundle::write::Options {
        thread_limit: Some(2),
        iteration_mode: gix_pack::data::input::Mode::Verify,
        alloc_limit_bytes: Some(allocation.max(INDEXER_BYTES)),
        ..Default::default()
    };
    let interrupt = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        let left = clock.deadline.saturating_duration_since(Instant::now());
        let interrupt = &interrupt;
        scope.spawn(move || {
            // Ends with the sender: at once when the indexing is through.
            if wait.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                interrupt.store(true, Ordering::Relaxed);
            }
        });
        let outcome = gix_pack::Bundle::write_to_directory(
            &mut BufReader::with_capacity(CHUNK_BYTES, file),
            Some(pack_dir),
            &mut gix::progress::Discard,
            interrupt,
            None::<gix::odb::Handle>,
            gix::hash::Kind::Sha1,
            options,
        );
        drop(done);
        outcome
    });
    clock.check()?;
    let outcome = outcome.map_err(|error| corrupt(index_fault(&error)))?;
    if let Some(keep) = &outcome.keep_path {
        std::fs::remove_file(keep).map_err(ReceiveError::io("clear the quarantine"))?;
    }
    match (outcome.data_path, outcome.index_path) {
        (Some(pack), Some(index)) => Ok(Indexed { pack, index }),
        _ => Err(corrupt(PackFault::Empty)),
    }
}

/// What the indexer found. It tells its faults apart in words alone.
fn index_fault(error: &(impl std::fmt::Debug + std::fmt::Display)) -> PackFault {
    // With its causes.
    let text = format!("{error:?}");
    if text.contains("collision attack") {
        PackFault::Collision
    } else if text.contains("Corrupt delta data") {
        PackFault::Delta
    } else if text.contains("pack checksum in trailer") {
        PackFault::Checksum
    } else {
        PackFault::Index(error.to_string())
    }
}

/// Refuses a pack that holds an object twice: readers would differ in which of the two they take.
pub(super) fn refuse_duplicates(indexed: &Indexed) -> Result<(), ReceiveError> {
    let index = gix_pack::index::File::at(&indexed.index, gix::hash::Kind::Sha1)
        .map_err(|error| corrupt(PackFault::Index(error.to_string())))?;
    let mut last = None;
    // Sorted by id.
    for entry in index.iter() {
        if last == Some(entry.oid) {
            return Err(corrupt(PackFault::Duplicate(entry.oid.to_string())));
        }
        last = Some(entry.oid);
    }
    Ok(())
}

/// Writes a pack of whole objects, in the order given.
pub(super) fn write(
    objects: &Objects,
    ids: &[Id],
    mut to: impl Write,
) -> Result<(), PackWriteError> {
    use gix_pack::data::output::{Count, Entry, bytes::FromEntriesIter};
    let number = u32::try_from(ids.len()).map_err(|_| PackWriteError::TooMany)?;
    // Failures to read are kept aside: the iterator's own error type is gix's.
    let failure = std::cell::RefCell::new(None);
    let entries = ids.iter().map(|id| {
        let (kind, bytes) = objects.read(id).map_err(|error| {
            *failure.borrow_mut() = Some(error);
            gix::error::ErrorExt::raise(gix::error::message("an object cannot be read"))
        })?;
        let data = gix::objs::Data::new(&bytes, kind, gix::hash::Kind::Sha1);
        let count = Count::from_data(oid(id), None);
        Ok(vec![Entry::from_data(
            &count,
            &data,
            gix::zlib::Compression::DEFAULT,
        )?])
    });
    let writer = FromEntriesIter::new(
        entries,
        &mut to,
        number,
        gix_pack::data::Version::V2,
        gix::hash::Kind::Sha1,
    );
    let mut outcome = Ok(());
    for written in writer {
        if let Err(error) = written {
            outcome = Err(error.to_string());
            break;
        }
    }
    if let Some(error) = failure.into_inner() {
        return Err(PackWriteError::Object(error));
    }
    outcome.map_err(|reason| PackWriteError::Write { reason })?;
    to.flush().map_err(PackWriteError::Io)
}

/// Why a pack could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PackWriteError {
    /// An object could not be read.
    #[error("could not read what belongs into the pack")]
    Object(#[source] super::objects::ObjectError),
    /// More objects than a pack can count.
    #[error("there are too many objects for one pack")]
    TooMany,
    /// Whoever reads the pack has gone, or the disk is full.
    #[error("could not write the pack")]
    Io(#[source] io::Error),
    /// The encoder failed.
    #[error("could not write the pack: {reason}")]
    Write {
        /// What it said.
        reason: String,
    },
}

const fn corrupt(fault: PackFault) -> ReceiveError {
    ReceiveError::Corrupt { fault }
}

fn limit(what: Bound, value: u64, limit: u64) -> Result<(), ReceiveError> {
    if value > limit {
        return Err(ReceiveError::TooLarge { what, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn looking_through_any_bytes_never_panics(
            count in 0u32..5,
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut bytes = b"PACK\0\0\0\x02".to_vec();
            bytes.extend(count.to_be_bytes());
            bytes.extend(body);
            std::fs::write(file.path(), bytes).unwrap();
            let limits = Limits::default();
            prop_assert!(inspect(file.path(), &limits, &Clockwork::start(&limits)).is_err());
        }
    }
}
