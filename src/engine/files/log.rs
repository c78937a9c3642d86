//! A log taken apart.

use bytes::Bytes;

use crate::engine::wal;
use crate::engine::wal::reader::{LogContent, ReadLog};
use crate::util::coding::Reader;

pub use crate::engine::wal::Opening;
pub use crate::engine::wal::reader::Damage;

/// A log, as far as it is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFile {
    /// Which log it says it is.
    pub number: u64,
    /// What its first frame says of the log before it.
    pub opening: Option<Opening>,
    /// Its batches, encoded, each with the offset of its frame: [`crate::engine::WriteBatch::decode`] reads them.
    pub batches: Vec<(u64, Bytes)>,
    /// Where what counts of it ends.
    pub end: u64,
    /// What was synced and is gone.
    pub damage: Vec<Damage>,
    /// The furthest place up to which one of its frames knows it to be synced.
    pub synced_through: u64,
    /// Whether a frame of this log begins at its end and is not whole: a crash cut it short, or its last group is damaged.
    pub is_torn: bool,
}

impl LogFile {
    /// The number of the log that bytes are of, if they are of one: as its first opening frame says, whether or not
    /// that is whole, or else its second one.
    pub fn number_in(file: &Bytes) -> Option<u64> {
        let opening_at = |offset: usize| {
            let mut header = Reader::new(file.get(offset..)?);
            let _checksum = header.u32().ok()?;
            let payload_len = header.u32().ok()? as usize;
            let (number, own_offset, _synced) = (header.u64().ok()?, header.u64().ok()?, header.u64().ok()?);
            let is_opening = number > 0
                && own_offset == offset as u64
                && payload_len <= header.rest().len()
                && header.u8() == Ok(wal::KIND_OPENING);
            is_opening.then_some(number)
        };
        opening_at(0).or_else(|| opening_at(wal::OPENING_LEN))
    }

    /// Takes a log apart. `synced_end`: where the next log says that this one ended. Pure.
    pub fn read(number: u64, file: &Bytes, synced_end: Option<u64>) -> Self {
        Self::of(number, ReadLog { synced_end, cut_at_first_bad: false }.read(number, file))
    }

    pub(in crate::engine) fn of(number: u64, content: LogContent) -> Self {
        let LogContent { opening, batches, end, synced_through, is_torn, damage } = content;
        Self { number, opening, batches, end, damage, synced_through, is_torn }
    }
}
