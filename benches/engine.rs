//! What the engine costs on its own: `cargo bench --bench engine`.
#![allow(missing_docs)] // criterion's macros make public items

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvstore::engine::{Durability, Engine, Options, WriteBatch};
use kvstore::env::{Env, Rng};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};

const KEYS: u64 = 100_000;

fn key(number: u64) -> Key {
    Key::new(format!("key:{number:012}")).expect("a short key")
}

fn record(number: u64) -> Record {
    Record::value(Timestamp::from_u64(number + 1), Value::new(vec![b'v'; 100]))
}

/// An engine of `KEYS` records, in memory or in tables.
fn filled(dir: &tempfile::TempDir, in_tables: bool, durability: Durability) -> Engine {
    let options = Options { durability, ..Options::default() };
    let (engine, _) = Engine::open(&Env::real(), dir.path(), options).expect("an empty directory opens");
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(1000) {
        let items: Vec<_> = chunk.iter().map(|number| (key(*number), record(*number))).collect();
        engine.write(WriteBatch::from(items)).expect("there is room");
    }
    if in_tables {
        engine.flush().expect("there is room");
    }
    engine
}

fn reads(c: &mut Criterion) {
    let rng = Rng::from_seed(1);
    for (name, in_tables) in [("memtable", false), ("tables", true)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = filled(&dir, in_tables, Durability::Buffered);
        let mut group = c.benchmark_group(name);
        group.bench_function("get", |b| {
            b.iter_batched(
                || key(rng.below(0..KEYS)),
                |key| black_box(engine.get(&key).expect("readable")),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("get of a missing key", |b| {
            b.iter_batched(
                || Key::new(format!("key:{:012}x", rng.below(0..KEYS))).expect("a short key"),
                |key| black_box(engine.get(&key).expect("readable")),
                BatchSize::SmallInput,
            );
        });
        group.throughput(Throughput::Elements(KEYS));
        group.sample_size(20);
        group.bench_function("scan of everything", |b| {
            b.iter(|| black_box(engine.scan(&KeyRange::all()).count()));
        });
        group.finish();
        engine.close().expect("closes");
    }
}

fn writes(c: &mut Criterion) {
    for (name, durability) in [("synced", Durability::Synced), ("buffered", Durability::Buffered)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = filled(&dir, false, durability);
        let mut next = KEYS;
        c.bench_function(&format!("put, {name}"), |b| {
            b.iter(|| {
                next += 1;
                engine.write(WriteBatch::one(key(next), record(next))).expect("there is room")
            });
        });
        engine.close().expect("closes");
    }
}

criterion_group!(benches, reads, writes);
criterion_main!(benches);
