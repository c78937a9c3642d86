//! Hot keys: which keys clients ask for most, in bounded memory.
//!
//! One request in [`SAMPLED`] on average is looked at; its key goes into a Space-Saving sketch of [`KEYS_MAX`] counters. A key
//! that has none takes over the least counter, with its count as an error: so a key that has more than 1 in [`KEYS_MAX`] of
//! all requests is in the sketch, and no count is too low. Counts are halved every `HALVED_EVERY`, so that they speak of
//! the last minutes.
//!
//! Source: Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in data streams" (2005).

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::Token;
use crate::env::Rng;
use crate::types::Key;

/// One request in so many is looked at, on average; by chance, so that no client's rhythm hides a key.
pub const SAMPLED: u32 = 64;
/// Keys counted: at 4 KiB a key at most, one MiB.
pub const KEYS_MAX: usize = 256;
/// How often counts are halved.
const HALVED_EVERY: Duration = Duration::from_secs(60);

/// What a request did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Asked for its value.
    Read,
    /// Gave it a value or deleted it.
    Write,
}

/// A key that is asked for often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotKey {
    /// Which.
    pub key: Key,
    /// Reads seen, of those looked at.
    pub reads: u64,
    /// Writes seen, of those looked at.
    pub writes: u64,
    /// What the count may be too high by.
    pub error: u64,
}

impl HotKey {
    /// Never less than what it was asked for since it was counted.
    pub fn count(&self) -> u64 {
        self.reads + self.writes + self.error
    }
}

/// What a node knows of its hot keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hottest {
    /// Requests looked at, halved like the counts.
    pub looked_at: u64,
    /// The hottest first.
    pub keys: Vec<HotKey>,
}

/// The Space-Saving sketch. Pure.
///
/// Invariants: `tokens[i]` is the token of `keys[i].key`; no key twice; at most [`KEYS_MAX`].
#[derive(Debug, Default)]
struct Sketch {
    /// Apart from the keys, so that a search walks 2 KiB.
    tokens: Vec<u64>,
    keys: Vec<HotKey>,
    looked_at: u64,
}

impl Sketch {
    fn add(&mut self, key: &[u8], access: Access) {
        self.looked_at += 1;
        let token = Token::of(key).0;
        let known = self.tokens.iter().position(|known| *known == token);
        let place = known.filter(|place| self.keys[*place].key.as_bytes() == key);
        let place = place.or_else(|| self.take_place(key, token));
        let Some(hot) = place.map(|place| &mut self.keys[place]) else { return };
        match access {
            Access::Read => hot.reads += 1,
            Access::Write => hot.writes += 1,
        }
    }

    /// A place for a key that has none: a free one, or that of the key with the least count.
    fn take_place(&mut self, key: &[u8], token: u64) -> Option<usize> {
        // A copy: the bytes given share a whole request's.
        let key = Key::new(Bytes::copy_from_slice(key)).ok()?;
        if self.keys.len() < KEYS_MAX {
            self.tokens.push(token);
            self.keys.push(HotKey { key, reads: 0, writes: 0, error: 0 });
            return Some(self.keys.len() - 1);
        }
        let least = (0..self.keys.len()).min_by_key(|place| self.keys[*place].count())?;
        self.tokens[least] = token;
        self.keys[least] = HotKey { key, reads: 0, writes: 0, error: self.keys[least].count() };
        Some(least)
    }

    fn halve(&mut self) {
        self.looked_at /= 2;
        for hot in &mut self.keys {
            hot.reads /= 2;
            hot.writes /= 2;
            hot.error /= 2;
        }
        self.keys.retain(|hot| hot.count() > 0);
        self.tokens = self.keys.iter().map(|hot| Token::of(hot.key.as_bytes()).0).collect();
    }

    fn hottest(&self, limit: usize) -> Hottest {
        let mut keys = self.keys.clone();
        keys.sort_by(|a, b| b.count().cmp(&a.count()).then_with(|| a.key.cmp(&b.key)));
        keys.truncate(limit);
        Hottest { looked_at: self.looked_at, keys }
    }
}

