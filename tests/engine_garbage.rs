//! Tombstones and expired values go by themselves, though sizes ask for no compaction: while others write, and when nobody does.

mod engine_machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine_machine::{Machine, close, simulate, write};
use kvstore::engine::{Engine, EngineStats, Horizon, Options, TombstonePolicy, WriteBatch};
use kvstore::env::{MemVfs, Planted, Rng};
use kvstore::types::{Expiry, Key, KeyRange, Record, Timestamp, Value};

fn boot() -> Machine {
    Machine::boot(MemVfs::new(), 1, Planted::default())
}

/// A single node: nobody else may have an older record.
fn alone() -> Options {
    Options { memtable_size: 32 << 10, tombstones: TombstonePolicy::DropWhenUncovered, ..Options::default() }
}

fn key(number: u64) -> Key {
    Key::new(format!("job-{number:08}")).unwrap()
}

fn value(number: u64) -> Record {
    Record::value(Timestamp::from_u64(2 * number + 1), Value::new(vec![7; 100]))
}

fn tombstone(number: u64) -> Record {
    Record::tombstone(Timestamp::from_u64(2 * number + 2))
}

async fn flush(engine: &Engine) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    engine.start_flush(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.unwrap().unwrap();
}

/// What a node does: looks after its engine every second. Nothing else happens meanwhile.
async fn idle(engine: &Engine, seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        engine.maintain();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn tables(stats: &EngineStats) -> (usize, u64) {
    (stats.level_files.iter().sum(), stats.level_bytes.iter().sum())
}

/// A queue as people build them: keys rise, each is put, taken soon after and deleted.
async fn run_queue(engine: &Engine, jobs: u64, lag: u64) {
    for number in 0..jobs + lag {
        let mut batch = Vec::new();
        if number < jobs {
            batch.push((key(number), value(number)));
        }
        if let Some(taken) = number.checked_sub(lag) {
            batch.push((key(taken), tombstone(number)));
        }
        write(engine, WriteBatch::from(batch)).await.unwrap();
    }
}

#[test]
fn the_tombstones_of_a_queue_go_while_it_is_used() {
    simulate(async {
        for lag in [1, 100, 1_000] {
            let (engine, _) = boot().open(alone()).unwrap();
            run_queue(&engine, 5_000, lag).await;
            idle(&engine, 3).await;
            let stats = engine.stats();
            assert!(stats.flushes > 10 && stats.tombstones < 1_000, "lag {lag}: {stats:?}");
            flush(&engine).await;
            idle(&engine, 5).await;
            let stats = engine.stats();
            assert_eq!((tables(&stats), stats.tombstones), ((0, 0), 0), "lag {lag}: {stats:?}");
            close(&engine).await.unwrap();
        }
    });
}

/// All was put before anything was deleted, so that the tombstones of one table hide what others hold.
#[test]
fn an_idle_engine_brings_tombstones_together_with_what_they_hide() {
    simulate(async {
        let (engine, _) = boot().open(alone()).unwrap();
        for number in 0..3_000 {
            write(&engine, WriteBatch::one(key(number), value(number))).await.unwrap();
        }
        flush(&engine).await;
        for number in 0..3_000 {
            write(&engine, WriteBatch::one(key(number), tombstone(3_000 + number))).await.unwrap();
        }
        flush(&engine).await;
        idle(&engine, 10).await;
        let stats = engine.stats();
        assert_eq!((tables(&stats), stats.tombstones), ((0, 0), 0), "{stats:?}");
        let compactions = stats.compactions;
        idle(&engine, 10).await;
        assert_eq!(engine.stats().compactions, compactions, "nothing is left to do");
        close(&engine).await.unwrap();
    });
}

#[test]
fn deletions_at_random_leave_few_tombstones_in_an_idle_engine_and_it_comes_to_rest() {
    simulate(async {
        for seed in 0..6 {
            let rng = Rng::from_seed(seed);
            let (engine, _) = boot().open(alone()).unwrap();
            for number in 0..6_000u64 {
                let timestamp = Timestamp::from_u64(number + 1);
                let record = if rng.chance(0.5) {
                    Record::tombstone(timestamp)
                } else {
                    Record::value(timestamp, Value::new(vec![number as u8; 100]))
                };
                let key = Key::new(format!("key-{:04}", rng.below(0..1_500))).unwrap();
                write(&engine, WriteBatch::one(key, record)).await.unwrap();
            }
            flush(&engine).await;
            idle(&engine, 60).await;
            let stats = engine.stats();
            assert!(stats.tombstones * 4 < stats.table_records, "seed {seed}: {stats:?}");
            let values = engine
                .scan(&KeyRange::all())
                .map(Result::unwrap)
                .filter(|(_, record)| !record.is_tombstone());
            assert!(values.count() > 500, "seed {seed}");
            let compactions = stats.compactions;
            idle(&engine, 20).await;
            assert_eq!(engine.stats().compactions, compactions, "seed {seed}: it must come to rest");
            close(&engine).await.unwrap();
        }
    });
}

/// With replicas nobody vouches that all of them have a tombstone: it stays, and is not looked at again and again.
#[test]
fn tombstones_that_must_stay_are_not_rewritten_again_and_again() {
    simulate(async {
        let (engine, _) = boot().open(Options { tombstones: TombstonePolicy::Keep, ..alone() }).unwrap();
        run_queue(&engine, 3_000, 1).await;
        flush(&engine).await;
        idle(&engine, 2).await;
        let before = engine.stats();
        assert_eq!(before.tombstones, 3_000);
        idle(&engine, 60).await;
        let after = engine.stats();
        assert_eq!((after.compactions, after.tombstones), (before.compactions, 3_000));
        close(&engine).await.unwrap();
    });
}

/// Something old in memory may be what the tombstones hide, so they must wait for it, and go afterwards.
#[test]
fn tombstones_wait_for_an_older_record_in_memory() {
    simulate(async {
        let (engine, _) = boot().open(alone()).unwrap();
        run_queue(&engine, 100, 1).await;
        flush(&engine).await;
        write(&engine, WriteBatch::one(key(5), Record::value(Timestamp::from_u64(1), Value::new("late"))))
            .await
            .unwrap();
        run_queue(&engine, 100, 1).await;
        idle(&engine, 20).await;
        let stats = engine.stats();
        assert!(stats.compactions < 5, "{stats:?}");
        flush(&engine).await;
        idle(&engine, 20).await;
        let stats = engine.stats();
        assert_eq!((tables(&stats), stats.tombstones), ((0, 0), 0), "{stats:?}");
        assert_eq!(engine.get(&key(5)).unwrap(), None, "what was deleted stays deleted");
        close(&engine).await.unwrap();
    });
}

/// A horizon that the test moves, in microseconds.
fn horizon() -> (Arc<AtomicU64>, Horizon) {
    let at = Arc::new(AtomicU64::new(0));
    let moved = at.clone();
    (at, Horizon::new(move || Timestamp::from_micros(moved.load(Ordering::Relaxed))))
}

#[test]
fn the_bytes_of_expired_values_go_though_nothing_is_written() {
    simulate(async {
        for tombstones in [TombstonePolicy::Keep, TombstonePolicy::DropWhenUncovered] {
            let (at, horizon) = horizon();
            let (engine, _) = boot().open(Options { tombstones, horizon, ..alone() }).unwrap();
            for number in 0..2_000 {
                let mut bytes = vec![0; 100];
                Rng::from_seed(number).fill(&mut bytes);
                let value = Value::new(bytes).expiring(Expiry::from_u64(1_000 + number));
                let record = Record::value(Timestamp::from_u64(number + 1), value);
                write(&engine, WriteBatch::one(key(number), record)).await.unwrap();
            }
            flush(&engine).await;
            idle(&engine, 3).await;
            let (_, bytes_before) = tables(&engine.stats());
            let compactions = engine.stats().compactions;
            idle(&engine, 3).await;
            assert_eq!(engine.stats().compactions, compactions, "nothing has expired");
            at.store(2_000, Ordering::Relaxed);
            idle(&engine, 30).await;
            let stats = engine.stats();
            assert!((700..=1_000).contains(&stats.expired), "{tombstones:?}: {stats:?}");
            at.store(1_000_000, Ordering::Relaxed);
            idle(&engine, 30).await;
            let stats = engine.stats();
            // Where less than a quarter of a table is left to expire, it stays.
            assert!(stats.expired > 1_900, "{tombstones:?}: {stats:?}");
            match tombstones {
                TombstonePolicy::Keep => {
                    let (_, bytes) = tables(&stats);
                    assert_eq!(stats.tombstones, stats.expired);
                    assert!(bytes * 3 < bytes_before, "{bytes} of {bytes_before} bytes are left");
                }
                TombstonePolicy::DropWhenUncovered => assert!(stats.table_records < 100, "{stats:?}"),
            }
            let compactions = stats.compactions;
            idle(&engine, 10).await;
            assert_eq!(engine.stats().compactions, compactions, "it must come to rest");
            close(&engine).await.unwrap();
        }
    });
}

/// The manifest and the tables tell when values end, so that a restart changes nothing.
#[test]
fn values_that_expire_after_a_restart_go_as_well() {
    simulate(async {
        let (at, horizon) = horizon();
        let options = Options { horizon, ..alone() };
        let machine = boot();
        let (engine, _) = machine.open(options.clone()).unwrap();
        for number in 0..1_000 {
            let value = Value::new(vec![3; 50]).expiring(Expiry::from_u64(500));
            let record = Record::value(Timestamp::from_u64(number + 1), value);
            write(&engine, WriteBatch::one(key(number), record)).await.unwrap();
        }
        close(&engine).await.unwrap();
        drop(engine);
        at.store(501, Ordering::Relaxed);
        let (engine, _) = machine.open(options).unwrap();
        assert_eq!(engine.stats().table_records, 1_000);
        idle(&engine, 10).await;
        assert_eq!(engine.stats().table_records, 0);
        close(&engine).await.unwrap();
    });
}
