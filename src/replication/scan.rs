//! Scans: pages of one node's records for others, and the merging of them for clients.
//!
//! ```text
//! cover     as few nodes as it takes that every range is held by R of them that vote, this one first
//! pages     A  a b c d e ┐ next: f        each node's own records, tombstones included
//!           B  a b d     ┘ next: e        (the shortest page ends the common one)
//! merged       a b c d     next: e        newest record of each key wins; a tombstone hides its key
//! ```
//!
//! A key goes out only up to the smallest end of all pages: behind it some node has not said what it holds.
//! What is known beyond is thrown away and asked for again, so nothing is kept between two pages and the
//! hundredth costs what the first does. How far a client's page looks does not depend on how many values it
//! asks for: rounds go on behind tombstones until a bound is reached, and a round holds `DELETED_MAX` of them. Each record was current at some moment of the scan; a scan is no
//! snapshot. What the pages show to be missing somewhere is mended in the background, a bounded part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Failure;
use super::api::{NotSent, ReadError, ScanOptions, ValuePage};
use super::shared::{Shared, count};
use super::{expiry, replica};
use crate::cluster::Ring;
use crate::engine::{self, Engine, SkippedBlocks};
use crate::env::{Lane, Mistake};
use crate::rpc::{Refusal, ReplicaRequest, ReplicaResponse, ScanPage, ScanRequest, WriteOrigin};
use crate::types::{Key, KeyRange, NodeId, Record, Timestamp};

/// Values a page between nodes, at most, whatever was asked for.
const ROWS_MAX: usize = 10_000;
/// Records a page between nodes, deleted ones included, at most, where fewer values were asked for. Deleted records use
/// up no values, or a page of one value would get past one tombstone; this bounds the memory that they take instead.
const DELETED_MAX: usize = 2_000;
/// Bytes a page between nodes, at most (one record may exceed it alone).
const BYTES_MAX: usize = 4 << 20;
/// Entries looked at for a page between nodes, at most.
const EXAMINED_MAX: usize = 100_000;
/// Entries looked at in one job of the pool: others wait no longer than that for its thread.
const EXAMINED_A_JOB: usize = 5_000;
/// Records that one page sends to replicas that are behind, at most.
const MENDED_MAX: usize = 256;
/// Bytes of them.
const MENDED_BYTES_MAX: usize = 1 << 20;

/// Serves a page of this node's records to a peer, or to this node itself.
///
/// A page of what is shared with another node goes round damaged blocks and says so: that node is to be brought in line
/// and reads other replicas too. A page for clients is refused, and another replica asked.
pub async fn serve_page(shared: &Arc<Shared>, request: ScanRequest) -> Result<ScanPage, Refusal> {
    let voting = shared.standing.is_voting();
    let mut page = Collected::new(&request);
    while !page.is_full() {
        let (engine, ring) = (shared.store.engine().clone(), shared.ring.clone());
        let (own, partner) = (shared.own.clone(), request.shared_with.clone());
        let wanted = move |key: &Key| {
            let primaries = ring.primaries_of_key(key.as_bytes());
            primaries.contains(&own) && partner.as_ref().is_none_or(|partner| primaries.contains(partner))
        };
        let now = shared.hlc.now();
        let job = move || page.collect(&engine, now, wanted);
        page = shared.env.pool.run(Lane::Read, job).await.map_err(|error| refusal(shared, &error))?;
    }
    for block in page.skipped.iter().flat_map(SkippedBlocks::all) {
        tracing::error!(node = %shared.own, error = block.error, "a damaged block was left out of what a peer reads");
    }
    expiry::all_as_of_now(shared, &mut page.items).await;
    let voting = voting && shared.standing.is_voting();
    Ok(ScanPage {
        voting,
        items: page.items,
        resume: page.range.map(|range| range.start.unwrap_or_default()),
        damaged: page.skipped.is_some_and(|skipped| !skipped.is_empty()),
    })
}