/// Watches the keys of one node's clients.
#[derive(Debug)]
pub struct HotKeys {
    rng: Rng,
    /// Requests until the next is looked at. Relaxed, and written without a lock: a count that gets lost between two
    /// threads moves a sample by one.
    until_next: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sketch: Sketch,
    halved_at: Instant,
}

impl State {
    fn age(&mut self, now: Instant) {
        while now - self.halved_at >= HALVED_EVERY {
            self.sketch.halve();
            self.halved_at = if self.sketch.keys.is_empty() { now } else { self.halved_at + HALVED_EVERY };
        }
    }
}

impl HotKeys {
    /// Nothing seen yet.
    pub fn new(rng: Rng) -> Self {
        let state = State { sketch: Sketch::default(), halved_at: Instant::now() };
        Self { rng, until_next: AtomicU32::new(0), state: Mutex::new(state) }
    }

    /// A client's request touches a key. Costs a load and a store, but for one in [`SAMPLED`].
    #[inline]
    pub fn note(&self, key: &Key, access: Access) {
        let left = self.until_next.load(Ordering::Relaxed);
        if left > 0 {
            self.until_next.store(left - 1, Ordering::Relaxed);
        } else {
            self.look_at(key, access);
        }
    }

    #[cold]
    fn look_at(&self, key: &Key, access: Access) {
        let next = self.rng.below(0..u64::from(2 * SAMPLED - 1)) as u32; // the mean is SAMPLED, this one included
        self.until_next.store(next, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.age(Instant::now());
        state.sketch.add(key.as_bytes(), access);
    }

    /// The hottest keys, at most `limit`.
    pub fn hottest(&self, limit: usize) -> Hottest {
        let mut state = self.state.lock();
        state.age(Instant::now());
        state.sketch.hottest(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::{prop, prop_assert, proptest};

    #[test]
    fn a_key_with_more_than_its_part_of_all_requests_is_found() {
        let mut sketch = Sketch::default();
        for number in 0..100_000u32 {
            sketch.add(format!("cold:{number}").as_bytes(), Access::Write);
            if number % 50 == 0 {
                sketch.add(b"hot", Access::Read);
            }
        }
        let hottest = sketch.hottest(1).keys.remove(0);
        assert_eq!(hottest.key.as_bytes(), b"hot");
        assert!(hottest.reads <= 2000 && hottest.count() >= 2000, "{hottest:?}");
        assert_eq!(sketch.keys.len(), KEYS_MAX);
    }

    proptest! {
        #[test]
        fn no_count_is_too_low_nor_too_high_by_more_than_its_error(keys in prop::collection::vec(0u16..600, 0..4000)) {
            let mut sketch = Sketch::default();
            let mut truth = BTreeMap::<String, u64>::new();
            for key in keys {
                let key = format!("{}", u32::from(key) * u32::from(key) / 600); // some more often than others
                sketch.add(key.as_bytes(), Access::Read);
                *truth.entry(key).or_default() += 1;
            }
            for hot in &sketch.keys {
                let true_count = truth[std::str::from_utf8(hot.key.as_bytes()).unwrap()];
                prop_assert!(hot.count() >= true_count && hot.count() - hot.error <= true_count);
            }
            let part = sketch.looked_at / KEYS_MAX as u64;
            for (key, _) in truth.iter().filter(|(_, count)| **count > part) {
                prop_assert!(sketch.keys.iter().any(|hot| hot.key.as_bytes() == key.as_bytes()), "{key}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_hot_an_hour_ago_is_forgotten() {
        let hot_keys = HotKeys::new(Rng::from_seed(1));
        let key = Key::new("k").unwrap();
        for _ in 0..64_000 {
            hot_keys.note(&key, Access::Write);
        }
        let before = hot_keys.hottest(10);
        assert!((900..1100).contains(&before.looked_at), "one in {SAMPLED}: {}", before.looked_at);
        assert_eq!(before.keys[0].writes, before.looked_at);
        tokio::time::advance(HALVED_EVERY).await;
        assert_eq!(hot_keys.hottest(10).looked_at, before.looked_at / 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(hot_keys.hottest(10), Hottest::default());
    }
}
