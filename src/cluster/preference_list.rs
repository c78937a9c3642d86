//! Preference lists: which nodes hold a key, and who stands in when one of them is down.
//!
//! The primaries of a range are its row in the ring's table. The fallbacks are the further *distinct* nodes
//! met in the rows that follow, asked in that order.
//!
//! ```text
//! range   0      1      2      3          key in range 1, n = 2
//! row     A B    C A    B C    D B        primaries C A     fallbacks B D
//! ```
//!
//! Pure: no clock, no I/O, no opinion on who is alive (`replication::coordinator` has one).
//! Source: DeCandia et al., "Dynamo" (SOSP 2007), sections 4.3, 4.6 and strategy 3 of 6.2.

use super::{RangeId, Ring};
use crate::types::NodeId;

/// The replicas of one token range, nearest first: the primaries, then every other node that owns a range.
///
/// Invariants: no node appears twice; `primary_count <= nodes.len()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceList {
    /// Distinct nodes in walk order.
    nodes: Vec<NodeId>,
    /// How many of `nodes`, from the front, are primaries.
    primary_count: usize,
}

impl PreferenceList {
    /// The nodes that should hold the range.
    pub fn primaries(&self) -> &[NodeId] {
        &self.nodes[..self.primary_count]
    }

    /// The nodes that stand in, in the order they are asked.
    pub fn fallbacks(&self) -> &[NodeId] {
        &self.nodes[self.primary_count..]
    }

    /// Keeps the first appearance of each node of a walk, until `node_count` were met.
    fn distinct<'a>(walk: impl Iterator<Item = &'a NodeId>, primary_count: usize, node_count: usize) -> Self {
        let mut nodes: Vec<NodeId> = Vec::with_capacity(node_count);
        for node in walk {
            if nodes.len() == node_count {
                break;
            }
            if !nodes.contains(node) {
                nodes.push(node.clone());
            }
        }
        Self { nodes, primary_count }
    }
}

impl Ring {
    /// Returns who should hold `range`, and who stands in.
    ///
    /// Costs a walk of at most every range, and owns its nodes, so it outlives a change of ring; the hot
    /// path wants only [`Ring::primaries`], which borrows one row.
    ///
    /// # Panics
    /// If `range` is not below the ring's range count: a `RangeId` comes from [`Ring::range_of`] alone.
    pub fn preference_list(&self, range: RangeId) -> PreferenceList {
        let rows = self.rows_from(range);
        PreferenceList::distinct(rows.flatten(), self.replication_factor(), self.membership().members().len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Membership, RingSettings, assign};
    use super::*;

    fn nodes(names: &str) -> Vec<NodeId> {
        names.split(' ').map(NodeId::from_canonical).collect()
    }

    #[test]
    fn the_walk_of_the_picture_gives_its_preference_list() {
        let walk = nodes("C A B C D B A B");
        let list = PreferenceList::distinct(walk.iter(), 2, 4);
        assert_eq!(list.primaries(), nodes("C A"));
        assert_eq!(list.fallbacks(), nodes("B D"));
    }

    #[test]
    fn every_node_is_once_in_every_list_primaries_first() {
        let members: Vec<_> = (1..=7).map(|i| format!("n{i}:1")).collect();
        let membership = Membership::parse(&members.join(","), 10).expect("seven names");
        let ring = assign(None, &membership, RingSettings { range_count: 64, replication_factor: 3 });
        for range in ring.ranges() {
            let list = ring.preference_list(range);
            assert_eq!(list.primaries(), ring.primaries(range));
            let mut all = [list.primaries(), list.fallbacks()].concat();
            all.sort();
            let names: Vec<NodeId> = membership.members().iter().map(|member| member.id.clone()).collect();
            assert_eq!(all, names, "{range}");
        }
    }
}
