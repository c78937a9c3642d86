//! Clients: each asks random nodes for random things, one after another, and notes what it was told.

use std::time::Duration;

use kvstore::env::Rng;
use kvstore::replication::api::Mutation;
use kvstore::types::{Expiry, Key, Record, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use super::checks;
use super::history::{Action, Outcome, Quorum, Seen, ValueId, expiring, id_of, key_of, ttl_of, value_of};
use super::member::How;
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
            let how = self.draw_how();
            let reads = How { sloppy: false, ..how };
            let draw = self.rng.below(0..mix.total());
            if draw < mix.puts {
                let put = self.draw_put();
                self.write(node, vec![(key, put)], how).await;
            } else if draw < mix.puts + mix.deletes {
                self.write(node, vec![(key, Action::Delete)], how).await;
            } else if draw < mix.puts + mix.deletes + mix.batches {
                let items = self.draw_batch();
                self.write(node, items, how).await;
            } else if draw < mix.puts + mix.deletes + mix.batches + mix.scans {
                scan(&self.world, node, reads).await;
            } else if draw < mix.total() - mix.gets {
                self.delete_range(node, how).await;
            } else {
                read(&self.world, node, key, reads).await;
            }
        }
    }

    fn draw_key(&self) -> usize {
        self.rng.below(0..self.world.shared.options.keys as u64) as usize
    }

    /// Now and then a request has a W or R of its own. While disks are lost, W is no smaller than its node's: a rebuild reads
    /// as many peers as that needs.
    fn draw_how(&self) -> How {
        let options = &self.world.shared.options;
        if options.mix.own_quorums == 0.0 || !self.rng.chance(options.mix.own_quorums) {
            return How::default();
        }
        let replicas = options.shape.replicas();
        let configured = options.shape.nodes.iter().map(|node| node.write_quorum).max().unwrap_or(1);
        let needed_min = if options.faults.damages() && !options.faults.small_w { configured } else { 1 };
        How {
            quorum: Some(self.rng.below(needed_min as u64..replicas as u64 + 1) as usize),
            sloppy: options.mix.sloppy > 0.0 && self.rng.chance(options.mix.sloppy),
        }
    }

    /// What the doors make of a deletion of a range: a scan, and a batch of deletions of what it found.
    async fn delete_range(&self, node: usize, how: How) {
        let Some(found) = scan(&self.world, node, How { sloppy: false, ..how }).await else { return };
        let some = found.into_iter().filter(|_| self.rng.chance(0.3)).map(|key| (key, Action::Delete));
        let items: Vec<_> = some.collect();
        if !items.is_empty() {
            self.write(node, items, how).await;
        }
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

    async fn write(&self, node: usize, items: Vec<(usize, Action)>, how: How) {
        write(&self.world, node, items, how).await;
    }
}

/// Writes items at a node as one request; says whether all were acknowledged.
pub async fn write(world: &World, node: usize, items: Vec<(usize, Action)>, how: How) -> bool {
    let Some((member, tasks)) = world.up(node) else { return false };
    let shared = &world.shared;
    let value_len_max = shared.options.value_len_max;
    let mutation = |action: &Action| match action {
        Action::Put(id) => Mutation::put(value_of(*id, value_len_max), ttl_of(*id)),
        Action::Delete | Action::Get => Mutation::Delete,
    };
    let sent: Vec<(Key, Mutation)> =
        items.iter().map(|(key, action)| (key_of(*key), mutation(action))).collect();
    let settings = &shared.options.shape.nodes[node];
    let needed = how.quorum.unwrap_or(settings.write_quorum);
    let quorum = Quorum { sloppy: how.sloppy, ..Quorum::new(needed, shared.options.shape.replicas()) };
    let numbers: Vec<usize> =
        items.iter().map(|(key, action)| shared.history.begin(node, *key, *action, quorum)).collect();
    let keys: Vec<usize> = items.iter().map(|(key, _)| *key).collect();
    world.note_write(node, keys.clone());
    let what: Vec<String> = items.iter().map(|(key, action)| format!("{action:?} key {key}")).collect();
    trace!(shared.trace, "write {numbers:?} at {node} by {quorum:?}: {}", what.join(", "));
    let (begun, due) = (Instant::now(), checks::due(world, node, &keys, quorum));
    let checked = (world.clone(), keys.clone());
    let writing = tasks.spawn(async move {
        let outcomes = member.write(sent, how).await;
        for (key, outcome) in checked.1.iter().zip(&outcomes) {
            if let Outcome::Acknowledged { at_least, .. } = outcome {
                checks::acknowledged(&checked.0, begun, *key, quorum, *at_least);
            }
        }
        outcomes
    });
    match timeout(PATIENCE, writing).await {
        Ok(Ok(outcomes)) => {
            trace!(shared.trace, "write {numbers:?}: {outcomes:?}");
            let is_done = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Acknowledged { .. }));
            if !is_done {
                checks::refused(world, due, &format!("write {numbers:?} at {node}: {outcomes:?}"));
            }
            for (number, outcome) in numbers.into_iter().zip(outcomes) {
                shared.history.end(number, outcome);
            }
            return is_done;
        }
        Ok(Err(_)) => trace!(shared.trace, "write {numbers:?}: crashed"),
        Err(_) => checks::hangs(world, node, begun, &format!("write {numbers:?}")),
    }
    false
}

/// Reads a key at a node; says whether it was answered.
pub async fn read(world: &World, node: usize, key: usize, how: How) -> bool {
    let Some((member, tasks)) = world.up(node) else { return false };
    let shared = &world.shared;
    let needed = how.quorum.unwrap_or(shared.options.shape.nodes[node].read_quorum);
    let quorum = Quorum::new(needed, shared.options.shape.replicas());
    let number = shared.history.begin(node, key, Action::Get, quorum);
    trace!(shared.trace, "read {number} at {node} by {quorum:?}: key {key}");
    let (asked_at, lag) = (world.now(), world.lag());
    let (begun, due) = (Instant::now(), checks::due(world, node, &[key], quorum));
    let asked = member.clone();
    let reading = tasks.spawn(async move { asked.read(key_of(key), how).await });
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
        Ok(Ok(Err(why))) => {
            trace!(shared.trace, "read {number}: {why}");
            checks::refused(world, due, &format!("read {number} at {node}: {why}"));
        }
        Ok(Err(_)) => trace!(shared.trace, "read {number}: crashed"),
        Err(_) => checks::hangs(world, node, begun, &format!("read {number}")),
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
    let are_right = !(faults.clock_offsets || faults.clock_drift || faults.moves_clocks());
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

/// Scans all keys at a node; the keys that it found, `None` where it was not answered.
pub async fn scan(world: &World, node: usize, how: How) -> Option<Vec<usize>> {
    let (member, tasks) = world.up(node)?;
    let shared = &world.shared;
    let needed = how.quorum.unwrap_or(shared.options.shape.nodes[node].read_quorum);
    let quorum = Quorum::new(needed, shared.options.shape.replicas());
    let start = shared.history.moment();
    trace!(shared.trace, "scan {start} at {node} by {quorum:?}");
    let begun = Instant::now();
    let scanning = tasks.spawn(async move { member.scan(how).await });
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
            let found = (0..values.len()).filter(|key| values[*key].is_some()).collect();
            shared.history.scanned(start, quorum, values);
            return Some(found);
        }
        Ok(Ok(Err(why))) => trace!(shared.trace, "scan {start}: {why}"),
        Ok(Err(_)) => trace!(shared.trace, "scan {start}: crashed"),
        Err(_) => checks::hangs(world, node, begun, &format!("scan {start}")),
    }
    None
}
