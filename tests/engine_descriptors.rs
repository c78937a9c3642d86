//! A process that is short of descriptors or memory for a while loses nothing by it: no error that passes poisons the engine,
//! and tables beyond the bound on open files are opened again when they are read.
#![allow(clippy::disallowed_methods)] // counts the descriptors of this process

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvstore::engine::{Engine, Error, Options, WriteBatch};
use kvstore::env::vfs_fault::{Op, Operation, Verdict};
use kvstore::env::{Env, FaultVfs, MemVfs};
use kvstore::types::{Key, Record, Timestamp, Value};
use rustix::io::Errno;

const DIR: &str = "/engine";
/// Operations that need a descriptor.
const OPENING: [Op; 5] = [Op::Create, Op::Open, Op::OpenWrite, Op::List, Op::SyncDir];
/// What the operating system may say for want of something, about any operation that is not a sync.
const SHORTAGES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR];

fn options() -> Options {
    Options { memtable_size: 16 << 10, l0_files_max: 2, open_files_max: 2, ..Options::default() }
}

/// Threads are shared by all the engines of this process.
fn env_on(faults: &FaultVfs) -> Env {
    static ENV: OnceLock<Env> = OnceLock::new();
    Env { fs: Arc::new(faults.clone()), ..ENV.get_or_init(Env::real).clone() }
}

fn key(number: u64) -> Key {
    Key::new(format!("key-{number:05}")).unwrap()
}

fn put(engine: &Engine, number: u64) -> Result<(), Error> {
    let record = Record::value(Timestamp::from_u64(number + 1), Value::new(vec![7; 700]));
    engine.write(WriteBatch::one(key(number), record)).map(drop)
}

fn opened(faults: &FaultVfs) -> Result<Engine, Error> {
    Engine::open(&env_on(faults), Path::new(DIR), options()).map(|(engine, _)| engine)
}

/// Tries until it succeeds; every failure must be one that passes.
fn insist<T>(what: &str, mut attempt: impl FnMut() -> Result<T, Error>) -> T {
    let latest = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => {
                assert!(error.is_passing(), "{what}: {error:?}");
                assert!(Instant::now() < latest, "{what}: {error}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Opens, writes through several flushes and compactions, reads and closes, while `rule` fails operations; then everything is
/// there. Returns whether anything failed.
fn survives(rule: impl FnMut(&Operation<'_>) -> Verdict + Send + 'static, what: &str) -> bool {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    faults.set_rule(rule);
    let engine = insist(what, || opened(&faults));
    for number in 0..80 {
        insist(what, || put(&engine, number));
    }
    let _ = engine.compact(); // may be refused; what it would have done is done later
    insist(what, || engine.flush());
    for number in 0..80 {
        assert!(insist(what, || engine.get(&key(number))).is_some(), "{what}: {number}");
    }
    assert!(!engine.stats().poisoned, "{what}");
    let _ = engine.close();
    drop(engine);
    let failed = faults.failures() > 0;
    faults.clear_rule();
    let engine = opened(&faults).unwrap_or_else(|error| panic!("{what}: {error}"));
    for number in 0..80 {
        assert!(engine.get(&key(number)).unwrap().is_some(), "{what}: {number} after opening");
    }
    engine.close().unwrap();
    failed
}

#[test]
fn no_shortage_at_any_operation_that_opens_a_file_poisons() {
    for op in OPENING {
        let mut at = 0;
        loop {
            let code = SHORTAGES[at as usize % if op == Op::SyncDir { 2 } else { 4 }];
            let mut seen = 0;
            let rule = move |operation: &Operation<'_>| {
                seen += u64::from(operation.op == op);
                let is_it = operation.op == op && seen == at + 1;
                if is_it { Verdict::FailOs(code.raw_os_error()) } else { Verdict::Pass }
            };
            if !survives(rule, &format!("{op:?} {at} {code:?}")) {
                break;
            }
            at += 1;
        }
        assert!(at > 1, "{op:?} is used");
    }
}

#[test]
fn a_sync_that_fails_for_want_of_memory_poisons_as_every_failed_sync_does() {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    let engine = opened(&faults).unwrap();
    put(&engine, 0).unwrap();
    faults.set_rule(|operation| match operation.op {
        Op::Sync => Verdict::FailOs(Errno::NOMEM.raw_os_error()),
        _ => Verdict::Pass,
    });
    let error = put(&engine, 1).unwrap_err();
    assert!(!error.is_passing(), "{error:?}");
    faults.clear_rule();
    assert!(matches!(put(&engine, 2), Err(Error::Poisoned)));
}

/// No descriptor for a while: flushes fail, then logs cannot be begun and writers are refused; afterwards all goes on.
#[test]
fn writes_go_on_by_themselves_once_there_are_descriptors_again() {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    let engine = opened(&faults).unwrap();
    faults.set_rule(|operation| {
        let is_short = OPENING.contains(&operation.op);
        if is_short { Verdict::FailOs(Errno::MFILE.raw_os_error()) } else { Verdict::Pass }
    });
    let mut written = 0;
    let refused = loop {
        match put(&engine, written) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "without a descriptor there can be no end of tables");
    };
    assert!(refused.is_passing(), "{refused:?}");
    faults.clear_rule();
    let before = engine.stats().flushes;
    for number in written..written + 60 {
        insist("after the shortage", || put(&engine, number));
    }
    insist("a flush", || engine.flush());
    assert!(engine.stats().flushes > before && !engine.stats().poisoned);
    for number in 0..written + 60 {
        assert!(engine.get(&key(number)).unwrap().is_some(), "{number}");
    }
    engine.close().unwrap();
}

/// How many descriptors of this process lead to files in `dir`.
#[cfg(target_os = "linux")]
fn open_in(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    targets.filter(|target| target.starts_with(dir) && target.extension().is_some_and(|e| e == "sst")).count()
}

#[cfg(target_os = "linux")]
#[test]
fn tables_beyond_the_bound_are_closed_and_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let options = Options { l0_files_max: 1000, open_files_max: 4, block_cache_size: 0, ..options() };
    let (engine, _) = Engine::open(&Env::real(), &dir, options).unwrap();
    for number in 0..40 {
        put(&engine, number).unwrap();
        engine.flush().unwrap();
    }
    assert_eq!(engine.stats().level_files[0], 40);
    for number in (0..40).chain((0..40).rev()) {
        assert!(engine.get(&key(number)).unwrap().is_some());
        assert!(open_in(&dir) <= 4, "{} open", open_in(&dir));
    }
    assert_eq!(engine.scan(&kvstore::types::KeyRange::all()).map(Result::unwrap).count(), 40);
    assert!(open_in(&dir) <= 4);
    engine.compact().unwrap();
    assert!(engine.get(&key(7)).unwrap().is_some());
    assert!(open_in(&dir) <= 4);
    engine.close().unwrap();
}
