//! The write-ahead log: what is acknowledged is here first, one log per memtable.
//!
//! ```text
//! NNNNNN.log   opening │ opening │ frame │ frame │ … │ zeros, or bytes of an earlier life of the file
//!              0         4096      8192
//!
//! frame        0  crc             u32   CRC-32 of the log number and of all that follows, payload included
//!              4  payload length  u32
//!              8  salt            u64 ┐ bind the frame to this log and this place: neither bytes of an earlier life
//!             16  offset          u64 ┘ of a recycled file nor bytes that a client chose ever parse as a frame
//!             24  synced through  u64   the offset known synced when the frame was written
//!             32  payload: kind u8, then
//!                   1 = batch     the rest is a WriteBatch
//!                   2 = opening   format version u8 │ previous log u64 │ its end u64 │ salt u64 │ zeros to 4096
//! ```
//!
//! Every log begins with an opening frame, which says where the log before it ended: that log was synced to
//! there before this one was begun, so anything missing from it is damage. `synced through` says the same inside
//! a log: a bad frame is a torn tail unless a later frame knows that it was synced.
//!
//! The salt is 64 random bits per log. Recovery searches what is left of a file for later frames, byte by byte, and
//! values are among what it searches. A client can compute a checksum, a log number and an offset, but it cannot know
//! the salt of the log that its value will be in, nor that of a log that will be written over it. Two opening
//! frames, the same but for their offset, keep one bad sector from hiding the salt. Only they, at
//! their two fixed offsets, name the log instead of the salt, so no byte of a value can stand in for them.
//!
//! A log gets its name once its opening frames are synced. So under that name, opening frames that do not check are
//! damage, and never an interrupted creation.
//!
//! Files are zero-filled ahead of use and recycled by renaming, so that most syncs change no metadata: an
//! fdatasync that only overwrites costs half of one that extends the file (DESIGN §10).
//!
//! Not promised: damage to the very last group synced, with no frame after it, looks like a torn tail.
//!
//! Version 1 had one opening frame of 50 bytes, no salt, and the log number in the salt's place. Such logs are still
//! read; recovery moves their records into a table, and no new ones are written.

pub mod reader;
pub mod writer;

use bytes::{BufMut, Bytes};

use crate::util::coding::Reader;

/// Bytes before a frame's payload.
pub const HEADER_LEN: usize = 32;
/// Bytes of each opening frame.
pub const OPENING_LEN: usize = 4096;
/// Where the first batch begins: behind both opening frames.
pub const BATCHES_AT: usize = 2 * OPENING_LEN;
/// What the format of the log is called in its opening frame.
const FORMAT_VERSION: u8 = 2;
/// The version without a salt.
const FORMAT_VERSION_UNSALTED: u8 = 1;
/// Bytes of the opening frame of version 1.
const UNSALTED_OPENING_LEN: usize = 50;

pub(crate) const KIND_BATCH: u8 = 1; // stored: never renumber
pub(crate) const KIND_OPENING: u8 = 2;

/// What distinguishes the frames of one log from all other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogKey {
    /// The third field of each frame's header.
    tag: u64,
    /// The state in which each frame's checksum begins.
    crc: u32,
}

impl LogKey {
    /// For opening frames, and for every frame of a log of version 1.
    pub fn plain(log_number: u64) -> Self {
        Self { tag: log_number, crc: 0 }
    }

    /// For all frames behind the opening frames.
    pub fn salted(log_number: u64, salt: u64) -> Self {
        Self { tag: salt, crc: crc32fast::hash(&log_number.to_le_bytes()) }
    }

    fn crc_of(self, checked: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc);
        crc.update(checked);
        crc.finalize()
    }
}

/// A frame whose checksum, salt and offset are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where the next one begins.
    pub end: u64,
    /// How much of the log was known to be synced when it was written.
    pub synced_through: u64,
    /// What it carries.
    pub payload: Bytes,
}

/// What a log's first frame says about the log before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opening {
    /// The number of the log before this one; 0 if all before it is in tables.
    pub previous: u64,
    /// Where that log ended, synced.
    pub previous_end: u64,
}

/// What a frame carries, told by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// An encoded `WriteBatch`.
    Batch(Bytes),
    /// The first frame of a log; a log of version 1 has no salt.
    Opening(Opening, Option<u64>),
    /// A kind or a version that this program does not know.
    Unknown,
}

