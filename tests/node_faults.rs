//! What one fault at a time does to a ring of real nodes: hints, rebuilds, who may vote, clock marks, scans.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::{Ring, key_of, until};
use kvstore::env::vfs::remove_tree;
use kvstore::env::vfs_fault::Verdict;
use kvstore::env::{Env, FaultVfs, Pool, Vfs as _};
use kvstore::node::{Node, StartError, recover_drop_damaged};
use kvstore::replication::WriteOptions;
use kvstore::types::Value;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_new_ring_of_three_votes_within_a_second_and_serves() {
    let ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "k", "v").await;
    assert_eq!(ring.get(2, "k").await.as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_votes_at_once() {
    let mut ring = Ring::new(1);
    ring.start(0).unwrap();
    assert!(ring.is_voting(0));
    ring.put(0, "k", "v").await;
    ring.crash(0).await;
    ring.start(0).unwrap();
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_gets_what_it_missed_within_seconds() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "changed", "before").await;
    ring.crash(2).await;
    for n in 0..500 {
        ring.put(0, &format!("key{n}"), "missed").await;
    }
    ring.put(0, "changed", "first").await;
    ring.put(0, "changed", "second").await;
    ring.delete(1, "key7").await;
    let name = ring.names[2].clone();
    let pending = |ring: &Ring| {
        let all = [0, 1].map(|node| {
            ring.at(node).nodes().iter().find(|status| status.node == name).unwrap().hints_pending
        });
        all.iter().sum::<u64>()
    };
    until(SECOND, "hints are stored", || pending(&ring) >= 501).await;
    assert_eq!(pending(&ring), 502, "a key's newer hint replaces the older of the same holder");
    ring.start(2).unwrap();
    until(3 * SECOND, "hints are delivered", || pending(&ring) == 0).await;
    for n in 0..500 {
        let held = ring.held(2, &format!("key{n}")).await.expect("delivered");
        assert_eq!(held.is_tombstone(), n == 7);
    }
    assert_eq!(ring.held(2, "changed").await.unwrap().as_value().unwrap().as_bytes(), b"second");
}

