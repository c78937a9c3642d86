//! A writer and readers of one list in every order of their steps, up to a number of preemptions.
//!
//! Half of the lists have a single bucket, so that all keys are in one chain.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::engine::interleave::{Work, explore};

fn entry(key: &'static str, timestamp: u64) -> EntryRef<'static> {
    EntryRef {
        key: key.as_bytes(),
        timestamp: Timestamp::from_u64(timestamp),
        value: Some(b"value"),
        content_type: None,
        expires_at: None,
    }
}

/// Sizes of the index: one bucket, and some.
const SIZES: [usize; 2] = [0, 1 << 10];

fn is_whole(entry: &EntryRef<'_>) -> bool {
    entry.value == Some(b"value") && matches!(entry.key, b"a" | b"b" | b"c")
}

fn timestamp_of(list: &SkipList, key: &str) -> u64 {
    let found = list.get(key.as_bytes(), bloom::hash(key.as_bytes()));
    assert!(found.is_none_or(|found| is_whole(&found) && found.key == key.as_bytes()));
    found.map_or(0, |found| found.timestamp.as_u64())
}

fn by_order(list: &Arc<SkipList>, key: &str) -> u64 {
    let mut cursor = SkipCursor::new(list.clone());
    cursor.seek(key.as_bytes());
    cursor.current().filter(|found| found.key == key.as_bytes()).map_or(0, |found| found.timestamp.as_u64())
}

/// Gets and seeks in turn never see an older record of a key than one before them did, and what was inserted before a read
/// began is seen by it.
#[test]
fn reads_never_go_back_in_any_order_of_steps() {
    let mut runs = 0;
    for size in SIZES {
        runs += explore(
            1,
            || {
                let list = Arc::new(SkipList::new(size, 7));
                list.insert(&[entry("a", 1), entry("b", 1), entry("c", 1)]);
                let announced = Arc::new(AtomicU64::new(1));
                let writer: Work = {
                    let (list, announced) = (list.clone(), announced.clone());
                    Box::new(move || {
                        for timestamp in 2..4 {
                            list.insert(&[entry("b", timestamp)]);
                            announced.store(timestamp, SeqCst);
                        }
                    })
                };
                let reader: Work = {
                    let list = list.clone();
                    Box::new(move || {
                        let mut seen = announced.load(SeqCst);
                        for read in [timestamp_of(&list, "b"), by_order(&list, "b"), timestamp_of(&list, "b")]
                        {
                            assert!(read >= seen, "{read} after {seen}, {size} bytes");
                            seen = read;
                        }
                    })
                };
                (list, vec![writer, reader])
            },
            |list| assert_eq!(timestamp_of(&list, "b"), 3),
        );
    }
    eprintln!("{runs} runs");
    assert!(runs > 100);
}

/// Late, older and new keys come in one group; whoever walks meanwhile sees whole entries in order, and the
/// first record of a key that a get finds is there for a walk that begins afterwards.
#[test]
fn walks_beside_a_group_of_inserts_see_whole_entries_in_order() {
    let mut runs = 0;
    for size in SIZES {
        runs += explore(
            1,
            || {
                let list = Arc::new(SkipList::new(size, 3));
                list.insert(&[entry("b", 5)]);
                let writer: Work = {
                    let list = list.clone();
                    Box::new(move || {
                        drop(list.insert(&[entry("c", 4), entry("b", 2), entry("a", 9), entry("b", 7)]));
                    })
                };
                let walker: Work = {
                    let list = list.clone();
                    Box::new(move || {
                        let found = timestamp_of(&list, "a");
                        let mut cursor = SkipCursor::new(list.clone());
                        cursor.seek_to_first();
                        let mut entries = Vec::new();
                        while let Some(entry) = cursor.current() {
                            assert!(is_whole(&entry));
                            entries.push((entry.key.to_vec(), std::cmp::Reverse(entry.timestamp)));
                            cursor.next();
                        }
                        assert!(entries.is_sorted(), "{entries:?}");
                        assert!(entries.iter().any(|(key, _)| key == b"b"));
                        assert!(found == 0 || entries.iter().any(|(key, _)| key == b"a"));
                    })
                };
                (list, vec![writer, walker])
            },
            |list| {
                assert_eq!(list.len(), 5);
                assert_eq!(["a", "b", "c"].map(|key| timestamp_of(&list, key)), [9, 7, 4]);
            },
        );
    }
    eprintln!("{runs} runs");
    assert!(runs > 100);
}

/// Writers exclude each other, whatever the order, and each is told of what overtook it.
#[test]
fn two_writers_lose_nothing_in_any_order_of_steps() {
    let runs = explore(
        1,
        || {
            let list = Arc::new(SkipList::new(0, 5));
            let write = |entries: [EntryRef<'static>; 2]| -> Work {
                let list = list.clone();
                Box::new(move || {
                    for (entry, inserted) in entries.iter().zip(list.insert(&entries)) {
                        assert!(inserted.is_new);
                        assert!(inserted.overtaken_by.is_none_or(|newer| newer > entry.timestamp));
                    }
                })
            };
            let works = vec![write([entry("a", 1), entry("b", 4)]), write([entry("b", 3), entry("a", 2)])];
            (list.clone(), works)
        },
        |list| {
            assert_eq!(list.len(), 4);
            assert_eq!(
                ["a", "b"].map(|key| (timestamp_of(&list, key), by_order(&list, key))),
                [(2, 2), (4, 4)]
            );
        },
    );
    eprintln!("{runs} runs");
    assert!(runs > 20);
}
