//! SSTables: sorted entries in one immutable file. (`docs/formats.md`, "Table", has every byte.)
//!
//! ```text
//! file     data block │ … │ data block │ bloom filter │ index │ properties │ footer (60 bytes)
//! block    payload │ compression u8 │ raw length u32 │ CRC-32 u32
//!          the CRC covers file number, offset, payload, compression and raw length
//! footer   handles of bloom, index and properties (offset u64, length u32 each)
//!          │ file number u64 │ format version u32 │ CRC-32 u32 │ magic u64
//! ```
//!
//! There is no padding and no byte without a checksum: blocks follow each other without gaps, which opening
//! checks. A checksum is bound to the file's number and the block's offset, so that a block which a disk put in the
//! wrong place is noticed even though its bytes are intact. What fails a check is never served.
//!
//! A table is written under a temporary name, synced, renamed, its directory synced; then a manifest names it.
//! Opening keeps index and bloom filter in memory; data blocks, and records
//! that were looked up before, come through the cache.
//!
//! Source: leveldb's `doc/table_format.md`. Here the bloom filter covers the whole table (one probe rules a table
//! out), the index is one block, and the index key is a user key, since readers seek by user key alone.

pub mod block;
pub mod bloom;
pub mod builder;
pub mod cache;
pub mod expiries;
pub mod obsolete;
pub mod open_files;
pub mod reader;

use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes};

pub use builder::{BloomBits, BuildSettings, SstBuilder};
pub use cache::TableCache;
pub use expiries::{Ended, Expiries};
pub use reader::{SkippedBlock, SkippedBlocks, SstReader, TableIterator};

use crate::engine::internal_key::Kind;
use crate::types::Timestamp;
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

/// The last eight bytes of a table.
pub const MAGIC: u64 = u64::from_le_bytes(*b"kvsstabl");
/// The newest version.
pub const FORMAT_VERSION: u32 = 4;
/// The first version whose properties tell when values end.
pub const FORMAT_VERSION_EXPIRIES: u32 = 4;
/// The oldest version.
pub const FORMAT_VERSION_MIN: u32 = 1;
/// A data block closes at this size, before compression; only a value that is larger makes a larger one.
pub const BLOCK_SIZE: usize = 16 << 10;
/// No block, decompressed, is larger: a bound on what a reader allocates.
pub const BLOCK_LEN_MAX: usize = 1 << 30;
/// Bytes behind a block's payload.
pub const TRAILER_LEN: usize = 9;
/// Bytes at the end of a table.
pub const FOOTER_LEN: usize = 60;
/// LZ4 never expands a byte to more than this many.
const LZ4_RATIO_MAX: usize = 255;
/// The cheapest level of Zstd: compaction shares its cores with requests.
const ZSTD_LEVEL: i32 = 1;

/// How a block's payload is stored. Stored: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    /// As it is: also when compressing did not make it smaller.
    None = 0,
    /// LZ4 block format.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

/// Where a block lies, its trailer included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockHandle {
    /// The first byte.
    pub offset: u64,
    /// Bytes on disk.
    pub len: u32,
}

impl BlockHandle {
    /// The first byte behind it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(u64::from(self.len))
    }
}

/// What a manifest keeps of a table, and its properties block too (without number and size).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SstMeta {
    /// Names the file.
    pub number: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Records, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// The lowest timestamp.
    pub oldest: Timestamp,
    /// The highest timestamp.
    pub newest: Timestamp,
    /// The first user key.
    pub smallest: Bytes,
    /// The last user key.
    pub largest: Bytes,
    /// When values end. Empty as well for a table that an earlier version wrote, which did not record it.
    pub expiries: Expiries,
    /// Bytes of keys and values before compression; 0 if `expiries` is empty.
    pub content_bytes: u64,
}

impl SstMeta {
    /// Whether `user_key` lies between the table's first and last key.
    pub fn covers(&self, user_key: &[u8]) -> bool {
        &self.smallest[..] <= user_key && user_key <= &self.largest[..]
    }

