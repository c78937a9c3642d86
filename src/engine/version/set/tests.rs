use proptest::prelude::*;

use super::*;
use crate::engine::Horizon;
use crate::engine::iter::model::{Entry, ModelIterator, any_entries, check, drain, newest};
use crate::engine::iter::{MergingIterator, VisibleIterator};
use crate::engine::sst::bloom::hash;
use crate::env::vfs_fault::{FaultVfs, Lasting, Op};
use crate::env::vfs_mem::MemVfs;
use crate::env::{Rng, Vfs, at_full_speed};
use crate::types::{Expiry, KeyRange, Record, Value};

fn dir() -> &'static Path {
    Path::new("/db")
}

fn env_on(fs: Arc<dyn Vfs>) -> Env {
    let mut env = Env::real();
    env.fs = fs;
    env.rng = Rng::from_seed(1);
    env
}

/// A durable, empty directory.
fn new_disk() -> Arc<MemVfs> {
    let fs = Arc::new(MemVfs::new());
    fs.create_dir_all(dir()).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    fs
}

/// Small sizes, so that a few flushes fill three levels.
fn small() -> Options {
    Options {
        memtable_size: 2048,
        l0_files_max: 2,
        sparse_index_interval: 4,
        block_cache_size: 32 << 10,
        ..Options::default()
    }
}

fn entry(key: &str, ts: u64, value: Option<&str>) -> Entry {
    let timestamp = Timestamp::from_u64(ts);
    let record = match value {
        Some(value) => Record::value(timestamp, Value::new(value.to_owned())),
        None => Record::tombstone(timestamp),
    };
    (key.as_bytes().to_vec(), record)
}

fn flush(set: &VersionSet, entries: &[Entry], log_number: u64) -> Result<(), Error> {
    set.flush(&mut ModelIterator::new(entries.to_vec()), log_number, &at_full_speed)
}

fn compact(set: &VersionSet) -> Result<(), Error> {
    while let Some(compaction) = set.pick(None, false) {
        set.run(compaction, &|| None, &at_full_speed)?;
    }
    Ok(())
}

fn visible(version: &Version, range: &KeyRange) -> VisibleIterator<MergingIterator<'static>> {
    VisibleIterator::new(MergingIterator::new(version.iterators(range)), range.clone())
}

fn contents(set: &VersionSet) -> Vec<Entry> {
    let mut all = visible(&set.current(), &KeyRange::all());
    all.seek_to_first().unwrap();
    drain(&mut all).unwrap()
}

fn files(fs: &MemVfs, ending: &str) -> Vec<String> {
    fs.list(dir()).unwrap().into_iter().filter(|name| name.ends_with(ending)).collect()
}

fn is_corruption<T>(result: Result<T, Error>) -> bool {
    matches!(result.err(), Some(Error::Corruption { .. }))
}

