use super::*;
use crate::env::vfs_mem::MemVfs;
use crate::env::{ManualClock, Pool, Rng, Tasks, Vfs as _};

/// A world whose disk can crash, and a store in it.
struct Setting {
    disk: MemVfs,
    clock: Arc<ManualClock>,
    tasks: Tasks,
    settings: Settings,
}

const NOW_MICROS: u64 = 1_000_000_000;

impl Setting {
    fn new(bytes_max: u64) -> Self {
        let range_of: RangeOf = Arc::new(|key| u16::from(key[0]));
        Self {
            disk: MemVfs::new(),
            clock: Arc::new(ManualClock::at(NOW_MICROS)),
            tasks: Tasks::abortable(),
            settings: Settings {
                bytes_max,
                age_max: Duration::from_secs(60),
                queue_bytes_max: 128 << 20,
                targets: vec![target(), NodeId::from_canonical("c:1")],
                range_of,
                ranges_of: Arc::new(|_| vec![1, 2, 3]),
            },
        }
    }

    fn open(&self) -> HintStore {
        let rng = Rng::from_seed(7);
        let env = Env {
            fs: Arc::new(self.disk.clone()),
            clock: self.clock.clone(),
            pool: Pool::simulated(self.tasks.clone(), rng.fork(), Duration::from_micros(100)),
            rng,
            tasks: self.tasks.clone(),
            planted: Planted::default(),
        };
        HintStore::open(&env, Path::new("/hints"), self.settings.clone()).unwrap()
    }
}

