//! Properties of everything that reads bytes from a disk, a peer or a client, as functions of any input.
//!
//! ```text
//! fuzz/fuzz_targets/*.rs   libFuzzer looks for inputs that break them (cargo-fuzz, nightly)
//! tests/fuzz_short.rs      mutations of the same corpus, seeded, in every test run
//! ```
//!
//! Each asserts that nothing panics, that what was encoded decodes to the same, and that no bytes within a key or a value are
//! taken for structure. Where a format has checksums, the input is also put behind one that fits, since no mutation
//! would find it. The two callers watch how much memory an input makes a reader allocate.
//!
//! Compiled with the feature `fuzzing` and for unit tests only.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a tool, and no part of a node
#![allow(missing_docs)] // a property is told by its assertions

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::{Method, Uri};
use xxhash_rust::xxh3::xxh3_64;

use crate::cli::transfer::line;
use crate::config;
use crate::engine::WriteBatch;
use crate::engine::files::{LogFile, ManifestFile, TableFile};
use crate::engine::iter::EntryRef;
use crate::engine::sst::block::{Block, BlockCursor};
use crate::engine::sst::bloom::{self, BloomFilter};
use crate::engine::sst::expiries::Expiries;
use crate::engine::sst::reader::Patience;
use crate::engine::sst::{
    BloomBits, BuildSettings, Compression, SstBuilder, SstMeta, SstReader, TableCache, seal_block,
    table_path, unseal_block,
};
use crate::engine::version::manifest::{ManifestWriter, manifest_path};
use crate::engine::version::{Level, VersionEdit};
use crate::engine::wal::{self, LogKey};
use crate::env::vfs::read_file;
use crate::env::{Env, MemVfs, Rng, Vfs};
use crate::hints::encoding as hints;
use crate::http::dialects::{item, raw};
use crate::http::query::Query;
use crate::http::router;
use crate::replication::identity::Identity;
use crate::rpc::frame::{FRAME_LEN_MAX, Frame, Kind};
use crate::rpc::{codec, message};
use crate::types::{ContentType, Expiry, Key, NodeId, Record, Timestamp, Value};
use crate::util::coding::Reader;

/// A property by the name of its target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("log", log),
    ("table", table),
    ("manifest", manifest),
    ("record", record),
    ("hint", hint),
    ("rpc_frame", rpc_frame),
    ("identity", identity),
    ("request_line", request_line),
    ("query", query),
    ("json_items", json_items),
    ("dotenv", dotenv),
    ("export_lines", export_lines),
];

/// The largest value that the readers of requests are given.
const VALUE_SIZE_MAX: usize = 1 << 16;

// ---- an input taken apart; what is missing reads as zeros ----

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u64(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.take(8);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    fn key(&mut self) -> Key {
        let len = usize::from(self.u8());
        let bytes = self.take(len);
        Key::new(if bytes.is_empty() { b"k".to_vec() } else { bytes.to_vec() }).expect("at most 255 bytes")
    }

    fn value(&mut self) -> &'a [u8] {
        let len = usize::from(self.u16());
        self.take(len)
    }

    fn record(&mut self) -> Record {
        let (flags, timestamp) = (self.u8(), Timestamp::from_u64(self.u64()));
        let expires_at = if flags & 1 == 0 { None } else { Expiry::from_u64(self.u64()) };
        match (flags >> 1 & 3, expires_at) {
            (0, None) => Record::tombstone(timestamp),
            (0, Some(expires_at)) => Record::Expired { timestamp, expires_at },
            (kind, expires_at) => {
                let content_type = if kind == 1 { None } else { ContentType::new(self.take(8)) };
                let value = Value::new(self.value().to_vec());
                Record::value(timestamp, value.of_type(content_type).expiring(expires_at))
            }
        }
    }

    fn items(&mut self) -> Vec<(Key, Record)> {
        let mut items = Vec::new();
        while !self.0.is_empty() && items.len() < 32 {
            items.push((self.key(), self.record()));
        }
        items
    }

    fn batch(&mut self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, record) in self.items() {
            batch.push(key, record);
        }
        batch
    }
}

