//! Arena: bump allocation for one memtable, freed whole.
//!
//! ```text
//! block 0  ████████████████████░░░   blocks never move and are freed together, so what was handed out
//! block 1  █████████░░░░░░░░░░░░░░   stays where it is for as long as the arena lives
//!          next ────┘     └── end
//! ```
//!
//! Nothing is freed alone: a memtable only grows, and goes as a whole once it has been flushed.
//! Source: google/leveldb `util/arena.h`.
#![allow(unsafe_code)] // the memory that the skiplist's towers live in

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// How long a large page is, and a multiple of what it begins at.
pub(super) const LARGE_PAGE: usize = 2 << 20;

/// Memory that is handed out in pieces and given back all at once.
///
/// Invariants: `next..end` lies in the last block; every piece lies in one block and is handed out once.
#[derive(Debug)]
pub struct Arena {
    /// Where each block begins, and how it was allocated.
    blocks: Vec<(NonNull<u8>, Layout)>,
    /// The first free byte of the last block.
    next: *mut u8,
    /// How many bytes are free from `next` on.
    free: usize,
    /// Bytes handed out, padding included.
    used: usize,
}

// SAFETY: the arena owns its blocks alone; it touches no thread's own data.
unsafe impl Send for Arena {}

impl Arena {
    /// Every piece begins at a multiple of this.
    pub const ALIGN: usize = 8;
    /// The first block is small, so that an idle engine weighs little; each further one doubles, up to the last.
    const BLOCK_MIN: usize = 4 << 10;
    const BLOCK_MAX: usize = LARGE_PAGE;

    /// Makes an arena that holds no memory yet.
    pub fn new() -> Self {
        Self { blocks: Vec::new(), next: std::ptr::null_mut(), free: 0, used: 0 }
    }

    /// Hands out `len` bytes, aligned to [`Arena::ALIGN`] and not initialised, valid until the arena is dropped.
    ///
    /// # Panics
    /// If `len` is more than half of the address space.
    pub fn allocate(&mut self, len: usize) -> NonNull<u8> {
        let len = len.max(1).next_multiple_of(Self::ALIGN);
        if len > self.free {
            self.grow(len);
        }
        let piece = NonNull::new(self.next).expect("a block with room was just made");
        // SAFETY: `len <= free`, so the result is at most one past the end of the same block.
        self.next = unsafe { self.next.add(len) };
        self.free -= len;
        self.used += len;
        piece
    }

    /// Bytes handed out, padding included.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Opens a new block with room for `len` bytes; what was free in the last one stays unused.
    fn grow(&mut self, len: usize) {
        let doubled = Self::BLOCK_MIN << self.blocks.len().min(9);
        let size = doubled.min(Self::BLOCK_MAX).max(len);
        let align = if size >= LARGE_PAGE { LARGE_PAGE } else { Self::ALIGN };
        let layout = Layout::from_size_align(size, align).expect("a record is far smaller than memory");
        // SAFETY: `size >= len >= ALIGN > 0`.
        let block = unsafe { alloc(layout) };
        let Some(block) = NonNull::new(block) else { handle_alloc_error(layout) };
        if size >= LARGE_PAGE {
            ask_for_large_pages(block, size);
        }
        self.blocks.push((block, layout));
        self.next = block.as_ptr();
        self.free = size;
    }
}

/// Asks for large pages where there are such: a search in a skiplist jumps all over the arena, a hash all over the index,
/// and with pages of 4 KiB it waits as often for their addresses as for their contents. A kernel that refuses changes
/// nothing but speed.
pub(super) fn ask_for_large_pages(block: NonNull<u8>, len: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        // SAFETY: the block is ours, whole, and the advice changes no byte of it.
        let _ = unsafe { rustix::mm::madvise(block.as_ptr().cast(), len, rustix::mm::Advice::LinuxHugepage) };
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (block, len);
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for (block, layout) in self.blocks.drain(..) {
            // SAFETY: allocated by `grow` with this layout, and freed nowhere else.
            unsafe { dealloc(block.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_do_not_overlap() {
        let mut arena = Arena::new();
        let mut pieces = Vec::new();
        let large = if cfg!(miri) { 70_000 } else { 2 << 20 };
        for len in (0..200).chain([5_000, 3, large, 1]) {
            let piece = arena.allocate(len);
            assert_eq!(piece.as_ptr() as usize % Arena::ALIGN, 0);
            // SAFETY: the piece has `len` bytes, and nobody else has them.
            unsafe { std::ptr::write_bytes(piece.as_ptr(), len as u8, len) };
            pieces.push((piece, len));
        }
        for (piece, len) in pieces {
            // SAFETY: written above.
            let bytes = unsafe { std::slice::from_raw_parts(piece.as_ptr(), len) };
            assert!(bytes.iter().all(|byte| *byte == len as u8), "a piece of {len} bytes was overwritten");
        }
    }

    #[test]
    fn used_counts_what_was_handed_out() {
        let mut arena = Arena::new();
        arena.allocate(1);
        arena.allocate(16);
        assert_eq!(arena.used(), 24);
    }
}
