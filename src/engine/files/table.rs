//! A table taken apart, block by block, whether or not all of it is whole.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Finding;
use crate::engine::Error;
use crate::engine::iter::EntryRef;
use crate::engine::sst::block::{Block, BlockCursor};
use crate::engine::sst::bloom::{self, BloomFilter};
use crate::engine::sst::reader::{Index, read_block, read_exact};
use crate::engine::sst::{Expiries, FOOTER_LEN, Footer, MAGIC, SstMeta};
use crate::env::{Vfs, VfsFile};
use crate::types::Timestamp;
use crate::util::coding::{DecodeError, Reader};

/// A table whose parts were read each by itself.
#[derive(Debug)]
pub struct TableFile {
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    size: u64,
    has_magic: bool,
    footer: Option<Footer>,
    bloom: Option<BloomFilter>,
    index: Option<Index>,
    meta: Option<SstMeta>,
    findings: Vec<Finding>,
}

/// What the entries of a table add up to, for comparison with what its properties say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sums {
    entries: u64,
    tombstones: u64,
    oldest: Timestamp,
    newest: Timestamp,
    smallest: Vec<u8>,
    largest: Vec<u8>,
    expiries: Expiries,
}

impl TableFile {
    /// Reads all but the data blocks; `None` for a file that is shorter than a footer. Blocks.
    ///
    /// # Errors
    /// `Io`. What is damaged is among the findings.
    pub fn open(fs: &Arc<dyn Vfs>, path: &Path) -> Result<Option<Self>, Error> {
        let file = fs.open(path).map_err(|error| Error::io("open", path, error))?;
        let size = file.len().map_err(|error| Error::io("open", path, error))?;
        let Some(footer_at) = size.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
        let mut footer = [0; FOOTER_LEN];
        read_exact(&*file, path, &mut footer, footer_at)?;
        let mut table = Self {
            path: path.to_owned(),
            file,
            size,
            has_magic: footer.ends_with(&MAGIC.to_le_bytes()),
            footer: None,
            bloom: None,
            index: None,
            meta: None,
            findings: Vec::new(),
        };
        match Footer::decode(&footer) {
            Ok(footer) => table.read_parts(footer, footer_at),
            Err(error) => table.expected(footer_at, error),
        }
        Ok(Some(table))
    }

    fn read_parts(&mut self, footer: Footer, footer_at: u64) {
        self.footer = Some(footer);
        if footer.bloom.end() != footer.index.offset
            || footer.index.end() != footer.properties.offset
            || footer.properties.end() != footer_at
        {
            self.find(footer_at, "the parts that the footer names do not follow each other");
            return;
        }
        if let Some(raw) = self.part(footer.bloom)
            && !raw.is_empty()
        {
            match BloomFilter::decode(&raw) {
                Ok(bloom) => self.bloom = Some(bloom),
                Err(error) => self.expected(footer.bloom.offset, error),
            }
        }
        if let Some(raw) = self.part(footer.index) {
            match Index::decode(raw, footer.bloom.offset) {
                Ok(index) => self.index = Some(index),
                Err(error) => self.expected(footer.index.offset, error),
            }
        }
        if let Some(raw) = self.part(footer.properties) {
            let mut reader = Reader::new(&raw);
            let meta =
                SstMeta::decode_properties(footer.number, self.size, footer.has_expiries(), &mut reader)
                    .and_then(|meta| reader.finish().map(|()| meta));
            match meta {
                Ok(meta) => self.meta = Some(meta),
                Err(error) => self.expected(footer.properties.offset, error),
            }
        }
    }

    fn part(&mut self, handle: crate::engine::sst::BlockHandle) -> Option<bytes::Bytes> {
        let number = self.number();
        match read_block(&*self.file, &self.path, number, handle) {
            Ok(raw) => Some(raw),
            Err(error) => {
                self.findings.push(Finding::of(&error, &self.path));
                None
            }
        }
    }