/// A number that follows from all of an input, so that no part of the input can hold it.
fn secret(input: &[u8]) -> u64 {
    xxh3_64(input)
}

/// An environment with an empty disk.
fn env() -> (Env, Arc<MemVfs>) {
    static ENV: OnceLock<Env> = OnceLock::new();
    let disk = Arc::new(MemVfs::new());
    let shared = ENV.get_or_init(Env::real).clone();
    (Env { fs: disk.clone(), rng: Rng::from_seed(1), ..shared }, disk)
}

fn file(disk: &MemVfs, path: &Path, bytes: &[u8]) {
    disk.create(path).expect("the disk is empty").append(bytes).expect("the disk has room");
}

// ---- the engine ----

pub fn record(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(record) = Record::decode(&bytes) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again, input, "a record has one encoding");
        assert_eq!(again.len(), record.encoded_len());
    }
    if let Ok(batch) = WriteBatch::decode(&bytes) {
        round_trip_batch(&batch);
    }
    let made = Input(input).batch();
    round_trip_batch(&made);
    for (_, record) in made.items() {
        let mut encoded = Vec::new();
        record.encode(&mut encoded);
        assert_eq!(Record::decode(&Bytes::from(encoded)).as_ref(), Ok(record));
        assert!(!record.supersedes(record));
        for (_, other) in made.items() {
            assert!(record == other || record.supersedes(other) != other.supersedes(record));
        }
    }
}

fn round_trip_batch(batch: &WriteBatch) {
    let mut encoded = Vec::new();
    batch.encode(&mut encoded);
    assert!(encoded.len() <= batch.weight());
    assert_eq!(WriteBatch::decode(&Bytes::from(encoded)).as_ref(), Ok(batch));
}

pub fn log(input: &[u8]) {
    let file = Bytes::copy_from_slice(input);
    let number = LogFile::number_in(&file).unwrap_or(1);
    let read = LogFile::read(number, &file, None);
    assert!(read.end as usize <= input.len());
    let _ = LogFile::read(number, &file, Some(xxh3_64(input) % (input.len() as u64 + 2)));
    log_around(input);
}

/// A log of three groups whose values are the input, damaged at one place or cut short, and the input behind its end.
fn log_around(input: &[u8]) {
    let mut parts = Input(input);
    let (number, previous_end, at) = (parts.u64() | 1, parts.u64(), parts.u16());
    let (first, second) = parts.0.split_at(parts.0.len() / 2);
    let groups = [first, second, parts.0];
    let (salt, mut file, mut synced) = (secret(input), Vec::new(), wal::BATCHES_AT as u64);
    wal::encode_openings(&mut file, number, wal::Opening { previous: 0, previous_end }, salt);
    let mut starts = Vec::new();
    for group in groups {
        starts.push(file.len() as u64);
        wal::encode_frame(&mut file, LogKey::salted(number, salt), starts[starts.len() - 1], synced, |out| {
            out.push(wal::KIND_BATCH);
            out.extend_from_slice(group);
        });
        synced = file.len() as u64;
    }
    let whole_len = file.len();
    file.extend_from_slice(input);
    let whole = LogFile::read(number, &Bytes::from(file.clone()), None);
    let payloads = |log: &LogFile| log.batches.iter().map(|(_, batch)| batch.to_vec()).collect::<Vec<_>>();
    assert_eq!(payloads(&whole), groups);
    assert_eq!((whole.end as usize, whole.damage.len()), (whole_len, 0));

    let at = usize::from(at) % whole_len;
    file[at] ^= 1 << (number >> 1 & 7);
    let damaged = LogFile::read(number, &Bytes::from(file.clone()), None);
    for (offset, batch) in &damaged.batches {
        let written = starts.iter().position(|start| start == offset).map(|group| groups[group]);
        assert_eq!(written, Some(&batch[..]), "a frame that was not written");
    }
    let is_in_last = at as u64 >= starts[2];
    assert_eq!(damaged.damage.len(), usize::from(!is_in_last), "{:?}", damaged.damage);
    file.truncate(at.max(wal::BATCHES_AT));
    let cut = LogFile::read(number, &Bytes::from(file), None);
    assert!(cut.batches.len() <= 3 && payloads(&cut)[..] == groups.map(<[u8]>::to_vec)[..cut.batches.len()]);
}

