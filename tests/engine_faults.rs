//! What the engine does about damage, a full disk, a failing sync, a second opener and too many writers.

mod engine_machine;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine_machine::{DIR, Machine, close, simulate, write};
use kvstore::engine::{Engine, Error, Options, TombstonePolicy, WriteBatch};
use kvstore::env::vfs_fault::{Lasting, Op, Verdict};
use kvstore::env::{MemVfs, Planted, Rng, Vfs};
use kvstore::types::{Key, KeyRange, Record, Timestamp, Value};

fn boot(disk: MemVfs) -> Machine {
    Machine::boot(disk, 1, Planted::default())
}

fn small() -> Options {
    Options { memtable_size: 16 << 10, l0_files_max: 2, ..Options::default() }
}

fn batch(number: u64) -> WriteBatch {
    let key = Key::new(format!("key-{number}")).unwrap();
    WriteBatch::one(key, Record::value(Timestamp::from_u64(number + 1), Value::new(vec![7; 100])))
}

fn count(engine: &Engine) -> usize {
    engine.scan(&KeyRange::all()).map(Result::unwrap).count()
}

/// The names of the logs, oldest first.
fn logs_on(disk: &MemVfs) -> Vec<String> {
    let is_log = |name: &String| Path::new(name).extension().is_some_and(|extension| extension == "log");
    disk.list(Path::new(DIR)).unwrap().into_iter().filter(is_log).collect()
}

/// Writes `batches`, one group each, and kills the process before anything is flushed; returns the disk and its log.
async fn disk_with_log(batches: u64) -> (MemVfs, PathBuf) {
    let machine = boot(MemVfs::new());
    let (engine, _) = machine.open(small()).unwrap();
    for number in 0..batches {
        write(&engine, batch(number)).await.unwrap();
    }
    drop(engine);
    let disk = machine.kill();
    disk.crash_lose_all();
    let logs = logs_on(&disk);
    assert_eq!(logs.len(), 1, "{logs:?}");
    (disk, Path::new(DIR).join(&logs[0]))
}

/// Where the first batch of a log begins: behind two opening frames of 4 KiB.
const BATCHES_AT: u64 = 8192;

/// Where in the log a batch's value lies: a batch's header has 32 bytes.
fn in_batch(number: u64, len: u64) -> u64 {
    BATCHES_AT + number * len + 60
}

/// The length of one batch's frame in these tests.
const FRAME_LEN: u64 = 32 + 1 + 1 + 1 + 5 + 1 + 9 + 100;

#[test]
fn a_flipped_byte_in_a_synced_part_of_the_log_is_refused_and_dropped_only_on_request() {
    simulate(async {
        let (disk, log) = disk_with_log(5).await;
        disk.flip_byte(&log, in_batch(2, FRAME_LEN)).unwrap();
        let machine = boot(disk);
        let error = machine.open(small()).unwrap_err();
        assert!(
            matches!(&error, Error::Corruption { path, offset, .. } if *path == log && *offset == BATCHES_AT + 2 * FRAME_LEN)
        );

        let options = Options { drop_damaged: true, ..small() };
        let (engine, recovery) = machine.open(options).unwrap();
        assert_eq!((recovery.frames_replayed, recovery.damage.len()), (4, 1), "{recovery:?}");
        assert_eq!(count(&engine), 4, "what lies behind the damage is kept");
        close(&engine).await.unwrap();

        let (engine, recovery) = machine.open(small()).unwrap();
        assert_eq!(
            (count(&engine), recovery.damage.len()),
            (4, 0),
            "what was dropped is not damage any more"
        );
        drop(engine);
    });
}

#[test]
fn a_flipped_byte_in_the_last_group_looks_like_a_torn_tail() {
    simulate(async {
        let (disk, log) = disk_with_log(5).await;
        disk.flip_byte(&log, in_batch(4, FRAME_LEN)).unwrap();
        let (engine, recovery) = boot(disk).open(small()).unwrap();
        assert_eq!((count(&engine), recovery.damage.len()), (4, 0));
    });
}

