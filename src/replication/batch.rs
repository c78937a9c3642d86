//! Batches: many items, few messages.
//!
//! ```text
//! items      k1 k2 k3 k4 …       each gets the next timestamp, in the order given: of two with one key the later wins
//! groups     by replica set      {A B C}: k1 k4 …      {B C D}: k2 k3 …
//! chunks     of a group, in order, each at most 1,000 items and 1 MiB: one message a replica, one frame of its log
//! in flight  at most BATCH_CONCURRENCY chunks
//! ```
//!
//! Not atomic across keys: every chunk meets its quorum or fails by itself, and each item is answered for.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::api::{Acks, BatchReceipt, FailedItem, Mutation, NotSent, WriteError};
use super::quorum::QuorumMode;
use super::shared::{InflightPermit, Shared};
use super::write::{Met, WriteOp};
use crate::cluster::{RangeId, ReplicaSetId, Ring, Token};
use crate::types::{Key, Record, Timestamp};

/// Items a chunk, at most: a message and a log frame stay far below their bounds, and so does what a failure costs.
const CHUNK_ITEMS_MAX: usize = 1000;
/// Bytes of keys and values a chunk, at most; one item may exceed it alone.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Some items of one group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// A range whose replicas all items have.
    pub range: RangeId,
    /// The items' places in the batch, rising.
    pub places: Vec<u32>,
    /// Bytes of their keys and values.
    pub bytes: usize,
}

/// Cuts a batch into chunks; the chunks of a group are in the items' order. Pure.
pub(super) fn plan(ring: &Ring, items: &[(Key, Mutation)]) -> Vec<Chunk> {
    let mut open: BTreeMap<ReplicaSetId, Chunk> = BTreeMap::new();
    let mut full = Vec::new();
    for (place, (key, mutation)) in items.iter().enumerate() {
        let range = ring.range_of(Token::of(key.as_bytes()));
        let bytes = weight(key, mutation);
        let begun = || Chunk { range, places: Vec::new(), bytes: 0 };
        let chunk = open.entry(ring.replica_set(range)).or_insert_with(begun);
        let is_full = chunk.places.len() >= CHUNK_ITEMS_MAX || chunk.bytes + bytes > CHUNK_BYTES_MAX;
        if is_full && !chunk.places.is_empty() {
            full.push(std::mem::replace(chunk, begun()));
        }
        chunk.places.push(place as u32);
        chunk.bytes += bytes;
    }
    full.extend(open.into_values());
    full
}

/// What an item weighs in flight, in bytes: its key and value, and what carries them.
pub(super) fn weight(key: &Key, mutation: &Mutation) -> usize {
    const CARRIER: usize = 128; // the structs around them, measured in sizes of pointers, not to the byte
    let value_len = match mutation {
        Mutation::Put(value) | Mutation::PutFor(value, _) => value.len(),
        Mutation::Delete => 0,
    };
    key.as_bytes().len() + value_len + CARRIER
}

/// Gives all items the timestamp of the first: only as a planted bug.
pub(super) fn stamp_alike(items: &mut [(Key, Record)]) {
    let first = items.first().map_or(Timestamp::ZERO, |(_, record)| record.timestamp());
    for (_, record) in items {
        match record {
            Record::Value { timestamp, .. }
            | Record::Tombstone { timestamp }
            | Record::Expired { timestamp, .. } => *timestamp = first,
        }
    }
}

/// How a batch is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// W.
    pub needed: usize,
    /// What counts.
    pub mode: QuorumMode,
}

/// Writes a batch whose items have been admitted and given their timestamps.
pub(super) async fn run(
    shared: Arc<Shared>,
    items: Arc<Vec<(Key, Record)>>,
    chunks: Vec<Chunk>,
    how: How,
    mut permit: InflightPermit,
) -> BatchReceipt {
    let mut receipt = BatchReceipt {
        timestamp: items.last().map_or(Timestamp::ZERO, |(_, record)| record.timestamp()),
        ..BatchReceipt::default()
    };
    let mut failed: Vec<(u32, WriteError)> = Vec::new();
    let concurrency = shared.settings.batch_concurrency.max(1);
    let mut outcomes = stream::iter(chunks)
        .map(|chunk| {
            let permit = permit.split(chunk.bytes);
            let (shared, items) = (&shared, &items[..]);
            async move { (write_chunk(shared, items, &chunk, how, permit).await, chunk) }
        })
        .buffer_unordered(concurrency);
    while let Some((outcome, chunk)) = outcomes.next().await {
        match outcome {
            Ok(one) => {
                receipt.acks = Some(receipt.acks.map_or(one.acks, |acks| worse(acks, one.acks)));
                receipt.overtaken = receipt.overtaken.max(one.overtaken.into_values().max());
            }
            Err(error) => {
                if let WriteError::Unknown { acks, .. } = &error {
                    receipt.acks = Some(receipt.acks.map_or(*acks, |before| worse(before, *acks)));
                }
                failed.extend(chunk.places.iter().map(|place| (*place, error.clone())));
            }
        }
    }
    drop(outcomes);
    failed.sort_by_key(|(place, _)| *place);
    receipt.failed = failed
        .into_iter()
        .map(|(place, error)| FailedItem { key: items[place as usize].0.clone(), error })
        .collect();
    receipt
}