#[derive(Debug, Clone)]
enum Step {
    Flush(Vec<Entry>),
    CompactOnce,
    CompactAll,
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_entries(30).prop_map(Step::Flush),
        3 => Just(Step::CompactOnce),
        1 => Just(Step::CompactAll),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tables_hold_what_a_sorted_map_would_whatever_is_compacted_and_whenever(
        steps in proptest::collection::vec(any_step(), 1..25), probes in any_entries(10),
        start in proptest::option::of(proptest::collection::vec(0u8..3, 0..3)),
    ) {
        let env = env_on(new_disk());
        // Room for every block and row: what was just read is looked for in the cache, and a small one may have let it go.
        let options = Options { block_cache_size: 4 << 20, ..small() };
        let mut set = VersionSet::open(&env, dir(), &options).unwrap().0;
        let mut all = Vec::new();
        for (log_number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Flush(entries) => {
                    flush(&set, &entries, log_number as u64).unwrap();
                    all.extend(entries);
                }
                Step::CompactOnce => {
                    if let Some(compaction) = set.pick(None, false) {
                        set.run(compaction, &|| None, &at_full_speed).unwrap();
                    }
                }
                Step::CompactAll => {
                    if let Some(compaction) = set.pick_all() {
                        set.run(compaction, &|| None, &at_full_speed).unwrap();
                    }
                }
                Step::Reopen => set = VersionSet::open(&env, dir(), &options).unwrap().0,
            }
            let version = set.current();
            let expected = newest(&all);
            for (key, record) in &expected {
                let found = version.get(key, hash(key), None).unwrap();
                prop_assert_eq!(found.as_ref(), Some(record));
                prop_assert_eq!(version.get(key, hash(key), Some(record)).unwrap(), None, "nothing supersedes it");
                let in_memory = version.try_get(key, hash(key), None).expect("its block was just read").unwrap();
                prop_assert_eq!(in_memory.as_ref(), Some(record));
            }
            let is_absent = |key: &[u8]| expected.iter().all(|(other, _)| other != key);
            for (key, _) in probes.iter().filter(|(key, _)| is_absent(key)) {
                prop_assert_eq!(version.get(key, hash(key), None).unwrap(), None);
            }
            let range = KeyRange { start: start.clone().map(Into::into), end: None };
            let in_range: Vec<_> = expected.into_iter().filter(|(key, _)| range.contains(key)).collect();
            check(&mut visible(&version, &range), &in_range, &probes);
        }
    }

    #[test]
    fn with_tombstones_dropped_no_deleted_key_comes_back(steps in proptest::collection::vec(any_step(), 1..25)) {
        let env = env_on(new_disk());
        let options = Options { tombstones: TombstonePolicy::DropWhenUncovered, ..small() };
        let set = VersionSet::open(&env, dir(), &options).unwrap().0;
        let mut all = Vec::new();
        for step in steps {
            let (compaction, entries) = match step {
                Step::Flush(entries) => (None, entries),
                Step::CompactAll => (set.pick_all(), Vec::new()),
                _ => (set.pick(Some(Timestamp::from_u64(1)), true), Vec::new()),
            };
            // What is still in memory while a compaction runs may be older than what it rewrites.
            let in_memory = [entry("user:00000001", 1, Some("late"))];
            if let Some(compaction) = compaction {
                set.run(compaction, &|| Some(Timestamp::from_u64(1)), &at_full_speed).unwrap();
                flush(&set, &in_memory, 0).unwrap();
                all.extend(in_memory);
            }
            flush(&set, &entries, 0).unwrap();
            all.extend(entries);
        }
        if let Some(compaction) = set.pick_all() {
            set.run(compaction, &|| None, &at_full_speed).unwrap();
        }
        let mut expected = newest(&all);
        expected.retain(|(_, record)| !record.is_tombstone());
        let mut found = contents(&set);
        found.retain(|(_, record)| !record.is_tombstone());
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_tombstone_goes_once_nothing_older_of_its_key_can_be_left() {
    let env = env_on(new_disk());
    let options = Options { tombstones: TombstonePolicy::DropWhenUncovered, ..small() };
    let set = VersionSet::open(&env, dir(), &options).unwrap().0;
    flush(&set, &[entry("a", 5, Some("x")), entry("b", 5, Some("x"))], 0).unwrap();
    flush(&set, &[entry("a", 6, None)], 0).unwrap();
    set.run(set.pick_all().unwrap(), &|| Some(Timestamp::from_u64(6)), &at_full_speed).unwrap();
    assert_eq!(contents(&set), [entry("a", 6, None), entry("b", 5, Some("x"))], "memory may hold its like");
    set.run(set.pick_all().unwrap(), &|| Some(Timestamp::from_u64(7)), &at_full_speed).unwrap();
    assert_eq!(contents(&set), [entry("b", 5, Some("x"))]);
    assert!(set.pick_all().is_none(), "nothing is left to do");
}

#[test]
fn tombstones_that_nobody_vouches_for_stay_and_are_counted() {
    let env = env_on(new_disk());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 5, Some("x"))], 0).unwrap();
    flush(&set, &[entry("a", 6, None)], 0).unwrap();
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    assert_eq!(contents(&set), [entry("a", 6, None)]);
    let mut stats = EngineStats::default();
    set.fill_stats(&mut stats);
    assert_eq!((stats.tombstones, stats.compactions, stats.flushes), (1, 1, 2));
}

