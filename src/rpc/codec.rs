//! The wire codec of messages: `Request` and `Response` to the bodies of frames and back.
//!
//! `docs/formats.md` draws every body byte by byte. Decoding shares the received bytes (no value is copied), checks
//! every length before it reserves anything, and refuses what it does not know: a message that grows needs a
//! new wire version, and the handshake settles on one that both sides speak. Facts and pages are different since
//! version 2: fields may be added at their end, which a reader that does not know them skips.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{Frame, Kind, TooLarge, deadline_ms};
use super::message::{
    Facts, HeldVersion, ITEMS_MAX, Refusal, ReplicaRequest, ReplicaResponse, Request, Response, ScanPage,
    ScanRequest, WriteOrigin,
};
use crate::types::{Key, KeyRange, NodeId, Record, Timestamp, Version};
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

/// The oldest and the newest wire version that this program speaks.
pub const WIRE_VERSIONS: (u16, u16) = (1, 2);

/// The longest member name, in bytes: a DNS name is at most 253, and a port follows.
pub const NAME_LEN_MAX: usize = 512;

/// The fewest bytes an item takes: lengths of key and record, a key's byte, a tombstone.
const ITEM_LEN_MIN: usize = 1 + 1 + 1 + 9;
/// The fewest bytes a key takes: its length and one byte.
const KEY_LEN_MIN: usize = 1 + 1;
/// Bytes of an item of [`ReplicaResponse::Written`] that was overtaken: its place and the newer timestamp.
const OVERTAKEN_LEN: usize = 4 + 8;

/// Appends a request as one frame, in the newest wire version. Nothing is appended when it does not fit.
pub fn encode_request(
    request: &Request,
    request_id: u64,
    timeout: Duration,
    out: &mut BytesMut,
) -> Result<(), TooLarge> {
    encode_request_as(WIRE_VERSIONS.1, request, request_id, timeout, out)
}

/// [`encode_request`] for a peer that speaks wire version `wire`.
pub fn encode_request_as(
    wire: u16,
    request: &Request,
    request_id: u64,
    timeout: Duration,
    out: &mut BytesMut,
) -> Result<(), TooLarge> {
    let kind = match &request.body {
        ReplicaRequest::Ping(_) => Kind::Ping,
        ReplicaRequest::Write { .. } => Kind::Write,
        ReplicaRequest::StoreHints { .. } => Kind::StoreHints,
        ReplicaRequest::Read { .. } => Kind::Read,
        ReplicaRequest::ReadVersions { .. } => Kind::ReadVersions,
        ReplicaRequest::Scan(_) => Kind::Scan,
        ReplicaRequest::AskLoad => Kind::AskLoad,
    };
    check_count(match &request.body {
        ReplicaRequest::Write { items, .. } | ReplicaRequest::StoreHints { items, .. } => items.len(),
        ReplicaRequest::ReadVersions { keys } => keys.len(),
        _ => 0,
    })?;
    Frame::encode(request_id, kind, deadline_ms(timeout), request.clock, out, |out| match &request.body {
        ReplicaRequest::Ping(facts) => put_facts(out, facts, wire),
        ReplicaRequest::Write { origin, items } => {
            out.put_u8(*origin as u8);
            put_items(out, items);
        }
        ReplicaRequest::StoreHints { target, items } => {
            put_bytes(out, target.as_str().as_bytes());
            put_items(out, items);
        }
        ReplicaRequest::Read { key } => out.put_slice(key.as_bytes()),
        ReplicaRequest::ReadVersions { keys } => {
            put_varint(out, keys.len() as u64);
            for key in keys {
                put_bytes(out, key.as_bytes());
            }
        }
        ReplicaRequest::Scan(scan) => put_scan(out, scan),
        ReplicaRequest::AskLoad => {}
    })
}

/// Appends an answer as one frame, in the newest wire version. Nothing is appended when it does not fit.
pub fn encode_response(response: &Response, request_id: u64, out: &mut BytesMut) -> Result<(), TooLarge> {
    encode_response_as(WIRE_VERSIONS.1, response, request_id, out)
}

