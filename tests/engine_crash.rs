//! What survives a crash: every acknowledged write, and nothing that was never written.
//!
//! A script of writes runs on a file system in memory that dies at its k-th operation, for every k; then the
//! crash keeps nothing, everything or any subset of what was not synced, and the engine is opened again.

mod engine_machine;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine_machine::{Machine, close, simulate, write};
use kvstore::engine::{Engine, Options, Recovery, WriteBatch};
use kvstore::env::vfs_fault::{Lasting, Verdict};
use kvstore::env::{MemVfs, Planted, Rng};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};

/// What was asked of an engine, and what it promised.
#[derive(Default)]
struct History {
    attempted: BTreeMap<Key, Vec<Record>>,
    acknowledged: BTreeMap<Key, Vec<Record>>,
    batches: Vec<WriteBatch>,
}

impl History {
    fn attempt(&mut self, batch: &WriteBatch) {
        self.batches.push(batch.clone());
        for (key, record) in batch.items() {
            self.attempted.entry(key.clone()).or_default().push(record.clone());
        }
    }

    fn acknowledge(&mut self, batch: &WriteBatch) {
        for (key, record) in batch.items() {
            self.acknowledged.entry(key.clone()).or_default().push(record.clone());
        }
    }

    /// Looks for what is lost, invented, or half there, and tells the first thing found.
    fn check(&self, engine: &Engine, recovery: Option<&Recovery>) -> Result<(), String> {
        let mut scanned: BTreeMap<Key, Record> = BTreeMap::new();
        for item in engine.scan(&KeyRange::all()) {
            let (key, record) = item.map_err(|error| format!("scan: {error}"))?;
            scanned.insert(key, record);
        }
        if let Some(key) = scanned.keys().find(|key| !self.attempted.contains_key(*key)) {
            return Err(format!("{key:?} was invented"));
        }
        for (key, attempted) in &self.attempted {
            let found = engine.get(key).map_err(|error| format!("{key:?}: {error}"))?;
            if found.as_ref() != scanned.get(key) {
                return Err(format!("{key:?}: {found:?} by get, {:?} by scan", scanned.get(key)));
            }
            if found.as_ref().is_some_and(|found| !attempted.contains(found)) {
                return Err(format!("{key:?}: {found:?} was never written"));
            }
            for promised in self.acknowledged.get(key).into_iter().flatten() {
                if found.as_ref().is_none_or(|found| promised.supersedes(found)) {
                    return Err(format!("{key:?}: {promised:?} was acknowledged, {found:?} is there"));
                }
                if recovery.is_some_and(|recovery| recovery.newest < promised.timestamp()) {
                    return Err(format!("{promised:?} is newer than the newest timestamp told"));
                }
            }
        }
        self.check_batches(&scanned)
    }

    fn check_batches(&self, scanned: &BTreeMap<Key, Record>) -> Result<(), String> {
        for batch in self.batches.iter().filter(|batch| is_alone(batch)) {
            let count = batch.items().iter().filter(|(key, _)| scanned.contains_key(key)).count();
            if count != 0 && count != batch.items().len() {
                return Err(format!("{count} of {} records of a batch", batch.items().len()));
            }
        }
        Ok(())
    }
}

/// Whether a batch's keys are written by no other.
fn is_alone(batch: &WriteBatch) -> bool {
    batch.items().iter().all(|(key, _)| key.as_bytes().starts_with(b"batch"))
}

fn small(seed: u64) -> Options {
    Options {
        memtable_size: 2 << 10,
        l0_files_max: 2,
        sparse_index_interval: 4 + seed as usize % 5,
        block_cache_size: 16 << 10,
        wal_batch_max: 4,
        ..Options::default()
    }
}

/// One step's batches: some alone, some with company; keys are written again and again, some of them late.
fn batches_of(step: u64, rng: &Rng) -> Vec<WriteBatch> {
    (0..=rng.below(0..6))
        .map(|of_step| {
            let at = |late: u64| Timestamp::from_u64((1_000 + step * 10 + of_step).saturating_sub(late));
            let value = |len: u64| Value::new(vec![step as u8; len as usize]);
            if rng.chance(0.2) {
                let mut batch = WriteBatch::default();
                for item in 0..3 {
                    let key = Key::new(format!("batch-{step}-{of_step}-{item}")).unwrap();
                    batch.put(key, value(rng.below(0..60)), at(0));
                }
                return batch;
            }
            let key = Key::new(format!("key-{}", rng.below(0..12))).unwrap();
            let late = if rng.chance(0.2) { rng.below(0..100) } else { 0 };
            let is_delete = rng.chance(0.2);
            let record = if is_delete {
                Record::tombstone(at(late))
            } else {
                Record::value(at(late), value(rng.below(0..200)))
            };
            WriteBatch::one(key, record)
        })
        .collect()
}

