//! `LevelIterator`: tables that do not overlap, one after the other.

use std::sync::Arc;

use crate::engine::Error;
use crate::engine::iter::{EntryRef, InternalIterator};
use crate::engine::sst::{SkippedBlocks, SstReader, TableIterator};

/// A cursor over tables sorted by key; only the table it is in has a block in use.
#[derive(Debug)]
pub struct LevelIterator {
    tables: Vec<Arc<SstReader>>,
    /// Which table the cursor is in.
    at: usize,
    inner: Option<TableIterator>,
    /// Where blocks that cannot be read are noted, if they are to be gone round.
    skipped: Option<SkippedBlocks>,
}

impl LevelIterator {
    /// Iterates over `tables`, which are sorted by key and do not overlap.
    pub fn new(tables: Vec<Arc<SstReader>>) -> Self {
        Self { tables, at: 0, inner: None, skipped: None }
    }

    /// Goes round blocks that are damaged, and notes them in `skipped`.
    #[must_use]
    pub(crate) fn skipping(mut self, skipped: Option<SkippedBlocks>) -> Self {
        self.skipped = skipped;
        self
    }

    /// Moves to an entry of table `at` with `go`, or on to the next table's first where that has none.
    fn enter(
        &mut self,
        at: usize,
        go: impl FnOnce(&mut TableIterator) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.at = at;
        let inner = self.inner.take(); // an error below leaves the iterator at no entry
        let Some(table) = self.tables.get(at).cloned() else { return Ok(()) };
        let mut inner = match inner {
            Some(mut inner) => {
                inner.reset(table);
                inner
            }
            None => TableIterator::new(table).skipping(self.skipped.clone()),
        };
        go(&mut inner)?;
        let at_end = inner.current().is_none();
        self.inner = Some(inner);
        if at_end { self.enter(at + 1, InternalIterator::seek_to_first) } else { Ok(()) }
    }
}

impl InternalIterator for LevelIterator {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        self.enter(0, InternalIterator::seek_to_first)
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        let at = self.tables.partition_point(|table| &table.meta().largest[..] < user_key);
        self.enter(at, |inner| inner.seek(user_key))
    }

    fn next(&mut self) -> Result<(), Error> {
        let Some(inner) = &mut self.inner else { return Ok(()) };
        if let Err(error) = inner.next() {
            self.inner = None;
            return Err(error);
        }
        if inner.current().is_some() {
            Ok(())
        } else {
            self.enter(self.at + 1, InternalIterator::seek_to_first)
        }
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        self.inner.as_ref()?.current()
    }
}
