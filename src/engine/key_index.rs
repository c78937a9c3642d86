//! `KeyIndex`: where to look for a key by its hash; a fixed array of buckets beside a memtable's skiplist.
//!
//! ```text
//! hash & mask ──► bucket 0   ─► (null)
//!                 bucket 1   ─► c@7 ──► a@12 ──► (null)      the chain goes through the cells themselves,
//!                 bucket 2   ─► b@5 ──► (null)               and has one cell of each key: the newest
//!                 …
//! ```
//!
//! The array alone is here; the chains are the skiplist's, whose cells they link. It never grows: a memtable's size is known
//! beforehand, and with it about how many keys there will be. Pages of it that nobody has touched take no memory.
//!
//! Source: a chained hash table; facebook/rocksdb `memtable/hash_linklist_rep.cc` has such buckets, in place of a skiplist.
#![allow(unsafe_code)] // zeroed memory, some of it in large pages, as links that readers follow without a lock

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;

use super::arena::{LARGE_PAGE, ask_for_large_pages};
use super::sync::AtomicPtr;

/// One bucket for this many bytes of a memtable, or up to twice as many buckets: a sixteenth to an eighth of its size, and
/// small records still make chains of two or three.
const BYTES_PER_BUCKET: usize = 128;

/// The first link of each chain of cells.
///
/// Invariants: `first` leads to `mask + 1` links, a power of two, inside of `memory`; all were null at first.
pub struct KeyIndex<Cell> {
    first: NonNull<AtomicPtr<Cell>>,
    mask: usize,
    /// What was allocated, and how.
    memory: (NonNull<u8>, Layout),
}

// SAFETY: the array is owned alone and consists of atomics; what they point to is never looked at here.
unsafe impl<Cell> Send for KeyIndex<Cell> {}
// SAFETY: as above; a shared index hands out nothing but atomics.
unsafe impl<Cell> Sync for KeyIndex<Cell> {}

impl<Cell> KeyIndex<Cell> {
    /// Makes one of empty buckets for a memtable that will take about `expected` bytes.
    pub fn new(expected: usize) -> Self {
        let buckets = (expected / BYTES_PER_BUCKET).next_power_of_two();
        let len = buckets * size_of::<AtomicPtr<Cell>>();
        // Room to begin at a large page. An allocator that is asked for such an alignment clears the memory by hand, and
        // so touches all of it; what it is asked for without comes from the system, untouched and zero.
        let slack = if len >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let layout = Layout::from_size_align(len + slack, align_of::<AtomicPtr<Cell>>())
            .expect("a part of a memtable, which is far smaller than memory");
        // SAFETY: there is at least one bucket, so the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let mut first = memory;
        if slack > 0 {
            // SAFETY: it is less than a large page to the next large page, so `len` bytes follow from there.
            first = unsafe { memory.add(memory.align_offset(LARGE_PAGE)) };
            ask_for_large_pages(first, len);
        }
        Self { first: first.cast(), mask: buckets - 1, memory: (memory, layout) }
    }

    /// The link to the first cell of the chain that a hash belongs to.
    pub fn bucket(&self, hash: u64) -> &AtomicPtr<Cell> {
        // SAFETY: by the invariant there are `mask + 1` links, and zeroes are null links.
        unsafe { self.first.add(hash as usize & self.mask).as_ref() }
    }
}

impl<Cell> fmt::Debug for KeyIndex<Cell> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIndex").field("buckets", &(self.mask + 1)).finish_non_exhaustive()
    }
}

impl<Cell> Drop for KeyIndex<Cell> {
    fn drop(&mut self) {
        let (memory, layout) = self.memory;
        // SAFETY: allocated by `new` with this layout, and freed nowhere else.
        unsafe { dealloc(memory.as_ptr(), layout) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ptr;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn every_size_has_empty_buckets_of_its_own_and_uses_all_of_them() {
        let sizes = [(0, 1), (1 << 10, 8), (100 << 10, 1024), (32 << 20, 256 << 10)];
        for (expected, buckets) in if cfg!(miri) { &sizes[..2] } else { &sizes } {
            let index = KeyIndex::<u8>::new(*expected);
            let mut cell = 0;
            let mut seen = BTreeSet::new();
            for hash in 0..2 * *buckets {
                let bucket = index.bucket(hash | 1 << 63);
                let is_new = seen.insert(ptr::from_ref(bucket));
                assert_eq!(bucket.swap(&raw mut cell, Ordering::Relaxed).is_null(), is_new);
            }
            assert_eq!(seen.len() as u64, *buckets, "for {expected} bytes");
        }
    }

    #[test]
    fn a_large_array_begins_at_a_large_page() {
        let index = KeyIndex::<u8>::new(64 << 20);
        assert!(ptr::from_ref(index.bucket(0)).addr().is_multiple_of(LARGE_PAGE));
    }
}
