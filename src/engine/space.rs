//! `Demand`: how much free space writes need, so that whatever is accepted can be flushed and compacted later.
//!
//! ```text
//! free space    all writes are taken  │  deletes only  │  no more than a memtable's size of deletes in a row
//!               ◄─────────── for_values      ◄──── for_deletes
//! ```
//!
//! Below `for_deletes` lies what the work that makes room needs itself: a memtable that is being flushed, what is in
//! memory already, and the largest step of a compaction, which rewrites level 0 one table of level 1 at a time. So a full
//! disk can always be emptied by deleting. That work takes its space for a while and gives it back: meanwhile deletes are
//! bounded by their own bytes, which is all that they take from it. Pure.

/// Below this part of a memtable's size nothing is taken: not even the work that makes room can begin.
const FLOOR_PART: u64 = 16;

/// What decides how much space is needed. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The size of a memtable; no table that a compaction writes is larger.
    pub memtable_size: u64,
    /// What the next log takes when it is begun.
    pub log_step: u64,
    /// What memtables hold, and tables do not yet.
    pub in_memory: u64,
    /// Level 0.
    pub in_l0: u64,
}

/// Which writes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// All.
    Plenty,
    /// Tombstones.
    DeletesOnly,
    /// None.
    Nothing,
}

impl Demand {
    /// Free bytes from which values are taken.
    pub fn for_values(&self) -> u64 {
        self.for_deletes() + self.memtable_size
    }

    /// Free bytes from which deletes are taken.
    pub fn for_deletes(&self) -> u64 {
        self.memtable_size + self.log_step + self.in_memory + self.in_l0.max(self.memtable_size)
    }

    /// What `free` bytes are enough for, after so many bytes of deletes since there was plenty.
    pub fn room(&self, free: u64, deletes: u64) -> Room {
        if free >= self.for_values() {
            Room::Plenty
        } else if free >= self.for_deletes()
            || (deletes < self.memtable_size && free >= self.memtable_size / FLOOR_PART)
        {
            Room::DeletesOnly
        } else {
            Room::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_are_taken_longer_than_values_by_a_memtable() {
        let demand = Demand { memtable_size: 16, log_step: 2, in_memory: 1, in_l0: 40 };
        assert_eq!((demand.for_values(), demand.for_deletes()), (75, 59));
        let room = |free| demand.room(free, 16);
        assert_eq!(
            [75, 74, 59, 58].map(room),
            [Room::Plenty, Room::DeletesOnly, Room::DeletesOnly, Room::Nothing]
        );
        assert_eq!((demand.room(1, 15), demand.room(1, 16)), (Room::DeletesOnly, Room::Nothing));
        assert_eq!(demand.room(0, 0), Room::Nothing);
        let empty = Demand { in_memory: 0, in_l0: 0, ..demand };
        assert_eq!(empty.for_deletes(), 34, "a table of level 1 is rewritten too");
    }
}
