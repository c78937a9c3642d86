//! `SkipList`: entries in order; one writer at a time, lock-free readers, towers in the arena.
//!
//! ```text
//! level 2   head ───────────────────────────────► b@3 ──────────────► end
//! level 1   head ──────────► a@9 ───────────────► b@3 ──────► c@7 ──► end
//! level 0   head ──► a@12 ─► a@9 ──► b@5(tomb) ─► b@3 ──────► c@7 ──► end
//!
//! by hash   bucket ──► b@5(tomb) ──► a@12 ──► end      (`key_index`: of each key the first cell)
//!
//! a cell    timestamp u64 │ value_len u32 │ key_len u16 │ height u8 │ kind u8 │ next in bucket: pointer
//!           │ tower: height pointers │ key │ value
//!           of a typed value: length of the type in a byte │ type │ value, value_len bytes together;
//!           of one with an expiry that comes first (`internal_key`), and counts too
//! ```
//!
//! Order: user key ascending, then the winner of two records of a key first ([`EntryRef::order`], the mirror of
//! `Record::precedence`). So the first cell of a key is what a read wants, and a late, older record lands in
//! its right place behind it.
//!
//! A cell is complete before a `Release` store links it in at level 0, and never changes or goes afterwards; a
//! reader that follows links with `Acquire` loads therefore sees whole cells, and needs no lock. The upper
//! levels are shortcuts: a reader that misses one only walks further. Inserts exclude each other by a lock.
//!
//! A search here waits for memory a dozen times and more; a get finds its cell by the key's hash instead and waits two or
//! three times. A new first cell of a key takes the place of the one before in its chain, which keeps its own link for
//! whoever stands on it. A get answers as if it had searched level 0: while a key is between the list and the index, and
//! where a chain is so long that somebody must have chosen the keys, it does search.
//!
//! Source: Pugh, "Skip Lists" (1990); google/leveldb `db/skiplist.h`.
#![allow(unsafe_code)] // lock-free reading of memory that one writer extends
#![allow(clippy::cast_ptr_alignment)] // the arena aligns every piece for a cell, and a cell's header its tower

use std::cmp::Ordering as Order;
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::{Rng as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;
use smallvec::SmallVec;

use super::arena::Arena;
use super::internal_key::{EXPIRY_LEN, Kind, Stored};
use super::iter::EntryRef;
use super::key_index::KeyIndex;
use super::sst::bloom;
use super::sync::{AtomicPtr, AtomicU64, AtomicUsize, Mutex};
use crate::types::{Record, Timestamp};

/// Enough for 4^12 entries, which is more than a memtable holds.
const HEIGHT_MAX: usize = 12;
/// One cell in this many reaches the next level.
const BRANCHING: u64 = 4;
/// What the processor fetches at once, in bytes.
const CACHE_LINE: usize = 64;
/// Entries that are best inserted together: enough to fill the time that one of their searches waits for memory.
pub const SIDE_BY_SIDE: usize = 16;
/// A chain is walked this far. Those of a memtable's keys have one to three cells.
const CHAIN_MAX: usize = 32;

/// What precedes tower, key and value in the arena.
#[repr(C)]
struct Cell {
    timestamp: u64,
    value_len: u32,
    key_len: u16,
    height: u8,
    kind: u8,
    /// Changes only until the cell is in its chain, and when the cell behind it gives way to a newer one.
    next_in_bucket: AtomicPtr<Cell>,
}

const HEADER: usize = size_of::<Cell>();
const LINK: usize = size_of::<AtomicPtr<Cell>>();
const _: () = assert!(HEADER.is_multiple_of(align_of::<AtomicPtr<Cell>>()));
const _: () = assert!(Arena::ALIGN >= align_of::<AtomicPtr<Cell>>());

/// Sorted entries that only grow in number.
///
/// Invariants: level 0 links every cell in the order of [`EntryRef::order`]; a level links a subset of the one below; no two
/// cells are equal; every pointer leads into `writer.arena`, which lives as long as the list. The first cell of every key at
/// level 0 is in the chain of its hash, before any other of that key there, unless `inserting` is that hash.
pub struct SkipList {
    /// A cell before all others, without key or value, as high as can be.
    head: AtomicPtr<Cell>,
    index: KeyIndex<Cell>,
    /// The hash of the key whose new first cell is on its way into list and index; zero at other times,
    /// so that a key of that hash is always searched for.
    inserting: AtomicU64,
    /// The highest tower so far. Relaxed: a stale one only makes a reader walk further.
    height: AtomicUsize,
    /// How many entries there are. Relaxed: a figure.
    len: AtomicUsize,
    /// Bytes taken from the arena. Relaxed: a figure.
    used: AtomicUsize,
    writer: Mutex<Writer>,
}

/// What only the one inserting at the moment touches.
struct Writer {
    arena: Arena,
    rng: Xoshiro256PlusPlus,
}

/// What an insert found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// False if the very same entry was there already.
    pub is_new: bool,
    /// The timestamp of the key's newest entry, if that one wins over the inserted.
    pub overtaken_by: Option<Timestamp>,
}

