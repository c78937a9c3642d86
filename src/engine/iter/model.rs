//! The obvious version of a sorted run, to test the others against.

use proptest::prelude::*;

use super::{EntryRef, InternalIterator};
use crate::engine::Error;
use crate::types::{ContentType, Expiry, Record, Timestamp, Value};

/// Key and record, owned.
pub(crate) type Entry = (Vec<u8>, Record);

pub(crate) fn entry_ref((key, record): &Entry) -> EntryRef<'_> {
    EntryRef::of(key, record)
}

/// Sorts as iterators do and drops exact duplicates.
pub(crate) fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by(|a, b| entry_ref(a).order(&entry_ref(b)));
    entries.dedup();
    entries
}

/// The newest record of each key.
pub(crate) fn newest(entries: &[Entry]) -> Vec<Entry> {
    let mut newest = sorted(entries.to_vec());
    newest.dedup_by(|later, first| later.0 == first.0);
    newest
}

/// Few keys and few timestamps, so that they collide.
pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
    let key = prop_oneof![
        proptest::collection::vec(0u8..3, 1..5),
        proptest::collection::vec(any::<u8>(), 1..40),
        (0u32..500).prop_map(|n| format!("user:{n:08}").into_bytes()),
    ];
    let value = proptest::option::of(prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3),
        (0usize..300).prop_map(|len| vec![7; len]),
    ]);
    let content_type = prop_oneof![3 => Just(None), 1 => "[ab]{1,20}".prop_map(Some)];
    let expiry = prop_oneof![3 => Just(0u64), 1 => 1u64..4];
    (key, 1u64..6, value, content_type, expiry).prop_map(|(key, ts, value, content_type, expiry)| {
        let timestamp = Timestamp::from_u64(ts);
        let content_type = content_type.and_then(|text| ContentType::new(text.as_bytes()));
        let record = match (value, Expiry::from_u64(expiry)) {
            (None, None) => Record::tombstone(timestamp),
            (None, Some(expires_at)) => Record::Expired { timestamp, expires_at },
            (Some(value), expires_at) => {
                let value = Value::new(value).of_type(content_type).expiring(expires_at);
                Record::value(timestamp, value)
            }
        };
        (key, record)
    })
}

pub(crate) fn any_entries(most: usize) -> impl Strategy<Value = Vec<Entry>> {
    proptest::collection::vec(any_entry(), 0..most)
}

/// A sorted vector as an iterator, which may be told to fail.
pub(crate) struct ModelIterator {
    pub(crate) entries: Vec<Entry>,
    pub(crate) at: usize,
    /// Moving to this entry fails.
    pub(crate) fails_at: Option<usize>,
}

impl ModelIterator {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        let at = entries.len();
        Self { entries: sorted(entries), at, fails_at: None }
    }

    fn arrive(&mut self, at: usize) -> Result<(), Error> {
        self.at = at;
        if self.fails_at == Some(at) {
            self.at = self.entries.len();
            return Err(Error::corruption("model", at as u64, "planted"));
        }
        Ok(())
    }
}

impl InternalIterator for ModelIterator {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        self.arrive(0)
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        self.arrive(self.entries.partition_point(|(key, _)| &key[..] < user_key))
    }

    fn next(&mut self) -> Result<(), Error> {
        if self.at < self.entries.len() { self.arrive(self.at + 1) } else { Ok(()) }
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        self.entries.get(self.at).map(entry_ref)
    }
}

/// Everything from where the iterator stands.
pub(crate) fn drain(iterator: &mut dyn InternalIterator) -> Result<Vec<Entry>, Error> {
    let mut out = Vec::new();
    while let Some(entry) = iterator.current() {
        out.push((entry.key.to_vec(), entry.to_record()));
        iterator.next()?;
    }
    Ok(out)
}

/// Checks an iterator against the sorted entries it should give: whole, and from each of some keys.
pub(crate) fn check(iterator: &mut dyn InternalIterator, expected: &[Entry], seeks: &[Entry]) {
    iterator.seek_to_first().unwrap();
    assert_eq!(drain(iterator).unwrap(), expected);
    iterator.next().unwrap();
    assert_eq!(iterator.current(), None, "the end is where it stays");
    for (key, _) in seeks {
        iterator.seek(key).unwrap();
        let from = expected.partition_point(|(other, _)| other < key);
        assert_eq!(drain(iterator).unwrap(), &expected[from..], "from {}", key.escape_ascii());
    }
}