fn refusal(shared: &Shared, error: &engine::Error) -> Refusal {
    match error {
        engine::Error::Closed => Refusal::NotReady,
        error => {
            tracing::error!(node = %shared.own, %error, "a scan of this node's records failed");
            Refusal::Damaged
        }
    }
}

/// A page being filled.
#[derive(Debug)]
struct Collected {
    items: Vec<(Key, Record)>,
    /// What is left of the range; `None` once it is exhausted.
    range: Option<KeyRange>,
    /// Values that may still come.
    rows_left: usize,
    /// Records that may still come, deleted ones included.
    records_left: usize,
    bytes_left: usize,
    examined_left: usize,
    /// Damaged blocks that were gone round; `None`: they are an error.
    skipped: Option<SkippedBlocks>,
}

/// Records that a page between nodes holds at most when so many values are asked for.
fn records_max(rows_max: usize) -> usize {
    rows_max.max(DELETED_MAX)
}

impl Collected {
    fn new(request: &ScanRequest) -> Self {
        let rows_max = (request.rows_max as usize).clamp(1, ROWS_MAX);
        Self {
            items: Vec::new(),
            range: (!request.range.is_empty()).then(|| request.range.clone()),
            rows_left: rows_max,
            records_left: records_max(rows_max),
            bytes_left: (request.bytes_max as usize).clamp(1, BYTES_MAX),
            examined_left: (request.examined_max as usize).clamp(1, EXAMINED_MAX),
            skipped: request.shared_with.as_ref().map(|_| SkippedBlocks::default()),
        }
    }

    fn is_full(&self) -> bool {
        self.range.is_none() || self.is_used_up()
    }

    fn is_used_up(&self) -> bool {
        self.rows_left == 0 || self.records_left == 0 || self.bytes_left == 0 || self.examined_left == 0
    }

    /// Goes on for one job. A value that has expired by `now` counts as deleted. May wait for a disk.
    fn collect(
        mut self,
        engine: &Engine,
        now: Timestamp,
        wanted: impl Fn(&Key) -> bool,
    ) -> Result<Self, engine::Error> {
        let Some(range) = self.range.take() else { return Ok(self) };
        let scan = match &self.skipped {
            Some(skipped) => engine.scan_around_damage(&range, skipped),
            None => engine.scan(&range),
        };
        for (examined, item) in scan.enumerate() {
            let (key, record) = item?;
            let weight = key.as_bytes().len() + record.value_len();
            let wanted = wanted(&key);
            let too_big = wanted && !self.items.is_empty() && weight > self.bytes_left;
            if too_big {
                self.bytes_left = 0;
            }
            if self.is_used_up() || examined == EXAMINED_A_JOB {
                self.range = Some(KeyRange { start: Some(key.to_bytes()), end: range.end });
                return Ok(self);
            }
            self.examined_left -= 1;
            if wanted {
                let has_expired = record.pending_expiry().is_some_and(|end| end.timestamp() <= now);
                if !record.is_tombstone() && !has_expired {
                    self.rows_left -= 1;
                }
                self.records_left -= 1;
                self.bytes_left = self.bytes_left.saturating_sub(weight);
                self.items.push((key, record));
            }
        }
        Ok(self)
    }
}

/// Returns one page of a client's scan. It ends with one of its bounds, or after `NETWORK_TIMEOUT`: what it has by then is
/// a page, too.
pub async fn page(shared: &Arc<Shared>, options: ScanOptions) -> Result<ValuePage, ReadError> {
    let replicas = shared.ring.replication_factor();
    let needed = options.read_quorum.unwrap_or(shared.settings.read_quorum).clamp(1, replicas);
    let mut page = ValuePage::default();
    let mut left = Left {
        rows: options.rows_max.clamp(1, ROWS_MAX),
        bytes: options.bytes_max.clamp(1, BYTES_MAX),
        examined: options.examined_max.clamp(1, EXAMINED_MAX),
    };
    let started = Instant::now();
    let mut range = options.range;
    while !range.is_empty() {
        let round = match Round::run(shared, &range, needed, left).await {
            Ok(round) => round,
            // What earlier rounds found is a page; the next one says why it cannot go on.
            Err(_) if page.resume.is_some() => break,
            Err(error) => return Err(error),
        };
        let merged = round.merge(shared, &mut left, &mut page.items);
        mend(shared, merged.behind);
        page.resume = merged.resume;
        page.examined += merged.examined;
        match &page.resume {
            Some(next) if !left.is_used_up() && started.elapsed() < shared.settings.network_timeout => {
                range.start = Some(next.clone());
            }
            _ => break,
        }
    }
    page.resume = page.resume.filter(|_| !range.is_empty());
    Ok(page)
}

