//! `SstReader`: an open table; point lookups and iterators.
//!
//! An open table has its index and bloom filter in memory; its file is open while it is in use (`open_files`). It lives as
//! long as someone may read it: versions and iterators share it. Once a compaction has
//! replaced it, whoever lets go last leaves the file to [`super::obsolete`], which closes and removes it in the background.

use std::cmp::Ordering as Order;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::block::{Block, BlockCursor};
use super::bloom::BloomFilter;
use super::{BlockHandle, FOOTER_LEN, Footer, SstMeta, TRAILER_LEN, TableCache, table_path, unseal_block};
use crate::engine::Error;
use crate::engine::iter::{EntryRef, InternalIterator};
use crate::env::{Vfs, VfsFile};
use crate::types::Record;
use crate::util::coding::{DecodeError, Reader};

/// An open table. All methods may be called from any thread.
#[derive(Debug)]
pub struct SstReader {
    fs: Arc<dyn Vfs>,
    path: PathBuf,
    cache: Arc<TableCache>,
    meta: SstMeta,
    index: Index,
    bloom: Option<BloomFilter>,
    /// Set once, before the last version that has the table is dropped by whoever replaced it.
    obsolete: AtomicBool,
    /// A block failed its check: compactions leave the table alone. Relaxed: a hint to the picker.
    damaged: AtomicBool,
}

/// Whether a lookup may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It reads what is not in the cache.
    Disk,
    /// It gives up where it would have to read.
    MemoryOnly,
}

/// What a lookup in one table came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The newest record of the key in this table.
    Found(Record),
    /// The table has none.
    Absent,
    /// Only a disk could tell.
    NotInMemory,
}

impl SstReader {
    /// Opens table `number`: checks its footer and loads index, bloom filter and properties.
    pub fn open(fs: &Arc<dyn Vfs>, dir: &Path, number: u64, cache: &Arc<TableCache>) -> Result<Self, Error> {
        let path = table_path(dir, number);
        let file = fs.open(&path).map_err(|error| cannot_open(&path, error))?;
        let size = file.len().map_err(|error| Error::io("open", &path, error))?;
        let damaged =
            |offset, DecodeError(expected)| Error::corruption(&path, offset, format!("expected {expected}"));
        let footer_at = size
            .checked_sub(FOOTER_LEN as u64)
            .ok_or_else(|| Error::corruption(&path, 0, "the table is shorter than its footer"))?;
        let mut footer = [0; FOOTER_LEN];
        read_exact(&*file, &path, &mut footer, footer_at)?;
        let footer = Footer::decode(&footer).map_err(|error| damaged(footer_at, error))?;
        if footer.number != number
            || footer.bloom.end() != footer.index.offset
            || footer.index.end() != footer.properties.offset
            || footer.properties.end() != footer_at
        {
            return Err(Error::corruption(&path, footer_at, "the footer is of another file"));
        }
        let load = |handle| read_block(&*file, &path, number, handle);
        let bloom = load(footer.bloom)?;
        let bloom = (!bloom.is_empty())
            .then(|| BloomFilter::decode(&bloom))
            .transpose()
            .map_err(|error| damaged(footer.bloom.offset, error))?;
        let index = Index::decode(load(footer.index)?, footer.bloom.offset)
            .map_err(|error| damaged(footer.index.offset, error))?;
        let properties = load(footer.properties)?;
        let mut properties = Reader::new(&properties);
        let meta = SstMeta::decode_properties(number, size, footer.has_expiries(), &mut properties)
            .and_then(|meta| properties.finish().map(|()| meta))
            .map_err(|error| damaged(footer.properties.offset, error))?;
        cache.files().keep(number, file);
        Ok(Self {
            fs: fs.clone(),
            path,
            cache: cache.clone(),
            meta,
            index,
            bloom,
            obsolete: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
        })
    }