#[test]
fn a_reader_keeps_the_tables_of_its_version_until_it_lets_go() {
    let disk = new_disk();
    let set = VersionSet::open(&env_on(disk.clone()), dir(), &small()).unwrap().0;
    for n in 0..3 {
        flush(&set, &[entry("a", n, Some("x")), entry("b", n, Some("y"))], 0).unwrap();
    }
    let before = set.current();
    let mut reader = visible(&before, &KeyRange::all());
    drop(before);
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    assert_eq!(files(&disk, ".sst").len(), 4);
    reader.seek_to_first().unwrap();
    assert_eq!(drain(&mut reader).unwrap().len(), 2);
    drop(reader);
    assert_eq!(files(&disk, ".sst").len(), 4, "a reader removes no file");
    assert!(set.has_obsolete());
    set.remove_obsolete();
    assert_eq!(files(&disk, ".sst").len(), 1);
}

#[test]
fn a_compaction_that_meets_a_corrupt_block_stops_and_is_not_picked_again() {
    let disk = new_disk();
    let set = VersionSet::open(&env_on(disk.clone()), dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 0).unwrap();
    flush(&set, &[entry("a", 2, Some("y"))], 0).unwrap();
    let damaged = table_path(dir(), set.current().level(Level::L0)[0].meta().number);
    disk.flip_byte(&damaged, 3).unwrap();
    let before = files(&disk, ".sst");
    assert!(is_corruption(set.run(set.pick(None, false).unwrap(), &|| None, &at_full_speed)));
    assert_eq!(files(&disk, ".sst"), before, "inputs stay, outputs go");
    assert!(
        set.pick(None, false).is_none_or(|next| next
            .plan
            .inputs
            .iter()
            .all(|(_, table)| !table.is_damaged()))
    );
    let version = set.current();
    assert!(is_corruption(version.get(b"a", hash(b"a"), None)));
    let newer = Record::tombstone(Timestamp::from_u64(3));
    assert_eq!(
        version.get(b"a", hash(b"a"), Some(&newer)).unwrap(),
        None,
        "a newer record rules damaged tables out"
    );
    // What is not damaged is still compacted.
    flush(&set, &[entry("z", 1, Some("x"))], 0).unwrap();
    compact(&set).unwrap();
    assert_eq!(set.current().level(Level::LAST).len(), 2);
}

#[test]
fn damage_below_does_not_let_l0_fill_up() {
    let disk = new_disk();
    let set = VersionSet::open(&env_on(disk.clone()), dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x")), entry("z", 1, Some("x"))], 0).unwrap();
    flush(&set, &[entry("a", 2, Some("x"))], 0).unwrap();
    compact(&set).unwrap();
    let below = table_path(dir(), set.current().level(Level::LAST)[0].meta().number);
    disk.flip_byte(&below, 3).unwrap();
    let mut damage_met = 0;
    for n in 3..40 {
        flush(&set, &[entry("a", n, Some("x")), entry("k", n, Some("x"))], 0).unwrap();
        damage_met += u64::from(is_corruption(compact(&set)));
        assert!(set.current().l0_files() <= small().l0_files_max);
    }
    assert_eq!(damage_met, 1);
    assert_eq!(set.current().get(b"k", hash(b"k"), None).unwrap(), Some(entry("k", 39, Some("x")).1));
}

#[test]
fn a_flush_beside_a_compaction_is_kept() {
    let env = env_on(new_disk());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    flush(&set, &[entry("a", 2, Some("y"))], 2).unwrap();
    let compaction = set.pick(None, false).unwrap();
    assert!(set.pick(None, false).is_none(), "one at a time");
    flush(&set, &[entry("b", 1, Some("z"))], 3).unwrap();
    set.run(compaction, &|| None, &at_full_speed).unwrap();
    let expected = [entry("a", 2, Some("y")), entry("b", 1, Some("z"))];
    assert_eq!(contents(&set), expected);
    let (reopened, opened) = VersionSet::open(&env, dir(), &small()).unwrap();
    assert_eq!((contents(&reopened), opened.log_number, opened.tables), (expected.to_vec(), 3, 2));
    assert_eq!(opened.newest, Timestamp::from_u64(2));
    assert!(!opened.created);
}

#[test]
fn a_checkpoint_opens_on_its_own_and_does_not_change_any_more() {
    let env = env_on(new_disk());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    flush(&set, &[entry("b", 2, Some("y"))], 2).unwrap();
    let copy = Path::new("/copy");
    set.checkpoint_into(copy).unwrap();
    assert!(set.checkpoint_into(copy).is_err(), "it is not empty any more");
    flush(&set, &[entry("a", 3, None)], 3).unwrap();
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    let (copied, opened) = VersionSet::open(&env, copy, &small()).unwrap();
    assert_eq!(contents(&copied), [entry("a", 1, Some("x")), entry("b", 2, Some("y"))]);
    assert_eq!((opened.log_number, opened.created), (2, false));
}

#[test]
fn what_a_crash_left_half_made_is_removed_at_opening() {
    let disk = new_disk();
    let env = env_on(disk.clone());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    for name in ["000077.sst", "000078.sst.tmp", "CURRENT.tmp", "MANIFEST-000079", "000080.log"] {
        disk.create(&dir().join(name)).unwrap();
    }
    let (set, _) = VersionSet::open(&env, dir(), &small()).unwrap();
    assert!(set.new_file_number() > 80, "no name is given twice");
    let names = disk.list(dir()).unwrap();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"000080.log".to_owned()), "logs are not ours to remove");
}