/// What a client's page may still take.
#[derive(Debug, Clone, Copy)]
struct Left {
    rows: usize,
    bytes: usize,
    examined: usize,
}

impl Left {
    fn is_used_up(self) -> bool {
        self.rows == 0 || self.bytes == 0 || self.examined == 0
    }
}

/// The smallest number of `nodes` that stands for any range of the ring.
fn coverage(ring: &Ring, nodes: &BTreeSet<NodeId>) -> usize {
    let count = |range| ring.primaries(range).iter().filter(|node| nodes.contains(node)).count();
    ring.ranges().map(count).min().unwrap_or(0)
}

/// Adds nodes to `chosen`, best first, until every range is held by `needed` of them; `Err` says how many hold the
/// range that could not be covered. Pure; walks the ring once for each node added.
fn cover(
    ring: &Ring,
    own: &NodeId,
    candidates: &BTreeSet<NodeId>,
    mut chosen: BTreeSet<NodeId>,
    needed: usize,
) -> Result<BTreeSet<NodeId>, usize> {
    if candidates.contains(own) {
        chosen.insert(own.clone());
    }
    loop {
        let mut gain: BTreeMap<&NodeId, usize> = BTreeMap::new();
        let mut is_covered = true;
        for range in ring.ranges() {
            let primaries = ring.primaries(range);
            if primaries.iter().filter(|node| chosen.contains(node)).count() >= needed {
                continue;
            }
            is_covered = false;
            for node in primaries.iter().filter(|node| candidates.contains(node) && !chosen.contains(node)) {
                *gain.entry(node).or_default() += 1;
            }
        }
        if is_covered {
            return Ok(chosen);
        }
        // Of equals the first by name: the order of a BTreeMap, and max_by_key would take the last.
        let best = gain.into_iter().rev().max_by_key(|(_, ranges)| *ranges);
        let Some((best, _)) = best else { return Err(coverage(ring, &chosen)) };
        chosen.insert(best.clone());
    }
}

/// One page from each node of a cover.
#[derive(Debug)]
struct Round {
    pages: BTreeMap<NodeId, ScanPage>,
    rows_asked: usize,
}

/// What pages come to.
#[derive(Debug, Default)]
struct Merged {
    resume: Option<Bytes>,
    /// Keys that were merged, deleted ones included.
    examined: usize,
    /// What nodes of the cover lack.
    behind: BTreeMap<NodeId, Vec<(Key, Record)>>,
}

