//! `Bounds`: limits inside the node that follow from what clients may send. Pure.
//!
//! ```text
//! MAX_VALUE_SIZE ≤ MAX_BODY_SIZE ≤ MAX_INFLIGHT_BYTES           settings, checked against each other (`config::check`)
//! MAX_VALUE_SIZE + its key ≤ a frame between nodes               `rpc::frame`: 64 MiB, the most that may be set
//! two of the largest values ≤ commit queue                       derived here
//! N × MAX_INFLIGHT_BYTES    ≤ hint queue                         derived here
//! ```
//!
//! So every value that is accepted can be stored, replicated, hinted, scanned and rebuilt. Pages, batches and shared
//! messages are cut at sizes of their own, and each may exceed them with one record alone.

use super::Config;

/// What a record weighs beside its value, at most: key, content type, lengths, timestamps.
const RECORD_MARGIN: usize = 8 << 10;
/// The least that either queue takes.
const QUEUE_MIN: usize = 128 << 20;

/// Limits inside the node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Batches that may wait for their commit.
    pub commit_queue: usize,
    /// Hints that may wait for theirs: every write in flight may need one for each replica at the same moment.
    pub hint_queue: usize,
}

impl Bounds {
    /// What follows from these settings.
    pub fn of(config: &Config) -> Self {
        let replicas = config.replication_factor.min(config.members.len()).max(1);
        let in_flight = config.inflight_bytes_max.max(config.value_size_max + RECORD_MARGIN);
        Self {
            commit_queue: QUEUE_MIN.max(2 * (config.value_size_max + RECORD_MARGIN)),
            // A record of a few bytes weighs more in a queue than in flight.
            hint_queue: QUEUE_MIN.max(in_flight.saturating_mul(2 * replicas)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::frame::RECORD_LEN_MAX;

    #[test]
    fn each_queue_takes_the_largest_value_and_fifty_hints_of_a_mebibyte() {
        for value_size_max in [1, 8 << 20, RECORD_LEN_MAX] {
            let config = Config { value_size_max, ..Config::default() };
            let Bounds { commit_queue, hint_queue } = Bounds::of(&config);
            assert!(commit_queue >= 2 * (value_size_max + RECORD_MARGIN));
            assert!(
                hint_queue >= value_size_max + RECORD_MARGIN
                    && hint_queue >= 50 * ((1 << 20) + RECORD_MARGIN)
            );
        }
    }

    #[test]
    fn the_hint_queue_takes_all_that_may_be_in_flight_for_every_replica() {
        let members = ["a:1", "b:1", "c:1", "d:1"].map(|name| crate::cluster::Member {
            id: crate::types::NodeId::from_canonical(name),
            weight: 10,
            zone: None,
        });
        let config = Config { members: members.to_vec(), inflight_bytes_max: 1 << 30, ..Config::default() };
        assert!(Bounds::of(&config).hint_queue >= 3 << 30);
    }
}
