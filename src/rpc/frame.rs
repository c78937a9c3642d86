//! Frames: what a message is wrapped in on the wire.
//!
//! ```text
//! length u32 │ request_id u64 │ kind u8 │ deadline_ms u32 │ clock u64 │ body … │ crc u32
//! ```
//!
//! `length` counts all that follows it; the CRC-32 covers all that precedes it, the length too. `deadline_ms` is
//! the time that is left when the frame is made (clocks of two machines are not compared), 0 in answers. `clock` is
//! the sender's hybrid logical clock. Integers are little-endian.
//!
//! Frames are made at the end of a shared buffer, so that a writer sends many of them in one write, and taken
//! from the front of a receive buffer; a body shares the buffer's bytes. Lengths are checked before anything is
//! reserved for them. What a body holds is `rpc::message`'s business.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::Timestamp;
use crate::util::coding::Reader;

/// The longest frame, in bytes: a record of [`RECORD_LEN_MAX`] and what is around it. A longer one is not sent, and
/// closes the connection it comes from.
pub const FRAME_LEN_MAX: usize = RECORD_LEN_MAX + (64 << 10);

/// The largest value that fits a frame together with its key: the upper bound of `MAX_VALUE_SIZE`.
pub const RECORD_LEN_MAX: usize = 64 << 20;

/// Bytes before the body: length, request id, kind, deadline and clock.
const HEAD_LEN: usize = 4 + 8 + 1 + 4 + 8;
const CRC_LEN: usize = 4;
/// What `length` says of a frame without a body.
const LENGTH_MIN: usize = HEAD_LEN - 4 + CRC_LEN;

/// What a frame is. Numbered on the wire: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `ReplicaRequest::Ping`.
    Ping = 1,
    /// `ReplicaRequest::Write`.
    Write = 2,
    /// `ReplicaRequest::StoreHints`.
    StoreHints = 3,
    /// `ReplicaRequest::Read`.
    Read = 4,
    /// `ReplicaRequest::ReadVersions`.
    ReadVersions = 5,
    /// `ReplicaRequest::Scan`.
    Scan = 6,
    /// `ReplicaRequest::AskLoad`.
    AskLoad = 7,
    /// `ReplicaResponse::Pong`.
    Pong = 65,
    /// `ReplicaResponse::Written`.
    Written = 66,
    /// `ReplicaResponse::HintsStored`.
    HintsStored = 67,
    /// `ReplicaResponse::Record`.
    Record = 68,
    /// `ReplicaResponse::Versions`.
    Versions = 69,
    /// `ReplicaResponse::Page`.
    Page = 70,
    /// `ReplicaResponse::Load`.
    Load = 71,
    /// `ReplicaResponse::Refused`.
    Refused = 127,
    /// The first frame of each side of a connection: who it is and what ring it knows.
    Hello = 128,
    /// The second frame of each side: whether the other's hello fits.
    Verdict = 129,
}

impl Kind {
    /// The kind with this number on the wire.
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Ping,
            2 => Self::Write,
            3 => Self::StoreHints,
            4 => Self::Read,
            5 => Self::ReadVersions,
            6 => Self::Scan,
            7 => Self::AskLoad,
            65 => Self::Pong,
            66 => Self::Written,
            67 => Self::HintsStored,
            68 => Self::Record,
            69 => Self::Versions,
            70 => Self::Page,
            71 => Self::Load,
            127 => Self::Refused,
            128 => Self::Hello,
            129 => Self::Verdict,
            _ => return None,
        })
    }
}

/// Why bytes are no frame. The connection they came from is of no more use: where the next frame starts is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is less than a frame's smallest or more than allowed.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// The checksum does not match.
    #[error("a frame with a wrong checksum")]
    Checksum,
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// The frame was given alone, and bytes are left over or missing.
    #[error("bytes that are not one whole frame")]
    NotOne,
}

/// A message would not fit a frame; nothing was encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes does not fit a frame")]
pub struct TooLarge(pub usize);

