//! Rebuild: fills this node's ranges from its peers before it votes.
//!
//! ```text
//! each peer that shares ranges:   page ──> stored durably ──> cursor ──> page … ──> done
//! finished: every other primary of this node's ranges was read to the end
//! ```
//!
//! A write that this node acknowledged and lost may be on one other replica alone: W of the write is not known, since a
//! request may choose it and nodes may be configured differently, so *every* other primary is read, whatever its standing.
//! Tombstones come along, and whatever is stored meanwhile mixes in by its timestamp. Peers that are rebuilding
//! themselves serve too: after a power cut that damaged several nodes, nobody would come back otherwise.
//!
//! A peer goes round blocks of its disk that are damaged and says so. Their keys come from the other peers; the peer
//! counts as not whole, which is told in the log.
//!
//! Cursors go to disk now and then, after what they cover: a crash repeats a page or two. A peer that does not
//! answer is asked again for ever; [`RebuildWatch`] tells which one that is, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
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

/// How a rebuild stands with each peer: for whoever asks why this node does not vote yet.
#[derive(Debug, Default)]
pub struct RebuildWatch {
    peers: Mutex<BTreeMap<NodeId, PeerWatch>>,
}

/// How a rebuild stands with one peer that has not been read to the end.
#[derive(Debug, Default)]
struct PeerWatch {
    /// Why the last pages could not be had; nothing once one was.
    failure: Option<String>,
    /// Failures in a row.
    failures: u32,
    /// Whether it said that some of its blocks are damaged.
    damaged: bool,
}

impl RebuildWatch {
    /// So many failures in a row are told in the log.
    const TOLD_AFTER: u32 = 5;