pub fn manifest(input: &[u8]) {
    let parsed = ManifestFile::parse(input, None);
    assert!(parsed.torn_at.is_none_or(|at| at as usize <= input.len()));
    if let Ok(edit) = VersionEdit::decode(input) {
        round_trip_edit(&edit);
    }
    let mut parts = Input(input);
    let (cut, mut edits) = (usize::from(parts.u16()), Vec::new());
    while !parts.0.is_empty() && edits.len() < 4 {
        edits.push(edit_of(&mut parts));
    }
    edits.push(VersionEdit { log_number: Some(7), ..VersionEdit::default() });
    edits.iter().for_each(round_trip_edit);

    // Whatever a key holds, a manifest that a crash cut short is read up to there and is not damaged.
    let (mut env, disk) = env();
    env.rng = Rng::from_seed(secret(input));
    disk.create_dir_all(Path::new("/db")).expect("the disk is empty");
    let mut writer = ManifestWriter::create(&env, Path::new("/db"), 5, &edits[0]).expect("nothing fails");
    let snapshot_end = writer.len() as usize;
    for edit in &edits[1..] {
        writer.append(edit).expect("nothing fails");
    }
    let bytes = read_file(&*disk, &manifest_path(Path::new("/db"), 5)).expect("it was written");
    let end = snapshot_end + cut % (bytes.len() - snapshot_end + 1);
    let read = ManifestFile::parse(&bytes[..end], Some(5));
    assert_eq!(read.damage, None);
    let kept: Vec<_> = read.edits.into_iter().map(|(_, edit)| edit).collect();
    assert_eq!(kept[..], edits[..kept.len()]);
    assert!(end < bytes.len() || kept.len() == edits.len());
}

fn round_trip_edit(edit: &VersionEdit) {
    let mut encoded = Vec::new();
    edit.encode(&mut encoded);
    assert_eq!(VersionEdit::decode(&encoded).as_ref(), Ok(edit));
}

fn edit_of(parts: &mut Input<'_>) -> VersionEdit {
    let level = Level::new(usize::from(parts.u8() % 7)).expect("there are seven levels");
    let (one, other) = (parts.key().to_bytes(), parts.key().to_bytes());
    let meta = SstMeta {
        number: parts.u64(),
        size: parts.u64(),
        entries: 9,
        tombstones: 4,
        oldest: Timestamp::from_u64(1),
        newest: Timestamp::from_u64(parts.u64().max(1)),
        smallest: one.clone().min(other.clone()),
        largest: one.clone().max(other),
        expiries: Expiries::default(),
        content_bytes: 0,
    };
    VersionEdit {
        log_number: Some(parts.u64()),
        next_file_number: None,
        compact_pointers: vec![(level, one)],
        removed: vec![(level, meta.number)],
        added: vec![(level, meta)],
    }
}

pub fn table(input: &[u8]) {
    // As a whole file.
    let (env, disk) = env();
    let fs: Arc<dyn Vfs> = disk.clone();
    file(&disk, &table_path(Path::new("/"), 7), input);
    let cache = Arc::new(TableCache::new(1 << 16, 1, &env.rng));
    if let Ok(reader) = SstReader::open(&fs, Path::new("/"), 7, &cache) {
        let _ = reader.verify();
        let _ = reader.get(b"key", bloom::hash(b"key"), Patience::Disk);
    }
    if let Ok(Some(mut table)) = TableFile::open(&fs, &table_path(Path::new("/"), 7)) {
        table.check(&mut |_| ());
        let _ = table.each(&mut |_| ControlFlow::Continue(()));
    }
    // As what stands behind a checksum.
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let mut sealed = Vec::new();
        seal_block(input, compression, 7, 11, &mut sealed);
        assert_eq!(unseal_block(sealed, 7, 11).as_deref(), Ok(input));
        let mut claimed = input.to_vec();
        claimed.put_u8(compression as u8);
        claimed.put_u32_le(input.len() as u32 * 3);
        claimed.put_u32_le(crate::engine::sst::block_crc(7, 11, &claimed));
        let _ = unseal_block(claimed, 7, 11);
    }
    if let Ok(block) = Block::new(Bytes::copy_from_slice(input)) {
        let mut cursor = BlockCursor::new(block.clone());
        let mut moved = cursor.seek_to_first();
        while moved.is_ok() && cursor.current().is_some() {
            let _ = cursor.record();
            moved = cursor.advance();
        }
        let _ = BlockCursor::new(block).seek(&input[..input.len().min(3)]);
    }
    if let Ok(filter) = BloomFilter::decode(input) {
        filter.may_contain(secret(input));
    }
    for has_expiries in [false, true] {
        let _ = SstMeta::decode_properties(7, 9, has_expiries, &mut Reader::new(input));
    }
    table_of(input);
}

