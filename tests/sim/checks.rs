//! Checks that look at the machines themselves, while the storm blows and once it is over.
//!
//! ```text
//! standing       a disk that begins to vote lets no quorum read miss what was acknowledged
//! acknowledged   W disks that vote hold the write at the moment of its answer     some of them also after a loss of power
//! refused        a node, its replicas and the way between them are well: a request that is refused all the same is wrong
//! converged      replicas are equal before anybody reads, but for keys whose hints a fault took (`World::may_be_uneven`)
//! at_rest        once nothing is asked any more, nothing is held: bytes in flight, repairs, tasks, handles, files
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstore::env::{Planted, Tasks};
use kvstore::node::verify;
use kvstore::types::{Record, Timestamp};
use tokio::time::{Instant, sleep};

use super::history::{Outcome, Quorum, key_of};
use super::real_node::{env_of, held_on_disk};
use super::shape::name_of;
use super::world::World;
use crate::trace;

/// How long all must have been well for a request to be due an answer: until beliefs of dead peers have passed, and rebuilds
/// have been heard of.
const WELL_FOR: Duration = Duration::from_secs(4);
/// How often the world looks whether a disk votes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// One acknowledgement of so many is held against what a loss of power would leave.
const POWER_CHECKED_ONE_IN: u64 = 40;
/// So many of them in a run, at most: each recovers an engine.
const POWER_CHECKED_MAX: u64 = 30;
/// A compaction that the stop ended may leave its outputs, which the next start removes.
const STRANGERS_MAX: usize = 2;
/// A node at rest has a handful of loops for each peer, and nothing else.
const TASKS_AT_REST_MAX: usize = 64;

/// Checks that W disks hold a write that was acknowledged just now.
pub fn acknowledged(world: &World, begun: Instant, key: usize, quorum: Quorum, at_least: Timestamp) {
    let name = key_of(key);
    let is_enough = |held: Option<Record>| held.is_some_and(|record| record.timestamp() >= at_least);
    let replicas = world.replicas_of(key);
    let (mut holders, mut seen) = (BTreeSet::new(), Vec::new());
    for &node in &replicas {
        let holds = match world.up(node) {
            Some((member, _)) => {
                let Some(held) = member.holds(&name) else {
                    return; // a toy, or a disk that cannot be read now
                };
                is_enough(held)
            }
            // It went down while its answer was on the way.
            None => held_on_disk(&world.disk(node), &world.dir(node), true, &name).is_ok_and(is_enough),
        };
        let votes = world.has_voted_since(node, begun - LOOK_EVERY.min(begun - world.shared.begun));
        // Counted before it was lost; a disk that votes again holds what it acknowledged.
        let votes_now = world.up(node).is_some_and(|(member, _)| member.health().voting);
        let was_damaged = world.was_damaged_since(node, begun) && !votes_now;
        seen.push(format!("{node}: holds {holds}, votes {votes}, damaged {was_damaged}"));
        if (holds && votes) || was_damaged {
            holders.insert(node);
        }
    }
    if quorum.sloppy {
        for node in world.all_up() {
            let Some((member, _)) = world.up(node) else { continue };
            if replicas.iter().any(|target| is_enough(member.hint(&name_of(*target), &name))) {
                seen.push(format!("{node}: holds a hint"));
                holders.insert(node);
            }
        }
        // A hint may be delivered and deleted before the answer is there; then its target holds the write.
    }
    if holders.len() < quorum.needed {
        world.wrong(format!(
            "acknowledgements: key {key} at {at_least:?} needs {quorum:?}, and this is all: {}",
            seen.join("; ")
        ));
    }
    let is_checked = !quorum.sloppy && world.shared.checks.below(0..POWER_CHECKED_ONE_IN) == 0;
    let checked = &world.shared.power_checked;
    if is_checked && world.shared.options.is_real && checked.load(Ordering::Relaxed) < POWER_CHECKED_MAX {
        checked.fetch_add(1, Ordering::Relaxed);
        survives_power_cut(world, begun, key, quorum, at_least);
    }
}

