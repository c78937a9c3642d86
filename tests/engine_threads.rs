//! The engine under real threads: writers with late and equal timestamps, flushes, compactions, checkpoints and a close at
//! any time, on a disk that fails, fills up and has no descriptors left, for a while, at any operation.
//!
//! What must hold whatever happens: every completion is called, exactly once and within a minute; what was acknowledged is
//! read, at once and after a crash; what was refused is never found (after `Io` alone it is unknown); and the engine goes on
//! when its disk does, unless a sync failed.
//!
//! `KVSTORE_SEED=n` runs one seed alone, `KVSTORE_SEEDS=n` so many. The operating system decides how threads interleave, so
//! a seed says what is done and not in which order.
#![allow(clippy::disallowed_methods)] // threads are what is tested here

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use kvstore::engine::{Engine, Error, Options, WriteBatch};
use kvstore::env::vfs_fault::{Operation, Verdict};
use kvstore::env::{Env, FaultVfs, MemVfs, Rng};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};
use parking_lot::Mutex;

/// Nothing may take longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: u64 = 3;
const EMFILE: i32 = 24;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It may be there, or not: it is under way, or the disk failed.
    Unknown,
    Acknowledged,
    Refused,
}

#[derive(Debug)]
struct Attempt {
    record: Record,
    outcome: Outcome,
    completions: Arc<AtomicU32>,
}

/// All that was tried, by key.
#[derive(Debug, Default)]
struct History {
    attempts: Mutex<BTreeMap<Key, Vec<Attempt>>>,
}

impl History {
    /// Notes a write before it is submitted; returns its place.
    fn begin(&self, key: &Key, record: &Record, completions: &Arc<AtomicU32>) -> usize {
        let mut attempts = self.attempts.lock();
        let of_key = attempts.entry(key.clone()).or_default();
        let (record, completions) = (record.clone(), completions.clone());
        of_key.push(Attempt { record, outcome: Outcome::Unknown, completions });
        of_key.len() - 1
    }

    fn end(&self, key: &Key, place: usize, outcome: Outcome) {
        self.attempts.lock().get_mut(key).expect("it was begun")[place].outcome = outcome;
    }

    /// Says what is wrong with what a read found.
    fn judge(&self, key: &Key, found: Option<&Record>) -> Result<(), String> {
        let attempts = self.attempts.lock();
        let of_key = attempts.get(key).map_or(&[][..], Vec::as_slice);
        if let Some(found) = found
            && !of_key.iter().any(|attempt| attempt.record == *found && attempt.outcome != Outcome::Refused)
        {
            let refused = of_key.iter().any(|attempt| attempt.record == *found);
            return Err(format!(
                "{key:?}: {found:?} was {}",
                if refused { "refused" } else { "never written" }
            ));
        }
        let acknowledged = of_key.iter().filter(|attempt| attempt.outcome == Outcome::Acknowledged);
        for Attempt { record, .. } in acknowledged {
            if found.is_none_or(|found| record.supersedes(found)) {
                return Err(format!("{key:?}: {record:?} was acknowledged, {found:?} is there"));
            }
        }
        Ok(())
    }

    /// Says what is wrong with all that an engine holds.
    fn judge_all(&self, engine: &Engine) -> Result<(), String> {
        let mut held = BTreeMap::new();
        for item in engine.scan(&KeyRange::all()) {
            let (key, record) = item.map_err(|error| format!("scan: {error}"))?;
            held.insert(key, record);
        }
        let tried: Vec<Key> = self.attempts.lock().keys().cloned().collect();
        for key in held.keys().chain(&tried) {
            self.judge(key, held.get(key))?;
        }
        Ok(())
    }

    /// Every completion was called once; called when nothing is under way any more.
    fn check_completions(&self) {
        for (key, attempts) in &*self.attempts.lock() {
            for attempt in attempts {
                let calls = attempt.completions.load(Ordering::SeqCst);
                assert_eq!(calls, 1, "{key:?}: completions of {:?}", attempt.record);
            }
        }
    }
}

/// One engine and what is done to it.
struct World {
    seed: u64,
    disk: MemVfs,
    faults: FaultVfs,
    engine: Engine,
    history: History,
    clock: AtomicU64,
    /// The disk fails now and then. Writers do not judge reads meanwhile.
    is_failing: AtomicBool,
    /// Something failed that makes what is durable doubtful.
    may_be_poisoned: Arc<AtomicBool>,
    /// It was closed on the way.
    is_closed: AtomicBool,
}

