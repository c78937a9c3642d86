//! A log taken apart.

use bytes::Bytes;

use crate::engine::wal::reader::{LogContent, ReadLog};
use crate::engine::wal::{self, Frame};

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
    /// Whether a frame of this log begins at its end and is not whole: a crash cut it short, or its last group is damaged.
    pub is_torn: bool,
}

impl LogFile {
    /// The number of the log that bytes are of, if they are of one: that of the first frame that checks, or what the
    /// first one says where its checksum is wrong.
    pub fn number_in(file: &Bytes) -> Option<u64> {
        let word = |at: usize| {
            file.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
        };
        let is_first = |number: u64| {
            let payload_len = u32::from_le_bytes(file[4..8].try_into().expect("four bytes")) as usize;
            let kind = file.get(wal::HEADER_LEN);
            number > 0 && word(16) == Some(0) && payload_len <= file.len() && matches!(kind, Some(1 | 2))
        };
        if let Some(number) = word(8)
            && is_first(number)
        {
            return Some(number);
        }
        (0..file.len().saturating_sub(wal::HEADER_LEN)).find_map(|at| {
            let number = word(at + 8).filter(|_| word(at + 16) == Some(at as u64))?;
            Frame::decode(number, file, at)
                .filter(|frame| frame.end > frame.offset && number > 0)
                .map(|_| number)
        })
    }

    /// Takes a log apart. `synced_end`: where the next log says that this one ended. Pure.
    pub fn read(number: u64, file: &Bytes, synced_end: Option<u64>) -> Self {
        let content = ReadLog { synced_end, cut_at_first_bad: false }.read(number, file);
        Self::of(number, file, content)
    }

    pub(in crate::engine) fn of(number: u64, file: &Bytes, content: LogContent) -> Self {
        let LogContent { opening, batches, end, damage } = content;
        let at = end as usize;
        let names_itself = file
            .get(at + 8..at + 24)
            .is_some_and(|bound| bound[..8] == number.to_le_bytes() && bound[8..] == end.to_le_bytes());
        Self { number, opening, batches, end, damage, is_torn: names_itself }
    }
}
