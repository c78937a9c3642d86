//! The ring of a world: how many nodes there are, where they stand, and what each is told.

use std::time::Duration;

use kvstore::cluster::{Member, Membership, Ring, RingSettings, assign};
use kvstore::env::Rng;
use kvstore::types::{Key, NodeId};

/// What one node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    pub weight: u32,
    pub zone: Option<&'static str>,
    pub write_quorum: usize,
    pub read_quorum: usize,
    pub network_timeout: Duration,
}

/// A ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// N as configured; in force is at most the number of nodes.
    pub replication_factor: usize,
    pub range_count: u32,
    /// One for each node.
    pub nodes: Vec<NodeSettings>,
}

/// The name of a node.
pub fn name_of(node: usize) -> NodeId {
    NodeId::from_canonical(&format!("10.0.0.{}:8081", node + 1))
}

impl Shape {
    /// So many nodes of one kind, each with the majority of N = 3 as its W and R.
    pub fn plain(nodes: usize, network_timeout: Duration) -> Self {
        let majority = nodes.min(3) / 2 + 1;
        let settings = NodeSettings {
            weight: 10,
            zone: None,
            write_quorum: majority,
            read_quorum: majority,
            network_timeout,
        };
        Self { replication_factor: 3, range_count: 16, nodes: vec![settings; nodes] }
    }

    /// A ring of a seed. `is_damaged`: disks will be lost, one at a time, so that a smaller W than the majority promises
    /// little, and a W that is smaller than another node's less.
    pub fn draw(rng: &Rng, network_timeout: Duration, is_damaged: bool) -> Self {
        let nodes = [3, 3, 3, 3, 5, 5, 7, 2, 1][rng.below(0..9) as usize];
        let mut shape = Self::plain(nodes, network_timeout);
        shape.range_count = [16, 64][rng.below(0..2) as usize];
        shape.replication_factor = if nodes >= 5 && rng.chance(0.5) { 5 } else { 3 };
        let replicas = shape.replicas();
        let majority = replicas / 2 + 1;
        let zones = [0, 0, 2, 3][rng.below(0..4) as usize];
        let (weigh, differ) = (rng.chance(0.3), rng.chance(0.2));
        let any = |smallest: usize| rng.below(smallest as u64..replicas as u64 + 1) as usize;
        let draw_quorums = || {
            if rng.chance(0.7) {
                return (majority, majority);
            }
            let write_quorum = any(if is_damaged { majority } else { 1 });
            (write_quorum, any(1))
        };
        let of_all = draw_quorums();
        for (number, node) in shape.nodes.iter_mut().enumerate() {
            if weigh {
                node.weight = [5, 10, 20][rng.below(0..3) as usize];
            }
            node.zone = (zones > 0).then(|| ["a", "b", "c"][number % zones]);
            (node.write_quorum, node.read_quorum) = of_all;
            if differ {
                let (write_quorum, read_quorum) = draw_quorums();
                node.read_quorum = read_quorum;
                if is_damaged {
                    continue;
                }
                node.write_quorum = write_quorum;
                node.network_timeout = network_timeout.mul_f64(0.7 + 0.3 * rng.below(0..3) as f64);
            }
        }
        shape
    }

    /// N in force.
    pub fn replicas(&self) -> usize {
        self.replication_factor.min(self.nodes.len())
    }

    /// The members as every node knows them.
    pub fn members(&self) -> Vec<Member> {
        let member = |(number, node): (usize, &NodeSettings)| Member {
            id: name_of(number),
            weight: node.weight,
            zone: node.zone.map(str::to_owned),
        };
        self.nodes.iter().enumerate().map(member).collect()
    }

    /// Who holds what.
    pub fn ring(&self) -> Ring {
        let settings =
            RingSettings { range_count: self.range_count, replication_factor: self.replication_factor };
        assign(None, &Membership::new(self.members()), settings)
    }

    /// The longest time that any node gives its peers.
    pub fn timeout_max(&self) -> Duration {
        self.nodes.iter().map(|node| node.network_timeout).max().unwrap_or_default()
    }
}

/// The nodes that hold a key.
pub fn replicas_of(ring: &Ring, key: &Key) -> Vec<usize> {
    let primaries = ring.primaries_of_key(key.as_bytes());
    let number = |id: &NodeId| {
        (0..ring.membership().members().len()).find(|node| name_of(*node) == *id).expect("a member")
    };
    primaries.iter().map(number).collect()
}