/// A table of the input's records, damaged at one place: what it gives is what was written, or nothing.
fn table_of(input: &[u8]) {
    let mut parts = Input(input);
    let (at, how) = (parts.u16(), parts.u8());
    let mut items = parts.items();
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    items.dedup_by(|(a, _), (b, _)| a == b);
    if items.is_empty() {
        return;
    }
    let (env, disk) = env();
    let fs: Arc<dyn Vfs> = disk.clone();
    let settings = BuildSettings {
        sparse_index_interval: usize::from(how % 4) + 1,
        compression: [Compression::None, Compression::Lz4, Compression::Zstd][usize::from(how) % 3],
        bloom: BloomBits::PerKey(10),
    };
    let mut builder = SstBuilder::create(&env, Path::new("/"), 3, settings).expect("nothing fails");
    for (key, record) in &items {
        builder.add(&EntryRef::of(key.as_bytes(), record)).expect("nothing fails");
    }
    let meta = builder.finish().expect("nothing fails");
    let path = table_path(Path::new("/"), 3);
    let cache = Arc::new(TableCache::new(0, 1, &env.rng));
    let lookup = |key: &Key| {
        let reader = SstReader::open(&fs, Path::new("/"), 3, &cache)?;
        reader.get(key.as_bytes(), bloom::hash(key.as_bytes()), Patience::Disk)
    };
    for (key, record) in &items {
        let found = lookup(key).expect("nothing is damaged");
        assert_eq!(found, crate::engine::sst::reader::Lookup::Found(record.clone()));
    }
    disk.flip_byte(&path, u64::from(at) % meta.size).expect("it is there");
    let mut damaged = TableFile::open(&fs, &path).expect("it can be read").expect("it has a footer's length");
    let _ = damaged.each(&mut |entry| {
        let (key, record) = (Key::new(entry.key.to_vec()).expect("a key"), entry.to_record());
        assert!(items.contains(&(key, record)), "an entry that was not written");
        ControlFlow::Continue(())
    });
    damaged.check(&mut |_| ());
    assert!(!damaged.findings().is_empty(), "damage that nothing tells");
}

pub fn hint(input: &[u8]) {
    if let Ok(key) = Key::internal(input.to_vec()) {
        let _ = hints::decode_key(&key);
        let bytes = Value::new(input.to_vec());
        let _ = hints::decode_hint(b"", &key, &Record::value(Timestamp::ZERO, bytes));
    }
    let mut parts = Input(input);
    let name = String::from_utf8_lossy(parts.key().as_bytes()).into_owned();
    let target = NodeId::from_canonical(&name);
    let (key, record) = (parts.key(), parts.record());
    let Ok(stored) = hints::hint_key(&target, &key) else { return };
    let Some(hints::Decoded::Hint { target: found, prefix_len }) = hints::decode_key(&stored) else {
        panic!("a hint that is taken for something else");
    };
    assert_eq!((&found, &stored.as_bytes()[prefix_len..]), (&target, key.as_bytes()));
    let kept = Record::value(record.timestamp(), hints::encode_record(&record));
    let hint = hints::decode_hint(&stored.as_bytes()[..prefix_len], &stored, &kept).expect("it was stored");
    assert_eq!((hint.key, hint.record), (key, record));
    let dirty = hints::dirty_key(&target, parts.u16()).expect("a name of 255 bytes fits");
    assert!(matches!(hints::decode_key(&dirty), Some(hints::Decoded::Dirty { .. })));
}