impl SkipList {
    /// Makes an empty list for about `size` bytes, though it takes any number of them. The seed decides the towers'
    /// heights, and nothing that can be seen from outside.
    pub fn new(size: usize, seed: u64) -> Self {
        let mut arena = Arena::new();
        let head = new_cell(&mut arena, &EntryRef::of(&[], &Record::tombstone(Timestamp::MAX)), HEIGHT_MAX);
        Self {
            head: AtomicPtr::new(head),
            index: KeyIndex::new(size),
            inserting: AtomicU64::new(0),
            height: AtomicUsize::new(1),
            len: AtomicUsize::new(0),
            used: AtomicUsize::new(arena.used()),
            writer: Mutex::new(Writer { arena, rng: Xoshiro256PlusPlus::seed_from_u64(seed) }),
        }
    }

    /// Adds entries, one after another, unless the very same are there, and says of each what it found. Waits for another insert
    /// under way.
    ///
    /// Their places are searched for side by side, a step of each in turn, so that the others go on while one waits for memory:
    /// for [`SIDE_BY_SIDE`] at a time, each of which takes some 150 bytes of the stack.
    ///
    /// # Panics
    /// If a key has more than `u16::MAX` or a value more than `u32::MAX` bytes.
    pub fn insert(&self, entries: &[EntryRef<'_>]) -> SmallVec<[Inserted; SIDE_BY_SIDE]> {
        let mut writer = self.writer.lock();
        let top = self.height.load(Ordering::Relaxed) - 1;
        let walk = |entry: &EntryRef<'_>| Walk::new(entry.key, self.head(), top);
        let mut walks: SmallVec<[Walk; SIDE_BY_SIDE]> = entries.iter().map(walk).collect();
        for walk in &walks {
            prefetch(self.index.bucket(walk.hash));
        }
        while walks
            .iter_mut()
            .zip(entries)
            .fold(false, |goes_on, (walk, entry)| goes_on | walk.step(entry.key))
        {}
        let inserted =
            walks.iter_mut().zip(entries).map(|(walk, entry)| self.insert_at(&mut writer, entry, walk));
        inserted.collect()
    }

    /// Adds an entry whose key has been searched for, since when there were few inserts, or none.
    fn insert_at(&self, writer: &mut Writer, entry: &EntryRef<'_>, walk: &mut Walk) -> Inserted {
        let height = random_height(&mut writer.rng);
        let next = self.settle(entry, height, &mut walk.before);
        let (hash, before) = (walk.hash, &walk.before);
        // SAFETY: `settle` returns null or a cell of this list.
        let next_entry = unsafe { entry_of(next) };
        let is_new = next_entry.is_none_or(|found| found.order(entry) != Order::Equal);
        // SAFETY: `settle` leaves the head, which is no entry, or a cell of this list.
        let previous = unsafe { entry_of(before[0]) }.filter(|_| before[0] != self.head());
        let is_first = previous.is_none_or(|found| found.key != entry.key);
        if is_new {
            let cell = new_cell(&mut writer.arena, entry, height);
            if is_first {
                let replaces = next_entry.is_some_and(|found| found.key == entry.key);
                // Both release: whoever reads a later one finds in the index what was inserted before.
                self.inserting.store(hash, Ordering::Release);
                self.link(cell, height, before);
                self.chain(cell, entry.key, hash, replaces);
                self.inserting.store(0, Ordering::Release);
            } else {
                self.link(cell, height, before);
            }
            self.used.store(writer.arena.used(), Ordering::Relaxed);
        }
        let newest = if is_first { None } else { self.get(entry.key, hash) };
        Inserted { is_new, overtaken_by: newest.map(|found| found.timestamp) }
    }

    /// Moves on from the last cells before an entry's key, as they were when it was searched for, to the last before the entry
    /// as they are now, at its lowest `height` levels. Returns the cell behind it, or null.
    fn settle(&self, entry: &EntryRef<'_>, height: usize, before: &mut [*mut Cell; HEIGHT_MAX]) -> *mut Cell {
        let mut beyond = ptr::null_mut();
        for level in (0..height).rev() {
            loop {
                // SAFETY: the head, or a cell that was met at this level, so its tower is high enough.
                let next = unsafe { link_of(before[level], level) }.load(Ordering::Acquire);
                let is_met = next == beyond; // one level up, and found to be beyond
                beyond = next;
                // SAFETY: a linked cell is complete and lives as long as the list.
                match unsafe { entry_of(next) } {
                    Some(found) if !is_met && found.order(entry) == Order::Less => {
                        if found.key == entry.key {
                            // A newer record of the same key, and there may be any number of them.
                            return self.find(|cell| cell.order(entry) == Order::Less, before);
                        }
                        before[level] = next; // it came since the search
                    }
                    _ => break,
                }
            }
        }
        beyond
    }

    /// Links a complete cell behind its predecessors, from the bottom, so that whoever finds it finds all below.
    fn link(&self, cell: *mut Cell, height: usize, before: &[*mut Cell; HEIGHT_MAX]) {
        if height > self.height.load(Ordering::Relaxed) {
            self.height.store(height, Ordering::Relaxed);
        }
        for (level, previous) in before.iter().enumerate().take(height) {
            // SAFETY: `previous` is the head or a cell that `find` met at this level, so its tower is high
            // enough; `cell` has `height` links and is not published above `level` yet.
            unsafe {
                let behind = link_of(*previous, level).load(Ordering::Relaxed);
                link_of(cell, level).store(behind, Ordering::Relaxed);
                link_of(*previous, level).store(cell, Ordering::Release);
            }
        }
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a cell, the first of its key, into the chain of its hash: where the one it `replaces` was, or in front. If
    /// that one is too far behind to be found, it stays where it is, hidden.
    fn chain(&self, cell: *mut Cell, key: &[u8], hash: u64, replaces: bool) {
        let found = if replaces { self.find_in_chain(key, hash) } else { None };
        // SAFETY: null or a cell of this list.
        let replaced = found.and_then(|(link, old)| Some((link, unsafe { old.as_ref() }?)));
        let bucket = self.index.bucket(hash);
        let (link, next) = replaced.map_or((bucket, bucket), |(link, old)| (link, &old.next_in_bucket));
        // SAFETY: a cell of this list, in no chain yet.
        unsafe { &(*cell).next_in_bucket }.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
        link.store(cell, Ordering::Release);
    }

    /// The first cell of `key` in the chain of its hash and the link that leads there, or the null at the chain's end;
    /// nothing if the chain is too long to tell.
    fn find_in_chain(&self, key: &[u8], hash: u64) -> Option<(&AtomicPtr<Cell>, *mut Cell)> {
        let mut link = self.index.bucket(hash);
        for _ in 0..CHAIN_MAX {
            let cell = link.load(Ordering::Acquire);
            // SAFETY: a cell of this list, or null; it is complete before it is linked.
            if unsafe { entry_of(cell) }.is_none_or(|entry| entry.key == key) {
                return Some((link, cell));
            }
            // SAFETY: as above, and not null; cells live as long as the list.
            link = unsafe { &(*cell).next_in_bucket };
        }
        None
    }

    /// The newest entry of `key`; `hash` is [`bloom::hash`] of it.
    pub fn get(&self, key: &[u8], hash: u64) -> Option<EntryRef<'_>> {
        // Whoever has met a cell at level 0 finds this set, or the cell in the index.
        let is_between = self.inserting.load(Ordering::Acquire) == hash;
        let found = if is_between { None } else { self.find_in_chain(key, hash) };
        let cell = found.map_or_else(|| self.first_of(key), |(_, cell)| cell);
        // SAFETY: a cell of this list, or null; the list outlives the borrow.
        unsafe { entry_of(cell) }.filter(|found| found.key == key)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the cells take in memory. The index, whose size is fixed, comes on top.
    pub fn bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn head(&self) -> *mut Cell {
        self.head.load(Ordering::Relaxed) // never stored again; only a pointer that may be shared
    }

    /// The first cell whose key is at or beyond `key`; null at the end.
    fn first_of(&self, key: &[u8]) -> *mut Cell {
        self.find(|cell| cell.key < key, &mut [ptr::null_mut(); HEIGHT_MAX])
    }

    /// Finds the first cell of which `is_before` is false, which must be so for all behind it too; null at the
    /// end. Leaves in `before` the last cell before it at each level in use.
    fn find(
        &self,
        is_before: impl Fn(&EntryRef<'_>) -> bool,
        before: &mut [*mut Cell; HEIGHT_MAX],
    ) -> *mut Cell {
        let mut at = self.head();
        let mut beyond: *mut Cell = ptr::null_mut();
        for level in (0..self.height.load(Ordering::Relaxed)).rev() {
            loop {
                // SAFETY: `at` is the head or was reached at this level or above, so its tower is high enough.
                let next = unsafe { link_of(at, level) }.load(Ordering::Acquire);
                if level > 0 {
                    // Where the search goes if `next` is beyond: both are fetched from memory at once.
                    // SAFETY: as above; towers have all levels below their height.
                    prefetch(unsafe { link_of(at, level - 1) }.load(Ordering::Relaxed));
                }
                // Met one level up and found to be beyond: no need to compare again.
                let advance = next != beyond
                    // SAFETY: a linked cell is complete and lives as long as the list.
                    && unsafe { entry_of(next) }.is_some_and(|entry| is_before(&entry));
                if !advance {
                    beyond = next;
                    break;
                }
                at = next;
            }
            before[level] = at;
        }
        beyond
    }
}

/// The writer's search for a key's place, under way.
struct Walk {
    /// [`bloom::hash`] of the key.
    hash: u64,
    /// At each level it has left, the last cell before the key; the head on the others.
    before: [*mut Cell; HEIGHT_MAX],
    /// The last cell before the key that was met.
    at: *mut Cell,
    /// The one to be looked at next, which is being fetched; null at the end. At the beginning the head, which has no key and
    /// so is before all.
    next: *mut Cell,
    level: usize,
    has_arrived: bool,
}

impl Walk {
    fn new(key: &[u8], head: *mut Cell, top: usize) -> Self {
        let hash = bloom::hash(key);
        Self { hash, before: [head; HEIGHT_MAX], at: head, next: head, level: top, has_arrived: false }
    }

    /// Goes on as far as it can without waiting for memory. False once it has arrived.
    fn step(&mut self, key: &[u8]) -> bool {
        if self.has_arrived {
            return false;
        }
        // SAFETY: `next` is null or a cell that was linked, so complete, and lives as long as the list.
        if unsafe { entry_of(self.next) }.is_some_and(|entry| entry.key < key) {
            self.at = self.next;
        } else if !self.descend() {
            return false;
        }
        let beyond = self.next;
        loop {
            // SAFETY: `at` is the head or was reached at this level or above, so its tower is high enough.
            self.next = unsafe { link_of(self.at, self.level) }.load(Ordering::Acquire);
            if self.next != beyond {
                break;
            }
            if !self.descend() {
                return false; // it is beyond on this level, too
            }
        }
        prefetch_cell(self.next);
        true
    }

    /// Leaves a level for the one below. False if there is none: it has arrived.
    fn descend(&mut self) -> bool {
        self.before[self.level] = self.at;
        self.has_arrived = self.level == 0;
        self.level = self.level.saturating_sub(1);
        !self.has_arrived
    }
}

impl fmt::Debug for SkipList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SkipList")
            .field("len", &self.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// A place in a list that it keeps alive. Sees entries inserted ahead of it meanwhile.
#[derive(Debug)]
pub struct SkipCursor {
    list: Arc<SkipList>,
    /// A cell of `list`; null at the end and before the first seek.
    at: *mut Cell,
}

// SAFETY: the cursor only reads complete cells, which any thread may, and keeps them alive by its `Arc`.
unsafe impl Send for SkipCursor {}

impl SkipCursor {
    /// A cursor that stands nowhere yet.
    pub fn new(list: Arc<SkipList>) -> Self {
        Self { list, at: ptr::null_mut() }
    }

    /// Goes to the first entry.
    pub fn seek_to_first(&mut self) {
        // SAFETY: the head has a link at level 0.
        self.at = unsafe { link_of(self.list.head(), 0) }.load(Ordering::Acquire);
    }

    /// Goes to the first entry whose key is `key` or beyond.
    pub fn seek(&mut self, key: &[u8]) {
        self.at = self.list.first_of(key);
    }

    /// Goes to the next entry; stays at the end.
    pub fn next(&mut self) {
        if !self.at.is_null() {
            // SAFETY: a cell of the list; every tower has a level 0.
            self.at = unsafe { link_of(self.at, 0) }.load(Ordering::Acquire);
        }
        if !self.at.is_null() {
            // Most go on: what is behind is fetched while this entry is made use of.
            // SAFETY: as above.
            prefetch_cell(unsafe { link_of(self.at, 0) }.load(Ordering::Relaxed));
        }
    }

    /// The entry it stands on.
    pub fn current(&self) -> Option<EntryRef<'_>> {
        // SAFETY: null or a cell of the list, which `self.list` keeps alive while the result borrows `self`.
        unsafe { entry_of(self.at) }
    }
}

fn random_height(rng: &mut Xoshiro256PlusPlus) -> usize {
    let mut height = 1;
    while height < HEIGHT_MAX && rng.next_u64().is_multiple_of(BRANCHING) {
        height += 1;
    }
    height
}

/// Makes a complete cell with an unlinked tower.
fn new_cell(arena: &mut Arena, entry: &EntryRef<'_>, height: usize) -> *mut Cell {
    let value = entry.value.unwrap_or_default();
    let header = Cell {
        timestamp: entry.timestamp.as_u64(),
        value_len: u32::try_from(entry.stored_len()).expect("a batch is bounded far below 4 GiB"),
        key_len: u16::try_from(entry.key.len()).expect("a key is at most Key::MAX_INTERNAL_LEN bytes long"),
        height: height as u8,
        kind: entry.kind() as u8,
        next_in_bucket: AtomicPtr::new(ptr::null_mut()),
    };
    let tower_end = HEADER + height * LINK;
    let cell = arena.allocate(tower_end + entry.key.len() + entry.stored_len()).as_ptr();
    // SAFETY: the piece has room for all four parts, in this order; it is aligned for the header and, as that
    // is a multiple of a link's alignment, for the tower; nobody else has it yet.
    unsafe {
        cell.cast::<Cell>().write(header);
        for level in 0..height {
            cell.add(HEADER + level * LINK).cast::<AtomicPtr<Cell>>().write(AtomicPtr::new(ptr::null_mut()));
        }
        ptr::copy_nonoverlapping(entry.key.as_ptr(), cell.add(tower_end), entry.key.len());
        let mut value_at = cell.add(tower_end + entry.key.len());
        if let Some(head) = entry.stored().expiry_head() {
            ptr::copy_nonoverlapping(head.as_ptr(), value_at, EXPIRY_LEN);
            value_at = value_at.add(EXPIRY_LEN);
        }
        if let Some(content_type) = entry.content_type {
            value_at.write(content_type.len() as u8); // at most ContentType::MAX_LEN
            ptr::copy_nonoverlapping(content_type.as_ptr(), value_at.add(1), content_type.len());
            value_at = value_at.add(1 + content_type.len());
        }
        ptr::copy_nonoverlapping(value.as_ptr(), value_at, value.len());
    }
    cell.cast()
}

/// The link of a cell at a level.
///
/// # Safety
/// `cell` was made by [`new_cell`] with a height above `level`, and its arena outlives `'a`.
unsafe fn link_of<'a>(cell: *mut Cell, level: usize) -> &'a AtomicPtr<Cell> {
    // SAFETY: by the contract, the link lies inside the piece and was written by `new_cell`.
    unsafe { &*cell.cast::<u8>().add(HEADER + level * LINK).cast::<AtomicPtr<Cell>>() }
}

/// Has the processor fetch what may be looked at soon: a search spends its time waiting for memory.
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; it reads nothing, and no address is wrong for it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same for a cell and its key.
fn prefetch_cell(cell: *const Cell) {
    prefetch(cell);
    prefetch(cell.wrapping_byte_add(CACHE_LINE)); // where the key of a high tower begins, or goes on
}

/// The entry of a cell; nothing for null.
///
/// # Safety
/// `cell` is null or was made by [`new_cell`], the caller came by it through an `Acquire` load or is the
/// writer, and its arena outlives `'a`.
unsafe fn entry_of<'a>(cell: *mut Cell) -> Option<EntryRef<'a>> {
    if cell.is_null() {
        return None;
    }
    // SAFETY: by the contract, header, key and value are there, complete, and never change again but for links.
    unsafe {
        let header = &*cell;
        let key_at = cell.cast::<u8>().add(HEADER + usize::from(header.height) * LINK).cast_const();
        let key = std::slice::from_raw_parts(key_at, usize::from(header.key_len));
        let stored = std::slice::from_raw_parts(key_at.add(key.len()), header.value_len as usize);
        let kind = match header.kind {
            0 => Kind::Tombstone,
            1 => Kind::Value,
            2 => Kind::TypedValue,
            _ => Kind::Expiring,
        };
        let stored = Stored::split(kind, stored).unwrap_or_default(); // as `new_cell` wrote it
        Some(EntryRef::of_stored(key, Timestamp::from_u64(header.timestamp), stored))
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
