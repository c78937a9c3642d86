//! The write-ahead log: what is acknowledged is here first, one log per memtable.
//!
//! ```text
//! NNNNNN.log   frame │ frame │ frame │ … │ zeros, or frames of an earlier life of the file
//!
//! frame        0  crc             u32   CRC-32 of all that follows, payload included
//!              4  payload length  u32
//!              8  log number      u64 ┐ bind the frame to this log and this place, so that bytes of an earlier
//!             16  offset          u64 ┘ life of a recycled file never parse
//!             24  synced through  u64   the offset known synced when the frame was written
//!             32  payload: kind u8, then
//!                   1 = batch     the rest is a WriteBatch
//!                   2 = opening   format version u8 │ previous log u64 │ its end u64     (only at offset 0)
//! ```
//!
//! Every log begins with an opening frame, which says where the log before it ended: that log was synced to
//! there before this one was begun, so anything missing from it is damage. `synced through` says the same inside
//! a log: a bad frame is a torn tail unless a later frame knows that it was synced.
//!
//! Files are zero-filled ahead of use and recycled by renaming, so that most syncs change no metadata: an
//! fdatasync that only overwrites costs half of one that extends the file (DESIGN §10).
//!
//! Not promised: damage to the very last group synced, with no frame after it, looks like a torn tail.

pub mod reader;
pub mod writer;

use bytes::{BufMut, Bytes};

use crate::util::coding::Reader;

/// Bytes before a frame's payload.
pub const HEADER_LEN: usize = 32;
/// What the format of the log is called in its opening frame.
const FORMAT_VERSION: u8 = 1;

const KIND_BATCH: u8 = 1; // stored: never renumber
const KIND_OPENING: u8 = 2;

/// A frame whose checksum, log number and offset are right.
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
    /// The first frame of a log.
    Opening(Opening),
    /// A kind or a version that this program does not know.
    Unknown,
}

impl Frame {
    /// Reads the frame at `offset` of log `log_number`, if one is there.
    pub fn decode(log_number: u64, file: &Bytes, offset: usize) -> Option<Self> {
        let mut header = Reader::new(file.get(offset..)?);
        let crc = header.u32().ok()?;
        let checked = header.rest();
        let payload_len = header.u32().ok()? as usize;
        let is_bound = header.u64().ok()? == log_number && header.u64().ok()? == offset as u64;
        let synced_through = header.u64().ok()?;
        if !is_bound || payload_len > header.rest().len() {
            return None;
        }
        if crc32fast::hash(&checked[..HEADER_LEN - 4 + payload_len]) != crc {
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
            Ok(KIND_OPENING) => Self::opening(reader).map_or(Payload::Unknown, Payload::Opening),
            _ => Payload::Unknown,
        }
    }

    fn opening(mut reader: Reader<'_>) -> Option<Opening> {
        let is_known = reader.u8() == Ok(FORMAT_VERSION);
        let opening = Opening { previous: reader.u64().ok()?, previous_end: reader.u64().ok()? };
        (is_known && reader.finish().is_ok()).then_some(opening)
    }
}

/// Appends a frame that will stand at `offset` of log `log_number`; `payload` appends kind and content.
fn encode_frame(
    out: &mut Vec<u8>,
    log_number: u64,
    offset: u64,
    synced_through: u64,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.put_u64_le(0); // checksum and length, filled in below
    out.put_u64_le(log_number);
    out.put_u64_le(offset);
    out.put_u64_le(synced_through);
    payload(out);
    let payload_len =
        u32::try_from(out.len() - start - HEADER_LEN).expect("the queue holds far less than 4 GiB");
    out[start + 4..start + 8].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32fast::hash(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
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
        for name in ["7.log", "000007.sst", "00000a.log", "+00007.log", "LOCK"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_frame_of_an_empty_batch_is_these_bytes() {
        let mut out = Vec::new();
        encode_frame(&mut out, 3, 0x40, 0x20, |out| out.extend_from_slice(&[KIND_BATCH, 0]));
        let crc = crc32fast::hash(&out[4..]).to_le_bytes();
        assert_eq!(out[..4], crc);
        assert_eq!(out[4..8], [2, 0, 0, 0]);
        assert_eq!(
            out[8..32],
            [3, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(out[32..], [1, 0]);
    }
}