#[cfg(feature = "planted-mistakes")]
#[test]
fn a_log_cut_at_its_first_bad_frame_loses_acknowledged_writes_in_silence() {
    use kvstore::env::Mistake;

    simulate(async {
        let (disk, log) = disk_with_log(5).await;
        disk.flip_byte(&log, in_batch(2, FRAME_LEN)).unwrap();
        let machine = Machine::boot(disk, 1, Planted::mistake(Mistake::LogCutAtFirstBadFrame));
        let (engine, recovery) = machine.open(small()).unwrap();
        assert_eq!((count(&engine), recovery.damage.len()), (2, 0));
    });
}

#[test]
fn a_log_that_is_missing_between_others_is_damage() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        // No table can be written, so that logs pile up.
        machine.faults.set_rule(|operation| {
            let is_table = operation.op == Op::Create && !operation.path.to_string_lossy().ends_with(".log");
            if is_table { Verdict::Fail(std::io::ErrorKind::StorageFull) } else { Verdict::Pass }
        });
        let mut written = 0;
        while engine.stats().memtables_sealed < 2 {
            write(&engine, batch(written)).await.unwrap();
            written += 1;
        }
        write(&engine, batch(written)).await.unwrap();
        drop(engine);
        let disk = machine.kill();
        disk.crash_lose_all();
        let logs = logs_on(&disk);
        assert_eq!(logs.len(), 3, "{logs:?}");
        for gone in &logs[..2] {
            let disk = disk.fork();
            disk.remove(&Path::new(DIR).join(gone)).unwrap();
            let machine = boot(disk);
            let error = machine.open(small()).unwrap_err();
            assert!(matches!(&error, Error::Corruption { path, .. } if path.ends_with(gone)), "{error}");
            let (engine, recovery) = machine.open(Options { drop_damaged: true, ..small() }).unwrap();
            assert_eq!(recovery.damage.len(), 1, "{recovery:?}");
            assert!(count(&engine) < written as usize + 1);
        }
        let (engine, _) = boot(disk).open(small()).unwrap();
        assert_eq!(count(&engine), written as usize + 1);
    });
}

#[test]
fn a_failed_sync_poisons_the_engine_until_it_is_opened_anew_and_reads_go_on() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        write(&engine, batch(0)).await.unwrap();
        machine.faults.fail_after(0, Lasting::Once, |operation| operation.op == Op::Sync);
        assert!(matches!(write(&engine, batch(1)).await, Err(Error::Io { .. })));
        assert!(matches!(write(&engine, batch(2)).await, Err(Error::Poisoned)));
        assert!(engine.stats().poisoned);
        assert_eq!(count(&engine), 1, "what was not synced is not visible");
        assert!(matches!(close(&engine).await, Err(Error::Poisoned)));

        let (engine, _) = machine.open(small()).unwrap();
        write(&engine, batch(3)).await.unwrap();
        assert!(engine.get(&batch(0).items()[0].0).unwrap().is_some());
        assert!(engine.get(&batch(3).items()[0].0).unwrap().is_some());
        // A write that failed may be there, but then it is there for good: its log's pages cannot be trusted.
        let before = count(&engine);
        drop(engine);
        let disk = machine.kill();
        disk.crash_lose_all();
        let (engine, _) = boot(disk).open(small()).unwrap();
        assert_eq!(count(&engine), before);
    });
}

