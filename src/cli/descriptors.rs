//! How the file descriptors that a process may have are divided, so that clients can never take those that storage and peers
//! need.
//!
//! ```text
//! own       standard streams, event queues, listeners, logs, manifests, files being written
//! peers     connections to and from each of them
//! tables    files of tables that are open; what is not open is opened again when it is read
//! clients   the rest
//! ```

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::hints::store::OPEN_FILES_MAX as HINT_TABLES;
use crate::rpc::tcp::CONNECTIONS_MAX as PEERS_MAX;

/// Descriptors of a node without workers, peers, tables and clients, at its busiest.
const OWN: usize = 40;
/// Descriptors of a worker: its event queue, its listener, a connection that is one too many.
const OWN_A_WORKER: usize = 6;
/// Connections that a peer opens, at most, where there are descriptors enough: one from each of its workers.
const FROM_A_PEER: usize = 16;
/// Bounds on the open files of tables.
const TABLES_MIN: usize = 8;
const TABLES_MAX: usize = 4096;
/// Bounds on the connections of clients.
const CLIENTS_MIN: usize = 8;
const CLIENTS_MAX: usize = 10_000;

/// Who may have how many descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Files of tables.
    pub tables: usize,
    /// Connections from peers.
    pub from_peers: usize,
    /// Connections of clients.
    pub clients: usize,
    /// How many more there should be for all that a node does.
    pub missing: usize,
}

/// Divides `limit` descriptors of a node with this many workers and peers.
fn divide(limit: usize, workers: usize, peers: usize) -> Descriptors {
    let own = OWN + OWN_A_WORKER * workers + HINT_TABLES;
    let to_peers = workers * peers;
    let from_peers = (FROM_A_PEER * peers).min(limit / 8).max(2 * peers + 2).min(PEERS_MAX);
    let rest = limit.saturating_sub(own + to_peers + from_peers);
    let tables = (rest / 3).clamp(TABLES_MIN, TABLES_MAX);
    let clients = rest.saturating_sub(tables).clamp(CLIENTS_MIN, CLIENTS_MAX);
    let missing = (own + to_peers + from_peers + TABLES_MIN + CLIENTS_MIN).saturating_sub(limit);
    Descriptors { tables, from_peers, clients, missing }
}

/// Takes as many file descriptors as the system gives, and divides them for a node with this many workers and peers.
pub fn raise_and_divide(workers: usize, peers: usize) -> Descriptors {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let in_force = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    let limit = in_force.current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    divide(limit, workers, peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_all_of_his_descriptors_leaves_the_others_theirs() {
        for limit in [100, 128, 256, 1024, 4096, 65_536, 1 << 20] {
            for (workers, peers) in [(1, 0), (1, 2), (4, 2), (4, 6)] {
                let parts = divide(limit, workers, peers);
                let own = OWN + OWN_A_WORKER * workers + HINT_TABLES;
                let sum = own + workers * peers + parts.from_peers + parts.tables + parts.clients;
                assert!(sum <= limit || parts.missing > 0, "{limit} {workers} {peers}: {parts:?}");
                assert!(parts.from_peers >= 2 * peers, "{parts:?}");
            }
        }
        assert_eq!(divide(100, 1, 2).missing, 0, "three nodes under a limit of 100 have all they need");
    }

    #[test]
    fn a_usual_limit_leaves_most_to_clients_and_a_tiny_one_says_what_is_missing() {
        let usual = divide(1024, 2, 2);
        assert!(usual.clients > 550 && usual.tables > 250, "{usual:?}");
        assert_eq!(divide(1 << 20, 2, 2).clients, CLIENTS_MAX);
        assert_eq!(divide(1 << 20, 2, 2).tables, TABLES_MAX);
        let tiny = divide(40, 1, 0);
        assert_eq!((tiny.tables, tiny.clients), (TABLES_MIN, CLIENTS_MIN));
        assert!(tiny.missing > 0);
        assert!(divide(usize::MAX, 1, 100).from_peers <= PEERS_MAX);
    }
}