/// [`encode_response`] for a peer that speaks wire version `wire`.
pub fn encode_response_as(
    wire: u16,
    response: &Response,
    request_id: u64,
    out: &mut BytesMut,
) -> Result<(), TooLarge> {
    let kind = match &response.body {
        ReplicaResponse::Pong(_) => Kind::Pong,
        ReplicaResponse::Written { .. } => Kind::Written,
        ReplicaResponse::HintsStored => Kind::HintsStored,
        ReplicaResponse::Record { .. } => Kind::Record,
        ReplicaResponse::Versions { .. } => Kind::Versions,
        ReplicaResponse::Page(_) => Kind::Page,
        ReplicaResponse::Load(_) => Kind::Load,
        ReplicaResponse::Refused(_) => Kind::Refused,
    };
    check_count(if let ReplicaResponse::Page(page) = &response.body { page.items.len() } else { 0 })?;
    Frame::encode(request_id, kind, 0, response.clock, out, |out| match &response.body {
        ReplicaResponse::Pong(facts) => put_facts(out, facts, wire),
        ReplicaResponse::Written { voting, overtaken } => {
            put_flag(out, *voting);
            put_varint(out, overtaken.len() as u64);
            for (place, newer) in overtaken {
                out.put_u32_le(*place);
                out.put_u64_le(newer.as_u64());
            }
        }
        ReplicaResponse::HintsStored => {}
        ReplicaResponse::Record { voting, record } => {
            put_flag(out, *voting);
            put_option(out, record.as_ref(), |out, record| record.encode(out));
        }
        ReplicaResponse::Versions { voting, held } => {
            put_flag(out, *voting);
            put_varint(out, held.len() as u64);
            for held in held {
                put_held(out, held);
            }
        }
        ReplicaResponse::Page(page) => {
            // An asker of version 1 cannot be told of damage; that the disk does not count has the same effect there.
            put_flag(out, page.voting && (wire >= 2 || !page.damaged));
            put_option(out, page.resume.as_ref(), |out, resume| put_bytes(out, resume));
            put_items(out, &page.items);
            if wire >= 2 {
                put_flag(out, page.damaged);
            }
        }
        ReplicaResponse::Load(load) => out.put_slice(load),
        ReplicaResponse::Refused(refusal) => put_refusal(out, refusal),
    })
}

/// Reads the request in a frame.
pub fn decode_request(frame: &Frame) -> Result<Request, DecodeError> {
    let mut body = Body::new(&frame.body);
    let request = match frame.kind {
        Kind::Ping => ReplicaRequest::Ping(body.facts()?),
        Kind::Write => ReplicaRequest::Write { origin: body.origin()?, items: body.items()? },
        Kind::StoreHints => ReplicaRequest::StoreHints { target: body.name()?, items: body.items()? },
        Kind::Read => ReplicaRequest::Read { key: body.key_of_the_rest()? },
        Kind::ReadVersions => ReplicaRequest::ReadVersions { keys: body.keys()? },
        Kind::Scan => ReplicaRequest::Scan(body.scan()?),
        Kind::AskLoad => ReplicaRequest::AskLoad,
        _ => return Err(DecodeError("a request")),
    };
    body.reader.finish()?;
    Ok(Request { clock: frame.clock, body: request })
}

/// Reads the answer in a frame.
pub fn decode_response(frame: &Frame) -> Result<Response, DecodeError> {
    let mut body = Body::new(&frame.body);
    let response = match frame.kind {
        Kind::Pong => ReplicaResponse::Pong(body.facts()?),
        Kind::Written => ReplicaResponse::Written { voting: body.flag()?, overtaken: body.all_overtaken()? },
        Kind::HintsStored => ReplicaResponse::HintsStored,
        Kind::Record => ReplicaResponse::Record {
            voting: body.flag()?,
            record: body.option(|body| Record::decode(&body.rest()))?,
        },
        Kind::Versions => ReplicaResponse::Versions { voting: body.flag()?, held: body.all_held()? },
        Kind::Page => {
            let voting = body.flag()?;
            let resume = body.option(Body::bound)?;
            let items = body.items()?;
            let damaged = body.added_flag()?;
            body.skip_added();
            ReplicaResponse::Page(ScanPage { voting, items, resume, damaged })
        }
        Kind::Load => ReplicaResponse::Load(body.rest()),
        Kind::Refused => ReplicaResponse::Refused(body.refusal()?),
        _ => return Err(DecodeError("an answer")),
    };
    body.reader.finish()?;
    Ok(Response { clock: frame.clock, body: response })
}

fn check_count(items: usize) -> Result<(), TooLarge> {
    if items > ITEMS_MAX { Err(TooLarge(items)) } else { Ok(()) }
}

fn put_flag(out: &mut BytesMut, flag: bool) {
    out.put_u8(flag.into());
}

