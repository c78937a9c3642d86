//! `SstBuilder`: sorted entries in, one immutable file out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::block::BlockBuilder;
use super::bloom::{self, BloomFilter};
use super::{
    BLOCK_LEN_MAX, BLOCK_SIZE, BlockHandle, Compression, Expiries, FORMAT_VERSION_EXPIRIES,
    FORMAT_VERSION_MIN, Footer, SstMeta, seal_block, table_path, temporary_path, version_for,
};
use crate::engine::Error;
use crate::engine::iter::EntryRef;
use crate::env::{Env, Mistake, VfsFile};
use crate::types::Timestamp;
use crate::util::coding::{put_bytes, put_varint};

/// Bytes collected before they are written.
const WRITE_SIZE: usize = 256 << 10;
/// Bytes written before they are synced: the sync of a whole table at its end would have the disk make every commit
/// wait meanwhile.
const SYNC_SIZE: u64 = 1 << 20;

/// How large a table's bloom filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BloomBits {
    /// Bits a key; none: no filter.
    PerKey(usize),
    /// Bits in all.
    InAll(usize),
}

/// How a table is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildSettings {
    /// Keys a block, at most.
    pub sparse_index_interval: usize,
    /// How blocks are stored.
    pub compression: Compression,
    /// The bloom filter's size.
    pub bloom: BloomBits,
}

/// Writes one table under its temporary name; [`SstBuilder::finish`] gives it its own. Dropped before that, it
/// removes what it wrote.
#[derive(Debug)]
pub struct SstBuilder {
    env: Env,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    settings: BuildSettings,
    number: u64,
    /// Sealed blocks not written yet.
    pending: Vec<u8>,
    /// Bytes written.
    written: u64,
    /// Bytes of them synced.
    synced: u64,
    block: BlockBuilder,
    /// Encoded index entries.
    index: Vec<u8>,
    /// The last block, until the next key shows how short its index key may be.
    unindexed: Option<BlockHandle>,
    /// `xxh3_64` of each user key.
    hashes: Vec<u64>,
    smallest: Bytes,
    /// The user key last added.
    last_key: Vec<u8>,
    entries: u64,
    tombstones: u64,
    /// The lowest format version that has all kinds of entries in it.
    version: u32,
    oldest: Timestamp,
    newest: Timestamp,
    expiries: Expiries,
    /// Bytes of keys and values before compression.
    content_bytes: u64,
    finished: bool,
}

impl SstBuilder {
    /// Starts table `number` in `dir`.
    pub fn create(env: &Env, dir: &Path, number: u64, settings: BuildSettings) -> Result<Self, Error> {
        let path = temporary_path(dir, number);
        let file = env.fs.create(&path).map_err(|error| Error::io("create", &path, error))?;
        Ok(Self {
            env: env.clone(),
            dir: dir.to_owned(),
            path,
            file,
            settings,
            number,
            pending: Vec::with_capacity(WRITE_SIZE + 2 * BLOCK_SIZE),
            written: 0,
            synced: 0,
            block: BlockBuilder::default(),
            index: Vec::new(),
            unindexed: None,
            hashes: Vec::new(),
            smallest: Bytes::new(),
            last_key: Vec::new(),
            entries: 0,
            tombstones: 0,
            version: FORMAT_VERSION_MIN,
            oldest: Timestamp::MAX,
            newest: Timestamp::ZERO,
            expiries: Expiries::default(),
            content_bytes: 0,
            finished: false,
        })
    }