    /// Whether it ends as a table does.
    pub fn has_magic(&self) -> bool {
        self.has_magic
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which table it says it is; 0 if its footer is damaged.
    pub fn number(&self) -> u64 {
        self.footer.map_or(0, |footer| footer.number)
    }

    /// The version of its format; 0 if its footer is damaged.
    pub fn format_version(&self) -> u32 {
        self.footer.map_or(0, |footer| footer.version)
    }

    /// What its properties say, if they are whole.
    pub fn meta(&self) -> Option<&SstMeta> {
        self.meta.as_ref()
    }

    /// Whether it has a bloom filter that is whole.
    pub fn has_bloom(&self) -> bool {
        self.bloom.is_some()
    }

    /// How many data blocks its index names; none if that is damaged.
    pub fn blocks(&self) -> usize {
        self.index.as_ref().map_or(0, Index::len)
    }

    /// What was found wrong so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Gives it up for what was found.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    /// Hands the entries of all blocks that are whole to `visit`, in order, until it breaks.
    pub fn each(&mut self, visit: &mut dyn FnMut(&EntryRef<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        (0..self.blocks()).try_for_each(|number| self.each_of_block(number, visit))
    }

    fn each_of_block(
        &mut self,
        number: usize,
        visit: &mut dyn FnMut(&EntryRef<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some((handle, _)) = self.index.as_ref().and_then(|index| index.block(number)) else {
            return ControlFlow::Continue(());
        };
        let Some(raw) = self.part(handle) else { return ControlFlow::Continue(()) };
        let mut cursor = match Block::new(raw) {
            Ok(block) => BlockCursor::new(block),
            Err(detail) => {
                self.find(handle.offset, detail);
                return ControlFlow::Continue(());
            }
        };
        let mut moved = cursor.seek_to_first();
        while moved.is_ok() {
            let Some(entry) = cursor.current() else { return ControlFlow::Continue(()) };
            visit(&entry)?;
            moved = cursor.advance();
        }
        if let Err(detail) = moved {
            self.find(handle.offset, detail);
        }
        ControlFlow::Continue(())
    }

    /// Reads and checks everything: each block's checksum, the order of keys, that index, bloom filter and properties
    /// say what the entries do. `read` is told the bytes of each block.
    pub fn check(&mut self, read: &mut dyn FnMut(u64)) {
        let (mut sums, mut last): (Option<Sums>, Option<Vec<u8>>) = (None, None);
        let before = self.findings.len();
        for number in 0..self.blocks() {
            let Some((handle, index_key)) = self.index.as_ref().and_then(|index| index.block(number)) else {
                break;
            };
            let index_key = index_key.to_vec();
            let above = number.checked_sub(1).and_then(|number| self.index.as_ref()?.block(number));
            let above = above.map(|(_, key)| key.to_vec());
            let bloom = self.bloom.take();
            let mut wrong: Option<&'static str> = None;
            let _ = self.each_of_block(number, &mut |entry| {
                if last.as_ref().is_some_and(|last| &last[..] >= entry.key) {
                    wrong = wrong.or(Some("its keys do not rise"));
                }
                if entry.key > &index_key[..] || above.as_ref().is_some_and(|above| entry.key <= &above[..]) {
                    wrong = wrong.or(Some("it holds a key that the index does not look for here"));
                }
                if bloom.as_ref().is_some_and(|bloom| !bloom.may_contain(bloom::hash(entry.key))) {
                    wrong = wrong.or(Some("it holds a key that the bloom filter denies"));
                }
                let key = last.get_or_insert_default();
                key.clear();
                key.extend_from_slice(entry.key);
                Sums::add(&mut sums, entry);
                ControlFlow::Continue(())
            });
            self.bloom = bloom;
            if let Some(wrong) = wrong {
                self.find(handle.offset, wrong);
            }
            read(u64::from(handle.len));
        }
        if let (Some(footer), Some(meta)) = (self.footer, &self.meta)
            && self.index.is_some()
            && self.findings.len() == before
            && sums.as_ref().is_none_or(|sums| !sums.are_those_of(meta))
        {
            self.find(footer.properties.offset, "the properties say other things than the entries");
        }
    }

    fn find(&mut self, offset: u64, detail: &str) {
        self.findings.push(Finding::new(&self.path, offset, detail));
    }

    fn expected(&mut self, offset: u64, DecodeError(expected): DecodeError) {
        self.find(offset, &format!("expected {expected}"));
    }
}

impl Sums {
    fn add(sums: &mut Option<Self>, entry: &EntryRef<'_>) {
        let sums = sums.get_or_insert_with(|| Self {
            entries: 0,
            tombstones: 0,
            oldest: Timestamp::MAX,
            newest: Timestamp::ZERO,
            smallest: entry.key.to_vec(),
            largest: Vec::new(),
            expiries: Expiries::default(),
        });
        sums.entries += 1;
        sums.tombstones += u64::from(entry.value.is_none());
        if let (Some(_), Some(expires_at)) = (entry.value, entry.expires_at) {
            sums.expiries.add(expires_at, entry.content_len() as u64);
        }
        sums.oldest = sums.oldest.min(entry.timestamp);
        sums.newest = sums.newest.max(entry.timestamp);
        sums.largest.clear();
        sums.largest.extend_from_slice(entry.key);
    }

    fn are_those_of(&self, meta: &SstMeta) -> bool {
        self.entries == meta.entries
            && self.tombstones == meta.tombstones
            && (self.oldest, self.newest) == (meta.oldest, meta.newest)
            && self.smallest == meta.smallest[..]
            && self.largest == meta.largest[..]
            && (meta.expiries.is_empty() || self.expiries == meta.expiries)
    }
}
