use proptest::prelude::*;

use super::*;
use crate::engine::iter::model::{Entry, any_entries, check, entry_ref, newest, sorted};
use crate::engine::sst::bloom::hash;
use crate::engine::sst::{BloomBits, BuildSettings, Compression, SstBuilder, temporary_path};
use crate::env::vfs_mem::MemVfs;
use crate::env::{Env, Rng};
use crate::types::{ContentType, Expiry, Timestamp, Value};
use crate::util::coding::{put_bytes, put_varint};

const SETTINGS: BuildSettings =
    BuildSettings { sparse_index_interval: 8, compression: Compression::Lz4, bloom: BloomBits::PerKey(10) };

fn env() -> (Arc<MemVfs>, Env) {
    let fs = Arc::new(MemVfs::new());
    let mut env = Env::real();
    env.fs = fs.clone();
    env.fs.create_dir_all(dir()).unwrap();
    (fs, env)
}

fn dir() -> &'static Path {
    Path::new("/db")
}

fn build(env: &Env, number: u64, settings: BuildSettings, entries: &[Entry]) -> SstMeta {
    let mut builder = SstBuilder::create(env, dir(), number, settings).unwrap();
    for entry in entries {
        builder.add(&entry_ref(entry)).unwrap();
    }
    builder.finish().unwrap()
}

fn open(env: &Env, number: u64, cache_size: usize) -> Result<Arc<SstReader>, Error> {
    let cache = Arc::new(TableCache::new(cache_size, 64, &Rng::from_seed(1)));
    SstReader::open(&env.fs, dir(), number, &cache).map(Arc::new)
}

fn value(key: &str, ts: u64, value: impl Into<Bytes>) -> Entry {
    (key.as_bytes().to_vec(), Record::value(Timestamp::from_u64(ts), Value::new(value.into())))
}

fn get(table: &SstReader, key: &[u8], patience: Patience) -> Result<Lookup, Error> {
    table.get(key, hash(key), patience)
}

proptest! {
    /// Keys of few different bytes, zeros among them: their heads are alike, and padding looks like a key's own end.
    #[test]
    fn an_index_leads_to_the_first_block_that_may_hold_a_key(
        shared in prop::collection::vec(0u8..3, 0..4),
        keys in prop::collection::vec(prop::collection::vec(0u8..3, 0..12), 1..40),
        sought in prop::collection::vec(prop::collection::vec(0u8..3, 0..14), 1..20),
    ) {
        let mut keys: Vec<_> = keys.into_iter().map(|key| [&shared[..], &key].concat()).collect();
        keys.sort();
        let mut raw = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            put_bytes(&mut raw, key);
            raw.extend_from_slice(&(number as u64 * 100).to_le_bytes());
            put_varint(&mut raw, 100);
        }
        let index = Index::decode(Bytes::from(raw), keys.len() as u64 * 100).unwrap();
        let with_shared = sought.iter().map(|key| [&shared[..], key].concat());
        for key in sought.iter().cloned().chain(with_shared).chain(keys.clone()) {
            prop_assert_eq!(index.seek(&key), keys.partition_point(|other| *other < key), "{:?}", key);
        }
    }

    #[test]
    fn a_table_gives_back_what_was_added(
        entries in any_entries(200), seeks in any_entries(5), interval in 1usize..40,
        compression in prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)],
        bits in 0usize..12, cache_size in prop_oneof![Just(0usize), Just(1 << 20)],
    ) {
        let entries = sorted(entries);
        prop_assume!(!entries.is_empty());
        let (_, env) = env();
        let settings = BuildSettings {
            sparse_index_interval: interval, compression, bloom: BloomBits::PerKey(bits),
        };
        let meta = build(&env, 7, settings, &entries);
        let table = open(&env, 7, cache_size).unwrap();
        prop_assert_eq!(table.meta(), &meta);
        prop_assert_eq!(meta.entries, entries.len() as u64);
        prop_assert_eq!(meta.tombstones, entries.iter().filter(|(_, record)| record.is_tombstone()).count() as u64);
        prop_assert_eq!(Some(meta.oldest), entries.iter().map(|(_, record)| record.timestamp()).min());
        prop_assert_eq!(Some(meta.newest), entries.iter().map(|(_, record)| record.timestamp()).max());
        table.verify().unwrap();
        check(&mut TableIterator::new(table.clone()), &entries, &seeks);
        for (key, record) in newest(&entries) {
            prop_assert_eq!(get(&table, &key, Patience::Disk).unwrap(), Lookup::Found(record));
        }
        for (key, _) in seeks.iter().filter(|(key, _)| entries.iter().all(|(other, _)| other != key)) {
            prop_assert_eq!(get(&table, key, Patience::Disk).unwrap(), Lookup::Absent);
        }
        // What the lookups left in the cache changes nothing for who walks, and who walks leaves nothing there.
        let bytes = table.cache.bytes();
        check(&mut TableIterator::new(table.clone()), &entries, &seeks);
        prop_assert_eq!(table.cache.bytes(), bytes);
    }
}

