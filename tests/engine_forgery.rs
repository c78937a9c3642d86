//! Bytes that a client chose are never taken for the engine's own: log frames within a value.
//!
//! A client can compute nearly everything that a frame consists of: checksums have no secret, log numbers and offsets
//! follow from what was written before. What it writes stays in a log's file when that is recycled, and recovery
//! searches what is left of a file for later frames.

mod engine_machine;

use std::path::{Path, PathBuf};

use engine_machine::{DIR, Machine, close, simulate, write};
use kvstore::engine::{Engine, Options, WriteBatch};
use kvstore::env::vfs::read_file;
use kvstore::env::{MemVfs, Planted, Rng, Vfs as _};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};

const GHOST: &str = "ghost";
/// Bytes of the value that holds the forged frames.
const VALUE_LEN: usize = 160_000;
/// The third field of a frame's header: a log number in version 1, a salt in version 2.
type Tag = u64;

fn options() -> Options {
    Options { memtable_size: 256 << 10, l0_files_max: 8, ..Options::default() }
}

fn record(key: &str, value: Vec<u8>) -> WriteBatch {
    let record = Record::value(Timestamp::from_u64(77), Value::new(value));
    WriteBatch::one(Key::new(key.to_owned()).unwrap(), record)
}

async fn flush(engine: &Engine) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    engine.start_flush(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.unwrap().unwrap();
}

/// A frame as `docs/formats.md` draws it, which claims that everything was synced, with one record.
fn frame(prefix: &[u8], tag: Tag, offset: u64) -> Vec<u8> {
    let mut payload = vec![1];
    record(GHOST, b"nobody wrote this".to_vec()).encode(&mut payload);
    let mut checked = (payload.len() as u32).to_le_bytes().to_vec();
    for word in [tag, offset, u64::MAX] {
        checked.extend_from_slice(&word.to_le_bytes());
    }
    checked.extend_from_slice(&payload);
    let crc = crc32fast::hash(&[prefix, &checked].concat());
    [&crc.to_le_bytes()[..], &checked].concat()
}

/// A value full of frames: those of version 1 for any of the next logs, and those of version 2 with salts that the client
/// may have guessed. `at` is where in its log the value begins.
fn forged(at: u64, logs: &[u64], salts: &[u64]) -> Vec<u8> {
    let mut value = Vec::new();
    'full: loop {
        for log in logs {
            let plain = std::iter::once((Vec::new(), *log));
            let salted = salts.iter().map(|salt| (log.to_le_bytes().to_vec(), *salt));
            for (prefix, tag) in plain.chain(salted) {
                let frame = frame(&prefix, tag, at + value.len() as u64);
                if value.len() + frame.len() > VALUE_LEN {
                    break 'full;
                }
                value.extend_from_slice(&frame);
            }
        }
    }
    value.resize(VALUE_LEN, 0);
    value
}

/// What a client can find out on a node of its own: where the value will begin, which number the next log will have, and the
/// salt of the log that the value is in.
struct Scouted {
    at: u64,
    next_log: u64,
    salt: u64,
}

fn log_path(engine: &Engine) -> PathBuf {
    Path::new(DIR).join(format!("{:06}.log", engine.stats().log_number))
}

/// Writes the value, has its log recycled, writes a little more, and kills the process.
async fn attack(value: Vec<u8>) -> (MemVfs, Scouted) {
    let machine = Machine::boot(MemVfs::new(), 5, Planted::default());
    let (engine, _) = machine.open(options()).unwrap();
    write(&engine, record("first", value.clone())).await.unwrap();
    let log = read_file(&machine.disk, &log_path(&engine)).unwrap();
    let at = log.windows(value.len()).position(|window| window == value).unwrap() as u64;
    let salt = u64::from_le_bytes(log[8200..8208].try_into().unwrap());
    flush(&engine).await;
    for number in 0..3 {
        write(&engine, record(&format!("later-{number}"), vec![b'x'; 100])).await.unwrap();
    }
    let log = read_file(&machine.disk, &log_path(&engine)).unwrap();
    assert!(log.windows(1000).any(|window| value.windows(1000).nth(90_000) == Some(window)), "not recycled");
    let next_log = engine.stats().log_number;
    drop(engine);
    (machine.kill(), Scouted { at, next_log, salt })
}