impl Frame {
    /// Reads the frame at `offset` of the log with this key, if one is there.
    pub fn decode(key: LogKey, file: &Bytes, offset: usize) -> Option<Self> {
        let mut header = Reader::new(file.get(offset..)?);
        let crc = header.u32().ok()?;
        let checked = header.rest();
        let payload_len = header.u32().ok()? as usize;
        let is_bound = header.u64().ok()? == key.tag && header.u64().ok()? == offset as u64;
        let synced_through = header.u64().ok()?;
        if !is_bound || payload_len > header.rest().len() {
            return None;
        }
        if key.crc_of(&checked[..HEADER_LEN - 4 + payload_len]) != crc {
            return None;
        }
        let payload_at = offset + HEADER_LEN;
        let end = payload_at + payload_len;
        let payload = file.slice(payload_at..end);
        Some(Self { offset: offset as u64, end: end as u64, synced_through, payload })
    }

    /// Tells what it carries.
    pub fn payload(&self) -> Payload {
        let mut reader = Reader::new(&self.payload);
        match reader.u8() {
            Ok(KIND_BATCH) => Payload::Batch(self.payload.slice(1..)),
            Ok(KIND_OPENING) => self.opening(reader).unwrap_or(Payload::Unknown),
            _ => Payload::Unknown,
        }
    }

    fn opening(&self, mut reader: Reader<'_>) -> Option<Payload> {
        let version = reader.u8().ok()?;
        let opening = Opening { previous: reader.u64().ok()?, previous_end: reader.u64().ok()? };
        match version {
            FORMAT_VERSION_UNSALTED => {
                (self.offset == 0 && reader.is_empty()).then_some(Payload::Opening(opening, None))
            }
            FORMAT_VERSION => {
                let salt = reader.u64().ok()?;
                let is_whole = self.payload.len() == OPENING_LEN - HEADER_LEN
                    && reader.rest().iter().all(|byte| *byte == 0);
                is_whole.then_some(Payload::Opening(opening, Some(salt)))
            }
            _ => None,
        }
    }
}

/// Appends a frame that will stand at `offset` of the log with this key; `payload` appends kind and content.
pub(crate) fn encode_frame(
    out: &mut Vec<u8>,
    key: LogKey,
    offset: u64,
    synced_through: u64,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.put_u64_le(0); // checksum and length, filled in below
    out.put_u64_le(key.tag);
    out.put_u64_le(offset);
    out.put_u64_le(synced_through);
    payload(out);
    let payload_len =
        u32::try_from(out.len() - start - HEADER_LEN).expect("the queue holds far less than 4 GiB");
    out[start + 4..start + 8].copy_from_slice(&payload_len.to_le_bytes());
    let crc = key.crc_of(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Appends both opening frames of a log, with which its file begins.
pub(crate) fn encode_openings(out: &mut Vec<u8>, log_number: u64, opening: Opening, salt: u64) {
    for offset in [0, OPENING_LEN] {
        let end = out.len() + OPENING_LEN;
        encode_frame(out, LogKey::plain(log_number), offset as u64, 0, |out| {
            out.put_u8(KIND_OPENING);
            out.put_u8(FORMAT_VERSION);
            out.put_u64_le(opening.previous);
            out.put_u64_le(opening.previous_end);
            out.put_u64_le(salt);
            out.resize(end, 0);
        });
    }
}

/// The name that a log's file has until its opening frames are synced.
pub fn temporary_name(log_number: u64) -> String {
    format!("{log_number:06}.tmp.log")
}

/// The name of a log's file.
pub fn file_name(log_number: u64) -> String {
    format!("{log_number:06}.log")
}

/// The number of the log that has this name, if it is a log's.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?;
    let is_ours = number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_ours { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_s_name_reads_back_and_others_are_no_logs() {
        assert_eq!(parse_file_name(&file_name(7)), Some(7));
        assert_eq!(parse_file_name(&file_name(12_345_678)), Some(12_345_678));
        for name in ["7.log", "000007.sst", "00000a.log", "+00007.log", "LOCK", &temporary_name(7)] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_frame_of_an_empty_batch_is_these_bytes() {
        let mut out = Vec::new();
        let key = LogKey::salted(3, 0x0102_0304_0506_0708);
        encode_frame(&mut out, key, 0x40, 0x20, |out| out.extend_from_slice(&[KIND_BATCH, 0]));
        let crc = crc32fast::hash(&[&3u64.to_le_bytes(), &out[4..]].concat()).to_le_bytes();
        assert_eq!(out[..4], crc);
        assert_eq!(out[4..8], [2, 0, 0, 0]);
        assert_eq!(
            out[8..32],
            [8, 7, 6, 5, 4, 3, 2, 1, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(out[32..], [1, 0]);
    }
}