#[test]
fn a_value_larger_than_a_block_has_a_block_of_its_own_and_shares_its_bytes() {
    let (_, env) = env();
    let noise: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let entries = [value("a", 1, "small"), value("b", 2, noise.clone()), value("c", 3, "small")];
    build(&env, 1, SETTINGS, &entries);
    let table = open(&env, 1, 1 << 20).unwrap();
    assert_eq!(table.index.blocks.len(), 3);
    let Lookup::Found(record) = get(&table, b"b", Patience::Disk).unwrap() else { panic!("b is there") };
    assert_eq!(record.as_value().unwrap().as_bytes(), noise);
}

#[test]
fn a_lookup_in_memory_alone_reads_nothing_from_disk() {
    let (_, env) = env();
    build(&env, 1, SETTINGS, &[value("a", 1, "x")]);
    let table = open(&env, 1, 1 << 20).unwrap();
    assert_eq!(get(&table, b"a", Patience::MemoryOnly).unwrap(), Lookup::NotInMemory);
    assert!(matches!(get(&table, b"a", Patience::Disk).unwrap(), Lookup::Found(_)));
    assert!(matches!(get(&table, b"a", Patience::MemoryOnly).unwrap(), Lookup::Found(_)));
    assert_eq!((table.cache.hits(), table.cache.misses()), (1, 1));
}

/// A cache too small for the block: the record that was found is there all the same.
#[test]
fn a_record_that_was_found_is_found_again_without_its_block() {
    let (_, env) = env();
    let tombstone = (b"b".to_vec(), Record::tombstone(Timestamp::from_u64(2)));
    let large = value("c", 3, vec![b'v'; 4 << 10]);
    build(&env, 1, SETTINGS, &[value("a", 1, "x"), tombstone.clone(), large]);
    let table = open(&env, 1, 4 << 10).unwrap();
    for (key, record) in [value("a", 1, "x"), tombstone] {
        assert_eq!(get(&table, &key, Patience::MemoryOnly).unwrap(), Lookup::NotInMemory);
        assert_eq!(get(&table, &key, Patience::Disk).unwrap(), Lookup::Found(record.clone()));
        assert_eq!(get(&table, &key, Patience::MemoryOnly).unwrap(), Lookup::Found(record));
    }
    assert!(matches!(get(&table, b"c", Patience::Disk).unwrap(), Lookup::Found(_)));
    assert_eq!(
        get(&table, b"c", Patience::MemoryOnly).unwrap(),
        Lookup::NotInMemory,
        "it would fill the cache"
    );
    assert_eq!((table.cache.hits(), table.cache.misses()), (2, 3));
}

