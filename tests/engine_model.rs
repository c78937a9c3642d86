//! The engine equals a sorted map, under any options: random operations on both, reopening among them.
//!
//! `KVSTORE_SEED=n` runs one seed alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstore::engine::{Durability, Engine, Horizon, Options, TombstonePolicy, WriteBatch};
use kvstore::env::{Env, MemVfs, Rng};
use kvstore::types::{ContentType, Expiry, Key, KeyRange, Record, Timestamp, Value};

/// An engine, the map it must equal, and where both come from.
struct Pair {
    env: Env,
    disk: MemVfs,
    dir: PathBuf,
    options: Options,
    engine: Engine,
    model: BTreeMap<Key, Record>,
    rng: Rng,
    clock: u64,
    /// Before when values have expired, in microseconds; it only rises.
    horizon: Arc<AtomicU64>,
    seed: u64,
}

fn any_options(rng: &Rng, horizon: &Arc<AtomicU64>) -> Options {
    let horizon = horizon.clone();
    let pick = |from: &[usize]| from[rng.below(0..from.len() as u64) as usize];
    Options {
        memtable_size: pick(&[1 << 10, 4 << 10, 64 << 10]),
        l0_files_max: pick(&[1, 2, 4]),
        sparse_index_interval: pick(&[1, 2, 16, 128]),
        block_cache_size: pick(&[0, 1 << 10, 1 << 20]),
        wal_batch_max: pick(&[1, 3, 512]),
        bloom_bits_per_key: pick(&[0, 1, 10]),
        durability: if rng.chance(0.3) { Durability::Buffered } else { Durability::Synced },
        tombstones: if rng.chance(0.3) { TombstonePolicy::DropWhenUncovered } else { TombstonePolicy::Keep },
        horizon: Horizon::new(move || Timestamp::from_micros(horizon.load(Ordering::Relaxed))),
        ..Options::default()
    }
}

impl Pair {
    fn new(pool_of: &Env, seed: u64) -> Self {
        let rng = Rng::from_seed(seed);
        let disk = MemVfs::new();
        let env = Env { fs: Arc::new(disk.clone()), rng: rng.fork(), ..pool_of.clone() };
        let horizon = Arc::new(AtomicU64::new(1));
        let (dir, options) = (PathBuf::from("/engine"), any_options(&rng, &horizon));
        let (engine, recovery) = Engine::open(&env, &dir, options.clone()).unwrap();
        assert!(recovery.created, "seed {seed}");
        Self { env, disk, dir, options, engine, model: BTreeMap::new(), rng, clock: 1_000, horizon, seed }
    }

    fn key(&self) -> Key {
        Key::new(format!("{:03}", self.rng.below(0..150))).unwrap()
    }

    /// Most timestamps rise; some repeat and some are late, unless tombstones go: then nothing older may come.
    fn timestamp(&mut self) -> Timestamp {
        self.clock += self.rng.below(0..2);
        let may_be_late = self.options.tombstones == TombstonePolicy::Keep && self.rng.chance(0.2);
        self.clock += u64::from(!may_be_late);
        let late = if may_be_late { self.rng.below(0..200) } else { 0 };
        Timestamp::from_u64(self.clock - late.min(self.clock))
    }

    fn record(&mut self) -> Record {
        let timestamp = self.timestamp();
        let ahead = self.rng.below(0..60);
        let expires_at = Expiry::from_u64(self.horizon.load(Ordering::Relaxed) + ahead);
        match self.rng.below(0..8) {
            5 => Record::value(timestamp, Value::new("for a time").expiring(expires_at)),
            6 => {
                let value = Value::new(vec![2; 200]).of_type(ContentType::new(b"text/plain"));
                Record::value(timestamp, value.expiring(expires_at))
            }
            7 => Record::value(timestamp, Value::default().expiring(expires_at)).expired(),
            0 => Record::tombstone(timestamp),
            1 => Record::value(timestamp, Value::new("")),
            2 => {
                let content_type = ContentType::new(&vec![b'a'; self.rng.below(1..256) as usize]);
                let value = Value::new(vec![1; self.rng.below(0..100) as usize]);
                Record::value(timestamp, value.of_type(content_type))
            }
            _ => {
                let mut bytes = vec![0; self.rng.below(0..300) as usize];
                self.rng.fill(&mut bytes);
                Record::value(timestamp, Value::new(bytes))
            }
        }
    }

    fn apply(&mut self, batch: &WriteBatch) {
        for (key, record) in batch.items() {
            let old = self.model.get(key);
            if old.is_none_or(|old| record.supersedes(old)) {
                self.model.insert(key.clone(), record.clone());
            }
        }
    }

    fn write(&mut self) {
        let count = if self.rng.chance(0.1) { self.rng.below(0..20) } else { 1 };
        let items: Vec<_> = (0..count).map(|_| (self.key(), self.record())).collect();
        let batch = WriteBatch::from(items);
        self.engine.write(batch.clone()).unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        self.apply(&batch);
    }