fn options(rng: &Rng) -> Options {
    let pick = |from: &[usize]| from[rng.below(0..from.len() as u64) as usize];
    Options {
        memtable_size: pick(&[2 << 10, 8 << 10, 32 << 10]),
        l0_files_max: pick(&[1, 2, 4]),
        wal_batch_max: pick(&[1, 4, 512]),
        block_cache_size: pick(&[0, 64 << 10]),
        ..Options::default()
    }
}

/// Runs something that blocks, and panics if it does not return.
fn within<T: Send + 'static>(seed: u64, what: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(run())));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("seed {seed}: {what} does not return"))
}

impl World {
    fn open(seed: u64) -> Arc<Self> {
        let rng = Rng::from_seed(seed);
        let disk = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        let env = Env { fs: Arc::new(faults.clone()), rng: rng.fork(), ..Env::real() };
        let (engine, _) = Engine::open(&env, Path::new("/engine"), options(&rng)).unwrap();
        Arc::new(Self {
            seed,
            disk,
            faults,
            engine,
            history: History::default(),
            clock: AtomicU64::new(1_000),
            is_failing: AtomicBool::new(false),
            may_be_poisoned: Arc::default(),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Writes one record and waits for its outcome.
    fn write(&self, key: &Key, record: &Record) -> Outcome {
        let completions = Arc::new(AtomicU32::new(0));
        let place = self.history.begin(key, record, &completions);
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |outcome| {
            completions.fetch_add(1, Ordering::SeqCst);
            let _ = sender.send(outcome);
        });
        self.engine.submit(WriteBatch::one(key.clone(), record.clone()), done);
        let outcome = match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(_)) => Outcome::Acknowledged,
            Ok(Err(Error::Io { .. })) => Outcome::Unknown,
            Ok(Err(_)) => Outcome::Refused,
            Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {
                panic!("seed {}: a write is not answered: {:?}", self.seed, self.engine.stats())
            }
        };
        self.history.end(key, place, outcome);
        outcome
    }

    fn any_write(&self, rng: &Rng) -> (Key, Record) {
        let key = Key::new(format!("{:02}", rng.below(0..40))).unwrap();
        let now = self.clock.fetch_add(rng.below(0..2), Ordering::Relaxed); // some are equal
        let late = if rng.chance(0.2) { rng.below(0..300) } else { 0 };
        let timestamp = Timestamp::from_u64(now - late);
        if rng.chance(0.25) {
            return (key, Record::tombstone(timestamp));
        }
        let mut bytes = vec![0; 8 + rng.below(0..400) as usize];
        rng.fill(&mut bytes); // no two are equal
        (key, Record::value(timestamp, Value::new(bytes)))
    }

    fn run_writer(&self, rng: &Rng) {
        for _ in 0..150 {
            let (key, record) = self.any_write(rng);
            let outcome = self.write(&key, &record);
            if self.is_failing.load(Ordering::SeqCst) || outcome != Outcome::Acknowledged {
                continue;
            }
            match self.engine.get(&key) {
                Ok(found) => assert!(
                    found.as_ref().is_some_and(|found| !record.supersedes(found)),
                    "seed {}: {key:?}: {record:?} was just acknowledged, {found:?} is there",
                    self.seed
                ),
                Err(Error::Closed) => return,
                Err(error) => assert!(self.is_failing.load(Ordering::SeqCst), "seed {}: {error}", self.seed),
            }
        }
    }

    /// Asks for everything that is not a write, in any order; closes in the end, or on the way.
    fn run_operator(self: &Arc<Self>, rng: &Rng) {
        for number in 0..25 {
            let engine = self.engine.clone();
            match rng.below(0..20) {
                0..6 => drop(within(self.seed, "flush", move || engine.flush())),
                6..10 => drop(within(self.seed, "compact", move || engine.compact())),
                10..13 => {
                    let dir = PathBuf::from(format!("/copies/{number}"));
                    let _ = within(self.seed, "checkpoint", move || engine.checkpoint(&dir));
                }
                13..16 => engine.measure_space(),
                16..19 => thread::sleep(Duration::from_millis(rng.below(0..20))),
                _ if self.seed.is_multiple_of(4) => {
                    self.is_closed.store(true, Ordering::SeqCst);
                    let _ = within(self.seed, "close", move || engine.close());
                }
                _ => drop(within(self.seed, "stats", move || engine.stats())),
            }
        }
    }