#[test]
fn a_full_disk_refuses_writes_keeps_reading_and_resumes_by_itself() {
    simulate(async {
        let machine = boot(MemVfs::new());
        machine.disk.set_capacity(Some(300 << 10));
        let (engine, _) = machine.open(small()).unwrap();
        let (mut written, mut random) = (0, vec![0; 900]);
        let refusal = loop {
            Rng::from_seed(written).fill(&mut random); // compresses badly
            let key = Key::new(format!("key-{written}")).unwrap();
            let record = Record::value(Timestamp::from_u64(written + 1), Value::new(random.clone()));
            match write(&engine, WriteBatch::one(key, record)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the disk never fills");
        };
        assert!(matches!(refusal, Error::NoSpace { .. }), "{refusal}");
        assert!(engine.stats().out_of_space && !engine.stats().poisoned);
        assert_eq!(count(&engine) as u64, written);

        machine.disk.set_capacity(None);
        write(&engine, batch(1 << 20)).await.unwrap();
        assert!(!engine.stats().out_of_space);
        assert_eq!(count(&engine) as u64, written + 1);
        close(&engine).await.unwrap();
        let (engine, _) = machine.open(small()).unwrap();
        assert_eq!(count(&engine) as u64, written + 1);
    });
}

#[test]
fn a_disk_too_full_for_a_table_at_the_start_is_opened_and_read() {
    simulate(async {
        let (disk, _) = disk_with_log(20).await;
        let machine = boot(disk);
        machine.faults.set_rule(|operation| {
            let name = operation.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_large =
                operation.op == Op::Create && !name.starts_with("MANIFEST") && !name.starts_with("CURRENT");
            if is_large { Verdict::Fail(std::io::ErrorKind::StorageFull) } else { Verdict::Pass }
        });
        let (engine, recovery) = machine.open(small()).unwrap();
        assert_eq!((recovery.frames_replayed, count(&engine)), (20, 20));
        machine.faults.clear_rule();
        write(&engine, batch(20)).await.unwrap();
        close(&engine).await.unwrap();
        let (engine, _) = machine.open(small()).unwrap();
        assert_eq!(count(&engine), 21);
    });
}

/// Fills a disk of so many bytes with values that do not compress, and returns how many were taken.
async fn fill(machine: &Machine, engine: &Engine, capacity: u64) -> u64 {
    machine.disk.set_capacity(Some(capacity));
    for number in 0.. {
        match write(engine, random_value(number)).await {
            Ok(_) => {}
            Err(Error::NoSpace { .. }) => return number,
            Err(error) => panic!("value {number}: {error}"),
        }
    }
    unreachable!("the disk fills")
}

/// Keys in no order, so that tables overlap.
fn key_of(number: u64) -> Key {
    Key::new(format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))).unwrap()
}

fn random_value(number: u64) -> WriteBatch {
    let mut bytes = vec![0; 900];
    Rng::from_seed(number).fill(&mut bytes);
    WriteBatch::one(key_of(number), Record::value(Timestamp::from_u64(number + 1), Value::new(bytes)))
}

/// Deletes were refused like all writes, and a compaction that did not fit was not tried in steps: a full disk stayed full.
#[test]
fn on_a_full_disk_deletes_are_taken_and_make_room_for_values() {
    for (tombstones, deleted_share) in [(TombstonePolicy::Keep, 2), (TombstonePolicy::DropWhenUncovered, 1)] {
        simulate(async {
            let machine = boot(MemVfs::new());
            let options = Options { tombstones, memtable_size: 64 << 10, ..small() };
            let (engine, _) = machine.open(options).unwrap();
            let written = fill(&machine, &engine, 3 << 20).await;
            assert!(written > 1_000, "{written} values");
            for number in (0..written).filter(|number| number.is_multiple_of(deleted_share)) {
                let timestamp = Timestamp::from_u64(written + number + 1);
                let delete = WriteBatch::one(key_of(number), Record::tombstone(timestamp));
                let outcome = write(&engine, delete).await;
                assert!(outcome.is_ok(), "{deleted_share} {number}: {outcome:?} {:?}", engine.stats());
            }
            let mut tries = 0;
            while let Err(error) = write(&engine, random_value(written + 1)).await {
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                tries += 1;
                assert!(tries < 100, "{tombstones:?} {deleted_share}: {error} {:?}", engine.stats());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let stats = engine.stats();
            assert!(!stats.out_of_space && !stats.poisoned, "{stats:?}");
            let left = engine.scan(&KeyRange::all()).map(Result::unwrap);
            let values = left.filter(|(_, record)| !record.is_tombstone()).count() as u64;
            assert_eq!(values, written - written.div_ceil(deleted_share) + 1);
            close(&engine).await.unwrap();
        });
    }
}

/// A disk without one free block could not be opened, because opening writes a new manifest.
#[test]
fn a_disk_without_a_free_block_is_opened_and_read_and_written_when_there_is_space() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        for number in 0..40 {
            write(&engine, random_value(number)).await.unwrap();
        }
        drop(engine);
        let disk = machine.kill();
        disk.crash_lose_all();
        disk.set_capacity(Some(0));
        let machine = boot(disk);
        let (engine, recovery) = machine.open(small()).unwrap();
        assert!(recovery.frames_replayed > 0 && recovery.tables > 0, "{recovery:?}");
        assert_eq!(count(&engine), 40);
        assert!(engine.stats().out_of_space, "it says so before anybody has written");
        assert!(matches!(write(&engine, random_value(40)).await, Err(Error::NoSpace { .. })));
        assert!(close(&engine).await.unwrap_err().is_no_space());
        let (engine, _) = machine.open(small()).unwrap();
        machine.disk.set_capacity(None);
        write(&engine, random_value(40)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        write(&engine, random_value(41)).await.unwrap();
        assert!(!engine.stats().out_of_space);
        close(&engine).await.unwrap();
        let (engine, recovery) = machine.open(small()).unwrap();
        assert_eq!((count(&engine), recovery.frames_replayed), (42, 0));
        drop(engine);
    });
}

