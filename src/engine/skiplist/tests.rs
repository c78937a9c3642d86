use std::cmp::Reverse;

use super::*;
use crate::types::{ContentType, Expiry, Value};

fn entry(key: &'static str, timestamp: u64, value: Option<&'static str>) -> EntryRef<'static> {
    EntryRef {
        key: key.as_bytes(),
        timestamp: Timestamp::from_u64(timestamp),
        value: value.map(str::as_bytes),
        content_type: None,
        expires_at: None,
    }
}

/// Bytes of an index with a few buckets.
const SIZE: usize = 1 << 10;

fn insert(list: &SkipList, entry: &EntryRef<'_>) -> Inserted {
    list.insert(std::slice::from_ref(entry))[0]
}

fn get<'a>(list: &'a SkipList, key: &[u8]) -> Option<EntryRef<'a>> {
    list.get(key, bloom::hash(key))
}

fn all(list: &Arc<SkipList>) -> Vec<(Vec<u8>, u64, Option<Vec<u8>>)> {
    let mut cursor = SkipCursor::new(list.clone());
    cursor.seek_to_first();
    let mut found = Vec::new();
    while let Some(entry) = cursor.current() {
        found.push((entry.key.to_vec(), entry.timestamp.as_u64(), entry.value.map(<[u8]>::to_vec)));
        cursor.next();
    }
    found
}

#[test]
fn entries_stand_in_key_order_and_of_one_key_the_winner_first() {
    let list = Arc::new(SkipList::new(SIZE, 1));
    for e in [
        entry("b", 5, Some("x")),
        entry("a", 9, Some("x")),
        entry("b", 5, None),
        entry("b", 5, Some("y")),
        entry("a", 12, Some("")),
    ] {
        assert!(insert(&list, &e).is_new);
    }
    let seen: Vec<_> = all(&list);
    let text = |s: &str| Some(s.as_bytes().to_vec());
    assert_eq!(
        seen,
        [
            (b"a".to_vec(), 12, text("")),
            (b"a".to_vec(), 9, text("x")),
            (b"b".to_vec(), 5, None),
            (b"b".to_vec(), 5, text("y")),
            (b"b".to_vec(), 5, text("x")),
        ]
    );
    assert_eq!(get(&list, b"b").unwrap().value, None);
    assert!(get(&list, b"c").is_none());
    assert!(get(&list, b"").is_none());
}

#[test]
fn an_insert_reports_the_newest_record_that_overtook_it() {
    let list = SkipList::new(SIZE, 1);
    let newest = |e: EntryRef<'static>| insert(&list, &e).overtaken_by.map(Timestamp::as_u64);
    assert_eq!(newest(entry("k", 5, Some("v"))), None);
    assert_eq!(newest(entry("k", 7, Some("v"))), None);
    assert_eq!(newest(entry("k", 3, Some("v"))), Some(7));
    assert_eq!(newest(entry("k", 7, Some("a"))), Some(7));
    assert_eq!(newest(entry("l", 1, None)), None);
}

#[test]
fn the_same_entry_twice_is_kept_once() {
    let list = Arc::new(SkipList::new(SIZE, 1));
    assert!(insert(&list, &entry("k", 5, Some("v"))).is_new);
    let bytes = list.bytes();
    assert!(!insert(&list, &entry("k", 5, Some("v"))).is_new);
    assert_eq!((list.len(), list.bytes()), (1, bytes));
}

#[test]
fn the_order_of_entries_is_the_precedence_of_records() {
    fn as_entry(record: &Record) -> EntryRef<'_> {
        EntryRef::of(b"k", record)
    }

    let mut records = Vec::new();
    for timestamp in [1, 2].map(Timestamp::from_u64) {
        records.push(Record::tombstone(timestamp));
        for content_type in [None, ContentType::new(b"a/a"), ContentType::new(b"b/b")] {
            for expires_at in [None, Expiry::from_u64(1), Expiry::from_u64(2)] {
                let value = |text| Value::new(text).of_type(content_type.clone()).expiring(expires_at);
                records.extend(["", "a", "b"].map(|text| Record::value(timestamp, value(text))));
            }
        }
        let ended = |end| Record::value(timestamp, Value::default().expiring(Expiry::from_u64(end)));
        records.extend([1, 2].map(|end| ended(end).expired()));
    }
    for a in &records {
        let list = SkipList::new(SIZE, 1);
        insert(&list, &as_entry(a));
        assert_eq!(get(&list, b"k").map(|entry| entry.to_record()).as_ref(), Some(a));
        for b in &records {
            assert_eq!(as_entry(a).order(&as_entry(b)), b.precedence(a), "{a:?} {b:?}");
        }
    }
}