    /// Whether the table may hold keys from `smallest` to `largest`, both included.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        &self.smallest[..] <= largest && smallest <= &self.largest[..]
    }

    /// Appends all but number and size: the properties block. What tells of expiries is appended if there are any.
    pub fn encode_properties(&self, out: &mut Vec<u8>) {
        put_varint(out, self.entries);
        put_varint(out, self.tombstones);
        out.put_u64_le(self.oldest.as_u64());
        out.put_u64_le(self.newest.as_u64());
        put_bytes(out, &self.smallest);
        put_bytes(out, &self.largest);
        if !self.expiries.is_empty() {
            put_varint(out, self.content_bytes);
            self.expiries.encode(out);
        }
    }

    /// Reads what [`SstMeta::encode_properties`] wrote. `has_expiries` says whether there were any.
    pub fn decode_properties(
        number: u64,
        size: u64,
        has_expiries: bool,
        reader: &mut Reader<'_>,
    ) -> Result<Self, DecodeError> {
        let mut meta = Self {
            number,
            size,
            entries: reader.varint()?,
            tombstones: reader.varint()?,
            oldest: Timestamp::from_u64(reader.u64()?),
            newest: Timestamp::from_u64(reader.u64()?),
            smallest: Bytes::copy_from_slice(reader.bytes()?),
            largest: Bytes::copy_from_slice(reader.bytes()?),
            expiries: Expiries::default(),
            content_bytes: 0,
        };
        if has_expiries {
            meta.content_bytes = reader.varint()?;
            meta.expiries = Expiries::decode(reader)?;
        }
        if meta.smallest > meta.largest || meta.oldest > meta.newest || meta.tombstones > meta.entries {
            return Err(DecodeError("properties in order"));
        }
        Ok(meta)
    }
}

/// The name of table `number` in `dir`.
pub fn table_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.sst"))
}

/// The name a table has while it is written.
pub fn temporary_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.sst.tmp"))
}

/// The end of a table: where the rest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) bloom: BlockHandle,
    pub(crate) index: BlockHandle,
    pub(crate) properties: BlockHandle,
    pub(crate) number: u64,
    pub(crate) version: u32,
}

impl Footer {
    /// Whether the properties tell of expiries.
    pub(crate) fn has_expiries(&self) -> bool {
        self.version >= FORMAT_VERSION_EXPIRIES
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for handle in [self.bloom, self.index, self.properties] {
            out.put_u64_le(handle.offset);
            out.put_u32_le(handle.len);
        }
        out.put_u64_le(self.number);
        out.put_u32_le(self.version);
        let crc = crc32fast::hash(&out[start..]);
        out.put_u32_le(crc);
        out.put_u64_le(MAGIC);
    }

    pub(crate) fn decode(bytes: &[u8; FOOTER_LEN]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut handle = || Ok(BlockHandle { offset: reader.u64()?, len: reader.u32()? });
        let (bloom, index, properties) = (handle()?, handle()?, handle()?);
        let number = reader.u64()?;
        let version = reader.u32()?;
        let crc = reader.u32()?;
        if reader.u64()? != MAGIC {
            return Err(DecodeError("the magic number of a table"));
        }
        if crc != crc32fast::hash(&bytes[..FOOTER_LEN - 12]) {
            return Err(DecodeError("a footer that matches its checksum"));
        }
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            return Err(DecodeError("format version 1 to 4"));
        }
        Ok(Self { bloom, index, properties, number, version })
    }
}

/// The version of a table that holds no more than entries of this kind: what does not need a newer reader does not
/// ask for one.
pub(crate) fn version_for(kind: Kind) -> u32 {
    match kind {
        Kind::Tombstone | Kind::Value => FORMAT_VERSION_MIN,
        Kind::TypedValue => 2,
        Kind::Expiring => 3,
    }
}

pub(crate) fn block_crc(number: u64, offset: u64, checked: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(&offset.to_le_bytes());
    crc.update(checked);
    crc.finalize()
}

/// Compresses, if that helps, and appends a block that will lie at `offset` of file `number`.
pub(crate) fn seal_block(
    raw: &[u8],
    compression: Compression,
    number: u64,
    offset: u64,
    out: &mut Vec<u8>,
) -> BlockHandle {
    let start = out.len();
    let stored = append_payload(raw, compression, out);
    out.put_u8(stored as u8);
    out.put_u32_le(raw.len() as u32);
    let crc = block_crc(number, offset, &out[start..]);
    out.put_u32_le(crc);
    BlockHandle { offset, len: (out.len() - start) as u32 }
}