/// Runs a script until it ends or the first write fails, and keeps its history.
async fn run_script(engine: &Engine, seed: u64, steps: u64, history: &mut History, goes_on: bool) {
    let rng = Rng::from_seed(seed);
    for step in 0..steps {
        let mut waiting = Vec::new();
        for batch in batches_of(step, &rng) {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            history.attempt(&batch);
            engine.enqueue(batch.clone(), Box::new(move |outcome| drop(sender.send(outcome))));
            waiting.push((batch, receiver));
        }
        engine.kick();
        let mut is_failed = false;
        for (batch, receiver) in waiting {
            match receiver.await {
                Ok(Ok(_)) => history.acknowledge(&batch),
                _ => is_failed = true,
            }
        }
        if is_failed && !goes_on {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Opens what a crash left, checks it, writes on, crashes again, and checks again.
async fn check_after_crash(
    disk: MemVfs,
    seed: u64,
    history: &mut History,
    planted: Planted,
) -> Result<(), String> {
    let machine = Machine::boot(disk, seed, planted);
    let (engine, recovery) = machine.open(small(seed)).map_err(|error| error.to_string())?;
    if !recovery.damage.is_empty() {
        return Err(format!("a crash was taken for damage: {:?}", recovery.damage));
    }
    history.check(&engine, Some(&recovery))?;
    let key = Key::new("after").unwrap();
    let batch =
        WriteBatch::one(key.clone(), Record::value(Timestamp::from_u64(1 << 40), Value::new("crash")));
    write(&engine, batch.clone()).await.map_err(|error| error.to_string())?;
    history.attempt(&batch);
    history.acknowledge(&batch);
    drop(engine);
    let disk = machine.kill();
    disk.crash_lose_all();
    let machine = Machine::boot(disk, seed, planted);
    let (engine, recovery) = machine.open(small(seed)).map_err(|error| format!("again: {error}"))?;
    history.check(&engine, Some(&recovery)).map_err(|found| format!("again: {found}"))?;
    history.attempted.remove(&key);
    history.acknowledged.remove(&key);
    history.batches.pop();
    Ok(())
}

/// Runs the script of `seed` until operation `at`; returns the disk and the history, and whether it came so far.
async fn run_until(at: u64, seed: u64, steps: u64, planted: Planted) -> (MemVfs, History, bool) {
    let machine = Machine::boot(MemVfs::new(), seed, planted);
    machine.faults.fail_after(at, Lasting::Halt, |_| true);
    let mut history = History::default();
    if let Ok((engine, _)) = machine.open(small(seed)) {
        run_script(&engine, seed, steps, &mut history, false).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let is_halted = machine.faults.is_halted();
    (machine.kill(), history, is_halted)
}

/// Crashes at operation after operation until the script runs to its end; tells the first thing that went wrong,
/// or how many operations the script has.
fn crash_everywhere(planted: Planted) -> Result<u64, String> {
    let (mut at, mut seed) = (0, 1);
    loop {
        let (disk, mut history, is_halted) = simulate(run_until(at, seed, 30, planted));
        for fate in 0..4 {
            let disk = disk.fork();
            match fate {
                0 => disk.crash_lose_all(),
                1 => disk.crash_keep_all(),
                _ => disk.crash(&Rng::from_seed(at * 10 + fate)),
            }
            simulate(check_after_crash(disk, seed, &mut history, planted))
                .map_err(|found| format!("crash at operation {at}, seed {seed}, fate {fate}: {found}"))?;
        }
        if !is_halted {
            return Ok(at);
        }
        at += 1 + at / 200; // the first hundreds one by one, then ever wider
        seed = 1 + seed % 3;
    }
}

#[test]
fn a_crash_at_any_operation_loses_no_acknowledged_write_and_invents_none() {
    let operations = crash_everywhere(Planted::default()).unwrap();
    assert!(operations > 300, "the script does too little: {operations} operations");
}

/// A test of the test above.
#[cfg(feature = "planted-mistakes")]
#[test]
fn crashes_find_an_early_acknowledgement_and_a_directory_that_was_not_synced() {
    use kvstore::env::Mistake;

    for mistake in [Mistake::AckBeforeSync, Mistake::DirectoryNotSynced] {
        let found = crash_everywhere(Planted::mistake(mistake));
        assert!(found.is_err(), "{mistake:?} went unnoticed");
    }
}

#[test]
fn a_crash_during_recovery_loses_nothing_either() {
    for seed in 0..12 {
        let (disk, mut history, _) = simulate(run_until(150 + 40 * seed, seed, 60, Planted::default()));
        disk.crash(&Rng::from_seed(seed));
        for at in (0..).step_by(3) {
            let machine = Machine::boot(disk.fork(), seed, Planted::default());
            machine.faults.fail_after(at, Lasting::Halt, |_| true);
            let is_opened = simulate(async { machine.open(small(seed)).is_ok() });
            let fork = machine.kill();
            fork.crash(&Rng::from_seed(seed * 1_000 + at));
            simulate(check_after_crash(fork, seed, &mut history, Planted::default())).unwrap_or_else(
                |found| panic!("seed {seed}, crash at operation {at} of the recovery: {found}"),
            );
            if is_opened {
                break;
            }
        }
    }
}

/// Fails the operation number `at` and lets the script go on; what is acknowledged must be there all the same.
/// Returns whether there was such an operation.
async fn check_with_failure(at: u64, lasting: Lasting, seed: u64) -> Result<bool, String> {
    let machine = Machine::boot(MemVfs::new(), seed, Planted::default());
    machine.faults.fail_after(at, lasting, |_| true);
    let mut history = History::default();
    if let Ok((engine, _)) = machine.open(small(seed)) {
        run_script(&engine, seed, 25, &mut history, true).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        machine.faults.clear_rule();
        history.check(&engine, None).map_err(|found| format!("while it goes on: {found}"))?;
    }
    let is_failed = machine.faults.failures() > 0;
    let disk = machine.kill();
    disk.crash(&Rng::from_seed(at));
    check_after_crash(disk, seed, &mut history, Planted::default()).await?;
    Ok(is_failed)
}

fn fail_everywhere(lasting: Lasting, widen: u64) {
    let mut at = 0;
    loop {
        let seed = 1 + at % 3;
        match simulate(check_with_failure(at, lasting, seed)) {
            Ok(true) => at += 1 + at / widen,
            Ok(false) => break,
            Err(found) => panic!("operation {at} fails ({lasting:?}), seed {seed}: {found}"),
        }
    }
    assert!(at > 200, "the script does too little: {at} operations");
}

/// The disk is full at operation number `at`, and perhaps from then on; then there is space again. The engine must go on by
/// itself, unless it was a sync that failed: what is durable is unknown then. Returns whether there was such an operation.
async fn check_with_full_disk(at: u64, lasting: Lasting, seed: u64) -> Result<bool, String> {
    let machine = Machine::boot(MemVfs::new(), seed, Planted::default());
    let has_sync_failed = Arc::new(AtomicBool::new(false));
    let noted = has_sync_failed.clone();
    let mut seen = 0;
    machine.faults.set_rule(move |operation| {
        seen += 1;
        let is_failed = if lasting == Lasting::Once { seen == at + 1 } else { seen > at };
        if !is_failed {
            return Verdict::Pass;
        }
        noted.fetch_or(operation.op.is_sync(), Ordering::Relaxed);
        Verdict::Fail(ErrorKind::StorageFull)
    });
    let mut history = History::default();
    if let Ok((engine, _)) = machine.open(small(seed)) {
        run_script(&engine, seed, 25, &mut history, true).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        machine.faults.clear_rule();
        history.check(&engine, None).map_err(|found| format!("while it goes on: {found}"))?;
        if !has_sync_failed.load(Ordering::Relaxed) {
            write_again(&engine, &mut history).await?;
            history.check(&engine, None).map_err(|found| format!("with space: {found}"))?;
            if seed == 1 {
                close(&engine).await.map_err(|error| format!("close: {error}"))?;
            }
        }
    }
    machine.faults.clear_rule();
    let is_failed = machine.faults.failures() > 0;
    let disk = machine.kill();
    disk.crash(&Rng::from_seed(at));
    check_after_crash(disk, seed, &mut history, Planted::default()).await?;
    Ok(is_failed)
}

/// There is space again: soon a write must go through.
async fn write_again(engine: &Engine, history: &mut History) -> Result<(), String> {
    let key = Key::new("space again").unwrap();
    let batch = WriteBatch::one(key, Record::value(Timestamp::from_u64(1 << 30), Value::new("v")));
    history.attempt(&batch);
    let mut refused = None;
    for _ in 0..5 {
        match write(engine, batch.clone()).await {
            Ok(_) => {
                history.acknowledge(&batch);
                return Ok(());
            }
            Err(error) => refused = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(format!("still refused: {refused:?}"))
}

fn fill_the_disk_everywhere(lasting: Lasting, widen: u64) {
    let mut at = 0;
    loop {
        let seed = 1 + at % 3;
        match simulate(check_with_full_disk(at, lasting, seed)) {
            Ok(true) => at += 1 + at / widen,
            Ok(false) => break,
            Err(found) => panic!("the disk is full at operation {at} ({lasting:?}), seed {seed}: {found}"),
        }
    }
    assert!(at > 200, "the script does too little: {at} operations");
}

#[test]
fn whichever_operation_finds_the_disk_full_once_the_engine_goes_on() {
    fill_the_disk_everywhere(Lasting::Once, 150);
}

#[test]
fn from_whichever_operation_on_the_disk_is_full_the_engine_goes_on_when_there_is_space() {
    fill_the_disk_everywhere(Lasting::Sticky, 100);
}

#[test]
fn whichever_operation_fails_once_no_acknowledged_write_is_lost() {
    fail_everywhere(Lasting::Once, 150);
}

#[test]
fn whichever_operation_fails_from_then_on_no_acknowledged_write_is_lost() {
    fail_everywhere(Lasting::Sticky, 100);
}
