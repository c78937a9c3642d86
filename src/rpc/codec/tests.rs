//! Every message reads back as written, and no bytes make decoding panic.

use proptest::prelude::*;

use super::*;
use crate::types::{ContentType, Expiry, Value};

fn any_key() -> impl Strategy<Value = Key> {
    prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| Key::new(bytes).unwrap())
}

fn any_timestamp() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_u64)
}

fn any_record() -> impl Strategy<Value = Record> {
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..60));
    let expiry = prop::option::of(1u64..);
    (any_timestamp(), value, prop::option::of("[ -~]{1,30}"), expiry).prop_map(
        |(at, value, content_type, end)| {
            let content_type = content_type.and_then(|text| ContentType::new(text.as_bytes()));
            let expires_at = end.and_then(Expiry::from_u64);
            let record =
                |bytes| Record::value(at, Value::new(bytes).of_type(content_type).expiring(expires_at));
            match (value, expires_at) {
                (None, None) => Record::tombstone(at),
                (None, Some(expires_at)) => Record::Expired { timestamp: at, expires_at },
                (Some(bytes), _) => record(bytes),
            }
        },
    )
}

fn any_items() -> impl Strategy<Value = Vec<(Key, Record)>> {
    prop::collection::vec((any_key(), any_record()), 0..5)
}

fn any_name() -> impl Strategy<Value = NodeId> {
    "[a-z]{1,12}:[0-9]{1,5}".prop_map(|name| NodeId::from_canonical(&name))
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let marks = (any_timestamp(), any_timestamp(), any_timestamp());
    let remembered = prop::option::of((any::<u128>(), any_timestamp()));
    (any::<u128>(), any::<u64>(), marks, any::<[bool; 3]>(), remembered, any::<u64>()).prop_map(
        |(uuid, run, (explained, mark, wall), flags, remembered, hints_waiting)| Facts {
            uuid,
            run,
            explained,
            mark,
            voting: flags[0],
            has_voted: flags[1],
            wall,
            remembered,
            hints_waiting,
            founded_with: flags[2],
        },
    )
}

fn any_bound() -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from))
}

fn any_scan() -> impl Strategy<Value = ScanRequest> {
    (any_bound(), any_bound(), prop::option::of(any_name()), any::<[u32; 3]>()).prop_map(
        |(start, end, shared_with, [rows_max, bytes_max, examined_max])| ScanRequest {
            range: KeyRange { start, end },
            shared_with,
            rows_max,
            bytes_max,
            examined_max,
        },
    )
}

fn any_origin() -> impl Strategy<Value = WriteOrigin> {
    prop::sample::select(vec![WriteOrigin::Client, WriteOrigin::Hint, WriteOrigin::Repair])
}

fn any_request() -> impl Strategy<Value = ReplicaRequest> {
    prop_oneof![
        any_facts().prop_map(ReplicaRequest::Ping),
        (any_origin(), any_items()).prop_map(|(origin, items)| ReplicaRequest::Write { origin, items }),
        (any_name(), any_items()).prop_map(|(target, items)| ReplicaRequest::StoreHints { target, items }),
        any_key().prop_map(|key| ReplicaRequest::Read { key }),
        prop::collection::vec(any_key(), 0..20).prop_map(|keys| ReplicaRequest::ReadVersions { keys }),
        any_scan().prop_map(ReplicaRequest::Scan),
        Just(ReplicaRequest::AskLoad),
    ]
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        prop::sample::select(vec![
            Refusal::NoSpace,
            Refusal::Busy,
            Refusal::Damaged,
            Refusal::Poisoned,
            Refusal::NotReady,
            Refusal::NotAReplica,
        ]),
        any::<u64>().prop_map(|ahead_ms| Refusal::TooFarAhead { ahead_ms }),
    ]
}