#[test]
fn a_stopped_set_ends_its_compaction_and_starts_no_other() {
    let env = env_on(new_disk());
    let options = Options { memtable_size: 1 << 20, ..small() };
    let set = VersionSet::open(&env, dir(), &options).unwrap().0;
    let many: Vec<_> = (0..3000).map(|n| entry(&format!("{n:05}"), 1, Some("x"))).collect();
    flush(&set, &many, 0).unwrap();
    flush(&set, &many[..1], 0).unwrap();
    let compaction = set.pick(None, false).unwrap();
    set.stop();
    assert!(matches!(set.run(compaction, &|| None, &at_full_speed), Err(Error::Closed)));
    assert!(set.pick(None, false).is_none() && set.pick_all().is_none());
    assert_eq!(contents(&set).len(), 3000);
}

#[test]
fn a_new_manifest_takes_over_when_one_has_grown() {
    let disk = new_disk();
    let env = env_on(disk.clone());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    let first = disk.list(dir()).unwrap();
    set.roll(&mut set.installing.lock()).unwrap();
    set.set_log_number(9).unwrap();
    let second = disk.list(dir()).unwrap();
    assert_ne!(first, second);
    assert_eq!(first.len(), second.len());
    let (reopened, opened) = VersionSet::open(&env, dir(), &small()).unwrap();
    assert_eq!((contents(&reopened).len(), opened.log_number), (1, 9));
}

/// Each byte of `CURRENT` and of the manifest in turn. The last frame alone may be taken for a torn tail.
#[test]
fn a_flipped_byte_in_current_or_manifest_is_noticed() {
    let disk = new_disk();
    let env = env_on(disk.clone());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    flush(&set, &[entry("b", 1, Some("x"))], 2).unwrap();
    let before_last = set.installing.lock().manifest.as_ref().unwrap().len();
    flush(&set, &[entry("c", 1, Some("x"))], 3).unwrap();
    let manifest = manifest::manifest_path(dir(), set.installing.lock().manifest.as_ref().unwrap().number());
    for path in [dir().join("CURRENT"), manifest] {
        for offset in 0..disk.open(&path).unwrap().len().unwrap() {
            let fork = Arc::new(disk.fork());
            fork.flip_byte(&path, offset).unwrap();
            let result = VersionSet::open(&env_on(fork.clone()), dir(), &small());
            if path.ends_with("CURRENT") || offset < before_last {
                assert!(is_corruption(result), "{} byte {offset}", path.display());
                let options = Options { drop_damaged: true, ..small() };
                let (salvaged, opened) = VersionSet::open(&env_on(fork), dir(), &options).unwrap();
                assert_eq!((contents(&salvaged).len(), opened.damage.len()), (3, 1));
            } else {
                assert_eq!(result.unwrap().1.log_number, 2);
            }
        }
    }
}

#[test]
fn a_lost_current_is_not_taken_for_a_new_directory() {
    let disk = new_disk();
    let env = env_on(disk.clone());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    disk.remove(&dir().join("CURRENT")).unwrap();
    assert!(is_corruption(VersionSet::open(&env, dir(), &small())));
}

