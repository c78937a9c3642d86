//! `VisibleIterator`: the newest record of each key in a range, tombstones included.
//!
//! Tombstones are given too: replicas exchange them, and whoever answers a client leaves them out.

use super::{EntryRef, InternalIterator};
use crate::engine::Error;
use crate::types::KeyRange;

/// Gives one entry a key: the one to keep. Seeks stay inside its range.
pub struct VisibleIterator<I> {
    inner: I,
    range: KeyRange,
    /// The key last stood at, kept to step over its older records; reused from entry to entry.
    key: Vec<u8>,
}

impl<I: InternalIterator> VisibleIterator<I> {
    /// Shows what `range` holds of `inner`.
    pub fn new(inner: I, range: KeyRange) -> Self {
        Self { inner, range, key: Vec::new() }
    }
}

impl<I: InternalIterator> InternalIterator for VisibleIterator<I> {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        match &self.range.start {
            Some(start) => self.inner.seek(start),
            None => self.inner.seek_to_first(),
        }
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        match &self.range.start {
            Some(start) if &start[..] > user_key => self.inner.seek(start),
            _ => self.inner.seek(user_key),
        }
    }

    fn next(&mut self) -> Result<(), Error> {
        let mut key = std::mem::take(&mut self.key); // moved out: `current` borrows the whole iterator
        key.clear();
        let at_end = self.current().map(|entry| key.extend_from_slice(entry.key)).is_none();
        self.key = key;
        if at_end {
            return Ok(());
        }
        loop {
            self.inner.next()?;
            match self.inner.current() {
                Some(entry) if entry.key == self.key => {}
                _ => return Ok(()),
            }
        }
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        let entry = self.inner.current()?;
        let beyond = self.range.end.as_ref().is_some_and(|end| entry.key >= &end[..]);
        (!beyond).then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::iter::model::{ModelIterator, any_entries, check, newest};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_record_a_key_is_visible_and_it_is_the_one_that_supersedes_all_others(
            entries in any_entries(60), seeks in any_entries(5),
            start in proptest::option::of(proptest::collection::vec(0u8..4, 0..4)),
            end in proptest::option::of(proptest::collection::vec(0u8..4, 0..4)),
        ) {
            let range = KeyRange { start: start.map(Into::into), end: end.map(Into::into) };
            let mut expected = newest(&entries);
            expected.retain(|(key, _)| range.contains(key));
            let mut visible = VisibleIterator::new(ModelIterator::new(entries), range);
            check(&mut visible, &expected, &seeks);
        }
    }
}