fn any_response() -> impl Strategy<Value = ReplicaResponse> {
    let version = (any_timestamp(), any::<u64>()).prop_map(|(timestamp, hash)| Version { timestamp, hash });
    let held = prop_oneof![
        Just(HeldVersion::Nothing),
        version.prop_map(HeldVersion::Version),
        Just(HeldVersion::Damaged)
    ];
    prop_oneof![
        any_facts().prop_map(ReplicaResponse::Pong),
        (any::<bool>(), prop::collection::vec((any::<u32>(), any_timestamp()), 0..4))
            .prop_map(|(voting, overtaken)| ReplicaResponse::Written { voting, overtaken }),
        Just(ReplicaResponse::HintsStored),
        (any::<bool>(), prop::option::of(any_record()))
            .prop_map(|(voting, record)| ReplicaResponse::Record { voting, record }),
        (any::<bool>(), prop::collection::vec(held, 0..20))
            .prop_map(|(voting, held)| ReplicaResponse::Versions { voting, held }),
        (any::<[bool; 2]>(), any_items(), any_bound()).prop_map(|([voting, damaged], items, resume)| {
            ReplicaResponse::Page(ScanPage { voting, items, resume, damaged })
        }),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|load| ReplicaResponse::Load(load.into())),
        any_refusal().prop_map(ReplicaResponse::Refused),
    ]
}

/// A frame of any kind around any bytes, with a checksum that matches.
fn any_frame() -> impl Strategy<Value = Frame> {
    (any::<u8>().prop_filter_map("a kind", Kind::from_u8), prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(kind, body)| Frame {
            request_id: 1,
            kind,
            deadline_ms: 0,
            clock: Timestamp::ZERO,
            body: Bytes::from(body),
        })
}

proptest! {
    #[test]
    fn a_request_decodes_as_encoded(body in any_request(), clock in any_timestamp(), id: u64) {
        let request = Request { clock, body };
        let mut wire = BytesMut::new();
        encode_request(&request, id, Duration::from_millis(250), &mut wire).unwrap();
        let frame = Frame::decode(wire.freeze()).unwrap();
        prop_assert_eq!((frame.request_id, frame.deadline_ms), (id, 250));
        prop_assert_eq!(decode_request(&frame), Ok(request));
        prop_assert!(decode_response(&frame).is_err());
    }

    #[test]
    fn a_response_decodes_as_encoded(body in any_response(), clock in any_timestamp(), id: u64) {
        let response = Response { clock, body };
        let mut wire = BytesMut::new();
        encode_response(&response, id, &mut wire).unwrap();
        let frame = Frame::decode(wire.freeze()).unwrap();
        prop_assert_eq!((frame.request_id, frame.deadline_ms), (id, 0));
        prop_assert_eq!(decode_response(&frame), Ok(response));
        prop_assert!(decode_request(&frame).is_err());
    }

    #[test]
    fn a_body_of_garbage_never_panics(frame in any_frame()) {
        let _ = decode_request(&frame);
        let _ = decode_response(&frame);
    }

    #[test]
    fn a_body_cut_short_is_refused_or_reads_as_something_else(body in any_request(), cut in 1usize..8) {
        let request = Request { clock: Timestamp::ZERO, body };
        let mut wire = BytesMut::new();
        encode_request(&request, 1, Duration::ZERO, &mut wire).unwrap();
        let mut frame = Frame::decode(wire.freeze()).unwrap();
        prop_assume!(!frame.body.is_empty()); // a request without a body has nothing to cut
        prop_assume!(!(frame.kind == Kind::Ping && cut == 1)); // its last field may be missing
        frame.body.truncate(frame.body.len().saturating_sub(cut));
        prop_assert_ne!(decode_request(&frame), Ok(request));
    }
}