/// A flush or a compaction that found no space was begun again as soon as it had failed, for ever, and a writer that waited
/// for it was not answered.
#[test]
fn without_space_for_tables_writers_are_told_and_the_work_is_not_repeated_at_full_speed() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        let tries = Arc::new(AtomicU64::new(0));
        let counted = tries.clone();
        machine.faults.set_rule(move |operation| {
            let is_table =
                operation.op == Op::Create && operation.path.to_string_lossy().ends_with(".sst.tmp");
            counted.fetch_add(u64::from(is_table), Ordering::Relaxed);
            if is_table { Verdict::Fail(std::io::ErrorKind::StorageFull) } else { Verdict::Pass }
        });
        let mut refused = 0;
        for number in 0..600 {
            match write(&engine, batch(number)).await {
                Ok(_) => {}
                Err(Error::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(refused > 100, "{refused}");
        assert!(engine.stats().out_of_space, "{:?}", engine.stats());
        let tries = tries.load(Ordering::Relaxed);
        assert!((2..40).contains(&tries), "{tries} tries for 600 writes");
        machine.faults.clear_rule();
        for number in 0..200 {
            let _ = write(&engine, batch(number)).await;
        }
        write(&engine, batch(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!engine.stats().out_of_space);
        close(&engine).await.unwrap();
    });
}

#[test]
fn a_directory_that_is_gone_is_noticed_and_told() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        write(&engine, batch(0)).await.unwrap();
        kvstore::env::vfs::remove_tree(&machine.disk, Path::new(DIR)).unwrap();
        assert_eq!(engine.stats().disk_error, None);
        engine.measure_space();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let told = engine.stats().disk_error.expect("nobody has written, and it is known");
        assert!(told.contains(DIR), "{told}");
        assert!(matches!(write(&engine, batch(1)).await, Err(Error::Io { .. })));
        assert_eq!(engine.get(&batch(0).items()[0].0).unwrap().as_ref(), Some(&batch(0).items()[0].1));
    });
}

#[test]
fn a_directory_has_one_engine_at_a_time() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        assert!(matches!(machine.open(small()), Err(Error::Locked { path }) if path == Path::new(DIR)));
        close(&engine).await.unwrap();
        assert!(matches!(write(&engine, batch(0)).await, Err(Error::Closed)));
        assert!(matches!(engine.get(&batch(0).items()[0].0), Err(Error::Closed)));
        machine.open(small()).unwrap();
    });
}