/// A frame, its body not looked into yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which request this is, or answers. Never used twice on a connection.
    pub request_id: u64,
    /// What the body is.
    pub kind: Kind,
    /// Milliseconds that are left to answer; 0 in answers.
    pub deadline_ms: u32,
    /// The sender's hybrid logical clock.
    pub clock: Timestamp,
    /// The body; shares the bytes that were received.
    pub body: Bytes,
}

impl Frame {
    /// Appends a frame to `out`; `body` appends the body. Leaves `out` as it was if the frame would be too large.
    pub fn encode(
        request_id: u64,
        kind: Kind,
        deadline_ms: u32,
        clock: Timestamp,
        out: &mut BytesMut,
        body: impl FnOnce(&mut BytesMut),
    ) -> Result<(), TooLarge> {
        let start = out.len();
        out.put_u32_le(0); // the length, known at the end
        out.put_u64_le(request_id);
        out.put_u8(kind as u8);
        out.put_u32_le(deadline_ms);
        out.put_u64_le(clock.as_u64());
        body(out);
        let len = out.len() - start + CRC_LEN;
        if len > FRAME_LEN_MAX {
            out.truncate(start);
            return Err(TooLarge(len));
        }
        out[start..start + 4].copy_from_slice(&((len - 4) as u32).to_le_bytes());
        let crc = crc32fast::hash(&out[start..]);
        out.put_u32_le(crc);
        Ok(())
    }

    /// Takes the next frame from the front of what was received; `None` while it is not whole.
    ///
    /// Reserves no more than `len_max`, and only once a length up to that was read: what a peer claims costs memory
    /// only as its bytes arrive, since the buffer is grown by its reader.
    pub fn take(received: &mut BytesMut, len_max: usize) -> Result<Option<Self>, FrameError> {
        let Some(length) = received.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if !(LENGTH_MIN..=len_max.saturating_sub(4)).contains(&length) {
            return Err(FrameError::Length(length));
        }
        if received.len() < 4 + length {
            return Ok(None);
        }
        Self::checked(received.split_to(4 + length).freeze()).map(Some)
    }

    /// Reads bytes that are one frame: for transports that carry whole messages.
    pub fn decode(bytes: Bytes) -> Result<Self, FrameError> {
        let length = bytes.first_chunk::<4>().ok_or(FrameError::NotOne)?;
        let length = u32::from_le_bytes(*length) as usize;
        if !(LENGTH_MIN..=FRAME_LEN_MAX - 4).contains(&length) {
            return Err(FrameError::Length(length));
        }
        if bytes.len() != 4 + length {
            return Err(FrameError::NotOne);
        }
        Self::checked(bytes)
    }

    /// How much time is left to answer, counted from now on.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.into())
    }

    /// Changes how much time an encoded frame says is left, for one that had to wait before it was sent.
    ///
    /// # Panics
    /// If `encoded` is not one whole frame: it is always one that [`Frame::encode`] made.
    pub fn set_deadline(encoded: &mut [u8], deadline_ms: u32) {
        let at = HEAD_LEN - 8 - 4;
        encoded[at..at + 4].copy_from_slice(&deadline_ms.to_le_bytes());
        let (covered, crc) = encoded.split_last_chunk_mut::<CRC_LEN>().expect("a frame has a checksum");
        *crc = crc32fast::hash(covered).to_le_bytes();
    }

    /// Reads a frame whose length was checked.
    fn checked(mut bytes: Bytes) -> Result<Self, FrameError> {
        let (covered, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(FrameError::NotOne)?;
        if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return Err(FrameError::Checksum);
        }
        let short = |_| FrameError::NotOne;
        let mut head = Reader::new(&bytes[4..]);
        let request_id = head.u64().map_err(short)?;
        let kind = head.u8().map_err(short)?;
        let kind = Kind::from_u8(kind).ok_or(FrameError::Kind(kind))?;
        let deadline_ms = head.u32().map_err(short)?;
        let clock = Timestamp::from_u64(head.u64().map_err(short)?);
        bytes.advance(HEAD_LEN);
        bytes.truncate(bytes.len() - CRC_LEN);
        Ok(Self { request_id, kind, deadline_ms, clock, body: bytes })
    }
}