/// What version 1 knows of facts and of a page, with the additions of version 2 at their defaults.
fn without_additions(body: ReplicaResponse) -> ReplicaResponse {
    match body {
        ReplicaResponse::Pong(facts) => ReplicaResponse::Pong(Facts { founded_with: false, ..facts }),
        ReplicaResponse::Page(ScanPage { voting, items, resume, damaged }) => {
            let voting = voting && !damaged;
            ReplicaResponse::Page(ScanPage { voting, items, resume, damaged: false })
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn a_peer_of_wire_version_1_is_sent_what_it_knows_and_understood(body in any_response()) {
        let (mut new, mut old) = (BytesMut::new(), BytesMut::new());
        let response = Response { clock: Timestamp::ZERO, body };
        encode_response_as(2, &response, 1, &mut new).unwrap();
        encode_response_as(1, &response, 1, &mut old).unwrap();
        let added = usize::from(matches!(response.body, ReplicaResponse::Pong(_) | ReplicaResponse::Page(_)));
        prop_assert_eq!(new.len(), old.len() + added);
        let expected = Response { body: without_additions(response.body), ..response };
        prop_assert_eq!(decode_response(&Frame::decode(old.freeze()).unwrap()), Ok(expected));
    }

    #[test]
    fn what_a_later_version_adds_to_facts_is_skipped(facts in any_facts()) {
        let request = Request { clock: Timestamp::ZERO, body: ReplicaRequest::Ping(facts) };
        let mut wire = BytesMut::new();
        encode_request(&request, 1, Duration::ZERO, &mut wire).unwrap();
        let mut frame = Frame::decode(wire.freeze()).unwrap();
        frame.body = [&frame.body[..], b"later"].concat().into();
        prop_assert_eq!(decode_request(&frame), Ok(request));
    }
}

#[test]
fn a_count_of_items_without_their_bytes_is_refused() {
    let mut body = BytesMut::new();
    body.put_u8(0);
    put_varint(&mut body, ITEMS_MAX as u64);
    let frame = Frame {
        request_id: 1,
        kind: Kind::Write,
        deadline_ms: 0,
        clock: Timestamp::ZERO,
        body: body.freeze(),
    };
    assert!(decode_request(&frame).is_err());
}

#[test]
fn a_message_of_too_many_items_is_not_sent() {
    let item = (Key::new("k").unwrap(), Record::tombstone(Timestamp::ZERO));
    let body = ReplicaRequest::Write { origin: WriteOrigin::Client, items: vec![item; ITEMS_MAX + 1] };
    let mut out = BytesMut::new();
    let request = Request { clock: Timestamp::ZERO, body };
    assert!(encode_request(&request, 1, Duration::ZERO, &mut out).is_err());
    assert!(out.is_empty());
}

#[test]
fn a_decoded_value_shares_the_received_bytes() {
    let value = Value::new(vec![7; 100]);
    let body = ReplicaResponse::Record { voting: true, record: Some(Record::value(Timestamp::ZERO, value)) };
    let mut wire = BytesMut::new();
    encode_response(&Response { clock: Timestamp::ZERO, body }, 1, &mut wire).unwrap();
    let wire = wire.freeze();
    let frame = Frame::decode(wire.clone()).unwrap();
    let ReplicaResponse::Record { record: Some(record), .. } = decode_response(&frame).unwrap().body else {
        panic!("another answer");
    };
    let inside = record.as_value().unwrap().as_bytes().as_ptr_range();
    assert!(wire.as_ptr_range().contains(&inside.start));
}

/// The bytes themselves: a change here is a change of the wire, and needs a new version of it.
#[test]
fn a_write_looks_like_this_on_the_wire() {
    let items = vec![(Key::new("key").unwrap(), Record::value(Timestamp::from_u64(2), Value::new("v")))];
    let body = ReplicaRequest::Write { origin: WriteOrigin::Repair, items };
    let mut wire = BytesMut::new();
    let request = Request { clock: Timestamp::from_u64(3), body };
    encode_request(&request, 4, Duration::from_millis(5), &mut wire).unwrap();
    let (head, crc) = wire.split_last_chunk::<4>().unwrap();
    let expected: &[&[u8]] = &[
        &[42, 0, 0, 0],               // length
        &[4, 0, 0, 0, 0, 0, 0, 0],    // request id
        &[2],                         // kind: Write
        &[5, 0, 0, 0],                // milliseconds left
        &[3, 0, 0, 0, 0, 0, 0, 0],    // clock
        &[2, 1],                      // origin: Repair; one item
        &[3, b'k', b'e', b'y', 10],   // key; the record has 10 bytes
        &[1, 2, 0, 0, 0, 0, 0, 0, 0], // a value at timestamp 2
        b"v",
    ];
    assert_eq!(head, expected.concat());
    assert_eq!(u32::from_le_bytes(*crc), crc32fast::hash(head));
}