impl Round {
    /// Asks a cover, and others in place of those that fail.
    async fn run(
        shared: &Arc<Shared>,
        range: &KeyRange,
        needed: usize,
        left: Left,
    ) -> Result<Self, ReadError> {
        let Shared { ring, own, .. } = &**shared;
        let request = ScanRequest {
            range: range.clone(),
            shared_with: None,
            rows_max: left.rows as u32,
            bytes_max: left.bytes as u32,
            examined_max: left.examined as u32,
        };
        let mut candidates: BTreeSet<_> = ring
            .membership()
            .members()
            .iter()
            .map(|member| member.id.clone())
            .filter(|node| shared.is_reachable_and_voting(node))
            .collect();
        let mut pages: BTreeMap<NodeId, ScanPage> = BTreeMap::new();
        let mut failures: Vec<(NodeId, Failure)> = Vec::new();
        loop {
            let have: BTreeSet<_> = pages.keys().cloned().collect();
            let chosen = cover(ring, own, &candidates, have, needed)
                .map_err(|reachable| cannot(ring, &pages, &failures, needed, reachable))?;
            let missing: Vec<_> = chosen.into_iter().filter(|node| !pages.contains_key(node)).collect();
            if missing.is_empty() {
                return Ok(Self { pages, rows_asked: left.rows });
            }
            // Half of the time, so that another can be asked in the other half.
            let timeout = shared.settings.network_timeout / 2;
            let asked = missing.iter().map(|node| ask(shared, node, request.clone(), timeout));
            for (node, answer) in missing.iter().zip(join_all(asked).await) {
                match answer {
                    Ok(page) if page.voting || shared.env.planted.has(Mistake::ScanCountsNonVotingPages) => {
                        drop(pages.insert(node.clone(), page));
                    }
                    Ok(_) => drop(candidates.remove(node)),
                    Err(failure) => {
                        candidates.remove(node);
                        failures.push((node.clone(), failure));
                    }
                }
            }
        }
    }

    /// Merges the pages up to the end of the shortest, and as far as the client's page has room.
    fn merge(self, shared: &Shared, left: &mut Left, out: &mut Vec<(Key, Record)>) -> Merged {
        let planted = shared.env.planted;
        let ends = self.pages.values().filter_map(|page| page.resume.clone());
        let end = if planted.has(Mistake::ScanBeyondShortestPage) { ends.max() } else { ends.min() };
        let resume = match &end {
            Some(end) if planted.has(Mistake::ScanSkipsKeyBetweenPages) => {
                Some([end, &b"\0"[..]].concat().into())
            }
            end => end.clone(),
        };
        let mut merged = Merged { resume, ..Merged::default() };
        let mut keys: BTreeMap<&Key, Vec<(&NodeId, &Record)>> = BTreeMap::new();
        for (node, page) in &self.pages {
            for (key, record) in &page.items {
                if record.is_tombstone() && planted.has(Mistake::ScanWithoutTombstones) {
                    continue;
                }
                if end.as_ref().is_none_or(|end| key.as_bytes() < &end[..]) {
                    keys.entry(key).or_default().push((node, record));
                }
            }
        }
        let (mut mended, mut mended_bytes) = (0, 0);
        for (key, held) in keys {
            if left.is_used_up() {
                merged.resume = Some(key.to_bytes());
                return merged;
            }
            let winner =
                held.iter().map(|(_, record)| *record).reduce(newer).expect("a key is there for a record");
            let weight = key.as_bytes().len() + winner.value_len();
            for node in shared.ring.primaries_of_key(key.as_bytes()) {
                let has = held.iter().any(|(holder, record)| *holder == node && *record == winner);
                if !has
                    && self.pages.contains_key(node)
                    && mended < MENDED_MAX
                    && (mended == 0 || mended_bytes + weight <= MENDED_BYTES_MAX)
                {
                    mended += 1;
                    mended_bytes += weight;
                    merged.behind.entry(node.clone()).or_default().push((key.clone(), winner.clone()));
                }
            }
            merged.examined += 1;
            left.examined -= 1;
            if !winner.is_tombstone() {
                left.rows -= 1;
                left.bytes = left.bytes.saturating_sub(weight);
                out.push((key.clone(), winner.clone()));
            }
        }
        if self.pages.values().any(|page| ended_by_other_bounds(page, self.rows_asked)) {
            left.examined = 0;
        }
        merged
    }
}

/// Whether a node's page ended before it held all the values or all the records that it may hold: then it has reached the
/// bound on bytes or on entries examined.
fn ended_by_other_bounds(page: &ScanPage, rows_asked: usize) -> bool {
    let values = page.items.iter().filter(|(_, record)| !record.is_tombstone()).count();
    page.resume.is_some() && values < rows_asked && page.items.len() < records_max(rows_asked)
}