#[tokio::test(start_paused = true)]
async fn hints_survive_a_crash_of_their_holder() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.crash(2).await;
    for n in 0..50 {
        ring.put(0, &format!("key{n}"), "missed").await;
    }
    tokio::time::sleep(3 * SECOND).await;
    ring.crash(0).await;
    ring.start(0).unwrap();
    ring.start(2).unwrap();
    tokio::time::sleep(4 * SECOND).await;
    for n in 0..50 {
        assert!(ring.held(2, &format!("key{n}")).await.is_some(), "key{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wiped_node_reads_its_ranges_and_does_not_vote_meanwhile() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    for n in 0..300 {
        ring.put(0, &format!("key{n}"), &format!("value{n}")).await;
    }
    ring.delete(0, "key5").await;
    tokio::time::sleep(SECOND).await;
    ring.wipe(2).await;
    ring.cut(2, 1); // one of two peers is out of reach: not enough to vote
    ring.start(2).unwrap();
    tokio::time::sleep(20 * SECOND).await;
    assert!(!ring.is_voting(2), "W − 1 of the copies may be on the peer it has not read");
    assert!(ring.held(2, "key8").await.is_some(), "it reads from whom it can");
    ring.heal();
    ring.until_voting(2, 5 * SECOND).await;
    for n in 0..300 {
        let held = ring.held(2, &format!("key{n}")).await.expect("rebuilt");
        assert_eq!(held.is_tombstone(), n == 5);
    }
    // Its old directory is still remembered by its peers, and made up for.
    tokio::time::sleep(20 * SECOND).await;
    assert!(ring.is_voting(2));
    ring.crash(2).await;
    ring.start(2).unwrap();
    ring.until_voting(2, SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_of_a_rebuild_does_not_forget_it() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    for n in 0..200 {
        ring.put(0, &format!("key{n}"), "v").await;
    }
    ring.wipe(2).await;
    ring.cut(2, 1);
    ring.start(2).unwrap();
    tokio::time::sleep(5 * SECOND).await;
    ring.crash(2).await;
    ring.cut(2, 0);
    ring.start(2).unwrap();
    tokio::time::sleep(5 * SECOND).await;
    assert!(!ring.is_voting(2), "that it rebuilds is on disk");
    let scans = ring.passed("scan", 0);
    ring.heal();
    ring.until_voting(2, 5 * SECOND).await;
    assert_eq!(ring.passed("scan", 0), scans, "what was read from the first peer before the crash counts");
}

#[tokio::test(start_paused = true)]
async fn a_whole_ring_comes_back_after_a_power_cut_with_one_node_rebuilding() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    for n in 0..100 {
        ring.put(0, &format!("key{n}"), "v").await;
    }
    ring.wipe(1).await;
    ring.crash(0).await;
    ring.crash(2).await;
    for node in [2, 1, 0] {
        ring.start(node).unwrap();
    }
    for node in 0..3 {
        ring.until_voting(node, 6 * SECOND).await;
    }
    ring.until_all_see_all().await;
    for n in 0..100 {
        assert_eq!(ring.get(1, &format!("key{n}")).await.as_deref(), Some("v"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_was_set_back_is_noticed_before_it_votes() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "k", "old").await;
    tokio::time::sleep(SECOND).await;
    ring.crash(2).await;
    let snapshot = ring.disks[2].fork();
    ring.start(2).unwrap();
    ring.until_voting(2, SECOND).await;
    ring.until_all_see_all().await;
    ring.cut(2, 0);
    ring.put(1, "k", "on 1 and 2 alone").await;
    tokio::time::sleep(SECOND).await;
    ring.crash(2).await;
    ring.disks[2] = snapshot;
    ring.heal();
    ring.start(2).unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(!ring.is_voting(2), "its peers remember a later mark");
    ring.until_voting(2, 5 * SECOND).await;
    assert_eq!(ring.held(2, "k").await.unwrap().as_value().unwrap().as_bytes(), b"on 1 and 2 alone");
    tokio::time::sleep(20 * SECOND).await;
    assert!(ring.is_voting(2), "what the peers remember has been made up for");
}

/// Peers used to judge a node by the first ping after *their own* restart: they held the mark with which the node's
/// run had begun against a mark of that same run, took the honest node for one that was set back, and froze what
/// they remembered of it. A copy of its directory made after that was put back without anybody noticing, and a
/// quorum answered 404 for an acknowledged write.
#[tokio::test(start_paused = true)]
async fn a_disk_that_was_set_back_is_noticed_after_a_rolling_restart_of_its_peers_too() {
    for copied_while_stopped in [false, true] {
        let mut ring = Ring::started(3).await;
        ring.until_all_see_all().await;
        ring.put(0, "k", "old").await;
        tokio::time::sleep(SECOND).await;
        for peer in [0, 1] {
            ring.stop(peer).await;
            ring.start(peer).unwrap();
            ring.until_voting(peer, SECOND).await;
            ring.until_all_see_all().await;
        }
        ring.put(0, "k", "newer").await;
        tokio::time::sleep(SECOND).await;
        let copy = if copied_while_stopped {
            ring.stop(2).await;
            let copy = ring.disks[2].fork();
            ring.start(2).unwrap();
            ring.until_voting(2, SECOND).await;
            ring.until_all_see_all().await;
            copy
        } else {
            ring.disks[2].fork()
        };
        ring.cut(2, 0);
        ring.put(1, "k", "on 1 and 2 alone").await;
        tokio::time::sleep(SECOND).await;
        if copied_while_stopped {
            // The run from the copy has the number and the first mark of the run that is lost: nothing but chance
            // tells the two apart, and node 1 has to keep that over a restart, too.
            ring.stop(1).await;
            ring.start(1).unwrap();
            ring.until_voting(1, SECOND).await;
            ring.put(1, "another", "on 1 and 2 alone").await;
            tokio::time::sleep(SECOND).await;
        }
        ring.crash(2).await;
        ring.disks[2] = copy;
        ring.heal();
        ring.cut(1, 0);
        ring.start(2).unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(
            !ring.is_voting(2),
            "node 1 remembers a later mark (copied while stopped: {copied_while_stopped})"
        );
        ring.heal();
        ring.until_voting(2, 5 * SECOND).await;
        assert_eq!(ring.held(2, "k").await.unwrap().as_value().unwrap().as_bytes(), b"on 1 and 2 alone");
        assert_eq!(ring.get(2, "k").await.as_deref(), Some("on 1 and 2 alone"));
    }
}

/// A node that was set back, has rebuilt and votes again is remembered as it goes on: a second loss is noticed like the first.
#[tokio::test(start_paused = true)]
async fn a_disk_that_was_set_back_twice_is_noticed_twice() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "k", "old").await;
    tokio::time::sleep(SECOND).await;
    for round in 0..3 {
        let copy = ring.disks[2].fork();
        ring.put(0, "k", &format!("written in round {round}")).await;
        tokio::time::sleep(SECOND).await;
        ring.crash(2).await;
        ring.disks[2] = copy;
        ring.start(2).unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(!ring.is_voting(2), "round {round}");
        ring.until_voting(2, 5 * SECOND).await;
        ring.until_all_see_all().await;
        ring.put(0, "k", &format!("written after round {round}")).await;
        tokio::time::sleep(SECOND).await;
    }
}