    /// Peers that are still being read, and what keeps each; `None` while no rebuild is under way.
    pub fn problem(&self) -> Option<String> {
        let peers = self.peers.lock();
        let lines: Vec<_> = peers.iter().map(|(peer, watch)| format!("{peer} {watch}")).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    fn begin(&self, peers: &BTreeSet<NodeId>) {
        *self.peers.lock() = peers.iter().map(|peer| (peer.clone(), PeerWatch::default())).collect();
    }

    fn on_page(&self, peer: &NodeId, damaged: bool) {
        let mut peers = self.peers.lock();
        let watch = peers.entry(peer.clone()).or_default();
        (watch.failure, watch.failures) = (None, 0);
        if damaged && !watch.damaged {
            watch.damaged = true;
            drop(peers);
            tracing::warn!(%peer, "a peer has damaged blocks: the rebuild takes their keys from other replicas");
        }
    }

    fn on_failure(&self, peer: &NodeId, why: &str) {
        let mut peers = self.peers.lock();
        let watch = peers.entry(peer.clone()).or_default();
        watch.failures = watch.failures.saturating_add(1);
        let told = watch.failures == Self::TOLD_AFTER;
        watch.failure = Some(why.to_owned());
        drop(peers);
        if told {
            tracing::warn!(%peer, reason = why, "the rebuild waits for this peer");
        }
    }

    fn on_read_to_the_end(&self, peer: &NodeId) {
        self.peers.lock().remove(peer);
    }
}

impl fmt::Display for PeerWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            None => f.write_str("is being read")?,
            Some(why) => write!(f, "cannot be read ({why})")?,
        }
        if self.damaged { f.write_str(" and has damaged blocks") } else { Ok(()) }
    }
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

    /// Returns once everything has been read and is durable here. Dropped, it goes on from its cursors when run anew.
    pub async fn run(&self) {
        let Shared { ring, own, settings, rebuild_watch, .. } = &*self.shared;
        let begun = Instant::now();
        let peers = co_primaries(ring, own);
        rebuild_watch.begin(&peers);
        let mut pulls: FuturesUnordered<_> = peers.into_iter().map(|peer| self.pull(peer)).collect();
        let mut read = 0;
        while let Some((peer, whole)) = pulls.next().await {
            rebuild_watch.on_read_to_the_end(&peer);
            if whole {
                tracing::info!(%peer, "ranges read for the rebuild");
            } else {
                tracing::warn!(%peer, "ranges read for the rebuild from a peer that is damaged or rebuilds itself");
            }
            read += 1;
            let planted = self.shared.env.planted;
            if planted.has(Mistake::RebuildFromOnePeer)
                || (planted.has(Mistake::RebuildTrustsRebuildingPeer)
                    && read + settings.write_quorum > ring.replication_factor())
            {
                break;
            }
        }
        let records = self.shared.stats().rebuilt_records;
        tracing::info!(seconds = begun.elapsed().as_secs_f64(), records, "rebuilt");
    }

    /// Reads everything that `peer` shares with this node; says whether the peer's disk was whole and counted all the while.
    async fn pull(&self, peer: NodeId) -> (NodeId, bool) {
        let noted = self.identity.with(|identity| identity.rebuild.get(&peer).cloned());
        let mut progress = match noted {
            Some(Progress { next: None, whole }) => return (peer, whole),
            Some(begun) => begun,
            None => Progress { next: None, whole: true },
        };
        let watch = &self.shared.rebuild_watch;
        let mut backoff = BACKOFF_MIN;
        let mut saved = Instant::now();
        loop {
            let page = match self.page(&peer, progress.next.clone()).await {
                Ok(page) => page,
                Err(why) => {
                    watch.on_failure(&peer, &why);
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            backoff = BACKOFF_MIN;
            watch.on_page(&peer, page.damaged);
            progress = Progress { next: page.resume, whole: progress.whole && page.voting && !page.damaged };
            self.identity.note(|identity| identity.rebuild.insert(peer.clone(), progress.clone()));
            let is_done = progress.next.is_none();
            if is_done || saved.elapsed() >= SAVE_EVERY {
                saved = Instant::now();
                let _ = self.identity.update(|_| {}).await; // a crash before the next one begins further back
            }
            if is_done {
                return (peer, progress.whole);
            }
        }
    }

    /// Reads one page and stores its items durably; they are gone from what it returns. The error says why not.
    async fn page(&self, peer: &NodeId, start: Option<Bytes>) -> Result<ScanPage, String> {
        let _permit = self.pages.acquire().await.expect("the semaphore is never closed");
        let request = ReplicaRequest::Scan(ScanRequest {
            range: KeyRange { start, end: None },
            shared_with: Some(self.shared.own.clone()),
            rows_max: ROWS_MAX,
            bytes_max: BYTES_MAX,
            examined_max: EXAMINED_MAX,
        });
        let answer = self.shared.peers.call(peer, request, self.shared.settings.network_timeout).await;
        let mut page = match answer {
            Ok(ReplicaResponse::Page(page)) => page,
            Ok(_) => return Err("it answered something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        if self.shared.env.planted.has(Mistake::RebuildCursorBeforePage) {
            let progress = Progress { next: page.resume.clone(), whole: page.voting };
            self.identity.note(|identity| identity.rebuild.insert(peer.clone(), progress));
            let _ = self.identity.update(|_| {}).await;
        }
        let items = std::mem::take(&mut page.items);
        self.store(items).await.map_err(|error| format!("its records could not be stored here: {error}"))?;
        Ok(page)
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
    fn every_node_that_shares_a_range_is_read() {
        let (three, ids) = ring(3, 3);
        assert_eq!(co_primaries(&three, &ids[0]), BTreeSet::from([ids[1].clone(), ids[2].clone()]));
        let (six, ids) = ring(6, 3);
        let read = co_primaries(&six, &ids[0]);
        for range in six.ranges_of(&ids[0]) {
            assert!(six.primaries(range).iter().all(|node| *node == ids[0] || read.contains(node)));
        }
        let (alone, ids) = ring(3, 1);
        assert!(co_primaries(&alone, &ids[0]).is_empty(), "the only replica needs nobody");
    }

    #[test]
    fn whoever_asks_is_told_which_peer_is_waited_for_and_why() {
        let [a, b] = ["a:1", "b:1"].map(NodeId::from_canonical);
        let watch = RebuildWatch::default();
        assert_eq!(watch.problem(), None);
        watch.begin(&BTreeSet::from([a.clone(), b.clone()]));
        watch.on_failure(&a, "down");
        watch.on_page(&b, true);
        let told = "a:1 cannot be read (down); b:1 is being read and has damaged blocks";
        assert_eq!(watch.problem().as_deref(), Some(told));
        watch.on_page(&a, false);
        watch.on_read_to_the_end(&b);
        assert_eq!(watch.problem().as_deref(), Some("a:1 is being read"));
        watch.on_read_to_the_end(&a);
        assert_eq!(watch.problem(), None);
    }
}