async fn write_chunk(
    shared: &Arc<Shared>,
    items: &[(Key, Record)],
    chunk: &Chunk,
    how: How,
    permit: InflightPermit,
) -> Result<Met, WriteError> {
    let How { needed, mode } = how;
    let range = chunk.range;
    shared.check_writable(range, needed, mode)?;
    let items = chunk.places.iter().map(|place| items[*place as usize].clone()).collect();
    WriteOp { shared: shared.clone(), range, items, needed, mode, _permit: permit }.start().await
}

/// The receipt of a batch of which nothing was sent.
pub(super) fn not_sent(items: &[(Key, Mutation)], why: &NotSent) -> BatchReceipt {
    let failed = items
        .iter()
        .map(|(key, _)| FailedItem { key: key.clone(), error: WriteError::NotSent(why.clone()) })
        .collect();
    BatchReceipt { failed, ..BatchReceipt::default() }
}

/// The receipt of a batch that was ended with its node: what was sent is unknown.
pub(super) fn cut_short(items: &[(Key, Record)], needed: usize) -> BatchReceipt {
    let error = |record: &Record| WriteError::Unknown {
        timestamp: record.timestamp(),
        acks: Acks::default(),
        needed,
        causes: "the node is stopping".to_owned(),
    };
    let failed = items.iter().map(|(key, record)| FailedItem { key: key.clone(), error: error(record) });
    BatchReceipt { failed: failed.collect(), ..BatchReceipt::default() }
}

fn worse(one: Acks, other: Acks) -> Acks {
    if other.durable < one.durable { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Membership, RingSettings, assign};
    use crate::types::Value;

    fn plan_of(sizes: &[usize]) -> Vec<Chunk> {
        let membership = Membership::parse("a:1,b:1,c:1,d:1", 10).unwrap();
        let ring = assign(None, &membership, RingSettings { range_count: 64, replication_factor: 3 });
        let item = |(n, size): (usize, &usize)| {
            (Key::new(format!("{n}")).unwrap(), Mutation::Put(Value::new(vec![0; *size])))
        };
        let items: Vec<_> = sizes.iter().enumerate().map(item).collect();
        let chunks = plan(&ring, &items);
        let mut places: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.places).copied().collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..sizes.len() as u32), "every item is in one chunk");
        for chunk in &chunks {
            assert!(chunk.places.is_sorted() && !chunk.places.is_empty());
            let set_of =
                |place: &u32| ring.replica_set(ring.range_of(Token::of(items[*place as usize].0.as_bytes())));
            assert!(chunk.places.iter().all(|place| set_of(place) == ring.replica_set(chunk.range)));
            let bytes =
                chunk.places.iter().map(|place| weight(&items[*place as usize].0, &items[*place as usize].1));
            assert_eq!(bytes.sum::<usize>(), chunk.bytes);
        }
        chunks
    }

    #[test]
    fn a_batch_is_cut_by_replicas_and_by_count() {
        let chunks = plan_of(&vec![10; 5000]);
        assert!(chunks.iter().all(|chunk| chunk.places.len() <= CHUNK_ITEMS_MAX));
        assert!((5..=8).contains(&chunks.len()), "four sets of replicas: {}", chunks.len());
        assert_eq!(plan_of(&[]), Vec::new());
    }

    #[test]
    fn an_item_larger_than_a_chunk_is_one_by_itself() {
        let large = CHUNK_BYTES_MAX + 1;
        let chunks = plan_of(&[large, 10, 10, large, large, 10]);
        for chunk in chunks {
            assert!(chunk.bytes <= CHUNK_BYTES_MAX || chunk.places.len() == 1);
        }
    }
}