#[test]
fn a_damaged_or_missing_table_is_refused_or_set_aside_and_reported() {
    let disk = new_disk();
    let env = env_on(disk.clone());
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    for (n, key) in ["a", "b", "c"].iter().enumerate() {
        flush(&set, &[entry(key, 1, Some("x"))], n as u64).unwrap();
    }
    let numbers: Vec<_> = set.current().tables().map(|(_, table)| table.meta().number).collect();
    drop(set);
    disk.flip_byte(&table_path(dir(), numbers[0]), 3).unwrap();
    disk.remove(&table_path(dir(), numbers[1])).unwrap();
    assert!(is_corruption(VersionSet::open(&env, dir(), &small())));
    let options = Options { drop_damaged: true, ..small() };
    let (set, opened) = VersionSet::open(&env, dir(), &options).unwrap();
    assert_eq!((opened.damage.len(), opened.tables, contents(&set).len()), (2, 1, 1));
    assert_eq!(files(&disk, ".damaged"), [format!("{:06}.sst.damaged", numbers[0])]);
    let (_, opened) = VersionSet::open(&env, dir(), &small()).unwrap();
    assert_eq!((opened.damage.len(), opened.tables), (0, 1));
}

/// One flush after another with compactions between; gives how many flushes were acknowledged.
fn fill(env: &Env) -> usize {
    let Ok((set, _)) = VersionSet::open(env, dir(), &small()) else { return 0 };
    for n in 0..6u64 {
        let entries: Vec<_> =
            (0..8).map(|k| entry(&format!("{:02}", (n + 3 * k) % 20), n, Some(&"v".repeat(120)))).collect();
        if flush(&set, &entries, n + 1).is_err() {
            return n as usize;
        }
        let _ = compact(&set);
    }
    6
}

/// What is there after the first `flushes` of [`fill`].
fn filled(flushes: usize) -> Vec<Entry> {
    let fs = FaultVfs::new(new_disk());
    let env = env_on(Arc::new(fs));
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    for n in 0..flushes as u64 {
        let entries: Vec<_> =
            (0..8).map(|k| entry(&format!("{:02}", (n + 3 * k) % 20), n, Some(&"v".repeat(120)))).collect();
        flush(&set, &entries, n + 1).unwrap();
    }
    contents(&set)
}

/// The process is gone at the first, second, … last operation; then the disk loses any part of what was unsynced.
#[test]
fn a_crash_at_any_operation_keeps_every_flush_whose_installation_returned() {
    let expected: Vec<_> = (0..=6).map(filled).collect();
    let mut operations = 0;
    loop {
        let disk = new_disk();
        let fault = FaultVfs::new(disk.clone());
        fault.fail_after(operations, Lasting::Halt, |operation| operation.op.is_change());
        let acknowledged = fill(&env_on(Arc::new(fault.clone())));
        let is_done = !fault.is_halted();
        for seed in 0..4 {
            let crashed = Arc::new(disk.fork());
            crashed.crash(&Rng::from_seed(operations * 10 + seed));
            let (set, opened) = VersionSet::open(&env_on(crashed.clone()), dir(), &small())
                .unwrap_or_else(|error| panic!("operation {operations}, seed {seed}: {error}"));
            let kept = opened.log_number as usize;
            assert!(kept == acknowledged || kept == acknowledged + 1, "operation {operations}, seed {seed}");
            assert_eq!(contents(&set), expected[kept], "operation {operations}, seed {seed}");
            assert_eq!(files(&crashed, ".sst").len(), opened.tables);
            assert_eq!(files(&crashed, ".tmp").len(), 0);
        }
        if is_done {
            assert!(operations > 60, "the walk met {operations} operations");
            return;
        }
        operations += 1;
    }
}

/// Each operation in turn fails, once or from then on, and the process goes on.
#[test]
fn an_operation_that_fails_loses_no_flush_and_breaks_no_read() {
    let expected: Vec<_> = (0..=6).map(filled).collect();
    for lasting in [Lasting::Once, Lasting::Sticky] {
        for operations in 0.. {
            let disk = new_disk();
            let fault = FaultVfs::new(disk.clone());
            fault.fail_after(operations, lasting, |_| true);
            let acknowledged = fill(&env_on(Arc::new(fault.clone())));
            let (set, opened) = VersionSet::open(&env_on(disk), dir(), &small()).unwrap();
            let kept = opened.log_number as usize;
            assert!(kept == acknowledged || kept == acknowledged + 1, "operation {operations}, {lasting:?}");
            assert_eq!(contents(&set), expected[kept], "operation {operations}, {lasting:?}");
            if fault.failures() == 0 {
                break;
            }
        }
    }
}