// ---- the ring ----

pub fn rpc_frame(input: &[u8]) {
    // As a stream, whole and byte by byte: the same frames, the same end.
    let whole = frames(&[input]);
    let cut = usize::try_from(secret(input) % (input.len() as u64 + 1)).expect("below a length");
    assert_eq!(frames(&[&input[..cut], &input[cut..]]), whole);
    let _ = Frame::decode(Bytes::copy_from_slice(input));
    // As the body of a frame of each kind.
    for kind in (0..=u8::MAX).filter_map(Kind::from_u8) {
        let body = Bytes::copy_from_slice(input);
        let frame = Frame { request_id: 1, kind, deadline_ms: 0, clock: Timestamp::ZERO, body };
        if let Ok(request) = codec::decode_request(&frame) {
            let mut wire = BytesMut::new();
            if codec::encode_request(&request, 1, std::time::Duration::ZERO, &mut wire).is_ok() {
                let again = Frame::decode(wire.freeze()).expect("it was encoded");
                assert_eq!(codec::decode_request(&again), Ok(request));
            }
        }
        if let Ok(response) = codec::decode_response(&frame) {
            let mut wire = BytesMut::new();
            if codec::encode_response(&response, 1, &mut wire).is_ok() {
                let again = Frame::decode(wire.freeze()).expect("it was encoded");
                assert_eq!(codec::decode_response(&again), Ok(response));
            }
        }
    }
    rpc_stream(input);
}

/// What a connection takes from these reads, and whether it ended in an error.
fn frames(reads: &[&[u8]]) -> (Vec<Frame>, bool) {
    let (mut received, mut taken) = (BytesMut::new(), Vec::new());
    for read in reads {
        received.extend_from_slice(read);
        loop {
            match Frame::take(&mut received, FRAME_LEN_MAX) {
                Ok(Some(frame)) => taken.push(frame),
                Ok(None) => break,
                Err(_) => return (taken, true),
            }
        }
    }
    (taken, false)
}

/// Writes whose values are the input, damaged at one place: what is taken is a beginning of what was sent.
fn rpc_stream(input: &[u8]) {
    let mut wire = BytesMut::new();
    for id in 0..3 {
        let item =
            (Key::new("k").expect("a key"), Record::value(Timestamp::ZERO, Value::new(input.to_vec())));
        let body = message::ReplicaRequest::Write { origin: message::WriteOrigin::Client, items: vec![item] };
        let request = message::Request { clock: Timestamp::ZERO, body };
        if codec::encode_request(&request, id, std::time::Duration::ZERO, &mut wire).is_err() {
            return;
        }
    }
    let (sent, _) = frames(&[&wire]);
    assert_eq!(sent.len(), 3);
    let at = usize::try_from(secret(input) % wire.len() as u64).expect("below a length");
    wire[at] ^= 0x40;
    let (taken, _) = frames(&[&wire]);
    assert!(taken.len() < 3 && taken[..] == sent[..taken.len()]);
}

pub fn identity(input: &[u8]) {
    let mut checked = b"KVIDENT1".to_vec();
    checked.extend_from_slice(input);
    let crc = crc32fast::hash(&checked);
    checked.put_u32_le(crc);
    for bytes in [input, &checked] {
        if let Ok(identity) = Identity::decode(bytes) {
            assert_eq!(Identity::decode(&identity.encode()).as_ref(), Ok(&identity));
        }
    }
}

// ---- clients and operators ----

