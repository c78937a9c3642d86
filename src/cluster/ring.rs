//! The ring: which nodes own which of its Q equal ranges.
//!
//! ```text
//! range   0      1      2      3       Q = 4 rows, one a range, of N = 2 distinct nodes each;
//! row     A B    C A    B C    D B     one cell of the table is a vnode
//! ```
//!
//! An immutable table: [`assign`](super::assign()) makes it, and a change of members makes another, one epoch later.

use std::collections::BTreeMap;

use super::{Membership, RangeId, Token, TokenRange};
use crate::types::NodeId;

/// What a cluster's founders fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSettings {
    /// Q: a power of two, 1 to 65,536.
    pub range_count: u32,
    /// N as configured; in force is min(N, members).
    pub replication_factor: usize,
}

/// How many times placement has changed since the cluster was made, itself included. *Version* is an engine's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingEpoch(pub u64);

/// One range owned by one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vnode {
    /// What is owned.
    pub range: RangeId,
    /// Who owns it.
    pub node: NodeId,
}

/// One of the sets of N nodes that hold a range, whichever of them is nearest; numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaSetId(pub u16);

/// Which nodes own which ranges.
///
/// Invariants: Q rows of N distinct members each, N being min(configured, members), and as many numbers of their sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    epoch: RingEpoch,
    membership: Membership,
    settings: RingSettings,
    /// N in force.
    replication_factor: usize,
    /// The rows one after another, each nearest first.
    rows: Vec<NodeId>,
    /// The set of each row.
    sets: Vec<ReplicaSetId>,
}

impl RingSettings {
    /// The most ranges a ring can have: a [`RangeId`] counts no further.
    pub const RANGE_COUNT_MAX: u32 = 1 << 16;
}

impl Ring {
    /// Wraps a finished table. `assign` alone calls this.
    pub(super) fn from_rows(
        epoch: RingEpoch,
        membership: Membership,
        settings: RingSettings,
        replication_factor: usize,
        rows: Vec<NodeId>,
    ) -> Self {
        debug_assert_eq!(rows.len(), settings.range_count as usize * replication_factor);
        let sets = sets_of(&rows, replication_factor);
        Self { epoch, membership, settings, replication_factor, rows, sets }
    }

    /// How often placement has changed.
    pub fn epoch(&self) -> RingEpoch {
        self.epoch
    }

    /// The members.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Q and N as configured.
    pub fn settings(&self) -> RingSettings {
        self.settings
    }

    /// N in force: min(configured, members).
    pub fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    /// Q.
    pub fn range_count(&self) -> u32 {
        self.settings.range_count
    }

    /// All ranges, in token order.
    pub fn ranges(&self) -> impl Iterator<Item = RangeId> + use<> {
        (0..self.settings.range_count).map(|range| RangeId(range as u16))
    }

    /// The range a token lies in.
    pub fn range_of(&self, token: Token) -> RangeId {
        let range_bits = self.settings.range_count.trailing_zeros();
        // A ring of one range shifts by 64, which no u64 can.
        RangeId(token.0.checked_shr(u64::BITS - range_bits).unwrap_or(0) as u16)
    }

    /// The tokens of a range.
    pub fn tokens_of(&self, range: RangeId) -> TokenRange {
        let last_of_first = u64::MAX >> self.settings.range_count.trailing_zeros();
        let first = u64::from(range.0).wrapping_mul(last_of_first.wrapping_add(1));
        TokenRange { first: Token(first), last: Token(first + last_of_first) }
    }

    /// The N nodes that hold a range, nearest first. Borrowed: the hot path.
    ///
    /// # Panics
    /// If `range` is not below the ring's range count: a `RangeId` comes from [`Ring::range_of`] alone.
    pub fn primaries(&self, range: RangeId) -> &[NodeId] {
        &self.rows[usize::from(range.0) * self.replication_factor..][..self.replication_factor]
    }

    /// The set of the N nodes that hold a range.
    ///
    /// # Panics
    /// As [`Ring::primaries`] does.
    pub fn replica_set(&self, range: RangeId) -> ReplicaSetId {
        self.sets[usize::from(range.0)]
    }

    /// The N nodes that hold a key.
    pub fn primaries_of_key(&self, key: &[u8]) -> &[NodeId] {
        self.primaries(self.range_of(Token::of(key)))
    }

    /// The rows of `range` and of all ranges that follow, around the ring, each once.
    pub(super) fn rows_from(&self, range: RangeId) -> impl Iterator<Item = &[NodeId]> {
        let (before, after) = self.rows.split_at(usize::from(range.0) * self.replication_factor);
        // `chunks` refuses a length of 0, which only the ring without members has.
        let row_len = self.replication_factor.max(1);
        after.chunks(row_len).chain(before.chunks(row_len))
    }