fn put_option<T>(out: &mut BytesMut, option: Option<&T>, put: impl FnOnce(&mut BytesMut, &T)) {
    put_flag(out, option.is_some());
    if let Some(value) = option {
        put(out, value);
    }
}

fn put_items(out: &mut BytesMut, items: &[(Key, Record)]) {
    put_varint(out, items.len() as u64);
    for (key, record) in items {
        put_bytes(out, key.as_bytes());
        put_varint(out, record.encoded_len() as u64);
        record.encode(out);
    }
}

/// Numbered on the wire: never renumber.
fn put_held(out: &mut BytesMut, held: &HeldVersion) {
    match held {
        HeldVersion::Nothing => out.put_u8(0),
        HeldVersion::Version(version) => {
            out.put_u8(1);
            out.put_u64_le(version.timestamp.as_u64());
            out.put_u64_le(version.hash);
        }
        HeldVersion::Damaged => out.put_u8(2),
    }
}

fn put_scan(out: &mut BytesMut, scan: &ScanRequest) {
    put_option(out, scan.range.start.as_ref(), |out, start| put_bytes(out, start));
    put_option(out, scan.range.end.as_ref(), |out, end| put_bytes(out, end));
    put_option(out, scan.shared_with.as_ref(), |out, node| put_bytes(out, node.as_str().as_bytes()));
    out.put_u32_le(scan.rows_max);
    out.put_u32_le(scan.bytes_max);
    out.put_u32_le(scan.examined_max);
}

fn put_facts(out: &mut BytesMut, facts: &Facts, wire: u16) {
    out.put_u128_le(facts.uuid);
    out.put_u64_le(facts.run);
    out.put_u64_le(facts.explained.as_u64());
    out.put_u64_le(facts.mark.as_u64());
    put_flag(out, facts.voting);
    put_flag(out, facts.has_voted);
    out.put_u64_le(facts.wall.as_u64());
    put_option(out, facts.remembered.as_ref(), |out, (uuid, mark)| {
        out.put_u128_le(*uuid);
        out.put_u64_le(mark.as_u64());
    });
    out.put_u64_le(facts.hints_waiting);
    if wire >= 2 {
        put_flag(out, facts.founded_with);
    }
}

/// Refusals are numbered on the wire: never renumber.
fn put_refusal(out: &mut BytesMut, refusal: &Refusal) {
    out.put_u8(match refusal {
        Refusal::NoSpace => 1,
        Refusal::Busy => 2,
        Refusal::TooFarAhead { .. } => 3,
        Refusal::Damaged => 4,
        Refusal::Poisoned => 5,
        Refusal::NotReady => 6,
        Refusal::NotAReplica => 7,
    });
    if let Refusal::TooFarAhead { ahead_ms } = refusal {
        out.put_u64_le(*ahead_ms);
    }
}

/// Reads a frame's body; what it returns shares the body's bytes.
struct Body<'a> {
    bytes: &'a Bytes,
    reader: Reader<'a>,
}