    /// What the manifest keeps of it.
    pub fn meta(&self) -> &SstMeta {
        &self.meta
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a block failed its check since the table was opened.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Has the file removed, in the background, once nobody reads it any more. The manifest must not name it any more, durably.
    pub fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// Looks a key up; `hash` is [`super::bloom::hash`] of it.
    pub fn get(&self, user_key: &[u8], hash: u64, patience: Patience) -> Result<Lookup, Error> {
        if self.bloom.as_ref().is_some_and(|bloom| !bloom.may_contain(hash)) {
            return Ok(Lookup::Absent);
        }
        let number = self.meta.number;
        if let Some(record) = self.cache.row(number, user_key, hash) {
            return Ok(Lookup::Found(record));
        }
        let Some(handle) = self.index.handle(self.index.seek(user_key)) else { return Ok(Lookup::Absent) };
        let block = match self.cache.block(number, handle.offset) {
            Some(block) => block,
            None if patience == Patience::MemoryOnly => return Ok(Lookup::NotInMemory),
            None => {
                let block = self.read(handle)?;
                self.cache.insert_block(number, handle.offset, block.clone());
                block
            }
        };
        let mut cursor = BlockCursor::new(block);
        cursor.seek(user_key).map_err(|detail| self.malformed(handle, detail))?;
        // The key's newest record is in the first block whose index key is not below it, or nowhere.
        let Some(record) =
            cursor.current().filter(|entry| entry.key == user_key).and_then(|_| cursor.record())
        else {
            return Ok(Lookup::Absent);
        };
        self.cache.insert_row(number, user_key, hash, &record);
        Ok(Lookup::Found(record))
    }

    /// Reads every block and checks it.
    pub fn verify(&self) -> Result<(), Error> {
        let mut entries = 0;
        for handle in self.index.blocks.iter().map(|entry| entry.handle) {
            let mut cursor = BlockCursor::new(self.read(handle)?);
            cursor.seek_to_first().map_err(|detail| self.malformed(handle, detail))?;
            while cursor.current().is_some() {
                entries += 1;
                cursor.advance().map_err(|detail| self.malformed(handle, detail))?;
            }
        }
        if entries != self.meta.entries {
            return Err(Error::corruption(&self.path, 0, "the table's properties count other entries"));
        }
        Ok(())
    }

    /// A block from the cache or the disk, for who walks: the cache is left to those who look up.
    fn block_in_passing(&self, handle: BlockHandle) -> Result<Block, Error> {
        match self.cache.block(self.meta.number, handle.offset) {
            Some(block) => Ok(block),
            None => self.read(handle),
        }
    }

    fn read(&self, handle: BlockHandle) -> Result<Block, Error> {
        self.cache.missed();
        let file = self.cache.files().get(self.meta.number, || self.fs.open(&self.path));
        let file = file.map_err(|error| cannot_open(&self.path, error))?;
        let raw = read_block(&*file, &self.path, self.meta.number, handle).inspect_err(|error| {
            if matches!(error, Error::Corruption { .. }) {
                self.note_damage();
            }
        })?;
        Block::new(raw).map_err(|detail| self.malformed(handle, detail))
    }

    fn malformed(&self, handle: BlockHandle, detail: &'static str) -> Error {
        self.note_damage();
        Error::corruption(&self.path, handle.offset, detail)
    }

    fn note_damage(&self) {
        self.damaged.store(true, Ordering::Relaxed);
        self.cache.corrupted();
    }
}

impl Drop for SstReader {
    fn drop(&mut self) {
        let file = self.cache.files().take(self.meta.number);
        if self.obsolete.load(Ordering::Acquire) {
            self.cache.obsolete().push(std::mem::take(&mut self.path), file);
        }
    }
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::corruption(path, 0, "the table is missing"),
        _ => Error::io("open", path, error),
    }
}

pub(in crate::engine) fn read_exact(
    file: &dyn VfsFile,
    path: &Path,
    buf: &mut [u8],
    offset: u64,
) -> Result<(), Error> {
    file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::corruption(path, offset, "the file ends too early"),
        _ => Error::io("read", path, error),
    })
}

/// Reads a block that a checked footer or index named: its length is one that was written.
pub(in crate::engine) fn read_block(
    file: &dyn VfsFile,
    path: &Path,
    number: u64,
    handle: BlockHandle,
) -> Result<Bytes, Error> {
    let mut bytes = vec![0; handle.len as usize];
    read_exact(file, path, &mut bytes, handle.offset)?;
    unseal_block(bytes, number, handle.offset)
        .map_err(|detail| Error::corruption(path, handle.offset, detail))
}