/// Whatever byte of a table is damaged, and by however few bits: each read gives what was written or an error.
#[test]
fn no_flipped_byte_anywhere_in_a_table_is_ever_served() {
    let (fs, env) = env();
    let entries: Vec<Entry> = (0..40)
        .map(|n| match n % 5 {
            0 => (format!("k{n:03}").into_bytes(), Record::tombstone(Timestamp::from_u64(n))),
            _ => value(&format!("k{n:03}"), n, format!("value {n} value {n}")),
        })
        .collect();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let number = 10 + compression as u64;
        let meta = build(&env, number, BuildSettings { compression, ..SETTINGS }, &entries);
        for offset in 0..meta.size {
            let fork = Arc::new(fs.fork());
            fork.flip_byte(&table_path(dir(), number), offset).unwrap();
            let flipped = Env { fs: fork, ..env.clone() };
            let table = match open(&flipped, number, 1 << 20) {
                Ok(table) => table,
                Err(Error::Corruption { .. }) => continue,
                Err(other) => panic!("byte {offset}: {other}"),
            };
            let mut refused = 0;
            for (key, record) in &entries {
                match get(&table, key, Patience::Disk) {
                    Ok(found) => assert_eq!(found, Lookup::Found(record.clone()), "byte {offset}"),
                    Err(Error::Corruption { .. }) => refused += 1,
                    Err(other) => panic!("byte {offset}: {other}"),
                }
            }
            assert!(refused > 0, "byte {offset} is covered by no checksum");
            assert!(matches!(table.verify(), Err(Error::Corruption { .. })));
            assert!(table.is_damaged());
        }
    }
}

#[test]
fn a_table_cut_anywhere_is_refused() {
    let (_, env) = env();
    build(&env, 1, SETTINGS, &[value("a", 1, "x"), value("b", 2, "y")]);
    let bytes = crate::env::vfs::read_file(&*env.fs, &table_path(dir(), 1)).unwrap();
    for len in 0..bytes.len() {
        let path = table_path(dir(), 1);
        env.fs.remove(&path).unwrap();
        env.fs.create(&path).unwrap().append(&bytes[..len]).unwrap();
        assert!(matches!(open(&env, 1, 0), Err(Error::Corruption { .. })), "{len} bytes");
    }
}

#[test]
fn a_table_under_another_number_is_refused() {
    let (_, env) = env();
    build(&env, 1, SETTINGS, &[value("a", 1, "x")]);
    env.fs.hard_link(&table_path(dir(), 1), &table_path(dir(), 2)).unwrap();
    assert!(matches!(open(&env, 2, 0), Err(Error::Corruption { .. })));
}

#[test]
fn an_obsolete_table_waits_to_be_removed_once_its_last_reader_has_let_go() {
    let (_, env) = env();
    build(&env, 1, SETTINGS, &[value("a", 1, "x")]);
    let table = open(&env, 1, 0).unwrap();
    let cache = table.cache.clone();
    let reader = TableIterator::new(table.clone());
    table.mark_obsolete();
    drop(table);
    assert!(cache.obsolete().is_empty(), "it is still read");
    drop(reader);
    assert!(!cache.obsolete().is_empty());
    assert!(env.fs.exists(&table_path(dir(), 1)).unwrap(), "the reader did not remove it");
    cache.obsolete().remove_all(&*env.fs);
    assert!(!env.fs.exists(&table_path(dir(), 1)).unwrap());
}

#[test]
fn a_table_that_becomes_unused_after_the_directory_was_given_up_is_left_alone() {
    let (_, env) = env();
    build(&env, 1, SETTINGS, &[value("a", 1, "x")]);
    let table = open(&env, 1, 0).unwrap();
    let cache = table.cache.clone();
    table.mark_obsolete();
    cache.obsolete().close(&*env.fs);
    drop(table);
    cache.obsolete().remove_all(&*env.fs);
    assert!(env.fs.exists(&table_path(dir(), 1)).unwrap());
}

#[test]
fn a_builder_that_is_given_up_leaves_nothing_behind() {
    let (_, env) = env();
    let mut builder = SstBuilder::create(&env, dir(), 3, SETTINGS).unwrap();
    builder.add(&entry_ref(&value("a", 1, "x"))).unwrap();
    assert!(env.fs.exists(&temporary_path(dir(), 3)).unwrap());
    drop(builder);
    assert_eq!(env.fs.list(dir()).unwrap(), Vec::<String>::new());
}