impl<'a> Body<'a> {
    fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, reader: Reader::new(bytes) }
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError("0 or 1")),
        }
    }

    /// A flag that was added at the end of a message; not set where the sender does not know it.
    fn added_flag(&mut self) -> Result<bool, DecodeError> {
        if self.reader.is_empty() { Ok(false) } else { self.flag() }
    }

    /// Leaves out what a later version added at the end of a message.
    fn skip_added(&mut self) {
        self.reader = Reader::new(&[]);
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    fn timestamp(&mut self) -> Result<Timestamp, DecodeError> {
        self.reader.u64().map(Timestamp::from_u64)
    }

    fn u128(&mut self) -> Result<u128, DecodeError> {
        let low = self.reader.u64()?;
        let high = self.reader.u64()?;
        Ok(u128::from(high) << 64 | u128::from(low))
    }

    fn version(&mut self) -> Result<Version, DecodeError> {
        Ok(Version { timestamp: self.timestamp()?, hash: self.reader.u64()? })
    }

    /// The rest of the body, shared.
    fn rest(&mut self) -> Bytes {
        let rest = self.reader.rest();
        self.reader = Reader::new(&[]);
        self.bytes.slice_ref(rest)
    }

    fn key_of_the_rest(&mut self) -> Result<Key, DecodeError> {
        Key::new(self.rest()).map_err(|_| DecodeError("a key of 1 to 4096 bytes"))
    }

    /// A bound of a range of keys: a key, or the smallest string after one, or empty.
    fn bound(&mut self) -> Result<Bytes, DecodeError> {
        let bytes = self.reader.bytes()?;
        if bytes.len() > Key::MAX_LEN + 1 {
            return Err(DecodeError("a bound of at most 4097 bytes"));
        }
        Ok(self.bytes.slice_ref(bytes))
    }

    fn name(&mut self) -> Result<NodeId, DecodeError> {
        match self.reader.text()? {
            name if (1..=NAME_LEN_MAX).contains(&name.len()) => Ok(NodeId::from_canonical(name)),
            _ => Err(DecodeError("a member's name of 1 to 512 bytes")),
        }
    }

    fn origin(&mut self) -> Result<WriteOrigin, DecodeError> {
        match self.reader.u8()? {
            0 => Ok(WriteOrigin::Client),
            1 => Ok(WriteOrigin::Hint),
            2 => Ok(WriteOrigin::Repair),
            _ => Err(DecodeError("an origin of a write that this version knows")),
        }
    }

    /// A count of things that take at least `len_min` bytes each.
    fn count(&mut self, len_min: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.reader.varint()?).unwrap_or(usize::MAX);
        if count > ITEMS_MAX || count > self.reader.rest().len() / len_min {
            return Err(DecodeError("as many items as a message may have and as there are bytes for"));
        }
        Ok(count)
    }

    fn key(&mut self) -> Result<Key, DecodeError> {
        let key = self.bytes.slice_ref(self.reader.bytes()?);
        Key::new(key).map_err(|_| DecodeError("a key of 1 to 4096 bytes"))
    }

    fn keys(&mut self) -> Result<Vec<Key>, DecodeError> {
        let count = self.count(KEY_LEN_MIN)?;
        (0..count).map(|_| self.key()).collect()
    }

    fn held(&mut self) -> Result<HeldVersion, DecodeError> {
        match self.reader.u8()? {
            0 => Ok(HeldVersion::Nothing),
            1 => self.version().map(HeldVersion::Version),
            2 => Ok(HeldVersion::Damaged),
            _ => Err(DecodeError("nothing, a version or damage")),
        }
    }

    fn all_held(&mut self) -> Result<Vec<HeldVersion>, DecodeError> {
        let count = self.count(1)?;
        (0..count).map(|_| self.held()).collect()
    }

    fn all_overtaken(&mut self) -> Result<Vec<(u32, Timestamp)>, DecodeError> {
        let count = self.count(OVERTAKEN_LEN)?;
        (0..count).map(|_| Ok((self.reader.u32()?, self.timestamp()?))).collect()
    }

    fn items(&mut self) -> Result<Vec<(Key, Record)>, DecodeError> {
        let count = self.count(ITEM_LEN_MIN)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let key = self.key()?;
            let record = self.bytes.slice_ref(self.reader.bytes()?);
            items.push((key, Record::decode(&record)?));
        }
        Ok(items)
    }

    fn scan(&mut self) -> Result<ScanRequest, DecodeError> {
        let range = KeyRange { start: self.option(Self::bound)?, end: self.option(Self::bound)? };
        Ok(ScanRequest {
            range,
            shared_with: self.option(Self::name)?,
            rows_max: self.reader.u32()?,
            bytes_max: self.reader.u32()?,
            examined_max: self.reader.u32()?,
        })
    }

    fn facts(&mut self) -> Result<Facts, DecodeError> {
        let facts = Facts {
            uuid: self.u128()?,
            run: self.reader.u64()?,
            explained: self.timestamp()?,
            mark: self.timestamp()?,
            voting: self.flag()?,
            has_voted: self.flag()?,
            wall: self.timestamp()?,
            remembered: self.option(|body| Ok((body.u128()?, body.timestamp()?)))?,
            hints_waiting: self.reader.u64()?,
            founded_with: self.added_flag()?,
        };
        self.skip_added();
        Ok(facts)
    }

    fn refusal(&mut self) -> Result<Refusal, DecodeError> {
        Ok(match self.reader.u8()? {
            1 => Refusal::NoSpace,
            2 => Refusal::Busy,
            3 => Refusal::TooFarAhead { ahead_ms: self.reader.u64()? },
            4 => Refusal::Damaged,
            5 => Refusal::Poisoned,
            6 => Refusal::NotReady,
            7 => Refusal::NotAReplica,
            _ => return Err(DecodeError("a refusal that this version knows")),
        })
    }
}

#[cfg(test)]
mod tests;
