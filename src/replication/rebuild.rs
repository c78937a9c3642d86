//! Rebuild: fills this node's ranges from its peers before it votes.
//!
//! ```text
//! each peer that shares ranges:   page ──> stored durably ──> cursor ──> page … ──> done
//! finished: each range of ours was read from N − W + 1 other voting primaries, or from all there are
//! ```
//!
//! An acknowledged write is on W primaries. If this node was one of them and lost it, W − 1 of the N − 1 others
//! have it, so that any N − W + 1 of the others hold one copy at least, if their disks count. Tombstones come along,
//! and whatever is stored meanwhile mixes in by its timestamp. Peers that are rebuilding themselves serve too, and
//! count once all have been read: after a power cut that damaged several nodes, nobody would come back otherwise.
//!
//! Cursors go to disk now and then, after what they cover: a crash repeats a page or two. A peer that does not
//! answer is asked again for ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::identity::{IdentityFile, Progress};
use super::shared::{Shared, count};
use crate::cluster::Ring;
use crate::engine::{self, WriteBatch};
use crate::env::Mistake;
use crate::rpc::{ReplicaRequest, ReplicaResponse, ScanPage, ScanRequest};
use crate::types::{Key, KeyRange, NodeId, Record};

/// Records a page, at most.
const ROWS_MAX: u32 = 1000;
/// Bytes a page, at most.
const BYTES_MAX: u32 = 1 << 20;
/// Entries a peer looks at for a page, at most.
const EXAMINED_MAX: u32 = 20_000;
/// Pages asked for or being stored at once: what a rebuild may hold in memory.
const PAGES_AT_ONCE: usize = 4;
/// How often cursors go to disk.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The first rest after a failure, doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Reads this node's ranges from its peers.
#[derive(Debug)]
pub struct Rebuild {
    shared: Arc<Shared>,
    identity: IdentityFile,
    pages: Semaphore,
}

/// Whether the peers read so far are enough: `needed` other primaries of each range of `own`, or all there are.
pub fn is_enough(ring: &Ring, own: &NodeId, done: &BTreeSet<NodeId>, needed: usize) -> bool {
    let needed = needed.min(ring.replication_factor().saturating_sub(1));
    ring.ranges_of(own)
        .all(|range| ring.primaries(range).iter().filter(|node| done.contains(node)).count() >= needed)
}

/// Every other node that holds a range of `own`.
fn co_primaries(ring: &Ring, own: &NodeId) -> BTreeSet<NodeId> {
    let mut nodes: BTreeSet<_> =
        ring.ranges_of(own).flat_map(|range| ring.primaries(range).iter().cloned()).collect();
    nodes.remove(own);
    nodes
}

impl Rebuild {
    /// For the node that `shared` belongs to; its progress lies in `identity`.
    pub fn new(shared: Arc<Shared>, identity: IdentityFile) -> Self {
        Self { shared, identity, pages: Semaphore::new(PAGES_AT_ONCE) }
    }

    /// Returns once enough has been read and is durable here. Dropped, it goes on from its cursors when run anew.
    pub async fn run(&self) {
        let Shared { ring, own, settings, .. } = &*self.shared;
        let needed = (ring.replication_factor() + 1).saturating_sub(settings.write_quorum);
        let begun = Instant::now();
        let mut pulls: FuturesUnordered<_> =
            co_primaries(ring, own).into_iter().map(|peer| self.pull(peer)).collect();
        let (mut done, mut voting) = (BTreeSet::new(), BTreeSet::new());
        while !is_enough(ring, own, &voting, needed) && !is_enough(ring, own, &done, usize::MAX) {
            let (peer, was_voting) = pulls.next().await.expect("all peers together are enough");
            tracing::info!(%peer, was_voting, "ranges read for the rebuild");
            if was_voting {
                voting.insert(peer.clone());
            }
            done.insert(peer);
            if self.shared.env.planted.has(Mistake::RebuildFromOnePeer) {
                break;
            }
        }
        let records = self.shared.stats().rebuilt_records;
        tracing::info!(seconds = begun.elapsed().as_secs_f64(), records, "rebuilt");
    }

