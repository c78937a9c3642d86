//! Clocks that are wrong: who is refused, who goes on, and what is left once they were put right.

mod common;

use std::time::Duration;

use common::{Ring, key_of};
use kvstore::replication::{NotSent, WriteError, WriteOptions, WriteReceipt};
use kvstore::types::{Timestamp, Value};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const DAY_MS: i64 = 86_400_000;

async fn try_put(ring: &Ring, node: usize, key: &str, value: &str) -> Result<WriteReceipt, WriteError> {
    let value = Value::new(value.as_bytes().to_vec());
    ring.at(node).put(key_of(key), value, WriteOptions::default()).await
}

fn clock_problem(ring: &Ring, node: usize) -> Option<String> {
    ring.at(node).readiness().into_iter().find(|check| check.name == "clock").unwrap().problem
}

fn hints(ring: &Ring) -> u64 {
    (0..ring.names.len()).flat_map(|node| ring.at(node).nodes()).map(|node| node.hints_pending).sum()
}

async fn a_ring() -> Ring {
    let ring = Ring::started(3).await;
    ring.until_all_see_all().await;
    ring
}

/// A refused write used to be stored on the refused node's own disk and as hints for the others, and came back half a
/// minute after its clock was mended, over a later write that had been acknowledged.
#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_ahead_takes_no_writes_keeps_none_and_is_mended_with_its_clock() {
    let ring = a_ring().await;
    ring.put(0, "k", "before").await;
    ring.set_clock_ahead(2, 30_000);
    for rest in [Duration::ZERO, Duration::from_millis(50), SECOND] {
        sleep(rest).await;
        let error = try_put(&ring, 2, "k", "old").await.unwrap_err();
        assert!(matches!(error, WriteError::NotSent(NotSent::ClockAhead(_))), "{error}");
    }
    assert!(clock_problem(&ring, 2).unwrap().contains("ahead"), "its readiness says so");
    assert_eq!((clock_problem(&ring, 0), clock_problem(&ring, 1)), (None, None));
    assert_eq!(ring.get(2, "k").await.as_deref(), Some("before"), "it serves reads");
    let seen = ring.at(0).nodes()[2].clock_was_off.expect("its peers remember it");
    assert!((29_000..31_000).contains(&seen.0), "{seen:?}");

    ring.set_clock_ahead(2, 0);
    ring.put(2, "through it", "v").await; // at once
    ring.put(0, "k", "new").await;
    sleep(60 * SECOND).await;
    for node in 0..3 {
        assert_eq!(ring.get(node, "k").await.as_deref(), Some("new"));
        assert_eq!(clock_problem(&ring, node), None);
    }
    assert_eq!(hints(&ring), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_with_its_clock_ahead_poisons_nothing() {
    let mut ring = a_ring().await;
    ring.put(0, "k", "before").await;
    ring.crash(2).await;
    ring.set_clock_ahead(2, DAY_MS);
    ring.start(2).unwrap();
    ring.until_voting(2, 2 * SECOND).await;
    sleep(SECOND).await;
    let error = try_put(&ring, 2, "k", "old").await.unwrap_err();
    assert!(matches!(error, WriteError::NotSent(NotSent::ClockAhead(_))), "{error}");
    ring.put(0, "k", "stored on it, too").await;
    let (right, wrong) = (ring.at(0).clock(), ring.at(2).clock());
    assert!(wrong.since(right) < SECOND, "what it tells its peers is bounded: {wrong:?}, not {right:?}");
    ring.crash(2).await;
    ring.set_clock_ahead(2, 0);
    ring.start(2).unwrap();
    ring.until_voting(2, 2 * SECOND).await;
    ring.put(2, "k", "new").await;
    assert_eq!(ring.get(1, "k").await.as_deref(), Some("new"));
}

/// The bound on timestamps used to move with every message, so that one clock that ran a little fast took the whole ring
/// along; and a node that was restarted with the right time was shut out for good.
#[tokio::test(start_paused = true)]
async fn a_clock_that_runs_fast_drags_nobody_along() {
    let mut ring = a_ring().await;
    let begun = ring.at(1).clock();
    let mut refused = 0;
    for step in 1..=200 {
        ring.set_clock_ahead(0, step * 50); // a twentieth faster: 10 seconds in the end
        sleep(SECOND).await;
        ring.put(1, "k", &step.to_string()).await;
        refused += u64::from(try_put(&ring, 0, "other", "v").await.is_err());
    }
    let passed = ring.at(1).clock().since(begun);
    assert!(passed < Duration::from_millis(201_500), "{passed:?} in 200 s: within MAX_CLOCK_SKEW and a mark");
    assert!((185..=191).contains(&refused), "{refused}: from half a second on");
    for wiped in [false, true] {
        if wiped {
            ring.wipe(2).await;
        } else {
            ring.crash(2).await;
            sleep(3 * SECOND).await;
        }
        ring.start(2).unwrap();
        ring.until_voting(2, 10 * SECOND).await;
        for n in 0..10 {
            ring.put(2, &format!("key{n}"), "v").await;
            assert_eq!(ring.get(2, &format!("key{n}")).await.as_deref(), Some("v"));
        }
        assert_eq!(clock_problem(&ring, 2), None);
    }
    assert!(clock_problem(&ring, 0).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_ring_whose_clocks_were_all_ahead_for_long_goes_on_once_they_were_put_right() {
    let mut ring = Ring::new(3);
    for node in 0..3 {
        ring.set_clock_ahead(node, 400 * DAY_MS);
        ring.start(node).unwrap();
    }
    for node in 0..3 {
        ring.until_voting(node, 2 * SECOND).await;
    }
    ring.until_all_see_all().await;
    ring.put(0, "k", "while ahead").await;
    ring.stop(1).await;
    for node in 0..3 {
        ring.set_clock_ahead(node, 0);
    }
    ring.start(1).unwrap();
    ring.until_voting(1, 2 * SECOND).await;
    ring.wipe(2).await;
    ring.start(2).unwrap();
    ring.until_voting(2, 10 * SECOND).await; // it never was, since it refused its peers' clocks
    ring.until_all_see_all().await;
    for node in 0..3 {
        assert_eq!(clock_problem(&ring, node), None);
        assert!(ring.at(node).ring_ahead().unwrap() > 390 * 86_400 * SECOND, "it says so");
        ring.put(node, "k", &format!("through {node}")).await;
        assert_eq!(ring.get((node + 1) % 3, "k").await, Some(format!("through {node}")));
        ring.put_for(node, "session", "x", 2_000).await;
        sleep(SECOND).await;
        assert_eq!(ring.get(node, "session").await.as_deref(), Some("x"), "after a second of two");
        sleep(SECOND + SECOND / 10).await;
        assert_eq!(ring.get(node, "session").await, None, "it lasted for 400 days");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ttl_lasts_as_long_as_it_says_on_a_node_alone_whose_clock_was_ahead() {
    let mut ring = Ring::new(1);
    ring.set_clock_ahead(0, 400 * DAY_MS);
    ring.start(0).unwrap();
    ring.put(0, "k", "while ahead").await;
    for restarted in [false, true] {
        if restarted {
            ring.crash(0).await;
            ring.start(0).unwrap();
        }
        ring.set_clock_ahead(0, 0);
        assert_eq!(clock_problem(&ring, 0), None);
        assert!(ring.at(0).ring_ahead().unwrap() > 390 * 86_400 * SECOND, "it says so");
        ring.put_for(0, "session", "x", 2_000).await;
        sleep(SECOND + SECOND / 2).await;
        assert_eq!(ring.get(0, "session").await.as_deref(), Some("x"));
        sleep(SECOND).await;
        assert_eq!(ring.get(0, "session").await, None);
        ring.put(0, "k", "after").await;
        assert_eq!(ring.get(0, "k").await.as_deref(), Some("after"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_while_the_ring_went_ahead_follows_the_one_peer_it_finds() {
    let mut ring = a_ring().await;
    ring.put(0, "k", "before").await;
    ring.stop(2).await;
    for node in [0, 1] {
        ring.set_clock_ahead(node, DAY_MS);
    }
    sleep(SECOND).await;
    ring.put(0, "k", "a day ahead").await;
    for node in [0, 1] {
        ring.set_clock_ahead(node, 0);
    }
    sleep(SECOND).await;
    ring.crash(1).await;
    ring.start(2).unwrap();
    ring.until_voting(2, 2 * SECOND).await;
    sleep(SECOND).await;
    assert_eq!(ring.get(2, "k").await.as_deref(), Some("a day ahead"), "a majority is up: it serves");
    ring.put(2, "k", "through it").await;
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("through it"));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_behind_goes_by_the_others_and_says_so() {
    let mut ring = a_ring().await;
    ring.set_clock_ahead(2, -3_600_000);
    sleep(SECOND).await;
    assert!(clock_problem(&ring, 2).unwrap().contains("clock behind"));
    for round in 0..5 {
        ring.put(0, "k", "through the others").await;
        ring.put(2, "k", &format!("through it, {round}")).await;
        assert_eq!(ring.get(1, "k").await, Some(format!("through it, {round}")), "later, and so it wins");
        sleep(SECOND).await;
    }
    ring.put_for(2, "session", "x", 1_000).await;
    sleep(SECOND + SECOND / 10).await;
    assert_eq!(ring.get(2, "session").await, None);
    ring.crash(2).await;
    ring.start(2).unwrap();
    ring.until_voting(2, 2 * SECOND).await;
    ring.put(2, "k", "after a restart").await;
    assert_eq!(ring.get(0, "k").await.as_deref(), Some("after a restart"));
}

/// The mark on disk lies 400 ms ahead, and a restarted clock begins there: peers with a smaller `MAX_CLOCK_SKEW` refused it.
#[tokio::test(start_paused = true)]
async fn a_restart_is_not_taken_for_a_wrong_clock_however_small_the_skew_allowed() {
    let mut ring = Ring::new(3);
    for config in &mut ring.configs {
        config.clock_skew_max = Duration::from_millis(50);
    }
    for node in 0..3 {
        ring.start(node).unwrap();
    }
    ring.until_all_see_all().await;
    let true_time = |ring: &Ring, begun: Timestamp, at: tokio::time::Instant| {
        ring.at(1).clock().since(begun).saturating_sub(at.elapsed())
    };
    ring.put(0, "k", "v").await;
    sleep(5 * SECOND).await;
    let (begun, at) = (ring.at(1).clock(), tokio::time::Instant::now());
    for round in 0..20 {
        ring.put(2, "k", "v").await;
        ring.crash(2).await;
        ring.start(2).unwrap();
        ring.until_voting(2, 2 * SECOND).await;
        ring.put(2, "k", &round.to_string()).await;
        assert_eq!(ring.get(1, "k").await, Some(round.to_string()));
    }
    let ahead = true_time(&ring, begun, at);
    assert!(ahead < SECOND, "restarts in quick succession carried the ring's time {ahead:?} ahead");
    assert_eq!((0..3).map(|node| ring.at(node).stats().timestamps_refused).sum::<u64>(), 0);
}