fn append_payload(raw: &[u8], compression: Compression, out: &mut Vec<u8>) -> Compression {
    let start = out.len();
    let written = match compression {
        Compression::None => None,
        Compression::Lz4 => {
            out.resize(start + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
            lz4_flex::block::compress_into(raw, &mut out[start..]).ok()
        }
        Compression::Zstd => {
            out.resize(start + raw.len(), 0); // too little room for what does not shrink: that is stored raw
            zstd::bulk::compress_to_buffer(raw, &mut out[start..], ZSTD_LEVEL).ok()
        }
    };
    if let Some(len) = written.filter(|len| *len < raw.len()) {
        out.truncate(start + len);
        return compression;
    }
    out.truncate(start);
    out.extend_from_slice(raw);
    Compression::None
}

/// Checks a block as it was read from `offset` of file `number`, and gives what was sealed in it.
pub(crate) fn unseal_block(mut bytes: Vec<u8>, number: u64, offset: u64) -> Result<Bytes, &'static str> {
    let Some((checked, crc)) = bytes.split_last_chunk::<4>() else { return Err("a block is too short") };
    if u32::from_le_bytes(*crc) != block_crc(number, offset, checked) {
        return Err("a block does not match its checksum");
    }
    let Some((rest, raw_len)) = checked.split_last_chunk::<4>() else { return Err("a block is too short") };
    let Some((&compression, payload)) = rest.split_last() else { return Err("a block is too short") };
    let raw_len = u32::from_le_bytes(*raw_len) as usize;
    if raw_len > BLOCK_LEN_MAX {
        return Err("a block claims to be larger than any block");
    }
    match compression {
        0 if payload.len() == raw_len => {
            bytes.truncate(raw_len);
            Ok(Bytes::from(bytes))
        }
        1 if raw_len <= payload.len().saturating_mul(LZ4_RATIO_MAX) => {
            let mut raw = vec![0; raw_len];
            match lz4_flex::block::decompress_into(payload, &mut raw) {
                Ok(len) if len == raw_len => Ok(Bytes::from(raw)),
                _ => Err("a block does not decompress"),
            }
        }
        2 => {
            let mut raw = vec![0; raw_len];
            match zstd::bulk::decompress_to_buffer(payload, &mut raw[..]) {
                Ok(len) if len == raw_len => Ok(Bytes::from(raw)),
                _ => Err("a block does not decompress"),
            }
        }
        0 | 1 => Err("a block's length does not fit its payload"),
        _ => Err("a block is compressed in a way this version does not know"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_compression() -> impl Strategy<Value = Compression> {
        prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
    }

    proptest! {
        #[test]
        fn a_block_unseals_as_sealed(
            raw in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..400),
                (0usize..70_000).prop_map(|len| vec![3; len]),
            ],
            compression in any_compression(), number: u64, offset: u64,
        ) {
            let mut out = vec![1, 2, 3];
            let handle = seal_block(&raw, compression, number, offset, &mut out);
            let block = out.split_off(3);
            prop_assert_eq!(handle, BlockHandle { offset, len: block.len() as u32 });
            prop_assert!(block.len() <= raw.len() + TRAILER_LEN);
            prop_assert_eq!(unseal_block(block, number, offset).unwrap(), raw);
        }

        #[test]
        fn any_bytes_with_a_right_checksum_unseal_or_are_refused(mut bytes: Vec<u8>, kind in 0u8..4, len in 0u32..100_000) {
            bytes.push(kind);
            bytes.extend_from_slice(&len.to_le_bytes());
            let crc = block_crc(1, 2, &bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            if let Ok(raw) = unseal_block(bytes, 1, 2) {
                prop_assert_eq!(raw.len(), len as usize);
            }
        }
    }

    #[test]
    fn an_intact_block_in_the_wrong_place_is_refused() {
        let mut block = Vec::new();
        seal_block(b"some bytes", Compression::Lz4, 7, 4096, &mut block);
        assert!(unseal_block(block.clone(), 7, 4096).is_ok());
        assert!(unseal_block(block.clone(), 7, 8192).is_err());
        assert!(unseal_block(block, 8, 4096).is_err());
    }
}