#[test]
fn writes_queued_before_a_shutdown_are_written_and_later_ones_refused() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        let (before, closing) = (write(&engine, batch(0)), close(&engine));
        let after = async {
            tokio::task::yield_now().await;
            write(&engine, batch(1)).await
        };
        let (before, closed, after) = tokio::join!(biased; before, closing, after);
        assert!(before.is_ok() && closed.is_ok());
        assert!(matches!(after, Err(Error::Closed)));
        let (engine, recovery) = machine.open(small()).unwrap();
        assert_eq!(
            (count(&engine), recovery.frames_replayed),
            (1, 0),
            "a shutdown leaves everything in tables"
        );
    });
}

#[test]
fn a_queue_that_is_full_refuses_and_what_it_took_is_written() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(Options { queue_bytes_max: 1_000, ..small() }).unwrap();
        let mut waiting = Vec::new();
        for number in 0..20 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            engine.enqueue(batch(number), Box::new(move |outcome| drop(sender.send(outcome))));
            waiting.push(receiver);
        }
        engine.kick();
        let mut outcomes = Vec::new();
        for receiver in waiting {
            outcomes.push(receiver.await.unwrap());
        }
        let written = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let busy = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::Busy { .. }))).count();
        assert!(written > 0 && busy > 0);
        assert_eq!((written + busy, count(&engine)), (20, written));
        assert_eq!(engine.stats().wal_syncs, 1, "they shared one sync");
    });
}

#[test]
fn writers_are_held_back_while_compaction_is_behind_and_all_get_through() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine
            .open(Options { memtable_size: 1 << 10, l0_files_max: 1, wal_batch_max: 8, ..small() })
            .unwrap();
        let mut waiting = Vec::new();
        for number in 0..2_000 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            engine.submit(batch(number), Box::new(move |outcome| drop(sender.send(outcome))));
            waiting.push(receiver);
        }
        for receiver in waiting {
            receiver.await.unwrap().unwrap();
            let stats = engine.stats();
            assert!(stats.memtables_sealed <= 3 && stats.level_files[0] <= 6, "{stats:?}");
        }
        assert!(engine.stats().throttles > 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(count(&engine), 2_000);
    });
}

#[test]
fn a_write_that_finds_a_newer_record_says_so() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let (engine, _) = machine.open(small()).unwrap();
        let at = |timestamp: u64| {
            WriteBatch::one(Key::new("k").unwrap(), Record::tombstone(Timestamp::from_u64(timestamp)))
        };
        assert_eq!(write(&engine, at(9)).await.unwrap().overtaken, []);
        let late = write(&engine, at(4)).await.unwrap();
        assert_eq!(late.overtaken, [(0, Timestamp::from_u64(9))]);
        assert_eq!(engine.stats().overtaken, 1);
    });
}

#[test]
fn a_compaction_that_cannot_read_leaves_the_writers_alone_and_is_tried_again() {
    simulate(async {
        let machine = boot(MemVfs::new());
        let options = Options { memtable_size: 1 << 10, l0_files_max: 2, block_cache_size: 0, ..small() };
        let (engine, _) = machine.open(options).unwrap();
        let mut written = 0;
        while engine.stats().flushes == 0 {
            write(&engine, batch(written)).await.unwrap();
            written += 1;
        }
        let names = machine.disk.list(Path::new(DIR)).unwrap();
        let is_table =
            |name: &&String| Path::new(name).extension().is_some_and(|extension| extension == "sst");
        let table = Path::new(DIR).join(names.iter().find(is_table).unwrap());
        machine.faults.fail_after(0, Lasting::Sticky, move |operation| {
            operation.op == Op::ReadAt && operation.path == table
        });
        let refusal = loop {
            match write(&engine, batch(written)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 1_000, "level 0 grows without bound");
        };
        assert!(matches!(refusal, Error::Busy { .. }), "{refusal}");
        let stats = engine.stats();
        assert!(!stats.poisoned && stats.compactions == 0, "{stats:?}");

        machine.faults.clear_rule();
        for number in 0..200 {
            write(&engine, batch(number)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(engine.stats().compactions > 0);
        assert_eq!(count(&engine), 200);
    });
}