/// Half of the lists have a single bucket: its chain grows longer than a get will walk.
#[test]
fn the_list_equals_a_sorted_set_whatever_the_seed_and_however_many_are_inserted_at_once() {
    let rounds = if cfg!(miri) { 2 } else { 40 };
    for seed in 0..rounds {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let list = Arc::new(SkipList::new(if seed % 2 == 0 { 0 } else { SIZE }, seed));
        let mut model = std::collections::BTreeSet::new();
        for _ in 0..if cfg!(miri) { 12 } else { 100 } {
            let records: Vec<_> = (0..rng.next_u64() % 12)
                .map(|_| {
                    let key = vec![b'a' + (rng.next_u64() % 20) as u8; (rng.next_u64() % 4) as usize];
                    let timestamp = rng.next_u64() % 20;
                    let has_value = !rng.next_u64().is_multiple_of(3);
                    (key, timestamp, has_value.then(|| vec![(rng.next_u64() % 3) as u8; 2]))
                })
                .collect();
            let entries: Vec<_> = records
                .iter()
                .map(|(key, timestamp, value)| EntryRef {
                    key,
                    timestamp: Timestamp::from_u64(*timestamp),
                    value: value.as_deref(),
                    content_type: None,
                    expires_at: None,
                })
                .collect();
            let inserted = list.insert(&entries);
            for ((key, timestamp, value), inserted) in records.iter().cloned().zip(inserted) {
                let order = (key.clone(), Reverse((timestamp, value.is_none(), value.clone())));
                assert_eq!(inserted.is_new, model.insert(order), "seed {seed}");
                let (_, Reverse(newest)) = model.iter().find(|(other, _)| *other == key).expect("inserted");
                let is_overtaken = *newest != (timestamp, value.is_none(), value);
                let newest = is_overtaken.then_some(Timestamp::from_u64(newest.0));
                assert_eq!(inserted.overtaken_by, newest, "seed {seed}");
            }
        }
        let expected: Vec<_> = model.into_iter().map(|(k, Reverse((t, _, v)))| (k, t, v)).collect();
        assert_eq!(all(&list), expected, "seed {seed}");
        for key in (b'`'..=b'u').flat_map(|letter| (0..=4).map(move |len| vec![letter; len])) {
            let newest = expected.iter().find(|(other, ..)| *other == key);
            let found = get(&list, &key);
            assert_eq!(
                found.map(|found| (found.timestamp.as_u64(), found.value.map(<[u8]>::to_vec))),
                newest.map(|(_, timestamp, value)| (*timestamp, value.clone())),
                "seed {seed}, {key:?}"
            );
        }
    }
}

/// One writer inserts rising numbers under rising keys of four families while readers walk: whatever a
/// reader sees is whole and sorted, and what was announced before it began is all there.
#[test]
fn readers_beside_a_writer_see_whole_entries_in_order_and_all_that_was_announced() {
    #![allow(clippy::disallowed_methods)] // threads are what is tested here
    let (entries, walks) = if cfg!(miri) { (60, 3) } else { (20_000, 60) };
    let list = Arc::new(SkipList::new(SIZE, 7));
    let announced = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (list, announced) = (list.clone(), announced.clone());
            std::thread::spawn(move || {
                for _ in 0..walks {
                    let at_least = announced.load(Ordering::Acquire);
                    let found = all(&list);
                    assert!(found.len() >= at_least, "{} of {at_least} entries seen", found.len());
                    assert!(found.is_sorted_by(|a, b| (&a.0, b.1) < (&b.0, a.1)));
                    assert!(found.iter().all(|(_, ts, value)| *value == Some(ts.to_string().into_bytes())));
                }
            })
        })
        .collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    for number in 0..entries {
        let key = (rng.next_u64() % 1_000).to_be_bytes();
        let value = number.to_string().into_bytes();
        let timestamp = Timestamp::from_u64(number);
        let value = Some(&value[..]);
        insert(&list, &EntryRef { key: &key, timestamp, value, content_type: None, expires_at: None });
        announced.store(number as usize + 1, Ordering::Release);
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

/// One writer inserts rising numbers under a few keys in turn while readers ask for them by hash and by order: no answer
/// is older than the one before it, or than what was announced before it was asked for.
#[test]
fn readers_beside_a_writer_never_go_back_whether_they_get_or_seek() {
    #![allow(clippy::disallowed_methods)] // threads are what is tested here
    let (entries, keys) = if cfg!(miri) { (80, 40) } else { (60_000, 40) };
    for size in [0, SIZE] {
        let list = Arc::new(SkipList::new(size, 7));
        let announced = Arc::new(AtomicU64::new(0));
        let reader = {
            let (list, announced) = (list.clone(), announced.clone());
            move || {
                let mut cursor = SkipCursor::new(list.clone());
                let mut at_least = 0;
                while at_least < entries {
                    at_least = announced.load(Ordering::Acquire);
                    // The key that comes next, which has been announced unless it is its first time.
                    let key = (at_least % keys).to_be_bytes();
                    let mut seen = at_least.checked_sub(keys).map(|number| number + 1);
                    for ask in 0..6 {
                        let found = if ask % 2 == 0 {
                            get(&list, &key)
                        } else {
                            cursor.seek(&key);
                            cursor.current().filter(|found| found.key == key)
                        };
                        let found = found.map(|found| found.timestamp.as_u64());
                        assert!(found >= seen, "{found:?} after {seen:?}, in {size} bytes");
                        seen = found;
                    }
                }
            }
        };
        let readers = [reader.clone(), reader].map(std::thread::spawn);
        for number in 0..entries {
            let key = (number % keys).to_be_bytes();
            let timestamp = Timestamp::from_u64(number + 1);
            insert(
                &list,
                &EntryRef { key: &key, timestamp, value: None, content_type: None, expires_at: None },
            );
            announced.store(number + 1, Ordering::Release);
        }
        for reader in readers {
            reader.join().unwrap();
        }
    }
}