/// The sparse index: for each block a key that is not below its last and below the next block's first.
#[derive(Debug)]
pub(in crate::engine) struct Index {
    /// As sealed in the file; keys are read where they lie.
    raw: Bytes,
    /// At least one.
    blocks: Vec<IndexEntry>,
    /// What all keys begin with, in bytes.
    shared: usize,
    /// Of each key the [`head`] of what follows: close together, so that a search waits for memory once or twice instead of
    /// at every step.
    heads: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    key_at: u32,
    key_len: u32,
    handle: BlockHandle,
}

impl Index {
    /// Checks that the blocks follow each other from 0 to `data_end` and their keys rise.
    pub fn decode(raw: Bytes, data_end: u64) -> Result<Self, DecodeError> {
        let mut blocks: Vec<IndexEntry> = Vec::new();
        let mut reader = Reader::new(&raw);
        let (mut end, mut last_key) = (0, &[][..]);
        while !reader.is_empty() {
            let key = reader.bytes()?;
            let handle = BlockHandle {
                offset: reader.u64()?,
                len: u32::try_from(reader.varint()?).map_err(|_| DecodeError("a block's length"))?,
            };
            if handle.offset != end || (handle.len as usize) < TRAILER_LEN || key < last_key {
                return Err(DecodeError("an index in order and without gaps"));
            }
            (end, last_key) = (handle.end(), key);
            let key_at = (key.as_ptr() as usize - raw.as_ptr() as usize) as u32;
            blocks.push(IndexEntry { key_at, key_len: key.len() as u32, handle });
        }
        if end != data_end || blocks.is_empty() {
            return Err(DecodeError("an index of all blocks"));
        }
        let mut index = Self { raw, blocks, shared: 0, heads: Vec::new() };
        let (first, last) = (index.key(&index.blocks[0]), index.key(&index.blocks[index.blocks.len() - 1]));
        // Keys rise, so what the first and the last share all others share, too.
        index.shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        index.heads = index.blocks.iter().map(|entry| head(&index.key(entry)[index.shared..])).collect();
        Ok(index)
    }

    fn key(&self, entry: &IndexEntry) -> &[u8] {
        &self.raw[entry.key_at as usize..][..entry.key_len as usize]
    }

    /// The first block that may hold `user_key` or what follows it.
    fn seek(&self, user_key: &[u8]) -> usize {
        let (begins, rest) = user_key.split_at(user_key.len().min(self.shared));
        match begins.cmp(&self.key(&self.blocks[0])[..self.shared]) {
            Order::Less => return 0,
            Order::Greater => return self.blocks.len(),
            Order::Equal => {}
        }
        let wanted = head(rest);
        let low = self.heads.partition_point(|head| *head < wanted);
        let alike = self.heads[low..].partition_point(|head| *head == wanted);
        low + self.blocks[low..low + alike].partition_point(|entry| self.key(entry) < user_key)
    }

    /// Where a block lies, and the key that no key of it is above.
    pub fn block(&self, block: usize) -> Option<(BlockHandle, &[u8])> {
        self.blocks.get(block).map(|entry| (entry.handle, self.key(entry)))
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    fn handle(&self, block: usize) -> Option<BlockHandle> {
        self.blocks.get(block).map(|entry| entry.handle)
    }
}

/// The first eight bytes of a key as a number, zeros where it is shorter: of two keys the lesser never has the greater head.
fn head(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

/// The blocks that a scan could not read and went round. A clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct SkippedBlocks {
    blocks: Arc<Mutex<BTreeMap<(u64, u64), SkippedBlock>>>,
}

/// A block that a scan went round: its keys are missing from what the scan gave, or older records were given in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedBlock {
    /// Its table's number.
    pub table: u64,
    /// Where it lies in the table.
    pub offset: u64,
    /// About how many entries it has: as many as the table's blocks have on average.
    pub entries: u64,
    /// No key of the block is below it.
    pub low: Bytes,
    /// No key of the block is above it.
    pub high: Bytes,
    /// What is wrong with it.
    pub error: String,
}

impl SkippedBlocks {
    /// Whether there is one.
    pub fn is_empty(&self) -> bool {
        self.blocks.lock().is_empty()
    }

    /// All of them, each once.
    pub fn all(&self) -> Vec<SkippedBlock> {
        self.blocks.lock().values().cloned().collect()
    }
}