    /// Adds the next entry, which must not come before the last.
    pub fn add(&mut self, entry: &EntryRef<'_>) -> Result<(), Error> {
        let value_len = entry.stored_len();
        if value_len > BLOCK_LEN_MAX - BLOCK_SIZE {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "a value beyond any block");
            return Err(Error::io("write", &self.path, error));
        }
        let is_new_key = self.entries == 0 || entry.key != self.last_key;
        debug_assert!(self.entries == 0 || entry.key >= &self.last_key[..], "entries come in order");
        let size = self.block.len() + entry.key.len() + value_len;
        if size > BLOCK_SIZE && !self.block.is_empty() {
            self.end_block()?;
        }
        if self.block.is_empty() {
            self.index_block_before(Some(entry.key));
        }
        if self.entries == 0 {
            self.smallest = Bytes::copy_from_slice(entry.key);
        }
        if is_new_key {
            self.last_key.clear();
            self.last_key.extend_from_slice(entry.key);
            self.hashes.push(bloom::hash(entry.key));
        }
        self.block.add(entry);
        self.entries += 1;
        self.tombstones += u64::from(entry.value.is_none());
        self.version = self.version.max(version_for(entry.kind()));
        self.content_bytes += (entry.key.len() + value_len) as u64;
        if let (Some(_), Some(expires_at)) = (entry.value, entry.expires_at) {
            self.expiries.add(expires_at, entry.content_len() as u64);
            self.version = self.version.max(FORMAT_VERSION_EXPIRIES);
        }
        self.oldest = self.oldest.min(entry.timestamp);
        self.newest = self.newest.max(entry.timestamp);
        if self.block.entries() >= self.settings.sparse_index_interval || self.block.len() >= BLOCK_SIZE {
            self.end_block()?;
        }
        Ok(())
    }

    /// Entries added.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// About how many bytes the file has so far.
    pub fn size(&self) -> u64 {
        self.written + (self.pending.len() + self.block.len() + self.index.len()) as u64
    }

    /// Writes the rest, syncs, and gives the table its name.
    ///
    /// # Errors
    /// Nothing under the table's own name is left, but perhaps after a failed sync of the directory: then the
    /// file is an orphan, and gone after the next opening.
    ///
    /// # Panics
    /// If nothing was added: a table has a first key.
    pub fn finish(mut self) -> Result<SstMeta, Error> {
        assert!(self.entries > 0, "an empty table is not built");
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.index_block_before(None);
        let meta = self.end_file()?;
        self.write_pending()?;
        if !self.env.planted.has(Mistake::TableNotSynced) {
            self.sync()?;
        }
        let path = table_path(&self.dir, self.number);
        self.env.fs.rename(&self.path, &path).map_err(|error| Error::io("rename", &self.path, error))?;
        self.finished = true;
        if !self.env.planted.has(Mistake::DirectoryNotSynced) {
            self.env.fs.sync_dir(&self.dir).map_err(|error| Error::io("sync directory", &self.dir, error))?;
        }
        Ok(meta)
    }

    /// Appends bloom filter, index, properties and footer.
    fn end_file(&mut self) -> Result<SstMeta, Error> {
        let mut meta = SstMeta {
            number: self.number,
            size: 0,
            entries: self.entries,
            tombstones: self.tombstones,
            oldest: self.oldest,
            newest: self.newest,
            smallest: std::mem::take(&mut self.smallest),
            largest: Bytes::copy_from_slice(&self.last_key),
            content_bytes: if self.expiries.is_empty() { 0 } else { self.content_bytes },
            expiries: std::mem::take(&mut self.expiries),
        };
        let bits = match self.settings.bloom {
            BloomBits::PerKey(bits) => bits.saturating_mul(self.hashes.len()),
            BloomBits::InAll(bits) => bits,
        };
        let mut raw = Vec::new();
        if bits > 0 {
            BloomFilter::build(&self.hashes, bits.min(BLOCK_LEN_MAX * 4)).encode(&mut raw);
        }
        // A filter at its best is half ones: nothing to compress.
        let bloom = self.seal(&raw, Compression::None)?;
        let index = std::mem::take(&mut self.index);
        let index = self.seal(&index, self.settings.compression)?;
        raw.clear();
        meta.encode_properties(&mut raw);
        let properties = self.seal(&raw, Compression::None)?;
        Footer { bloom, index, properties, number: self.number, version: self.version }
            .encode(&mut self.pending);
        meta.size = self.written + self.pending.len() as u64;
        Ok(meta)
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let offset = self.written + self.pending.len() as u64;
        let raw = self.block.finish();
        let handle = seal_block(raw, self.settings.compression, self.number, offset, &mut self.pending);
        self.block.reset();
        self.unindexed = Some(handle);
        if self.pending.len() >= WRITE_SIZE { self.write_pending() } else { Ok(()) }
    }

    /// Adds the last block to the index, now that the key behind it is known.
    fn index_block_before(&mut self, next_key: Option<&[u8]>) {
        let Some(handle) = self.unindexed.take() else { return };
        let separator = match next_key {
            Some(next) => separator(&self.last_key, next),
            None => &self.last_key,
        };
        put_bytes(&mut self.index, separator);
        self.index.put_u64_le(handle.offset);
        put_varint(&mut self.index, u64::from(handle.len));
    }

    fn seal(&mut self, raw: &[u8], compression: Compression) -> Result<BlockHandle, Error> {
        if raw.len() > BLOCK_LEN_MAX {
            let error =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "a table too large for its index");
            return Err(Error::io("write", &self.path, error));
        }
        let offset = self.written + self.pending.len() as u64;
        Ok(seal_block(raw, compression, self.number, offset, &mut self.pending))
    }

    fn write_pending(&mut self) -> Result<(), Error> {
        self.file
            .write_at(&self.pending, self.written)
            .map_err(|error| Error::io("write", &self.path, error))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        if self.written - self.synced >= SYNC_SIZE { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.file.sync().map_err(|error| Error::io("sync", &self.path, error))?;
        self.synced = self.written;
        Ok(())
    }
}

impl Drop for SstBuilder {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.env.fs.remove(&self.path); // if that fails too, the next opening removes it
        }
    }
}

/// The shortest of some keys from `last` on that come before `next`; `last` itself where there is none.
fn separator<'a>(last: &'a [u8], next: &'a [u8]) -> &'a [u8] {
    let shared = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    // One byte more of `next` than is shared is greater than `last`, and smaller than `next` if shorter.
    if shared < last.len() && shared + 1 < next.len() { &next[..=shared] } else { last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_separator_lies_between_its_keys(
            a in proptest::collection::vec(0u8..3, 0..6), b in proptest::collection::vec(0u8..3, 0..6),
        ) {
            let (last, next) = if a <= b { (a, b) } else { (b, a) };
            let between = separator(&last, &next);
            prop_assert!(&last[..] <= between);
            prop_assert!(between < &next[..] || last == next);
            prop_assert!(between.len() <= last.len().max(next.len()));
        }
    }
}
