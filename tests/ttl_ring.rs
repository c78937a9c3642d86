//! Values that end, on a ring of real nodes: what a ring says together of what each clock says alone.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Ring, key_of, until};
use kvstore::replication::ReplicaState;
use kvstore::types::Record;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

async fn states(ring: &Ring, node: usize, key: &str) -> Vec<ReplicaState> {
    let explanation = ring.at(node).explain(key_of(key)).await;
    explanation.replicas.into_iter().map(|(_, state)| state).collect()
}

fn is_expired(record: Option<&Record>) -> bool {
    matches!(record, Some(Record::Expired { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_value_is_there_until_its_end_and_hides_what_it_overwrote_afterwards() {
    let ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    for key in ["k", "rewritten", "deleted"] {
        ring.put(0, key, "older").await;
        ring.put_for(1, key, "for a time", 2_000).await;
    }
    ring.put(2, "rewritten", "for ever").await;
    ring.delete(2, "deleted").await;
    for node in 0..3 {
        assert_eq!(ring.get(node, "k").await.as_deref(), Some("for a time"));
    }
    let all = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(ring.scan(0, 1).await, all(&[("k", "for a time"), ("rewritten", "for ever")]));
    sleep(2 * SECOND).await;
    for node in 0..3 {
        assert_eq!(ring.get(node, "k").await, None);
        assert_eq!(ring.get(node, "rewritten").await.as_deref(), Some("for ever"));
        assert_eq!(ring.scan(node, 1).await, all(&[("rewritten", "for ever")]));
    }
    let states = states(&ring, 0, "k").await;
    assert!(states.iter().all(|state| matches!(state, ReplicaState::Holds(Record::Expired { .. }))));
    assert_eq!(ring.at(0).stats().write_backs, 0, "replicas agree without a word");
    ring.put(0, "k", "again").await;
    assert_eq!(ring.get(1, "k").await.as_deref(), Some("again"));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_down_learns_by_hint_that_a_value_had_an_end() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "k", "older").await;
    ring.crash(2).await;
    ring.put_for(0, "k", "for a time", 5_000).await;
    ring.start(2).unwrap();
    ring.until_voting(2, 2 * SECOND).await;
    let name = ring.names[2].clone();
    let hints = |ring: &Ring| -> u64 { (0..2).map(|node| ring.at(node).hints_for(&name)).sum() };
    until(3 * SECOND, "hints are delivered", || hints(&ring) == 0).await;
    let held = ring.held(2, "k").await.unwrap();
    assert!(held.as_value().is_some() && held.expires_at().is_some(), "{held:?}");
    sleep(5 * SECOND).await;
    assert!(is_expired(ring.held(2, "k").await.as_ref()));
    assert_eq!(ring.get(2, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_rebuilds_keeps_the_ends_of_values() {
    let mut ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.put(0, "over", "older").await;
    ring.put_for(0, "over", "short", 500).await;
    ring.put_for(0, "k", "long", 60_000).await;
    sleep(SECOND).await;
    ring.wipe(2).await;
    ring.start(2).unwrap();
    ring.until_voting(2, 10 * SECOND).await;
    assert!(is_expired(ring.held(2, "over").await.as_ref()));
    let held = ring.held(2, "k").await.unwrap();
    assert_eq!(Some(&held), ring.held(0, "k").await.as_ref());
    assert!(held.expires_at().is_some());
    sleep(60 * SECOND).await;
    assert_eq!(ring.get(2, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_value_read_as_gone_is_gone_by_a_clock_that_is_behind_too() {
    let ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring.set_clock_ahead(0, 400);
    // Its clock is heard by nobody for a while: pings would tell the others what time it is.
    ring.cut(1, 0);
    ring.cut(2, 0);
    ring.put_for(1, "k", "v", 3_000).await;
    sleep(Duration::from_millis(2_700)).await;
    assert_eq!(ring.get(2, "k").await.as_deref(), Some("v"), "its own clock says 2.7 seconds");
    ring.heal();
    until(5 * SECOND, "node 0 is up again", || ring.at(1).nodes().iter().all(|node| node.hints_pending == 0))
        .await;
    assert_eq!(ring.get(0, "k").await, None, "its own clock says 3.1 seconds");
    for node in [1, 2, 0, 1, 2] {
        assert_eq!(ring.get(node, "k").await, None, "it was read as gone before");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_brings_nothing_back_not_by_a_restart_either() {
    let mut ring = Ring::new(1);
    ring.start(0).unwrap();
    ring.put(0, "k", "older").await;
    ring.put_for(0, "k", "v", 10_000).await;
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("v"));
    ring.set_clock_ahead(0, 11_000);
    assert_eq!(ring.get(0, "k").await, None);
    ring.set_clock_ahead(0, 0);
    assert_eq!(ring.get(0, "k").await, None, "the clock was set back");
    ring.crash(0).await;
    ring.start(0).unwrap();
    assert_eq!(ring.get(0, "k").await, None, "the clock was set back, and the node restarted");
    assert!(ring.scan(0, 10).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn replicas_of_which_one_was_compacted_agree_without_repairs() {
    let ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    let value = "x".repeat(2_000);
    ring.put(0, "k", "older").await;
    ring.put_for(0, "k", &value, 500).await;
    sleep(2 * SECOND).await;
    // Enough for node 0 to flush and compact; the others hold all of it too, and have the same to do.
    for n in 0..600 {
        ring.put(0, &format!("key{n}"), &value).await;
    }
    until(10 * SECOND, "the bytes went", || ring.at(0).engine_stats().expired > 0).await;
    let repairs = |ring: &Ring| -> u64 {
        (0..3).map(|node| ring.at(node).stats()).map(|stats| stats.read_repairs + stats.write_backs).sum()
    };
    let before = repairs(&ring);
    for node in 0..3 {
        assert_eq!(ring.get(node, "k").await, None);
        let mut states = states(&ring, node, "k").await;
        states.dedup();
        assert_eq!(states.len(), 1, "{states:?}");
    }
    sleep(SECOND).await;
    assert_eq!(repairs(&ring), before);
}