#[test]
fn after_a_failed_manifest_nothing_more_is_installed_until_it_is_reopened() {
    let fault = FaultVfs::new(new_disk());
    let env = env_on(Arc::new(fault.clone()));
    let set = VersionSet::open(&env, dir(), &small()).unwrap().0;
    flush(&set, &[entry("a", 1, Some("x"))], 1).unwrap();
    fault.fail_after(0, Lasting::Once, |operation| operation.op == Op::Sync);
    assert!(matches!(set.set_log_number(2), Err(Error::Io { .. })));
    assert!(matches!(set.set_log_number(3), Err(Error::Poisoned)));
    assert!(matches!(flush(&set, &[entry("b", 1, Some("x"))], 4), Err(Error::Poisoned)));
    assert_eq!(contents(&set), [entry("a", 1, Some("x"))], "reads go on");
    let (set, _) = VersionSet::open(&env, dir(), &small()).unwrap();
    assert_eq!(contents(&set).len(), 1);
}

/// A horizon that a test moves, in microseconds.
fn horizon() -> (Arc<AtomicU64>, Horizon) {
    let at = Arc::new(AtomicU64::new(0));
    let moved = at.clone();
    (at, Horizon::new(move || Timestamp::from_micros(moved.load(Ordering::Relaxed))))
}

fn until(key: &str, ts: u64, value: &str, end: u64) -> Entry {
    let value = Value::new(value.to_owned()).expiring(Expiry::from_u64(end));
    (key.as_bytes().to_vec(), Record::value(Timestamp::from_u64(ts), value))
}

fn expired((key, record): Entry) -> Entry {
    (key, record.expired())
}

#[test]
fn an_expired_value_goes_on_as_a_tombstone_that_hides_what_it_overwrote() {
    let env = env_on(new_disk());
    let (at, horizon) = horizon();
    let set = VersionSet::open(&env, dir(), &Options { horizon, ..small() }).unwrap().0;
    flush(&set, &[entry("a", 5, Some("old")), until("b", 5, "stays", 900)], 0).unwrap();
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    let ended = until("a", 6, "new", 100);
    flush(&set, std::slice::from_ref(&ended), 0).unwrap();
    at.store(100, Ordering::Relaxed);
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    assert_eq!(
        contents(&set),
        [ended.clone(), until("b", 5, "stays", 900)],
        "the horizon must lie behind it"
    );
    flush(&set, &[entry("c", 7, Some("x"))], 0).unwrap();
    at.store(101, Ordering::Relaxed);
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    let left = [expired(ended), until("b", 5, "stays", 900), entry("c", 7, Some("x"))];
    assert_eq!(contents(&set), left);
    let mut stats = EngineStats::default();
    set.fill_stats(&mut stats);
    assert_eq!((stats.expired, stats.tombstones), (1, 1));
}

#[test]
fn a_flush_lets_the_bytes_of_expired_values_go_too() {
    let env = env_on(new_disk());
    let (at, horizon) = horizon();
    let set = VersionSet::open(&env, dir(), &Options { horizon, ..small() }).unwrap().0;
    at.store(500, Ordering::Relaxed);
    let entries = [until("a", 6, &"long ".repeat(100), 499), until("b", 6, "v", 500)];
    flush(&set, &entries, 0).unwrap();
    let [a, b] = entries;
    assert_eq!(contents(&set), [expired(a), b]);
}

#[test]
fn what_an_expired_value_leaves_goes_as_tombstones_go() {
    let env = env_on(new_disk());
    let (at, horizon) = horizon();
    let options = Options { tombstones: TombstonePolicy::DropWhenUncovered, horizon, ..small() };
    let set = VersionSet::open(&env, dir(), &options).unwrap().0;
    flush(&set, &[entry("a", 5, Some("old")), entry("b", 5, Some("x"))], 0).unwrap();
    let ended = until("a", 6, "new", 100);
    flush(&set, std::slice::from_ref(&ended), 0).unwrap();
    at.store(200, Ordering::Relaxed);
    set.run(set.pick_all().unwrap(), &|| Some(Timestamp::from_u64(6)), &at_full_speed).unwrap();
    assert_eq!(contents(&set), [expired(ended), entry("b", 5, Some("x"))], "memory may hold what it hides");
    set.run(set.pick_all().unwrap(), &|| None, &at_full_speed).unwrap();
    assert_eq!(contents(&set), [entry("b", 5, Some("x"))]);
}