fn target() -> NodeId {
    NodeId::from_canonical("b:1")
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

fn value(micros: u64, text: &str) -> Record {
    Record::value(Timestamp::from_micros(NOW_MICROS + micros), Value::new(text.to_owned()))
}

fn page(store: &HintStore, after: Option<&Key>) -> Vec<Hint> {
    store.page(&target(), after, 100, 1 << 20).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_keys_newer_hint_replaces_the_older_and_counts_once() {
    let store = Setting::new(1 << 20).open();
    store.store(&target(), vec![(key("k"), value(1, "old"))]).await.unwrap();
    store.store(&target(), vec![(key("k"), value(2, "newer"))]).await.unwrap();
    store.store(&target(), vec![(key("k"), value(1, "old"))]).await.unwrap();
    assert_eq!(page(&store, None), [Hint { key: key("k"), record: value(2, "newer") }]);
    assert_eq!(store.pending(&target()), (1, weight(&key("k"), &value(2, "newer"))));
}

#[tokio::test(start_paused = true)]
async fn deleting_a_delivered_hint_spares_a_newer_one_and_tombstones_can_be_deleted_too() {
    let store = Setting::new(1 << 20).open();
    let deleted = Record::tombstone(Timestamp::from_micros(NOW_MICROS + 5));
    store.store(&target(), vec![(key("a"), value(1, "x")), (key("b"), deleted)]).await.unwrap();
    let delivered = page(&store, None);
    assert_eq!(delivered.len(), 2);
    store.store(&target(), vec![(key("a"), value(2, "newer"))]).await.unwrap();
    store.delivered(&target(), &delivered).await.unwrap();
    assert_eq!(page(&store, None), [Hint { key: key("a"), record: value(2, "newer") }]);
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_came_during_a_delivery_is_looked_for_whatever_the_count_says() {
    // It added nothing to the count, since it replaced the one under way, whose delivery then took one away: the
    // replayer saw nothing to do, and the newer hint lay there until the next restart.
    let store = Setting::new(1 << 20).open();
    store.store(&target(), vec![(key("k"), value(1, "old"))]).await.unwrap();
    let under_way = page(&store, None);
    store.store(&target(), vec![(key("k"), value(2, "newer"))]).await.unwrap();
    store.delivered(&target(), &under_way).await.unwrap();
    assert_eq!(store.pending(&target()).0, 1, "and it is counted");
    assert!(store.is_waiting(&target()));
    let quiet = store.quiet(&target());
    store.delivered(&target(), &page(&store, None)).await.unwrap();
    store.settle(&target(), quiet);
    assert!(!store.is_waiting(&target()));
}

#[tokio::test(start_paused = true)]
async fn hints_and_their_counts_survive_a_crash_and_targets_do_not_mix() {
    let setting = Setting::new(1 << 20);
    let store = setting.open();
    let other = NodeId::from_canonical("b:12"); // its name begins with the other's
    let items = (0..50).map(|n| (key(&format!("k{n}")), value(n, "v"))).collect();
    store.store(&target(), items).await.unwrap();
    store.store(&other, vec![(key("k"), value(1, "v"))]).await.unwrap();
    let before = (store.pending(&target()), store.pending(&other));
    drop(store);
    setting.tasks.abort_all();
    tokio::time::sleep(Duration::from_millis(1)).await;
    setting.disk.crash_lose_all();
    let store = setting.open();
    assert_eq!((store.pending(&target()), store.pending(&other)), before);
    assert_eq!(page(&store, None).len(), 50);
    assert_eq!(store.targets(), [target(), other]);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_cap_a_hint_is_dropped_counted_and_its_range_dirty_for_good() {
    let setting = Setting::new(200);
    let store = setting.open();
    store.store(&target(), vec![(key("a"), value(1, &"v".repeat(100)))]).await.unwrap();
    let full = store.store(&target(), vec![(key("z"), value(2, &"v".repeat(100)))]).await;
    assert!(matches!(full, Err(Error::Full { .. })));
    assert_eq!(store.pending(&target()).0, 1);
    assert_eq!((store.stats().stored, store.stats().dropped), (1, 1));
    assert_eq!(store.dirty_ranges(&target()), [u16::from(b'z')]);
    tokio::time::sleep(Duration::from_millis(10)).await; // the mark on disk is written meanwhile
    drop(store);
    setting.tasks.abort_all();
    tokio::time::sleep(Duration::from_millis(1)).await;
    setting.disk.crash_lose_all();
    let store = setting.open();
    assert_eq!(store.dirty_ranges(&target()), [u16::from(b'z')]);
    assert_eq!(page(&store, None).len(), 1, "a dirty mark is no hint");
}

#[tokio::test(start_paused = true)]
async fn pages_go_on_behind_the_last_key_and_are_bounded_by_rows_and_bytes() {
    let store = Setting::new(1 << 20).open();
    let items = (0..10).map(|n| (key(&format!("k{n}")), value(n, &"v".repeat(100)))).collect();
    store.store(&target(), items).await.unwrap();
    assert_eq!(store.page(&target(), None, 3, 1 << 20).unwrap().len(), 3);
    assert_eq!(store.page(&target(), None, 100, 300).unwrap().len(), 2);
    assert_eq!(store.page(&target(), None, 100, 1).unwrap().len(), 1, "one at least");
    assert_eq!(page(&store, Some(&key("k6")))[0].key, key("k7"));
}

#[tokio::test(start_paused = true)]
async fn the_count_is_settled_only_by_a_walk_during_which_nothing_was_stored() {
    let store = Setting::new(1 << 20).open();
    store.store(&target(), vec![(key("a"), value(1, "v"))]).await.unwrap();
    let quiet = store.quiet(&target());
    store.store(&target(), vec![(key("b"), value(1, "v"))]).await.unwrap();
    store.settle(&target(), quiet);
    assert_eq!(store.pending(&target()).0, 2);
    let quiet = store.quiet(&target());
    store.settle(&target(), quiet);
    assert_eq!(store.pending(&target()).0, 0);
}

/// Hints and their keys' range, as the world of [`Setting`] sees them.
async fn reopen(setting: &Setting, store: HintStore) -> HintStore {
    store.close().await.unwrap();
    drop(store);
    setting.tasks.abort_all();
    tokio::time::sleep(Duration::from_millis(1)).await;
    setting.disk.crash_lose_all();
    setting.open()
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_hinted_again_after_a_flush_counts_once() {
    let setting = Setting::new(1 << 20);
    let mut store = setting.open();
    for round in 0..5 {
        let items = (0..200).map(|n| (key(&format!("k{n:03}")), value(round * 1000 + n, "v"))).collect();
        store.store(&target(), items).await.unwrap();
        assert_eq!(store.pending(&target()).0, 200, "round {round}");
        store = reopen(&setting, store).await; // what was in memory lies in a table now
    }
    assert_eq!(store.pending(&target()), (200, 200 * weight(&key("k000"), &value(0, "v"))));
}

#[tokio::test(start_paused = true)]
async fn hints_of_one_key_that_are_stored_at_once_count_once() {
    let store = Setting::new(1 << 20).open();
    let stores = (0..20).map(|n| store.store(&target(), vec![(key("k"), value(n, "v"))]));
    for stored in futures_util::future::join_all(stores).await {
        stored.unwrap();
    }
    assert_eq!(store.pending(&target()), (1, weight(&key("k"), &value(0, "v"))));
    assert_eq!(page(&store, None), [Hint { key: key("k"), record: value(19, "v") }]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_large_hints_and_one_beyond_the_memtable_are_all_stored() {
    let store = Setting::new(1 << 30).open();
    let large = "v".repeat(1 << 20);
    let stores = (0..50).map(|n| store.store(&target(), vec![(key(&format!("k{n:02}")), value(n, &large))]));
    for stored in futures_util::future::join_all(stores).await {
        stored.unwrap();
    }
    let largest = value(99, &"v".repeat(40 << 20));
    store.store(&target(), vec![(key("z"), largest.clone())]).await.unwrap();
    assert_eq!(store.pending(&target()).0, 51);
    assert_eq!(page(&store, Some(&key("k49"))), [Hint { key: key("z"), record: largest }]);
}

#[tokio::test(start_paused = true)]
async fn of_two_hints_at_one_timestamp_the_one_whose_record_supersedes_stays() {
    let store = Setting::new(1 << 20).open();
    let deleted = Record::tombstone(Timestamp::from_micros(NOW_MICROS + 1));
    store.store(&target(), vec![(key("k"), deleted.clone())]).await.unwrap();
    store.store(&target(), vec![(key("k"), value(1, "v"))]).await.unwrap();
    assert_eq!(page(&store, None), [Hint { key: key("k"), record: deleted }]);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_spares_another_hint_of_the_same_timestamp_that_came_meanwhile() {
    let store = Setting::new(1 << 20).open();
    store.store(&target(), vec![(key("k"), value(1, "a"))]).await.unwrap();
    let under_way = page(&store, None);
    store.store(&target(), vec![(key("k"), value(1, "b"))]).await.unwrap();
    store.delivered(&target(), &under_way).await.unwrap();
    assert_eq!(page(&store, None), [Hint { key: key("k"), record: value(1, "b") }]);
    assert_eq!(store.pending(&target()).0, 1);
}

/// One rotten byte dropped the whole table at the start, with all of its 2,000 hints, counted nowhere.
#[tokio::test(start_paused = true)]
async fn a_rotten_byte_costs_the_hints_of_its_block_which_are_counted_and_their_ranges_dirty() {
    let setting = Setting::new(1 << 30);
    let store = setting.open();
    let text = |n: u64| {
        let hex = |part: u64| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&(n * 7 + part).to_le_bytes()));
        (0..7).map(hex).collect::<String>()
    };
    let items = (0..2000).map(|n| (key(&format!("k{n:04}")), value(n, &text(n)))).collect();
    store.store(&target(), items).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    setting.tasks.abort_all();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let dir = Path::new("/hints");
    let tables: Vec<_> = setting
        .disk
        .list(dir)
        .unwrap()
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "sst"))
        .collect();
    for table in &tables {
        setting.disk.flip_byte(&dir.join(table), 20_000).unwrap();
    }
    let store = setting.open();
    let left = store.pending(&target()).0;
    assert!((1500..2000).contains(&left), "{left} of 2000 hints are left");
    let dropped = store.stats().dropped;
    assert!(dropped > 0 && dropped.abs_diff(2000 - left) <= 200, "{dropped} counted, {} lost", 2000 - left);
    assert_eq!(store.dirty_ranges(&target()), [1, 2, 3]);
    assert_eq!(
        store.dirty_ranges(&NodeId::from_canonical("c:1")),
        [0; 0],
        "no hint for it can have been there"
    );
    let (mut after, mut found) = (None, 0);
    loop {
        let hints = page(&store, after.as_ref());
        let Some(last) = hints.last() else { break };
        found += hints.len() as u64;
        after = Some(last.key.clone());
    }
    assert_eq!(found, left, "a walk goes round it");
    assert_eq!(store.stats().dropped, dropped, "it is counted once");
    let store = reopen(&setting, store).await;
    assert_eq!((store.stats().dropped, store.pending(&target()).0), (0, left), "after a restart, too");
    assert_eq!(store.dirty_ranges(&target()), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn hints_lost_because_the_disk_is_full_are_counted_and_marked_once_it_has_room() {
    let setting = Setting::new(1 << 30);
    let store = setting.open();
    setting.disk.set_capacity(Some(0));
    let refused = store.store(&target(), vec![(key("k"), value(1, "v"))]).await;
    assert!(refused.is_err());
    assert_eq!((store.stats().dropped, store.pending(&target()).0), (1, 0));
    setting.disk.set_capacity(None);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.tick();
    }
    let store = reopen(&setting, store).await;
    assert_eq!(store.dirty_ranges(&target()), [u16::from(b'k')]);
}

mod replay {
    //! The loops, against a target that is a plain list.

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::hints::{Delivery, HintReplayer, Outcome};
    use crate::rpc::BoxFuture;
    use crate::util::shutdown::Shutdown;

    type Answer = fn(&[(Key, Record)]) -> Outcome;

    #[derive(Debug)]
    struct Target {
        alive: AtomicBool,
        changes: Ticker,
        /// What to say to a batch.
        answer: Mutex<Answer>,
        got: Mutex<Vec<(Key, Record)>>,
        calls: Mutex<usize>,
    }

    impl Target {
        fn set_alive(&self, alive: bool) {
            self.alive.store(alive, Ordering::Relaxed);
            self.changes.tick();
        }
    }

    impl Delivery for Arc<Target> {
        fn is_alive(&self, _: &NodeId) -> bool {
            self.alive.load(Ordering::Relaxed)
        }

        fn liveness_changes(&self) -> Ticks {
            self.changes.listener()
        }

        fn send(&self, _: &NodeId, items: Vec<(Key, Record)>) -> BoxFuture<Outcome> {
            let target = self.clone();
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                *target.calls.lock() += 1;
                let outcome = (*target.answer.lock())(&items);
                if outcome == Outcome::Delivered {
                    target.got.lock().extend(items);
                }
                outcome
            })
        }
    }

    fn start(setting: &Setting, store: &HintStore) -> (Arc<Target>, Shutdown) {
        let it = Arc::new(Target {
            alive: AtomicBool::new(false),
            changes: Ticker::default(),
            answer: Mutex::new(|_| Outcome::Delivered),
            got: Mutex::default(),
            calls: Mutex::default(),
        });
        let stop = Shutdown::default();
        let pool = Pool::simulated(setting.tasks.clone(), Rng::from_seed(3), Duration::from_micros(100));
        let replayer = HintReplayer::new(store.clone(), Arc::new(it.clone()), pool);
        replayer.start(&setting.tasks, [target()], &stop.listener());
        (it, stop)
    }

    #[tokio::test(start_paused = true)]
    async fn hints_are_delivered_within_a_second_of_the_targets_return() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        let items: Vec<_> = (0..600).map(|n| (key(&format!("k{n:03}")), value(n, "v"))).collect();
        store.store(&target(), items.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*it.calls.lock(), 0, "nothing is sent to the dead");
        it.set_alive(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*it.got.lock(), items);
        assert_eq!((store.pending(&target()).0, store.stats().delivered), (0, 600));
        assert!(page(&store, None).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_refuses_is_asked_ever_more_rarely_and_nothing_is_deleted() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        *it.answer.lock() = |_| Outcome::Later;
        it.set_alive(true);
        store.store(&target(), vec![(key("k"), value(1, "v"))]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let calls = *it.calls.lock();
        assert!((50..90).contains(&calls), "{calls} calls in a minute");
        assert_eq!(store.pending(&target()).0, 1);
        *it.answer.lock() = |_| Outcome::Delivered;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.pending(&target()).0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_hint_that_the_target_does_not_want_holds_up_no_other() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        *it.answer.lock() = |items| {
            let unwanted = items.iter().any(|(key, _)| key.as_bytes() == b"k5");
            if unwanted { Outcome::Unwanted } else { Outcome::Delivered }
        };
        let items = (0..10).map(|n| (key(&format!("k{n}")), value(n, "v"))).collect();
        store.store(&target(), items).await.unwrap();
        it.set_alive(true);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(it.got.lock().len(), 9);
        assert_eq!((store.pending(&target()).0, store.stats().dropped), (0, 1));
        assert_eq!(store.dirty_ranges(&target()), [u16::from(b'k')]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_ahead_for_some_seconds_drops_no_hint() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        let items: Vec<_> = (0..100).map(|n| (key(&format!("k{n:02}")), value(n, "v"))).collect();
        store.store(&target(), items.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let hours = 4 * 3_600_000_000;
        setting.clock.advance(hours + 10_000_000);
        it.set_alive(true);
        tokio::time::sleep(Duration::from_secs(6)).await;
        setting.clock.set(NOW_MICROS + 16_000_000);
        assert_eq!(*it.got.lock(), items);
        assert_eq!(store.stats().dropped, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_refused_hints_cost_a_few_more_messages_and_not_one_for_each_of_the_others() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        *it.answer.lock() = |items| {
            let unwanted = items.iter().any(|(key, _)| key.as_bytes().ends_with(b"777"));
            if unwanted { Outcome::Unwanted } else { Outcome::Delivered }
        };
        let items: Vec<_> = (0..3000).map(|n| (key(&format!("k{n:04}")), value(n, "v"))).collect();
        for chunk in items.chunks(500) {
            store.store(&target(), chunk.to_vec()).await.unwrap();
        }
        it.set_alive(true);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((it.got.lock().len(), store.stats().dropped), (2997, 3));
        let calls = *it.calls.lock();
        assert!(calls < 100, "{calls} messages");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_that_grew_too_old_is_dropped_unsent() {
        let setting = Setting::new(1 << 20);
        let store = setting.open();
        let (it, _stop) = start(&setting, &store);
        store.store(&target(), vec![(key("old"), value(1, "v"))]).await.unwrap();
        for _ in 0..61 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            setting.clock.advance(1_000_000);
        }
        store.store(&target(), vec![(key("young"), value(60_000_000, "v"))]).await.unwrap();
        it.set_alive(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*it.got.lock(), [(key("young"), value(60_000_000, "v"))]);
        assert_eq!((store.pending(&target()).0, store.stats().dropped), (0, 1));
    }
}