fn newer<'a>(a: &'a Record, b: &'a Record) -> &'a Record {
    if b.supersedes(a) { b } else { a }
}

async fn ask(
    shared: &Arc<Shared>,
    node: &NodeId,
    request: ScanRequest,
    timeout: Duration,
) -> Result<ScanPage, Failure> {
    if *node == shared.own {
        return serve_page(shared, request).await.map_err(Failure::from);
    }
    match shared.peers.call(node, ReplicaRequest::Scan(request), timeout).await? {
        ReplicaResponse::Page(page) => Ok(page),
        _ => Err(Failure::Confused),
    }
}

/// Why no cover could be had.
fn cannot(
    ring: &Ring,
    pages: &BTreeMap<NodeId, ScanPage>,
    failures: &[(NodeId, Failure)],
    needed: usize,
    reachable: usize,
) -> ReadError {
    if pages.is_empty() && failures.is_empty() {
        return NotSent::TooFewReplicas { needed, reachable, total: ring.replication_factor() }.into();
    }
    let causes: Vec<_> = failures.iter().map(|(node, failure)| format!("{node}: {failure}")).collect();
    let causes = causes.join(", ");
    let damaged = |failure: &Failure| *failure == Failure::Refused(Refusal::Damaged);
    if pages.is_empty() && failures.iter().all(|(_, failure)| damaged(failure)) {
        return ReadError::Damaged { causes };
    }
    let answered = coverage(ring, &pages.keys().cloned().collect());
    ReadError::Unanswered { answered, needed, causes }
}

/// Sends nodes what they lack, without anybody waiting for it.
fn mend(shared: &Arc<Shared>, behind: BTreeMap<NodeId, Vec<(Key, Record)>>) {
    for (node, items) in behind {
        let Ok(permit) = shared.repairs.clone().try_acquire_owned() else { return };
        let shared = shared.clone();
        count(&shared.counters.read_repairs, items.len() as u64);
        shared.env.tasks.clone().spawn(async move {
            let _permit = permit;
            let outcome = if node == shared.own {
                replica::apply(&shared, WriteOrigin::Repair, items).await.map(drop).map_err(Failure::from)
            } else {
                let request = ReplicaRequest::Write { origin: WriteOrigin::Repair, items };
                shared.peers.call(&node, request, shared.settings.network_timeout).await.map(drop)
            };
            if let Err(error) = outcome {
                tracing::debug!(%node, %error, "not mended after a scan");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::tests::ring;

    #[test]
    fn of_three_nodes_two_are_asked_this_one_among_them() {
        let (ring, ids) = ring(3, 3);
        let all: BTreeSet<_> = ids.iter().cloned().collect();
        let chosen = cover(&ring, &ids[2], &all, BTreeSet::new(), 2).unwrap();
        assert_eq!(chosen, BTreeSet::from([ids[0].clone(), ids[2].clone()]));
    }

    #[test]
    fn every_range_of_a_wide_ring_is_covered_and_no_node_is_asked_in_vain() {
        let (ring, ids) = ring(12, 3);
        let all: BTreeSet<_> = ids.iter().cloned().collect();
        for needed in 1..=3 {
            let chosen = cover(&ring, &ids[0], &all, BTreeSet::new(), needed).unwrap();
            assert!(coverage(&ring, &chosen) >= needed);
            assert!(needed == 3 || chosen.len() < 12, "R = {needed} takes {} nodes", chosen.len());
        }
    }

    #[test]
    fn a_ring_that_cannot_be_covered_says_how_far_it_can() {
        let (ring, ids) = ring(3, 3);
        let one = BTreeSet::from([ids[1].clone()]);
        assert_eq!(cover(&ring, &ids[0], &one, BTreeSet::new(), 2), Err(1));
        assert_eq!(cover(&ring, &ids[0], &BTreeSet::new(), BTreeSet::new(), 2), Err(0));
    }
}