/// Checks that W disks would still hold a write if all machines lost their power now, and everything that was not synced.
fn survives_power_cut(world: &World, begun: Instant, key: usize, quorum: Quorum, at_least: Timestamp) {
    let (name, mut durable, mut seen) = (key_of(key), 0, Vec::new());
    for node in world.replicas_of(key) {
        let held = held_on_disk(&world.disk(node), &world.dir(node), false, &name);
        let holds = matches!(&held, Ok(Some(record)) if record.timestamp() >= at_least);
        // A disk that is being rebuilt may be damaged, and one that cannot be read says nothing against the write.
        durable += usize::from(holds || held.is_err() || world.was_damaged_since(node, begun));
        seen.push(format!("{node}: {held:?}"));
    }
    if durable < quorum.needed {
        world.wrong(format!(
            "acknowledgements: key {key} at {at_least:?} would not survive a loss of power on {} disks: {}",
            quorum.needed,
            seen.join("; ")
        ));
    }
}

/// Checks, when a disk begins to count, that no quorum read can miss what was acknowledged: of a write that W replicas hold
/// at most N − W disks that vote may lack it.
pub fn standing(world: &World, node: usize) {
    let options = &world.shared.options;
    if !options.is_real || options.shape.nodes.len() == 1 {
        return; // alone a node lets go of tombstones
    }
    let mut acknowledged: BTreeMap<(usize, usize), Timestamp> = BTreeMap::new();
    for operation in world.shared.history.operations() {
        let Quorum { needed, sloppy, .. } = operation.quorum;
        if let Outcome::Acknowledged { at_least, .. } = operation.outcome
            && !sloppy
            && needed >= options.needed_min()
        {
            let newest = acknowledged.entry((operation.key, needed)).or_default();
            *newest = at_least.max(*newest);
        }
    }
    for ((key, needed), at_least) in acknowledged {
        let replicas = world.replicas_of(key);
        if !replicas.contains(&node) {
            continue;
        }
        let lacks = |node: &usize| {
            let Some((member, _)) = world.up(*node).filter(|(member, _)| member.health().voting) else {
                return false;
            };
            let held = member.holds(&key_of(key));
            held.is_some_and(|held| held.is_none_or(|record| record.timestamp() < at_least))
        };
        let lacking: Vec<usize> = replicas.iter().copied().filter(lacks).collect();
        if lacking.len() > replicas.len() - needed {
            world.wrong(format!(
                "standing: {node} votes, and {lacking:?} of {replicas:?} lack what {needed} acknowledged of key {key} at {at_least:?}"
            ));
        }
    }
}

/// A request that must be answered, unless something happens meanwhile.
#[derive(Debug, Clone)]
pub struct Due {
    begun: Instant,
    node: usize,
    keys: Vec<usize>,
    quorum: Quorum,
}

/// Whether a request that begins now must be answered.
pub fn due(world: &World, node: usize, keys: &[usize], quorum: Quorum) -> Option<Due> {
    let due = Due { begun: Instant::now(), node, keys: keys.to_vec(), quorum };
    due.holds(world).then_some(due)
}

/// A request was refused: that is wrong if nothing was in its way, from well before it until now.
pub fn refused(world: &World, due: Option<Due>, what: &str) {
    if let Some(due) = due.filter(|due| due.holds(world)) {
        world.wrong(format!("availability: all was well for {due:?}, yet {what}"));
    }
}

impl Due {
    fn holds(&self, world: &World) -> bool {
        let options = &world.shared.options;
        if !options.is_real || options.faults.moves_clocks() {
            return false; // where clocks jump, nobody has said how long it takes until they agree
        }
        // A read that meets disagreement takes three rounds one after another, each over the network and a disk.
        let round = options.faults.weather.delay_max * 2 + options.pool_delay_max * 2;
        if options.shape.nodes[self.node].network_timeout < round * 4 {
            return false;
        }
        let started = self.begun - world.shared.begun;
        if started < WELL_FOR {
            return false;
        }
        let since = self.begun - WELL_FOR;
        let votes = |node: usize| world.up(node).is_some_and(|(member, _)| member.health().voting);
        let is_ready = |node: usize| {
            world.is_quiet(node, since)
                && world.up(node).is_some_and(|(member, _)| member.health().problems.is_empty())
        };
        let is_well = |node: &usize| {
            world.is_quiet(*node, since)
                && votes(*node)
                && world.has_voted_all_since(*node, since)
                && world.shared.net.is_good_since(self.node, *node, since)
        };
        is_ready(self.node)
            && self.keys.iter().all(|key| {
                world.replicas_of(*key).iter().filter(|node| is_well(node)).count() >= self.quorum.needed
            })
    }
}

/// A request has had no answer for far longer than any may take: wrong, unless its node stood still or was lost.
pub fn hangs(world: &World, node: usize, begun: Instant, what: &str) {
    if world.is_quiet(node, begun) {
        world.wrong(format!("{what} at {node} hangs"));
    } else {
        trace!(world.shared.trace, "{what} at {node} has no answer");
    }
}