#[test]
fn frames_in_a_value_are_not_found_in_the_log_that_takes_over_its_file() {
    simulate(async {
        let mut marker = vec![0; VALUE_LEN];
        Rng::from_seed(9).fill(&mut marker);
        let (_, scouted) = attack(marker).await;
        let logs: Vec<u64> = (scouted.next_log..scouted.next_log + 3).collect();
        let salts = [0, scouted.salt, u64::MAX];
        let (disk, found) = attack(forged(scouted.at, &logs, &salts)).await;
        assert_eq!((found.at, found.next_log, found.salt), (scouted.at, scouted.next_log, scouted.salt));
        disk.crash_lose_all();
        for drop_damaged in [false, true] {
            let machine = Machine::boot(disk.fork(), 6, Planted::default());
            let (engine, recovery) = machine.open(Options { drop_damaged, ..options() }).unwrap();
            assert_eq!(recovery.damage, Vec::<String>::new());
            let keys: Vec<_> =
                engine.scan(&KeyRange::all()).map(|item| item.unwrap().0.as_bytes().to_vec()).collect();
            assert_eq!(keys, [&b"first"[..], b"later-0", b"later-1", b"later-2"]);
            close(&engine).await.unwrap();
        }
    });
}

/// A directory as version 1 of the formats of log and manifest left it, killed while it wrote.
#[test]
fn a_directory_with_a_log_and_a_manifest_of_version_1_is_opened_and_its_log_replaced() {
    let unhex = |text: &str| -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let disk = MemVfs::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let files = [
        ("CURRENT", include_bytes!("data/directory_v1/CURRENT").to_vec()),
        ("MANIFEST-000002", unhex(include_str!("data/directory_v1/MANIFEST-000002.hex"))),
        ("000003.log", unhex(include_str!("data/directory_v1/000003.log.hex"))),
    ];
    for (name, bytes) in files {
        disk.create(&Path::new(DIR).join(name)).unwrap().append(&bytes).unwrap();
    }
    simulate(async {
        let machine = Machine::boot(disk.fork(), 1, Planted::default());
        let (engine, recovery) = machine.open(options()).unwrap();
        assert_eq!((recovery.frames_replayed, recovery.damage.len(), recovery.tables), (3, 0, 0));
        let records: Vec<_> = engine.scan(&KeyRange::all()).map(Result::unwrap).collect();
        let shown: Vec<_> = records
            .iter()
            .map(|(key, record)| {
                let value = record.as_value().map(|value| value.as_bytes().to_vec());
                (key.as_bytes().to_vec(), record.timestamp().as_u64(), value)
            })
            .collect();
        let value = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(
            shown,
            [
                (b"apple".to_vec(), 0x1001, value("red")),
                (b"fig".to_vec(), 0x1004, value("brown")),
                (b"pear".to_vec(), 0x1002, value("green")),
                (b"plum".to_vec(), 0x1003, None),
            ]
        );
        assert!(!machine.disk.exists(&Path::new(DIR).join("000003.log")).unwrap());
        close(&engine).await.unwrap();

        // The same with a byte of what was synced gone.
        disk.flip_byte(&Path::new(DIR).join("000003.log"), 90).unwrap();
        let machine = Machine::boot(disk.fork(), 1, Planted::default());
        assert!(machine.open(options()).is_err());
        let (engine, recovery) = machine.open(Options { drop_damaged: true, ..options() }).unwrap();
        assert_eq!((recovery.frames_replayed, recovery.damage.len()), (2, 1));
        close(&engine).await.unwrap();
    });
}