/// Builds a table, compares its bytes with the golden ones, and reads it back.
fn check_golden(golden: &str, entries: &[Entry]) {
    let (_, env) = env();
    let settings = BuildSettings {
        sparse_index_interval: 2,
        compression: Compression::None,
        bloom: BloomBits::PerKey(10),
    };
    build(&env, 9, settings, entries);
    let bytes = crate::env::vfs::read_file(&*env.fs, &table_path(dir(), 9)).unwrap();
    assert_eq!(hex_lines(&bytes), golden, "a changed format needs a new version and keeps reading this one");
    check_reads(golden, entries);
}

/// Opens the bytes of table 9 and looks for its entries.
fn check_reads(golden: &str, entries: &[Entry]) {
    let (_, env) = env();
    let digits: Vec<u8> = golden.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
    env.fs.create(&table_path(dir(), 9)).unwrap().append(&bytes).unwrap();
    let table = open(&env, 9, 0).unwrap();
    table.verify().unwrap();
    for (key, record) in entries {
        assert_eq!(get(&table, key, Patience::Disk).unwrap(), Lookup::Found(record.clone()));
    }
}

#[test]
fn the_bytes_of_a_table_without_types_are_those_of_format_version_1() {
    let dead = (b"apricot".to_vec(), Record::tombstone(Timestamp::from_u64(0x0102_0304_0506_0708)));
    check_golden(
        include_str!("../../../../tests/data/table_v1.hex"),
        &[value("apple", 5, "red"), dead, value("plum", 6, "")],
    );
}

#[test]
fn the_bytes_of_a_table_with_a_typed_value_are_those_of_format_version_2() {
    let typed = Value::new("<p>").of_type(ContentType::new(b"text/html"));
    let typed = (b"page".to_vec(), Record::value(Timestamp::from_u64(7), typed));
    check_golden(include_str!("../../../../tests/data/table_v2.hex"), &[value("apple", 5, "red"), typed]);
}

/// Entries with and without an expiry, one of which has expired.
fn with_expiries() -> Vec<Entry> {
    let until = |end| Expiry::from_u64(end);
    let typed = Value::new("<p>").of_type(ContentType::new(b"text/html"));
    let at = |key: &str, timestamp, value: Value| {
        (key.as_bytes().to_vec(), Record::value(Timestamp::from_u64(timestamp), value))
    };
    let (key, over) = at("over", 8, Value::new("gone").expiring(until(0x0102_0304)));
    vec![
        value("apple", 5, "red"),
        (key, over.expired()),
        at("page", 7, typed.clone().expiring(until(0x0506))),
        at("typed", 6, typed),
        at("until", 9, Value::new("v").expiring(until(7))),
    ]
}

/// Earlier versions did not record when values end.
#[test]
fn a_table_of_format_version_3_is_read() {
    check_reads(include_str!("../../../../tests/data/table_v3.hex"), &with_expiries());
}

#[test]
fn the_bytes_of_a_table_with_values_that_end_are_those_of_format_version_4() {
    check_golden(include_str!("../../../../tests/data/table_v4.hex"), &with_expiries());
}

#[test]
fn a_table_whose_values_have_all_ended_needs_no_newer_reader_than_before() {
    let (_, env) = env();
    let over = Record::value(Timestamp::from_u64(8), Value::new("gone").expiring(Expiry::from_u64(9)));
    let meta = build(&env, 1, SETTINGS, &[(b"over".to_vec(), over.expired())]);
    assert_eq!((meta.tombstones, meta.expiries.is_empty()), (1, true));
    let bytes = crate::env::vfs::read_file(&*env.fs, &table_path(dir(), 1)).unwrap();
    let footer = bytes.last_chunk::<FOOTER_LEN>().unwrap();
    assert_eq!(Footer::decode(footer).unwrap().version, 3);
}

fn hex_lines(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for byte in line {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}