    /// Every vnode, by range and nearest first.
    pub fn vnodes(&self) -> impl Iterator<Item = Vnode> + '_ {
        self.ranges().flat_map(|range| {
            self.primaries(range).iter().map(move |node| Vnode { range, node: node.clone() })
        })
    }

    /// The ranges that a node holds. Costs a look at every vnode.
    pub fn ranges_of<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = RangeId> + 'a {
        self.ranges().filter(move |range| self.primaries(*range).contains(node))
    }

    /// The part of all vnodes that a node owns, 0 to 1.
    pub fn share(&self, node: &NodeId) -> f64 {
        self.ranges_of(node).count() as f64 / self.rows.len().max(1) as f64
    }

    /// How many different sets of N nodes hold a range.
    ///
    /// Losing all nodes of one set loses its ranges, so with fewer sets a given number of simultaneous losses is less
    /// likely to hit any; with more, more nodes share the work of rebuilding one.
    pub fn replica_sets(&self) -> usize {
        self.sets.iter().max().map_or(0, |last| usize::from(last.0) + 1)
    }
}

/// Numbers the sets of all rows, in the order in which they are met.
fn sets_of(rows: &[NodeId], row_len: usize) -> Vec<ReplicaSetId> {
    let mut numbers: BTreeMap<Vec<&NodeId>, ReplicaSetId> = BTreeMap::new();
    let rows = rows.chunks(row_len.max(1)); // a length of 0 is that of the ring without members
    rows.map(|row| {
        let mut set: Vec<_> = row.iter().collect();
        set.sort();
        let next = ReplicaSetId(numbers.len() as u16);
        *numbers.entry(set).or_insert(next)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::assign;
    use super::*;
    use proptest::prelude::*;

    fn ring(range_count: u32) -> Ring {
        let membership = Membership::parse("a:1,b:1,c:1,d:1", 10).expect("four names");
        assign(None, &membership, RingSettings { range_count, replication_factor: 3 })
    }

    #[test]
    fn ranges_cut_all_tokens_into_equal_stretches() {
        for range_count in [1, 2, 1024, RingSettings::RANGE_COUNT_MAX] {
            let ring = ring(range_count);
            let mut next = Some(0u64);
            for range in ring.ranges() {
                let tokens = ring.tokens_of(range);
                assert_eq!(Some(tokens.first.0), next, "Q = {range_count}, range {range}");
                assert_eq!(ring.range_of(tokens.first), range);
                assert_eq!(ring.range_of(tokens.last), range);
                next = tokens.last.0.checked_add(1);
            }
            assert_eq!(next, None, "Q = {range_count}");
            assert_eq!(ring.ranges().count(), range_count as usize);
        }
    }

    #[test]
    fn ranges_have_one_number_if_they_have_the_same_nodes_in_whatever_order() {
        let ring = ring(1024);
        let nodes_of = |range| ring.primaries(range).iter().collect::<BTreeSet<_>>();
        let mut nodes_of_set = BTreeMap::new();
        for range in ring.ranges() {
            let nodes = nodes_of_set.entry(ring.replica_set(range)).or_insert_with(|| nodes_of(range));
            assert_eq!(*nodes, nodes_of(range), "range {range}");
        }
        let sets: BTreeSet<_> = nodes_of_set.values().collect();
        assert_eq!((sets.len(), nodes_of_set.len()), (ring.replica_sets(), ring.replica_sets()));
        assert_eq!(ring.replica_sets(), 4, "three of four nodes");
    }

    #[test]
    fn the_shares_of_all_nodes_are_the_whole_ring() {
        let ring = ring(1024);
        let whole: f64 = ring.membership().members().iter().map(|member| ring.share(&member.id)).sum();
        assert!((whole - 1.0).abs() < 1e-9, "{whole}");
        assert_eq!(ring.vnodes().count(), 3 * 1024);
    }

    proptest! {
        #[test]
        fn a_key_lies_in_the_tokens_of_its_range(
            key in proptest::collection::vec(any::<u8>(), 1..40),
            range_bits in 0u32..=16,
        ) {
            let ring = ring(1 << range_bits);
            let token = Token::of(&key);
            prop_assert!(ring.tokens_of(ring.range_of(token)).contains(token));
            prop_assert_eq!(ring.primaries_of_key(&key).len(), 3);
        }
    }
}
