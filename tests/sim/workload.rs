//! Clients: each asks random nodes for random things, one after another, and notes what it was told.

use std::time::Duration;

use kvstore::env::Rng;
use kvstore::replication::api::Mutation;
use kvstore::types::{Expiry, Key, Record, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use super::history::{Action, Outcome, Seen, ValueId, expiring, id_of, key_of, ttl_of, value_of};
use super::world::World;
use crate::trace;

/// A request that has no answer by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One client.
pub struct Client {
    world: World,
    rng: Rng,
    number: u64,
    writes: u64,
}

impl Client {
    /// A client of a number of its own.
    pub fn new(world: &World, number: u64) -> Self {
        Self { world: world.clone(), rng: world.shared.rng.fork(), number, writes: 0 }
    }

    /// Asks and asks, until `end`.
    pub async fn run(mut self, end: Instant) {
        while Instant::now() < end {
            let options = &self.world.shared.options;
            let think = self.rng.below(0..options.think_ms_max.max(1));
            sleep(Duration::from_millis(think)).await;
            let up = self.world.all_up();
            if up.is_empty() {
                continue;
            }
            let node = up[self.rng.below(0..up.len() as u64) as usize];
            let key = self.draw_key();
            let mix = self.world.shared.options.mix;
            let draw = self.rng.below(0..mix.total());
            if draw < mix.puts {
                let put = self.draw_put();
                self.write(node, vec![(key, put)]).await;
            } else if draw < mix.puts + mix.deletes {
                self.write(node, vec![(key, Action::Delete)]).await;
            } else if draw < mix.puts + mix.deletes + mix.batches {
                let items = self.draw_batch();
                self.write(node, items).await;
            } else if draw < mix.puts + mix.deletes + mix.batches + mix.scans {
                scan(&self.world, node).await;
            } else {
                read(&self.world, node, key).await;
            }
        }
    }

    fn draw_key(&self) -> usize {
        self.rng.below(0..self.world.shared.options.keys as u64) as usize
    }

    fn draw_put(&mut self) -> Action {
        self.writes += 1;
        let id = (self.number << 32) | self.writes;
        let share = self.world.shared.options.mix.expiring;
        Action::Put(if share > 0.0 && self.rng.chance(share) { expiring(id) } else { id })
    }

    /// Two to six items, each key once: of a key given twice only the last is ever seen.
    fn draw_batch(&mut self) -> Vec<(usize, Action)> {
        let mut items: Vec<(usize, Action)> = Vec::new();
        for _ in 0..self.rng.below(2..7) {
            let key = self.draw_key();
            if items.iter().all(|(other, _)| *other != key) {
                let action = if self.rng.chance(0.2) { Action::Delete } else { self.draw_put() };
                items.push((key, action));
            }
        }
        items
    }

    async fn write(&self, node: usize, items: Vec<(usize, Action)>) {
        let Some((member, tasks)) = self.world.up(node) else { return };
        let shared = &self.world.shared;
        let value_len_max = shared.options.value_len_max;
        let mutation = |action: &Action| match action {
            Action::Put(id) => Mutation::put(value_of(*id, value_len_max), ttl_of(*id)),
            Action::Delete | Action::Get => Mutation::Delete,
        };
        let sent: Vec<(Key, Mutation)> =
            items.iter().map(|(key, action)| (key_of(*key), mutation(action))).collect();
        let numbers: Vec<usize> =
            items.iter().map(|(key, action)| shared.history.begin(node, *key, *action)).collect();
        let what: Vec<String> = items.iter().map(|(key, action)| format!("{action:?} key {key}")).collect();
        trace!(shared.trace, "write {numbers:?} at {node}: {}", what.join(", "));
        let writing = tasks.spawn(async move { member.write(sent).await });
        match timeout(PATIENCE, writing).await {
            Ok(Ok(outcomes)) => {
                trace!(shared.trace, "write {numbers:?}: {outcomes:?}");
                for (number, outcome) in numbers.into_iter().zip(outcomes) {
                    shared.history.end(number, outcome);
                }
            }
            Ok(Err(_)) => trace!(shared.trace, "write {numbers:?}: crashed"),
            Err(_) => self.world.wrong(format!("a write at {node} hangs: {numbers:?}")),
        }
    }
}

/// Reads a key at a node; says whether it was answered.
pub async fn read(world: &World, node: usize, key: usize) -> bool {
    let Some((member, tasks)) = world.up(node) else { return false };
    let shared = &world.shared;
    let number = shared.history.begin(node, key, Action::Get);
    trace!(shared.trace, "read {number} at {node}: key {key}");
    let (asked_at, lag) = (world.now(), world.lag());
    let asked = member.clone();
    let reading = tasks.spawn(async move { asked.read(key_of(key)).await });
    match timeout(PATIENCE, reading).await {
        Ok(Ok(Ok(record))) => {
            let seen = record.map(|record| see(world, &record));
            if let Some(seen) = &seen {
                check_expiry(world, seen, asked_at.minus(lag.max(world.lag())), member.clock());
            }
            trace!(shared.trace, "read {number}: {seen:?}");
            shared.history.end(number, Outcome::Seen(seen));
            return true;
        }
        Ok(Ok(Err(why))) => trace!(shared.trace, "read {number}: {why}"),
        Ok(Err(_)) => trace!(shared.trace, "read {number}: crashed"),
        Err(_) => world.wrong(format!("a read at {node} hangs: {number}")),
    }
    false
}

/// How much later than by the slowest clock a value may be seen: clocks drift while a read is under way.
const LATE_MAX: Duration = Duration::from_millis(20);
/// How much earlier than by true time a value may be gone where no clock is wrong: a node that restarts begins at its mark,
/// and what is further ahead its peers refuse.
const EARLY_MAX: Duration = Duration::from_secs(1);

/// A value is seen until some clock says that it is over, and no longer than until all do. `asked_at` is the slowest clock's
/// reading when the read began, `clock` that of the node that was asked when it ended.
fn check_expiry(world: &World, seen: &Seen, asked_at: Timestamp, clock: Timestamp) {
    let Some(expires_at) = seen.expires_at.map(Expiry::timestamp) else { return };
    let faults = &world.shared.options.faults;
    let are_right = !(faults.clock_offsets || faults.clock_drift || faults.clock_jumps || faults.turn_backs);
    match seen.value {
        Some(_) if expires_at.plus(LATE_MAX) < asked_at => {
            world.wrong(format!("a value was read after its end: {seen:?} at {asked_at:?}"));
        }
        None if expires_at > clock => {
            world.wrong(format!("a value was gone before any clock said so: {seen:?} at {clock:?}"));
        }
        None if are_right && expires_at > world.now().plus(EARLY_MAX) => {
            world.wrong(format!("a value was gone before its end: {seen:?} at {:?}", world.now()));
        }
        _ => {}
    }
}

fn see(world: &World, record: &Record) -> Seen {
    let value = record.as_value().map(|value| {
        id_of(value, world.shared.options.value_len_max).unwrap_or_else(|| {
            world.wrong(format!("read bytes that nobody wrote: {value:?}"));
            ValueId::MAX
        })
    });
    Seen { timestamp: record.timestamp(), value, expires_at: record.expires_at() }
}

/// Scans all keys at a node; says whether it was answered.
pub async fn scan(world: &World, node: usize) -> bool {
    let Some((member, tasks)) = world.up(node) else { return false };
    let shared = &world.shared;
    let start = shared.history.moment();
    trace!(shared.trace, "scan {start} at {node}");
    let scanning = tasks.spawn(async move { member.scan().await });
    match timeout(PATIENCE * 3, scanning).await {
        Ok(Ok(Ok(items))) => {
            trace!(shared.trace, "scan {start}: {} keys", items.len());
            if !items.is_sorted_by(|a, b| a.0 < b.0) {
                world.wrong(format!("scan {start} at {node} is not in key order"));
            }
            let keys: Vec<Key> = (0..shared.options.keys).map(key_of).collect();
            let mut values = vec![None; keys.len()];
            for (key, value) in items {
                let id = id_of(&value, shared.options.value_len_max);
                match (keys.iter().position(|known| *known == key), id) {
                    (Some(number), Some(id)) => values[number] = Some(id),
                    _ => world.wrong(format!("scanned what nobody wrote: {key:?} {value:?}")),
                }
            }
            shared.history.scanned(start, values);
            return true;
        }
        Ok(Ok(Err(why))) => trace!(shared.trace, "scan {start}: {why}"),
        Ok(Err(_)) => trace!(shared.trace, "scan {start}: crashed"),
        Err(_) => world.wrong(format!("a scan at {node} hangs: {start}")),
    }
    false
}
