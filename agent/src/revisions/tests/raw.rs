//! Packs byte by byte, as no git writes them.

use std::io::Write as _;

use gix::zlib::Compression;
use gix::zlib::stream::deflate;

pub(super) const COMMIT: u8 = 1;
pub(super) const TREE: u8 = 2;
pub(super) const BLOB: u8 = 3;
pub(super) const OFFSET_DELTA: u8 = 6;
pub(super) const REFERENCE_DELTA: u8 = 7;

pub(super) struct RawPack {
    pub(super) bytes: Vec<u8>,
    count: u32,
}

impl RawPack {
    pub(super) fn new() -> Self {
        let mut bytes = b"PACK\0\0\0\x02".to_vec();
        bytes.extend([0; 4]);
        Self { bytes, count: 0 }
    }

    /// Adds an entry that says that it inflates to `size` bytes, and gives where it starts.
    pub(super) fn entry(&mut self, kind: u8, size: u64, before: &[u8], compressed: &[u8]) -> u64 {
        let start = self.bytes.len() as u64;
        let mut rest = size >> 4;
        let mut byte = (kind << 4) | u8::try_from(size & 0xf).unwrap();
        while rest > 0 {
            self.bytes.push(byte | 0x80);
            byte = u8::try_from(rest & 0x7f).unwrap();
            rest >>= 7;
        }
        self.bytes.push(byte);
        self.bytes.extend(before);
        self.bytes.extend(compressed);
        self.count += 1;
        start
    }

    pub(super) fn object(&mut self, kind: u8, content: &[u8]) -> u64 {
        self.entry(kind, content.len() as u64, &[], &compressed(content))
    }

    /// A delta against what starts at `base`.
    pub(super) fn offset_delta(&mut self, base: u64, delta: &[u8]) -> u64 {
        let distance = self.bytes.len() as u64 - base;
        let before = distance_bytes(distance);
        let size = delta.len() as u64;
        self.entry(OFFSET_DELTA, size, &before, &compressed(delta))
    }

    pub(super) fn reference_delta(&mut self, base: &[u8; 20], delta: &[u8]) -> u64 {
        let size = delta.len() as u64;
        self.entry(REFERENCE_DELTA, size, base, &compressed(delta))
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let count = self.count;
        self.finish_saying(count)
    }

    /// With another number of objects in its head.
    pub(super) fn finish_saying(mut self, count: u32) -> Vec<u8> {
        self.bytes[8..12].copy_from_slice(&count.to_be_bytes());
        let checksum = sha1(&self.bytes);
        self.bytes.extend(checksum);
        self.bytes
    }
}

pub(super) fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
    hasher.update(bytes);
    let id = hasher.try_finalize().unwrap();
    id.as_bytes().try_into().unwrap()
}

pub(super) fn compressed(content: &[u8]) -> Vec<u8> {
    let mut writer = deflate::Write::new(Vec::new(), Compression::DEFAULT);
    writer.write_all(content).unwrap();
    writer.flush().unwrap();
    writer.into_inner()
}

/// How far back a delta's base lies, as git writes it.
pub(super) fn distance_bytes(mut distance: u64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(distance & 0x7f).unwrap()];
    distance >>= 7;
    while distance > 0 {
        distance -= 1;
        bytes.insert(0, u8::try_from(distance & 0x7f).unwrap() | 0x80);
        distance >>= 7;
    }
    bytes
}

/// A delta with these sizes in its head.
pub(super) fn delta(base: u64, result: u64, instructions: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mut size in [base, result] {
        while size >= 0x80 {
            bytes.push(u8::try_from(size & 0x7f).unwrap() | 0x80);
            size >>= 7;
        }
        bytes.push(u8::try_from(size).unwrap());
    }
    bytes.extend(instructions);
    bytes
}

/// The instructions that copy so many bytes from the base's start on: 64 KiB at a time.
pub(super) fn copying(mut bytes: u64) -> Vec<u8> {
    let mut instructions = Vec::new();
    let mut from: u64 = 0;
    while bytes > 0 {
        let count = bytes.min(0xff_ffff);
        let (offset, size) = (from.to_le_bytes(), count.to_le_bytes());
        instructions.push(0b1111_1111);
        instructions.extend(&offset[..4]);
        instructions.extend(&size[..3]);
        from += count;
        bytes -= count;
    }
    instructions
}