/// A cursor over a table, which it keeps open. It looks into the cache and does not fill it.
#[derive(Debug)]
pub struct TableIterator {
    table: Arc<SstReader>,
    /// Which block the cursor is in.
    block: usize,
    cursor: Option<BlockCursor>,
    /// Where blocks that cannot be read are noted, if they are to be gone round.
    skipped: Option<SkippedBlocks>,
}

impl TableIterator {
    /// Iterates over `table`.
    pub fn new(table: Arc<SstReader>) -> Self {
        Self { table, block: 0, cursor: None, skipped: None }
    }

    /// Goes round blocks that are damaged, and notes them in `skipped`.
    #[must_use]
    pub(crate) fn skipping(mut self, skipped: Option<SkippedBlocks>) -> Self {
        self.skipped = skipped;
        self
    }

    /// Goes over to another table, before its first entry.
    pub(crate) fn reset(&mut self, table: Arc<SstReader>) {
        self.table = table;
        self.cursor = None;
    }

    /// Moves to an entry of block `block` with `go`, or on to the first of the next block that has one.
    fn enter(
        &mut self,
        block: usize,
        go: impl FnOnce(&mut BlockCursor) -> Result<(), super::block::Malformed>,
    ) -> Result<(), Error> {
        let mut entered = self.enter_block(block, go);
        while self.is_left_behind(entered)? {
            entered = self.enter_block(self.block + 1, BlockCursor::seek_to_first);
        }
        Ok(())
    }

    /// Whether the cursor must move on: its block has no entry for it, or is damaged and gone round.
    fn is_left_behind(&self, entered: Result<bool, Error>) -> Result<bool, Error> {
        let error = match (entered, &self.skipped) {
            (Err(error), Some(_)) if error.is_damage() => error,
            (entered, _) => return entered.map(|has_entry| !has_entry),
        };
        if let (Some(skipped), Some((handle, high))) = (&self.skipped, self.table.index.block(self.block)) {
            let low = match self.block.checked_sub(1).and_then(|before| self.table.index.block(before)) {
                Some((_, key)) => Bytes::copy_from_slice(key),
                None => self.table.meta.smallest.clone(),
            };
            let high = Bytes::copy_from_slice(high);
            let SstMeta { number: table, entries, .. } = self.table.meta;
            let (offset, entries) = (handle.offset, entries.div_ceil(self.table.index.len() as u64));
            let block = SkippedBlock { table, offset, entries, low, high, error: error.to_string() };
            skipped.blocks.lock().insert((table, offset), block);
        }
        Ok(true)
    }

    /// Moves into block `block` with `go`; whether it stands at an entry there, or at the end of the table.
    fn enter_block(
        &mut self,
        block: usize,
        go: impl FnOnce(&mut BlockCursor) -> Result<(), super::block::Malformed>,
    ) -> Result<bool, Error> {
        let mut cursor = self.cursor.take(); // an error below leaves the iterator at no entry
        self.block = block;
        let Some(handle) = self.table.index.handle(self.block) else { return Ok(true) };
        let bytes = self.table.block_in_passing(handle)?;
        let mut cursor = match cursor.take() {
            Some(mut cursor) => {
                cursor.reset(bytes);
                cursor
            }
            None => BlockCursor::new(bytes),
        };
        go(&mut cursor).map_err(|detail| self.table.malformed(handle, detail))?;
        let has_entry = cursor.current().is_some();
        self.cursor = Some(cursor);
        Ok(has_entry)
    }
}

impl InternalIterator for TableIterator {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        self.enter(0, BlockCursor::seek_to_first)
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        self.enter(self.table.index.seek(user_key), |cursor| cursor.seek(user_key))
    }

    fn next(&mut self) -> Result<(), Error> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        if let Err(detail) = cursor.advance() {
            self.cursor = None;
            let handle = self.table.index.handle(self.block).expect("the cursor is in a block of the index");
            let malformed = self.table.malformed(handle, detail);
            self.is_left_behind(Err(malformed))?;
            return self.enter(self.block + 1, BlockCursor::seek_to_first);
        }
        if cursor.current().is_some() {
            Ok(())
        } else {
            self.enter(self.block + 1, BlockCursor::seek_to_first)
        }
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        self.cursor.as_ref()?.current()
    }
}

#[cfg(test)]
mod tests;