/// A duration as a frame carries it: rounded up, so that a deadline never reads as "none left" at the start.
pub fn deadline_ms(timeout: Duration) -> u32 {
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(id: u64, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        Frame::encode(id, Kind::Read, 1500, Timestamp::from_u64(7), &mut out, |out| out.put_slice(body))
            .unwrap();
        out
    }

    proptest! {
        #[test]
        fn frames_in_one_buffer_are_taken_one_by_one(bodies: Vec<Vec<u8>>, cut in 0usize..40) {
            let mut wire = BytesMut::new();
            for (id, body) in bodies.iter().enumerate() {
                wire.extend_from_slice(&encoded(id as u64, body));
            }
            let whole = wire.len();
            wire.truncate(whole.saturating_sub(cut));
            let mut taken = 0;
            while let Some(frame) = Frame::take(&mut wire, FRAME_LEN_MAX).unwrap() {
                prop_assert_eq!(frame.request_id, taken as u64);
                prop_assert_eq!(&frame.body[..], &bodies[taken][..]);
                taken += 1;
            }
            prop_assert!(cut > 0 || taken == bodies.len());
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_a_frame(body: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            let mut wire = encoded(3, &body);
            let at = at.index(wire.len());
            wire[at] ^= 1 << bit;
            prop_assert!(Frame::decode(wire.freeze()).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = Frame::decode(Bytes::from(bytes.clone()));
            let mut received = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::take(&mut received, FRAME_LEN_MAX) {}
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_bytes_arrive() {
        let mut received = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert_eq!(Frame::take(&mut received, 1 << 20), Err(FrameError::Length(u32::MAX as usize)));
        let mut received = BytesMut::from(&3u32.to_le_bytes()[..]);
        assert_eq!(Frame::take(&mut received, 1 << 20), Err(FrameError::Length(3)));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut wire = encoded(1, b"");
        wire[12] = 99;
        let end = wire.len() - CRC_LEN;
        let crc = crc32fast::hash(&wire[..end]);
        wire[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Frame::decode(wire.freeze()), Err(FrameError::Kind(99)));
    }

    #[test]
    fn a_message_that_does_not_fit_leaves_the_buffer_as_it_was() {
        let mut out = encoded(1, b"before");
        let before = out.clone();
        let body = vec![0; FRAME_LEN_MAX];
        let result = Frame::encode(2, Kind::Write, 0, Timestamp::ZERO, &mut out, |out| out.put_slice(&body));
        assert!(result.is_err());
        assert_eq!(out, before);
    }

    #[test]
    fn a_deadline_changed_later_is_read_back() {
        let mut wire = encoded(1, b"body");
        let mut changed = Frame::decode(wire.clone().freeze()).unwrap();
        Frame::set_deadline(&mut wire, 20);
        changed.deadline_ms = 20;
        assert_eq!(Frame::decode(wire.freeze()), Ok(changed));
    }

    #[test]
    fn a_deadline_is_rounded_up() {
        assert_eq!(deadline_ms(Duration::from_micros(1)), 1);
        assert_eq!(deadline_ms(Duration::from_millis(200)), 200);
        assert_eq!(deadline_ms(Duration::MAX), u32::MAX);
    }

    #[test]
    fn every_kind_reads_back_as_its_number() {
        let known: Vec<u8> = (0..=255).filter(|n| Kind::from_u8(*n).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7, 65, 66, 67, 68, 69, 70, 71, 127, 128, 129]);
        assert!(known.into_iter().all(|n| Kind::from_u8(n).is_some_and(|kind| kind as u8 == n)));
    }
}
