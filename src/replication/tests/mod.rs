//! The request path on three real nodes (and more), in one process, under paused time.

mod batches;
mod harness;
mod reads;
mod scans;
mod writes;

use crate::cluster::{Member, Membership, Ring, RingSettings, assign};
use crate::types::NodeId;

/// A ring of equal nodes on 64 ranges, and their names.
pub(super) fn ring(nodes: usize, replication_factor: usize) -> (Ring, Vec<NodeId>) {
    let ids: Vec<_> = (0..nodes).map(|n| NodeId::from_canonical(&format!("n{n}:1"))).collect();
    let members = ids.iter().map(|id| Member { id: id.clone(), weight: 10, zone: None }).collect();
    let settings = RingSettings { range_count: 64, replication_factor };
    (assign(None, &Membership::new(members), settings), ids)
}
