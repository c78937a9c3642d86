//! `LateVersions`: the replicas that a read did not need, compared afterwards, many keys a message.
//!
//! ```text
//! reads ──note──► waiting: key, version found ──taken whole──► ReadVersions to the replica ──differs──► read::mend
//!                 a list for each replica        one message under way a replica: what comes meanwhile is the next
//! ```
//!
//! A message, an answer and a task for each read would cost as much again as the read itself. The price is that a replica
//! is found behind a round trip later.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::read;
use super::shared::Shared;
use crate::env::Mistake;
use crate::rpc::{HeldVersion, ReplicaRequest, ReplicaResponse};
use crate::types::{Key, NodeId, Timestamp, Version};

/// Keys a message, at most: what the replica looks up in one go.
const KEYS_MAX: usize = 256;
/// Reads that wait for the next message, at most. What comes beyond is not compared: a later read will see to it.
const WAITING_MAX: usize = 4096;

/// What waits to be compared, for each of the other nodes.
#[derive(Debug)]
pub struct LateVersions {
    queues: BTreeMap<NodeId, Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Found>,
    /// Whether a task sees to them.
    driven: bool,
}

/// What a read found.
#[derive(Debug)]
struct Found {
    key: Key,
    /// `None`: no record.
    version: Option<Version>,
    /// When: what is newer was written since.
    at: Timestamp,
}

impl Found {
    /// Whether a replica that holds this agrees, or is merely ahead.
    fn agrees(&self, held: HeldVersion) -> bool {
        match held {
            HeldVersion::Nothing => self.version.is_none(),
            HeldVersion::Version(held) => self.version == Some(held) || held.timestamp > self.at,
            HeldVersion::Damaged => false,
        }
    }
}

impl LateVersions {
    /// Compares with these nodes.
    pub fn new<'a>(others: impl Iterator<Item = &'a NodeId>) -> Self {
        Self { queues: others.map(|node| (node.clone(), Mutex::default())).collect() }
    }

    /// Has `nodes` compared, soon, with the chance of `READ_REPAIR_CHANCE`: a read that ends now found `version` without them.
    /// Does not wait.
    pub fn note<'a>(
        shared: &Arc<Shared>,
        nodes: impl ExactSizeIterator<Item = &'a NodeId>,
        key: &Key,
        version: Option<Version>,
    ) {
        if shared.env.planted.has(Mistake::NoBackgroundComparison) {
            return;
        }
        if nodes.len() > 0 && shared.env.rng.chance(shared.settings.read_repair_chance) {
            let at = shared.hlc.now();
            for node in nodes {
                Self::add(shared, node, Found { key: key.clone(), version, at });
            }
        }
    }

    fn add(shared: &Arc<Shared>, node: &NodeId, found: Found) {
        let Some(queue) = shared.late_versions.queues.get(node) else {
            return; // this node itself: its disk does not count yet, and its rebuild will see to the key
        };
        let was_driven = {
            let mut queue = queue.lock();
            if queue.waiting.len() < WAITING_MAX {
                queue.waiting.push(found);
            }
            std::mem::replace(&mut queue.driven, true)
        };
        if !was_driven {
            let driver = Driver { shared: shared.clone(), node: node.clone(), ended: false };
            shared.env.tasks.spawn(driver.run());
        }
    }
}

/// The task that sees to one node's list until it is empty.
struct Driver {
    shared: Arc<Shared>,
    node: NodeId,
    /// Whether it has said itself that it no longer runs; a successor may run by now.
    ended: bool,
}

impl Driver {
    async fn run(mut self) {
        loop {
            // First let the reads of this turn of the runtime add theirs.
            tokio::task::yield_now().await;
            let batch = self.take();
            if batch.is_empty() {
                return;
            }
            self.compare(batch).await;
        }
    }

    /// The next message's part; nothing ends the task.
    fn take(&mut self) -> Vec<Found> {
        let mut queue = self.queue().lock();
        let count = queue.waiting.len().min(KEYS_MAX);
        let batch: Vec<_> = queue.waiting.drain(..count).collect();
        queue.driven = !batch.is_empty();
        let ended = !queue.driven;
        drop(queue);
        self.ended = ended;
        batch
    }

    /// Has the keys mended of which the node holds something else. A node that does not answer is not asked again.
    async fn compare(&self, batch: Vec<Found>) {
        let shared = &self.shared;
        let keys = batch.iter().map(|found| found.key.clone()).collect();
        let request = ReplicaRequest::ReadVersions { keys };
        let answer = shared.peers.call(&self.node, request, shared.settings.network_timeout).await;
        let Ok(ReplicaResponse::Versions { voting: true, held }) = answer else { return };
        for (found, held) in batch.into_iter().zip(held) {
            if found.agrees(held) {
                continue;
            }
            let Ok(permit) = shared.repairs.clone().try_acquire_owned() else {
                return; // so much is being mended already: a later read will see to these keys
            };
            let mend = read::mend(shared.clone(), found.key);
            shared.env.tasks.spawn(async move {
                mend.await;
                drop(permit);
            });
        }
    }

    fn queue(&self) -> &Mutex<Queue> {
        &self.shared.late_versions.queues[&self.node]
    }
}

impl Drop for Driver {
    /// A driver that was ended with its runtime is replaced by the next read.
    fn drop(&mut self) {
        if !self.ended {
            self.queue().lock().driven = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_what_was_found_or_something_written_since_agrees() {
        let at = Timestamp::from_micros;
        let version = |micros, hash| Version { timestamp: at(micros), hash };
        let found = |version| Found { key: Key::new("k").unwrap(), version, at: at(10) };
        let something = found(Some(version(5, 1)));
        assert!(something.agrees(HeldVersion::Version(version(5, 1))));
        assert!(!something.agrees(HeldVersion::Version(version(5, 2))), "another value at the same time");
        assert!(!something.agrees(HeldVersion::Version(version(4, 1))));
        assert!(
            !something.agrees(HeldVersion::Version(version(7, 1))),
            "the read missed it: R may not hold it"
        );
        assert!(something.agrees(HeldVersion::Version(version(11, 1))), "it was written after the read");
        assert!(!something.agrees(HeldVersion::Nothing) && !something.agrees(HeldVersion::Damaged));
        assert!(found(None).agrees(HeldVersion::Nothing));
        assert!(!found(None).agrees(HeldVersion::Version(version(7, 1))));
    }
}