    /// Makes the disk fail in one way for a while, then in another.
    fn run_faults(&self, rng: &Rng) {
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(rng.below(0..15)));
            self.is_failing.store(true, Ordering::SeqCst);
            let how_often = [0.01, 0.1, 1.0][rng.below(0..3) as usize];
            let fork = rng.fork();
            match rng.below(0..4) {
                0 => self.disk.set_capacity(Some(0)),
                1 => self.fail(move |_| fork.chance(how_often), Verdict::Fail(ErrorKind::StorageFull)),
                2 => self.fail(
                    move |operation| !operation.op.is_sync() && fork.chance(how_often),
                    Verdict::FailOs(EMFILE),
                ),
                _ if self.seed.is_multiple_of(3) => {
                    self.fail(move |_| fork.chance(how_often / 10.0), Verdict::Fail(ErrorKind::Other));
                }
                _ => self.fail(
                    move |operation| !operation.op.is_sync() && fork.chance(how_often),
                    Verdict::Fail(ErrorKind::StorageFull),
                ),
            }
            thread::sleep(Duration::from_millis(rng.below(0..30)));
            self.faults.clear_rule();
            self.disk.set_capacity(None);
            self.is_failing.store(false, Ordering::SeqCst);
        }
    }

    fn fail(&self, picked: impl Fn(&Operation<'_>) -> bool + Send + 'static, verdict: Verdict) {
        let doubtful = self.may_be_poisoned.clone();
        self.faults.set_rule(move |operation| {
            if !picked(operation) {
                return Verdict::Pass;
            }
            // Neither a full disk nor a want of descriptors is a reason to stop for good, unless it shows at a sync.
            let is_clean = verdict != Verdict::Fail(ErrorKind::Other) && !operation.op.is_sync();
            doubtful.fetch_or(!is_clean, Ordering::SeqCst);
            verdict
        });
    }

    /// The disk is well again: unless something was doubtful, writes go through soon.
    fn check_progress(&self) {
        if self.is_closed.load(Ordering::SeqCst) || self.may_be_poisoned.load(Ordering::SeqCst) {
            return;
        }
        let key = Key::new("progress").unwrap();
        let record = Record::value(Timestamp::from_u64(1 << 40), Value::new("goes on"));
        let is_taken = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(5));
            self.write(&key, &record) == Outcome::Acknowledged
        });
        assert!(is_taken, "seed {}: writes stay refused: {:?}", self.seed, self.engine.stats());
    }

    /// Closes, crashes, opens again, and compares.
    fn check_after_crash(&self) {
        let engine = self.engine.clone();
        let _ = within(self.seed, "the last close", move || engine.close());
        self.history.check_completions();
        let rng = Rng::from_seed(self.seed);
        self.disk.crash(&rng);
        let env = Env { fs: Arc::new(self.disk.clone()), rng: rng.fork(), ..Env::real() };
        let (engine, recovery) = Engine::open(&env, Path::new("/engine"), options(&rng))
            .unwrap_or_else(|error| panic!("seed {}: it does not open: {error}", self.seed));
        assert_eq!(recovery.damage, [""; 0], "seed {}", self.seed);
        self.history
            .judge_all(&engine)
            .unwrap_or_else(|found| panic!("seed {}: after a crash: {found}", self.seed));
        engine.close().unwrap();
    }
}

fn run(seed: u64) {
    let world = World::open(seed);
    let rng = Rng::from_seed(seed + 1_000_000);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            let (world, rng) = (&world, rng.fork());
            scope.spawn(move || world.run_writer(&rng));
        }
        let (operated, operator_rng) = (&world, rng.fork());
        scope.spawn(move || operated.run_operator(&operator_rng));
        world.run_faults(&rng);
    });
    world.check_progress();
    world.check_after_crash();
}

#[test]
fn every_completion_is_called_once_and_nothing_acknowledged_is_lost_whatever_the_disk_does() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    if let Some(seed) = number("KVSTORE_SEED") {
        return run(seed);
    }
    for seed in 0..number("KVSTORE_SEEDS").unwrap_or(24) {
        run(seed);
    }
}