/// It used to vote after half a second though it had heard nobody, also where its disk had been set back.
#[tokio::test(start_paused = true)]
async fn an_intact_node_votes_soon_after_it_has_heard_a_majority_and_not_before() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "k", "v").await;
    tokio::time::sleep(SECOND).await;
    ring.crash(2).await;
    ring.cut(2, 0);
    ring.cut(2, 1);
    ring.start(2).unwrap();
    tokio::time::sleep(5 * SECOND).await;
    assert!(!ring.is_voting(2), "it has heard nobody");
    ring.heal();
    ring.cut(2, 0);
    ring.until_voting(2, SECOND).await;
    ring.crash(2).await;
    ring.crash(0).await;
    ring.start(2).unwrap();
    ring.until_voting(2, SECOND).await;
    assert_eq!(ring.get(2, "k").await.as_deref(), Some("v"), "two of three serve");
}

#[tokio::test(start_paused = true)]
async fn data_of_another_ring_is_refused_with_both_values() {
    let mut ring = Ring::started(3).await;
    ring.stop(0).await;
    ring.configs[0].members.pop();
    let Err(error) = ring.start(0) else { panic!("started") };
    assert!(matches!(error, StartError::OtherCluster { .. }));
    let line = error.to_string();
    assert!(
        line.contains("127.0.0.1:9003") && line.contains("configured is") && !line.contains('\n'),
        "{line}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_directory_in_use_is_refused() {
    let mut ring = Ring::new(1);
    ring.start(0).unwrap();
    let error = ring.start(0).unwrap_err();
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    ring.stop(0).await;
    ring.start(0).unwrap();
}

/// Flips a byte in the middle of every file of the data engine that holds anything worth reading.
fn damage_data(ring: &Ring, node: usize) {
    let disk = &ring.disks[node];
    let dir = Path::new("/node/data");
    let tables: Vec<_> = disk
        .list(dir)
        .unwrap()
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "sst"))
        .collect();
    assert!(!tables.is_empty(), "{:?}", disk.list(dir));
    for name in tables {
        let path = dir.join(name);
        let len = disk.open(&path).unwrap().len().unwrap();
        disk.flip_byte(&path, len - 20).unwrap(); // in the footer: found when the engine is opened
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_damaged_disk_rebuilds_where_there_are_replicas() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    for n in 0..100 {
        ring.put(0, &format!("key{n}"), "v").await;
    }
    ring.stop(2).await;
    damage_data(&ring, 2);
    ring.start(2).unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(!ring.is_voting(2));
    ring.until_voting(2, 5 * SECOND).await;
    for n in 0..100 {
        assert!(ring.held(2, &format!("key{n}")).await.is_some(), "key{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_with_a_damaged_disk_refuses_to_start_until_told_to_drop_what_is_damaged() {
    let mut ring = Ring::started(1).await;
    for n in 0..100 {
        ring.put(0, &format!("key{n}"), "v").await;
    }
    ring.stop(0).await;
    damage_data(&ring, 0);
    let error = ring.start(0).unwrap_err();
    assert!(matches!(error, StartError::Damaged { .. }));
    assert!(error.to_string().contains("kvstore recover --drop-damaged /node"), "{error}");
    // It waits for its disk in place, as a command may: with threads of its own.
    let env = Env { pool: Pool::threads(), ..ring.env(0) };
    let told = recover_drop_damaged(&ring.configs[0], &env).unwrap();
    drop(env);
    assert!(!told.is_empty());
    ring.start(0).unwrap();
    ring.put(0, "key", "new").await;
    assert_eq!(ring.get(0, "key").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_identity_or_clock_makes_a_replica_rebuild() {
    for name in ["IDENTITY", "CLOCK"] {
        let mut ring = Ring::started(3).await;
        ring.until_all_see_all().await;
        ring.put(0, "k", "v").await;
        tokio::time::sleep(SECOND).await;
        ring.stop(2).await;
        let path = Path::new("/node").join(name);
        for offset in [10, 4106] {
            let _ = ring.disks[2].flip_byte(&path, offset); // IDENTITY has no second slot
        }
        ring.start(2).unwrap();
        tokio::time::sleep(SECOND).await;
        assert!(!ring.is_voting(2), "{name}");
        ring.until_voting(2, 5 * SECOND).await;
        assert!(ring.held(2, "k").await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_merges_what_two_of_three_nodes_hold_page_by_page() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    let mut expected = BTreeMap::new();
    for n in 0..300 {
        let key = format!("key{n:03}");
        ring.put(n % 3, &key, "v1").await;
        expected.insert(key, "v1".to_owned());
    }
    ring.crash(2).await; // node 2 misses this; hints do not reach it before it is asked
    for n in (0..300).step_by(3) {
        let key = format!("key{n:03}");
        ring.delete(0, &key).await;
        expected.remove(&key);
    }
    for rows in [1, 7, 100, 1000] {
        assert_eq!(ring.scan(1, rows).await, expected, "{rows} rows a page");
    }
    ring.start(2).unwrap();
    ring.until_voting(2, SECOND).await;
    assert_eq!(ring.scan(2, 50).await, expected, "tombstones of the others hide what node 2 still holds");
}

/// What readiness says of a node's disk.
fn disk_problem(ring: &Ring, node: usize) -> Option<String> {
    let checks = ring.at(node).readiness();
    checks.into_iter().find(|check| check.name == "disk").expect("the disk is checked").problem
}

#[tokio::test(start_paused = true)]
async fn a_node_starts_on_a_disk_without_a_free_block_says_so_and_goes_on_by_itself() {
    let mut ring = Ring::new(1);
    ring.start(0).unwrap();
    ring.put(0, "k", "v").await;
    ring.crash(0).await;
    ring.disks[0].set_capacity(Some(0));
    ring.start(0).unwrap();
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("v"));
    let problem = disk_problem(&ring, 0).expect("nobody has written yet, and it is known");
    assert!(problem.contains("out of space"), "{problem}");
    let refused = ring.at(0).put(key_of("k"), Value::new("new"), WriteOptions::default()).await;
    assert!(refused.is_err());
    ring.disks[0].set_capacity(None);
    until(10 * SECOND, "the disk is well", || disk_problem(&ring, 0).is_none()).await;
    ring.put(0, "k", "new").await;
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_gone_under_a_node_is_told_by_its_readiness_without_a_write() {
    let mut ring = Ring::new(1);
    ring.start(0).unwrap();
    ring.put(0, "k", "v").await;
    assert_eq!(disk_problem(&ring, 0), None);
    remove_tree(&ring.disks[0], &ring.configs[0].dir.join("data")).unwrap();
    until(3 * SECOND, "it is told", || disk_problem(&ring, 0).is_some()).await;
    let problem = disk_problem(&ring, 0).unwrap();
    assert!(problem.contains("cannot be used"), "{problem}");
}

/// The clock of this test runs ahead while nothing but the disk is waited for, so the bound costs no time.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_though_the_disk_hangs() {
    let ring = Ring::new(1);
    let faults = FaultVfs::new(ring.env(0).fs);
    let env = Env { fs: std::sync::Arc::new(faults.clone()), pool: Pool::threads(), ..ring.env(0) };
    let node = Node::start(ring.configs[0].clone(), env, ring.transport(0)).unwrap();
    let (let_go, hangs) = std::sync::mpsc::channel::<()>();
    faults.set_rule(move |_| {
        let _ = hangs.recv(); // until the other end is gone
        Verdict::Pass
    });
    node.stop().await;
    drop(let_go);
}