    /// Tombstones that were let go are as good as those that are there, and so are values that have expired.
    fn seen(&self, record: Option<&Record>) -> Option<Record> {
        let may_go = self.options.tombstones == TombstonePolicy::DropWhenUncovered;
        let horizon = self.horizon.load(Ordering::Relaxed);
        let record = record.cloned().map(|record| match record.expires_at() {
            Some(expires_at) if expires_at.as_u64() < horizon => record.expired(),
            _ => record,
        });
        record.filter(|record| !(may_go && record.is_tombstone()))
    }

    fn check_get(&self, engine: &Engine, key: &Key) {
        let expected = self.seen(self.model.get(key));
        let found = engine.get(key).unwrap();
        assert_eq!(self.seen(found.as_ref()), expected, "seed {}, {key:?}", self.seed);
        if let Some(found) = engine.try_get(key) {
            assert_eq!(
                self.seen(found.unwrap().as_ref()),
                expected,
                "seed {}, {key:?}, in memory",
                self.seed
            );
        }
    }

    fn check_scan(&self, engine: &Engine, range: &KeyRange) {
        let keep = |(key, record): (Key, Record)| self.seen(Some(&record)).map(|record| (key, record));
        let found: Vec<_> = engine.scan(range).map(Result::unwrap).filter_map(keep).collect();
        let in_range = self.model.iter().filter(|(key, _)| range.contains(key.as_bytes()));
        let expected: Vec<_> = in_range.map(|(k, r)| (k.clone(), r.clone())).filter_map(keep).collect();
        assert_eq!(found, expected, "seed {}, {range:?}", self.seed);
    }

    fn any_range(&self) -> KeyRange {
        let bound = || self.rng.chance(0.7).then(|| self.key().to_bytes());
        KeyRange { start: bound(), end: bound() }
    }

    fn reopen(&mut self) {
        if self.rng.chance(0.5) || self.options.durability == Durability::Buffered {
            self.engine.close().unwrap();
        } else {
            self.disk.crash_lose_all(); // and the engine's last threads meet a dead disk
        }
        if self.rng.chance(0.3) {
            let tombstones = self.options.tombstones;
            self.options = Options { tombstones, ..any_options(&self.rng, &self.horizon) };
        }
        let (engine, recovery) = Engine::open(&self.env, &self.dir, self.options.clone())
            .unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        assert_eq!((recovery.created, recovery.damage.len()), (false, 0), "seed {}", self.seed);
        self.engine = engine;
        self.check_scan(&self.engine, &KeyRange::all());
    }

    fn checkpoint(&self, number: u64) {
        let dir = Path::new("/copies").join(number.to_string());
        self.engine.checkpoint(&dir).unwrap();
        let (copy, _) = Engine::open(&self.env, &dir, self.options.clone()).unwrap();
        self.check_scan(&copy, &KeyRange::all());
        copy.close().unwrap();
    }

    fn step(&mut self, number: u64) {
        self.horizon.fetch_add(self.rng.below(0..2), Ordering::Relaxed);
        match self.rng.below(0..1_000) {
            0..600 => self.write(),
            600..800 => self.check_get(&self.engine, &self.key()),
            800..960 => self.check_scan(&self.engine, &self.any_range()),
            960..975 => self.engine.flush().unwrap(),
            975..980 => self.engine.compact().unwrap(),
            980..985 => self.checkpoint(number),
            _ => self.reopen(),
        }
    }
}

#[test]
fn the_engine_equals_a_sorted_map_under_any_options() {
    let real = Env::real(); // for its threads
    let seeds = match std::env::var("KVSTORE_SEED") {
        Ok(seed) => vec![seed.parse().expect("KVSTORE_SEED is a number")],
        Err(_) => (0..30).collect(),
    };
    for seed in seeds {
        let mut pair = Pair::new(&real, seed);
        for number in 0..800 {
            pair.step(number);
        }
        pair.check_scan(&pair.engine, &KeyRange::all());
        pair.engine.compact().unwrap();
        pair.check_scan(&pair.engine, &KeyRange::all());
        for number in 0..150 {
            pair.check_get(&pair.engine, &Key::new(format!("{number:03}")).unwrap());
        }
        pair.engine.close().unwrap();
    }
}

#[test]
fn writers_on_many_threads_all_find_their_last_write() {
    #![allow(clippy::disallowed_methods)] // threads are what is tested here
    let env = Env { fs: Arc::new(MemVfs::new()), ..Env::real() };
    let options = Options { memtable_size: 8 << 10, l0_files_max: 2, ..Options::default() };
    let (engine, _) = Engine::open(&env, Path::new("/engine"), options).unwrap();
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                let key = |number: u64| Key::new(format!("{writer}-{}", number % 50)).unwrap();
                for number in 1..=400u64 {
                    let value = Value::new(number.to_string().into_bytes());
                    engine.put(key(number), value.clone(), Timestamp::from_u64(number)).unwrap();
                    let found = engine.get(&key(number)).unwrap().unwrap();
                    assert_eq!(found.as_value(), Some(&value), "writer {writer} reads its own write");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(engine.scan(&KeyRange::all()).map(Result::unwrap).count(), 200);
    let stats = engine.stats();
    assert_eq!(stats.records_written, 1_600);
    assert!(stats.flushes > 0, "{stats:?}"); // how many is up to who runs when
    assert!(stats.wal_syncs <= 1_600 + stats.flushes, "{stats:?}");
    engine.close().unwrap();
}
