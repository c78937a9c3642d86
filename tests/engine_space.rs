//! How much disk the engine takes, and how much it writes, while live data of a fixed size is overwritten at random.
//!
//! ```text
//! cargo test --test engine_space -- --nocapture          the figures, in simulated time: the same in every run
//! SPACE_THREADS=1 cargo test --test engine_space -- --nocapture      and with real threads and a writer that never rests
//! ```
//!
//! Space is what all files take, logs that wait to be used again included, looked at before each operation on the
//! disk. It is settled when nothing has been written for some seconds.

mod engine_machine;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine_machine::{DIR, Machine, close, simulate, write};
use kvstore::engine::{Engine, Options, WriteBatch};
use kvstore::env::vfs_fault::{Op, Verdict};
use kvstore::env::{Env, FaultVfs, MemVfs, Planted, Rng, Vfs};
use kvstore::types::{Key, Record, Timestamp, Value};

const KEYS: u64 = 24 << 10;
const VALUE_LEN: usize = 1_000;
/// How many times everything is overwritten.
const ROUNDS: u64 = 6;
const CAPACITY: u64 = 4 << 30;

/// As many memtables of live data as 98 MiB are with memtables of 8 MiB.
fn options() -> Options {
    Options { memtable_size: 2 << 20, block_cache_size: 1 << 20, ..Options::default() }
}

/// Looks at a disk.
struct Gauge {
    disk: MemVfs,
    peak: Arc<AtomicU64>,
    /// Bytes of tables that were finished.
    tables: Arc<AtomicU64>,
}

impl Gauge {
    fn on(disk: &MemVfs, faults: &FaultVfs) -> Self {
        disk.set_capacity(Some(CAPACITY));
        let gauge = Self { disk: disk.clone(), peak: Arc::default(), tables: Arc::default() };
        let (disk, peak, tables) = (disk.clone(), gauge.peak.clone(), gauge.tables.clone());
        faults.set_rule(move |operation| {
            peak.fetch_max(used(&disk), Ordering::Relaxed);
            if operation.op == Op::Rename && operation.path.to_string_lossy().ends_with(".sst.tmp") {
                let len = disk.open(operation.path).and_then(|file| file.len()).unwrap();
                tables.fetch_add(len, Ordering::Relaxed);
            }
            Verdict::Pass
        });
        gauge
    }

    /// Begins anew, once the live data is there.
    fn reset(&self) {
        self.peak.store(0, Ordering::Relaxed);
        self.tables.store(0, Ordering::Relaxed);
    }
}

fn used(disk: &MemVfs) -> u64 {
    CAPACITY - disk.free_space(Path::new("/")).unwrap()
}

fn batch(rng: &Rng, numbers: impl Iterator<Item = u64>, timestamp: u64) -> WriteBatch {
    let item = |number: u64| {
        let mut bytes = vec![0; VALUE_LEN];
        rng.fill(&mut bytes);
        let key = Key::new(format!("key-{number:012}")).unwrap();
        (key, Record::value(Timestamp::from_u64(timestamp), Value::new(bytes)))
    };
    WriteBatch::from(numbers.map(item).collect::<Vec<_>>())
}

/// Batches of eight: first every key in turn, then keys at random.
fn batches(rng: &Rng) -> (Vec<u64>, impl Iterator<Item = [u64; 8]>) {
    let overwrites = rng.fork();
    let random = (0..KEYS * ROUNDS / 8).map(move |_| std::array::from_fn(|_| overwrites.below(0..KEYS)));
    ((0..KEYS).collect(), random)
}

#[derive(Debug)]
struct Figures {
    peak: f64,
    settled: f64,
    tables_written: f64,
    log_written: f64,
}

fn figures(name: &str, gauge: &Gauge, engine: &Engine, log_before: u64) -> Figures {
    let live = (KEYS * (VALUE_LEN as u64 + 16)) as f64;
    let written = live * ROUNDS as f64;
    let stats = engine.stats();
    let figures = Figures {
        peak: gauge.peak.load(Ordering::Relaxed) as f64 / live,
        settled: used(&gauge.disk) as f64 / live,
        tables_written: gauge.tables.load(Ordering::Relaxed) as f64 / written,
        log_written: (stats.wal_bytes - log_before) as f64 / written,
    };
    println!(
        "{name}: peak {:.2}, settled {:.2} times the live data; {:.2} bytes of tables and {:.2} of logs written per byte; levels {:?}",
        figures.peak, figures.settled, figures.tables_written, figures.log_written, stats.level_bytes
    );
    figures
}

#[test]
fn steady_overwriting_takes_little_more_space_than_the_live_data() {
    let figures = simulate(async {
        let machine = Machine::boot(MemVfs::new(), 1, Planted::default());
        let gauge = Gauge::on(&machine.disk, &machine.faults);
        let (engine, _) = machine.open(options()).unwrap();
        let rng = Rng::from_seed(3);
        let (all, random) = batches(&rng);
        let mut timestamp = 0;
        for numbers in all.chunks(8) {
            timestamp += 1;
            write(&engine, batch(&rng, numbers.iter().copied(), timestamp)).await.unwrap();
        }
        gauge.reset();
        let log_before = engine.stats().wal_bytes;
        for (number, numbers) in random.enumerate() {
            timestamp += 1;
            write(&engine, batch(&rng, numbers.into_iter(), timestamp)).await.unwrap();
            if number % 100 == 0 {
                engine.maintain();
            }
        }
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            engine.maintain();
        }
        let figures = figures("simulated", &gauge, &engine, log_before);
        close(&engine).await.unwrap();
        figures
    });
    assert!(figures.peak <= 2.0, "{figures:?}");
    assert!(figures.settled <= 1.2, "{figures:?}");
    assert!(figures.tables_written + figures.log_written <= 6.0, "{figures:?}");
}

#[test]
fn a_writer_that_never_rests_is_measured_on_request() {
    if std::env::var_os("SPACE_THREADS").is_none() {
        return;
    }
    let disk = MemVfs::new();
    let faults = FaultVfs::new(Arc::new(disk.clone()));
    let gauge = Gauge::on(&disk, &faults);
    let env = Env { fs: Arc::new(faults), ..Env::real() };
    let (engine, _) = Engine::open(&env, Path::new(DIR), options()).unwrap();
    let rng = Rng::from_seed(3);
    let (all, random) = batches(&rng);
    let mut timestamp = 0;
    for numbers in all.chunks(8) {
        timestamp += 1;
        engine.write(batch(&rng, numbers.iter().copied(), timestamp)).unwrap();
    }
    gauge.reset();
    let log_before = engine.stats().wal_bytes;
    for (number, numbers) in random.enumerate() {
        timestamp += 1;
        engine.write(batch(&rng, numbers.into_iter(), timestamp)).unwrap();
        if number % 1_000 == 0 {
            engine.maintain();
        }
    }
    for _ in 0..30 {
        #[allow(clippy::disallowed_methods)] // real threads
        std::thread::sleep(Duration::from_secs(1));
        engine.maintain();
    }
    figures("threads", &gauge, &engine, log_before);
    engine.close().unwrap();
}