/// What a record is to a reader: bytes of a value that has ended may be gone on one disk and not on another.
fn essence(record: Option<&Record>) -> Option<(Timestamp, Option<u64>, u64)> {
    record.map(|record| {
        let expires_at = record.expires_at().map(|expiry| expiry.timestamp().as_u64());
        let hash = if expires_at.is_some() { 0 } else { record.content_hash() };
        (record.timestamp(), expires_at, hash)
    })
}

/// Checks that all replicas of every key hold the same, and nothing older than what was acknowledged. `may_differ` says for
/// which keys they may differ.
pub fn converged(world: &World, moment: &str, may_differ: impl Fn(usize) -> bool) {
    let mut newest = vec![Timestamp::ZERO; world.shared.options.keys];
    for operation in world.shared.history.operations() {
        let Quorum { needed, replicas, sloppy } = operation.quorum;
        // Few disks, or hints, may have been lost with what they alone held.
        let is_strong = !sloppy && needed > replicas / 2;
        if let Outcome::Acknowledged { at_least, .. } = operation.outcome
            && (is_strong || !world.may_be_uneven(operation.key))
        {
            let may_be_gone = world.len() == 1; // alone a node lets go of tombstones
            let at_least = if may_be_gone { Timestamp::ZERO } else { at_least };
            newest[operation.key] = newest[operation.key].max(at_least);
        }
    }
    for key in (0..world.shared.options.keys).filter(|key| !may_differ(*key)) {
        let mut held = Vec::new();
        for node in world.replicas_of(key) {
            if let Some(record) = world.up(node).and_then(|(member, _)| member.holds(&key_of(key))) {
                held.push((node, record));
            }
        }
        if held.is_empty() {
            return; // toys
        }
        let first = essence(held[0].1.as_ref());
        if held.iter().any(|(_, record)| essence(record.as_ref()) != first) {
            world.wrong(format!("convergence: {moment} replicas of key {key} differ: {held:?}"));
        } else if first.map_or(Timestamp::ZERO, |(timestamp, ..)| timestamp) < newest[key] {
            world.wrong(format!(
                "convergence: {moment} no replica of key {key} holds what was acknowledged at {:?}: {held:?}",
                newest[key]
            ));
        }
    }
}

/// Waits until nothing is under way any more, and checks that nothing is held; then stops all nodes and checks their disks.
pub async fn at_rest(world: &World) {
    sleep(world.shared.options.shape.timeout_max() * 3 + Duration::from_secs(1)).await;
    for node in 0..world.len() {
        let Some((member, tasks)) = world.up(node) else { continue };
        for (what, amount) in member.health().held {
            if amount > 0 {
                world.wrong(format!("resources: node {node} at rest holds {what}: {amount}"));
            }
        }
        if tasks.len() > TASKS_AT_REST_MAX {
            world.wrong(format!("resources: node {node} at rest runs {} tasks", tasks.len()));
        }
    }
    for node in 0..world.len() {
        let Some((_, tasks)) = world.up(node) else { continue };
        world.stop_for_good(node).await;
        is_gone(world, node, &tasks).await;
    }
}

/// Checks what a node leaves behind that was stopped in good order: no task, no open file, and a directory that is whole and
/// holds nothing that nobody knows.
async fn is_gone(world: &World, node: usize, tasks: &Tasks) {
    if !tasks.wait(Duration::from_secs(10)).await {
        world.wrong(format!("resources: {} tasks of node {node} outlive it", tasks.len()));
        return;
    }
    let disk = world.disk(node);
    let handles = disk.open_handles();
    if handles > 0 {
        world.wrong(format!("resources: {handles} files of node {node} are still open"));
    }
    let env = env_of(disk, Planted::default());
    match verify(&env, &world.dir(node), &mut |_, _| {}) {
        Ok(verified) => {
            let is_stranger = |note: &&String| note.contains("named by no manifest");
            let strangers: Vec<_> = verified.notes.iter().filter(is_stranger).collect();
            if !verified.findings.is_empty() && !world.shared.options.faults.rots() {
                world.wrong(format!("resources: node {node}'s disk is damaged: {:?}", verified.findings));
            }
            if strangers.len() > STRANGERS_MAX {
                world.wrong(format!("resources: files are left on node {node}'s disk: {strangers:?}"));
            }
        }
        Err(error) => world.wrong(format!("resources: node {node}'s disk cannot be read: {error}")),
    }
}