    /// Reads everything that `peer` shares with this node; says whether the peer's disk counted all the while.
    async fn pull(&self, peer: NodeId) -> (NodeId, bool) {
        let noted = self.identity.with(|identity| identity.rebuild.get(&peer).cloned());
        let mut progress = match noted {
            Some(Progress { next: None, voting }) => return (peer, voting),
            Some(begun) => begun,
            None => Progress { next: None, voting: true },
        };
        let mut backoff = BACKOFF_MIN;
        let mut saved = Instant::now();
        loop {
            let Some(page) = self.page(&peer, progress.next.clone()).await else {
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            };
            backoff = BACKOFF_MIN;
            progress = Progress { next: page.next, voting: progress.voting && page.voting };
            self.identity.note(|identity| identity.rebuild.insert(peer.clone(), progress.clone()));
            let is_done = progress.next.is_none();
            if is_done || saved.elapsed() >= SAVE_EVERY {
                saved = Instant::now();
                let _ = self.identity.update(|_| {}).await; // a crash before the next one begins further back
            }
            if is_done {
                return (peer, progress.voting);
            }
        }
    }

    /// Reads one page and stores it durably; what is then known of the peer, `None` on failure.
    async fn page(&self, peer: &NodeId, start: Option<Bytes>) -> Option<Progress> {
        let _permit = self.pages.acquire().await.expect("the semaphore is never closed");
        let request = ReplicaRequest::Scan(ScanRequest {
            range: KeyRange { start, end: None },
            shared_with: Some(self.shared.own.clone()),
            rows_max: ROWS_MAX,
            bytes_max: BYTES_MAX,
            examined_max: EXAMINED_MAX,
        });
        let page = match self.shared.peers.call(peer, request, self.shared.settings.network_timeout).await {
            Ok(ReplicaResponse::Page(page)) => page,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%peer, %error, "no page for the rebuild");
                return None;
            }
        };
        let ScanPage { items, resume, voting } = page;
        let voting = voting || self.shared.env.planted.has(Mistake::RebuildTrustsRebuildingPeer);
        if self.shared.env.planted.has(Mistake::RebuildCursorBeforePage) {
            let progress = Progress { next: resume.clone(), voting };
            self.identity.note(|identity| identity.rebuild.insert(peer.clone(), progress));
            let _ = self.identity.update(|_| {}).await;
        }
        match self.store(items).await {
            Ok(()) => Some(Progress { next: resume, voting }),
            Err(error) => {
                tracing::warn!(%error, "a page of the rebuild could not be stored");
                None
            }
        }
    }

    async fn store(&self, items: Vec<(Key, Record)>) -> Result<(), engine::Error> {
        let Shared { ring, own, hlc, .. } = &*self.shared;
        let planted = self.shared.env.planted;
        let ours: Vec<_> = items
            .into_iter()
            .filter(|(key, _)| ring.primaries_of_key(key.as_bytes()).contains(own))
            .filter(|(_, record)| !record.is_tombstone() || !planted.has(Mistake::RebuildWithoutTombstones))
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        count(&self.shared.counters.rebuilt_records, ours.len() as u64);
        // The peer's clock, which was believed, is past all that its disk holds; so is ours from now on.
        hlc.follow(ours.iter().map(|(_, record)| record.timestamp()).max().unwrap_or_default());
        self.shared.store.write(WriteBatch::from(ours)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::tests::ring;

    #[test]
    fn with_three_nodes_and_w_2_both_others_are_needed() {
        let (ring, ids) = ring(3, 3);
        let one = BTreeSet::from([ids[1].clone()]);
        let both = BTreeSet::from([ids[1].clone(), ids[2].clone()]);
        assert!(!is_enough(&ring, &ids[0], &one, 2));
        assert!(is_enough(&ring, &ids[0], &both, 2));
        assert!(is_enough(&ring, &ids[0], &both, 3), "all there are");
    }

    #[test]
    fn every_range_needs_its_own_primaries() {
        let (ring, ids) = ring(6, 3);
        let all = co_primaries(&ring, &ids[0]);
        assert!(is_enough(&ring, &ids[0], &all, 2));
        for missing in &all {
            let mut rest = all.clone();
            rest.remove(missing);
            let whole = ring.ranges_of(&ids[0]).all(|range| !ring.primaries(range).contains(missing));
            assert_eq!(is_enough(&ring, &ids[0], &rest, 2), whole);
        }
    }

    #[test]
    fn the_only_replica_needs_nobody() {
        let (ring, ids) = ring(3, 1);
        assert!(is_enough(&ring, &ids[0], &BTreeSet::new(), 1));
    }
}