/// A request's first line: method, target, version.
pub fn request_line(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut words = text.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let (Ok(method), Ok(uri)) = (Method::from_bytes(method.as_bytes()), target.parse::<Uri>()) {
        let found = router::find(&method, uri.path());
        let _ = (router::allow(found.route), router::ends_with_its_client(uri.path()));
        let _ = raw::key_of(found.route.key_in(uri.path()));
        let _ = Query::parse(uri.query());
    }
    // Any key, encoded, is the same key again and leads to the same route.
    let Ok(key) = Key::new(input.to_vec()) else { return };
    for prefix in ["/v1/kv/", "/kv/", "/blobs/"] {
        let plain: Uri = format!("{prefix}k").parse().expect("a path");
        let encoded = percent_encoded(key.as_bytes());
        let Ok(uri) = format!("{prefix}{encoded}").parse::<Uri>() else { continue };
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let found = router::find(&method, uri.path());
            assert_eq!(found, router::find(&method, plain.path()));
            assert_eq!(raw::key_of(found.route.key_in(uri.path())).ok().as_ref(), Some(&key));
        }
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"))
}

pub fn query(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(query) = Query::parse(Some(&text)) {
        for name in ["key", "w", "limit"] {
            let _ = (query.bytes(name), query.flag(name), query.number(name, 1, 9));
        }
    }
    // Any two values, encoded, are the same two values again: nothing in one of them begins another parameter.
    let (one, other) = input.split_at(input.len() / 2);
    let pairs = format!("key={}&end={}", percent_encoded(one), percent_encoded(other).to_lowercase());
    let query = Query::parse(Some(&pairs)).expect("it is well-formed");
    assert_eq!((query.bytes("key"), query.bytes("end")), (Some(one), Some(other)));
    assert!(!query.has("w"));
}

pub fn json_items(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    let _ = item::one(&body, VALUE_SIZE_MAX);
    let _ = item::one_or_pair(&body, VALUE_SIZE_MAX);
    let _ = item::many(&body, VALUE_SIZE_MAX);
    // Any text as key and value is one item with that key and value.
    let text = String::from_utf8_lossy(input);
    let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (key, value) = text.split_at(middle);
    if key.is_empty() || key.len() > Key::MAX_LEN || value.len() > VALUE_SIZE_MAX {
        return;
    }
    let pair = serde_json::json!({ "key": key, "value": value });
    let body =
        Bytes::from(serde_json::to_vec(&serde_json::json!({ "items": [pair, pair] })).expect("it is JSON"));
    let items = item::many(&body, VALUE_SIZE_MAX).unwrap_or_else(|_| panic!("{body:?}"));
    assert_eq!(items.len(), 2);
    for (found, held, ttl) in items {
        assert_eq!((found.as_bytes(), held.as_bytes()), (key.as_bytes(), value.as_bytes()));
        assert_eq!(ttl, None);
    }
}

/// A file of settings. Whatever it holds, reading it ends with settings or with one line that says why not.
pub fn dotenv(input: &[u8]) {
    let path = std::env::temp_dir().join(format!(
        "kvstore-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, input).expect("there is room for a small file");
    let args = || ["-config".into(), path.clone().into_os_string()].into_iter();
    let loaded = config::load(args(), std::iter::empty(), Path::new("/"));
    if let Err(error) = &loaded {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
    }
    let again = config::load(args(), std::iter::empty(), Path::new("/"));
    assert_eq!(loaded.is_ok(), again.is_ok());
    std::fs::remove_file(&path).expect("it is there");
}

pub fn export_lines(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        let (parsed, key) = (line::parse(line), line::key_of(line));
        if let Ok((found, _)) = &parsed {
            assert_eq!(key.as_ref().map(|(key, _)| &key[..]), Ok(found.as_bytes()));
        }
        for error in [parsed.err(), key.err()].into_iter().flatten() {
            assert!(!error.is_empty());
        }
    }
    let mut parts = Input(input);
    let key = parts.key();
    let value = parts.0;
    let mut out = Vec::new();
    let content = line::Content { value, content_type: Some("text/plain"), expires_at: None };
    line::push(&mut out, key.as_bytes(), Some(content), Timestamp::from_u64(7));
    assert_eq!(out.iter().position(|byte| *byte == b'\n'), Some(out.len() - 1), "one line");
    let (found, held) = line::parse(&out).expect("it was exported");
    assert_eq!((found.as_bytes(), held.as_bytes()), (key.as_bytes(), value));
    assert_eq!(held.content_type().map(ContentType::as_bytes), Some(&b"text/plain"[..]));
}
