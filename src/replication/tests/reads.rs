//! Reads: quorums, write-back, repair, damage.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::harness::{Fate, Shape, TestRing, key, value};
use crate::replication::{NotSent, ReadError, ReadOptions, ReplicaState, Standing};
use crate::rpc::{Refusal, ReplicaRequest, WriteOrigin};
use crate::types::{Record, Timestamp};

fn ring() -> TestRing {
    TestRing::new(Shape::default())
}

fn record(micros: u64, text: &str) -> Record {
    Record::value(Timestamp::from_micros(999_000_000 + micros), value(text))
}

fn is_repair(request: &ReplicaRequest) -> bool {
    matches!(request, ReplicaRequest::Write { origin: WriteOrigin::Repair, .. })
}

#[tokio::test(start_paused = true)]
async fn a_read_sees_an_acknowledged_write_whatever_node_is_asked() {
    let ring = ring();
    for (at, text) in [(0, "one"), (1, "two"), (2, "three")] {
        ring.put(at, "k", text).await.unwrap();
        for reader in 0..3 {
            assert_eq!(ring.get(reader, "k").await.unwrap().as_deref(), Some(text));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_nobody_has_is_absent() {
    assert_eq!(ring().get(0, "k").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_winner_is_on_enough_disks_before_the_answer() {
    let ring = ring();
    ring.plant(1, "k", record(5, "new")).await;
    ring.plant(0, "k", record(1, "old")).await;
    let cut = ring.name(2);
    ring.rule(move |_, to, _| if *to == cut { Fate::LoseRequest } else { Fate::Deliver });
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("new"));
    assert_eq!(ring.held_text(0, "k").as_deref(), Some("new"), "written back before the answer");
    assert_eq!(ring.nodes[0].coordinator.stats().write_backs, 1);
    // Whoever is asked now, without the node that had it first, says the same.
    let cut = ring.name(1);
    ring.rule(move |_, to, _| if *to == cut { Fate::LoseRequest } else { Fate::Deliver });
    ring.settle().await;
    assert_eq!(ring.get(2, "k").await.unwrap().as_deref(), Some("new"));
}

#[cfg(feature = "planted-mistakes")]
#[tokio::test(start_paused = true)]
async fn without_the_write_back_a_read_goes_back() {
    let planted = crate::env::Planted::mistake(crate::env::Mistake::NoWriteBack);
    let ring = TestRing::new(Shape { planted, ..Shape::default() });
    ring.plant(1, "k", record(5, "new")).await;
    let cut = ring.name(2);
    ring.rule(move |_, to, request| match request {
        request if is_repair(request) => Fate::LoseRequest,
        _ if *to == cut => Fate::LoseRequest,
        _ => Fate::Deliver,
    });
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("new"));
    assert_eq!(ring.held(0, "k"), None);
}

#[tokio::test(start_paused = true)]
async fn a_write_back_that_fails_is_tried_elsewhere() {
    let ring = ring();
    ring.plant(1, "k", record(5, "new")).await;
    ring.nodes[0].fs.set_capacity(Some(0)); // the reader itself has no room for it
    let slow = ring.name(2);
    ring.rule(move |_, to, request| {
        if *to == slow && !is_repair(request) { Fate::Delay(Duration::from_secs(1)) } else { Fate::Deliver }
    });
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("new"));
    assert_eq!(ring.held_text(2, "k").as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn a_winner_that_cannot_be_written_back_is_not_answered() {
    let ring = ring();
    ring.plant(1, "k", record(5, "new")).await;
    ring.nodes[0].fs.set_capacity(Some(0));
    let cut = ring.name(2);
    ring.rule(move |_, to, _| if *to == cut { Fate::Unreachable } else { Fate::Deliver });
    let error = ring.get(0, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::Unanswered { answered: 2, needed: 2, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn reads_of_one_key_never_go_back() {
    let ring = ring();
    for round in 0..20u64 {
        ring.plant((round % 3) as usize, "k", record(10 + round, &round.to_string())).await;
        let mut newest = 0;
        for at in [0, 1, 2, 0, 1, 2] {
            let cut = ring.name(((round / 3 + at as u64 + 1) % 3) as usize);
            ring.rule(move |_, to, _| if *to == cut { Fate::LoseRequest } else { Fate::Deliver });
            ring.all_alive();
            if let Ok(Some(text)) = ring.get(at, "k").await {
                let seen: u64 = text.parse().unwrap();
                assert!(seen >= newest, "round {round}: {seen} was read after {newest}");
                newest = seen;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_version_makes_its_record_be_fetched_and_the_others_mended() {
    let ring = ring();
    let old = record(1, "old");
    ring.plant(0, "k", old.clone()).await;
    ring.plant(1, "k", old).await;
    ring.plant(2, "k", record(5, "new")).await;
    let late = ring.name(2);
    ring.rule(
        move |_, to, _| {
            if *to == late { Fate::Delay(Duration::from_millis(50)) } else { Fate::Deliver }
        },
    );
    let first = ring.get(0, "k").await.unwrap();
    assert_eq!(first.as_deref(), Some("old"), "R agreed before the third was heard");
    ring.settle().await;
    for node in 0..3 {
        assert_eq!(ring.held_text(node, "k").as_deref(), Some("new"));
    }
    assert_eq!(ring.nodes[0].coordinator.stats().read_repairs, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_is_mended_in_the_background() {
    let ring = ring();
    ring.plant(0, "k", record(5, "new")).await;
    ring.plant(1, "k", record(5, "new")).await;
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("new"));
    ring.settle().await;
    assert_eq!(ring.held_text(2, "k").as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn without_read_repair_only_r_replicas_are_asked() {
    let mut shape = Shape::default();
    shape.settings.read_repair_chance = 0.0;
    let ring = TestRing::new(shape);
    ring.take_sent();
    ring.get(0, "k").await.unwrap();
    ring.settle().await;
    assert_eq!(ring.take_sent().len(), 1, "itself and one other");
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_is_hedged_by_another() {
    let mut shape = Shape::default();
    shape.settings.read_repair_chance = 0.0;
    let ring = TestRing::new(shape);
    let shared = &ring.nodes[0].shared;
    let slow = shared.ring.primaries_of_key(b"k").iter().find(|node| **node != shared.own).cloned().unwrap();
    ring.rule(
        move |_, to, _| {
            if *to == slow { Fate::Delay(Duration::from_millis(900)) } else { Fate::Deliver }
        },
    );
    let started = Instant::now();
    ring.get(0, "k").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(100));
    assert_eq!(ring.nodes[0].coordinator.stats().hedged_reads, 1);
    ring.settle().await;
    let started = Instant::now();
    ring.get(0, "k").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(10), "the fast one is asked first from now on");
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_that_is_behind_is_mended() {
    // The simulation found a replica that stayed behind although every key was read: it had been asked, was slow, and another
    // was asked in its place, so that neither the read nor the comparison afterwards heard its answer.
    let ring = ring();
    let shared = ring.nodes[0].shared.clone();
    let (newer, older) = (record(7, "new"), record(5, "old"));
    let slow = (1..3).find(|node| {
        shared.ring.primaries_of_key(b"k").iter().find(|id| **id != shared.own) == Some(&ring.name(*node))
    });
    let slow = slow.unwrap();
    for node in 0..3 {
        ring.plant(node, "k", if node == slow { older.clone() } else { newer.clone() }).await;
    }
    let name = ring.name(slow);
    ring.rule(
        move |_, to, _| if *to == name { Fate::Delay(Duration::from_millis(50)) } else { Fate::Deliver },
    );
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("new"));
    assert_eq!(ring.nodes[0].coordinator.stats().hedged_reads, 1);
    ring.settle().await;
    assert_eq!(ring.held(slow, "k"), Some(newer));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_vote_is_replaced_by_another() {
    let ring = ring();
    ring.put(0, "k", "v").await.unwrap();
    ring.settle().await;
    ring.nodes[1].shared.standing.set(Standing::Rebuilding);
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("v"));
    ring.nodes[2].shared.standing.set(Standing::Rebuilding);
    let error = ring.get(0, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::Unanswered { answered: 1, needed: 2, .. }), "{error}");
    ring.all_alive();
    let error = ring.get(0, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::NotSent(NotSent::TooFewReplicas { reachable: 1, .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_is_replaced_by_another_and_mended() {
    let ring = ring();
    ring.plant(0, "k", record(5, "v")).await;
    ring.plant(2, "k", record(5, "v")).await;
    let damaged = ring.name(1);
    ring.rule(move |_, to, request| match request {
        ReplicaRequest::Write { .. } => Fate::Deliver,
        _ if *to == damaged => Fate::Refuse(Refusal::Damaged),
        _ => Fate::Deliver,
    });
    assert_eq!(ring.get(0, "k").await.unwrap().as_deref(), Some("v"));
    ring.settle().await;
    assert_eq!(ring.held_text(1, "k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn only_when_every_reachable_copy_is_damaged_is_it_500() {
    let ring = TestRing::new(Shape { nodes: 4, ..Shape::default() });
    let primaries = ring.nodes[0].shared.ring.primaries_of_key(b"k").to_vec();
    let outside = ring.nodes.iter().position(|node| !primaries.contains(&node.shared.own)).unwrap();
    let cut = primaries[2].clone();
    ring.rule(move |_, to, _| if *to == cut { Fate::Unreachable } else { Fate::Refuse(Refusal::Damaged) });
    let error = ring.get(outside, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    let whole = primaries[2].clone();
    ring.rule(move |_, to, _| if *to == whole { Fate::Deliver } else { Fate::Refuse(Refusal::Damaged) });
    let error = ring.get(outside, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::Unanswered { answered: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn too_few_answers_in_time_mean_504() {
    let ring = ring();
    ring.rule(|_, _, _| Fate::LoseRequest);
    let started = Instant::now();
    let error = ring.get(0, "k").await.unwrap_err();
    assert!(matches!(error, ReadError::Unanswered { answered: 1, needed: 2, .. }), "{error}");
    assert_eq!(started.elapsed().as_secs(), 2);
    let told = "1 of 2 replicas answered in time (b:1: no answer in time; c:1: no answer in time)";
    assert_eq!(sorted_causes(&error.to_string()), sorted_causes(told), "whoever was silent is named");
}

/// A read's error with its causes in order: the order of the ring's primaries is nobody's concern.
fn sorted_causes(error: &str) -> (String, Vec<String>) {
    let (told, causes) = error.strip_suffix(')').unwrap().split_once(" (").unwrap();
    let mut causes: Vec<_> = causes.split("; ").map(str::to_owned).collect();
    causes.sort();
    (told.to_owned(), causes)
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_says_of_each_replica_why() {
    let ring = ring();
    ring.believe_dead(0, 1).await;
    ring.nodes[2].shared.standing.set(Standing::Rebuilding);
    let error = ring.get(0, "k").await.unwrap_err();
    let told = "1 of 2 replicas answered in time (b:1: down; c:1: rebuilding)";
    assert_eq!(sorted_causes(&error.to_string()), sorted_causes(told));
}

#[tokio::test(start_paused = true)]
async fn a_node_outside_the_replicas_reads_from_them() {
    let ring = TestRing::new(Shape { nodes: 5, ..Shape::default() });
    for at in 0..5 {
        ring.put(at, "k", &at.to_string()).await.unwrap();
        for reader in 0..5 {
            assert_eq!(ring.get(reader, "k").await.unwrap(), Some(at.to_string()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r_of_one_asks_for_one_answer() {
    let ring = ring();
    ring.plant(0, "k", record(5, "mine")).await;
    ring.rule(|_, _, _| Fate::LoseRequest);
    let options = ReadOptions { read_quorum: Some(1) };
    let record = ring.nodes[0].coordinator.get(key("k"), options).await.unwrap();
    assert_eq!(record, Some(self::record(5, "mine")));
}

#[tokio::test(start_paused = true)]
async fn explain_shows_every_replica_and_the_winner() {
    let ring = ring();
    ring.plant(0, "k", record(1, "old")).await;
    ring.plant(1, "k", record(5, "new")).await;
    let cut = ring.name(2);
    ring.rule(move |_, to, _| if *to == cut { Fate::Unreachable } else { Fate::Deliver });
    let explanation = ring.nodes[0].coordinator.explain(key("k")).await;
    assert_eq!(explanation.winner, Some(ring.name(1)));
    let state = |index: usize| {
        let name = ring.name(index);
        explanation.replicas.iter().find(|(node, _)| *node == name).unwrap().1.clone()
    };
    assert_eq!(state(0), ReplicaState::Holds(record(1, "old")));
    assert_eq!(state(1), ReplicaState::Holds(record(5, "new")));
    assert!(matches!(state(2), ReplicaState::Unreachable(_)));
}

#[tokio::test(start_paused = true)]
async fn reads_of_one_turn_share_a_message_of_versions() {
    let mut shape = Shape::default();
    shape.settings.read_repair_chance = 0.0;
    let ring = TestRing::new(shape);
    let keys: Vec<_> = (0..300).map(|number| format!("k{number}")).collect();
    for key in &keys {
        ring.plant(0, key, record(5, key)).await;
        ring.plant(1, key, record(5, key)).await;
        ring.plant(2, key, record(5, key)).await;
    }
    ring.all_alive();
    ring.take_sent();
    let answers = join_all(keys.iter().map(|key| ring.get(0, key))).await;
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.unwrap().as_ref(), Some(key), "each is told of its own key");
    }
    let mut asked = 0;
    let sent = ring.take_sent();
    for (_, to, request) in &sent {
        let ReplicaRequest::ReadVersions { keys } = request else { panic!("{to} was asked {request:?}") };
        assert!(keys.len() <= 256);
        asked += keys.len();
    }
    assert_eq!(asked, keys.len());
    assert!(sent.len() <= 4, "{} messages to two peers", sent.len());
}

#[tokio::test(start_paused = true)]
async fn one_of_many_keys_that_differs_is_written_back_and_the_others_are_not() {
    let ring = ring();
    let keys: Vec<_> = (0..20).map(|number| format!("k{number}")).collect();
    for key in &keys {
        for node in 0..3 {
            ring.plant(node, key, record(5, "same")).await;
        }
    }
    for node in 1..3 {
        ring.plant(node, "k7", record(9, "newer")).await;
    }
    let answers = join_all(keys.iter().map(|key| ring.get(0, key))).await;
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.unwrap().as_deref(), Some(if key == "k7" { "newer" } else { "same" }), "{key}");
    }
    assert_eq!(ring.nodes[0].coordinator.stats().write_backs, 1);
    assert_eq!(ring.held_text(0, "k7").as_deref(), Some("newer"), "before the answer");
}

#[tokio::test(start_paused = true)]
async fn all_replicas_are_heard_where_all_are_asked_for() {
    let ring = ring();
    for node in 0..2 {
        ring.plant(node, "k", record(5, "old")).await;
    }
    ring.plant(2, "k", record(9, "new")).await;
    let options = ReadOptions { read_quorum: Some(3) };
    let read = ring.nodes[0].coordinator.get(key("k"), options).await.unwrap();
    assert_eq!(read, Some(record(9, "new")));
    let written_back = (0..3).filter(|node| ring.held_text(*node, "k").as_deref() == Some("new")).count();
    assert!(written_back >= 2, "a majority holds it before the answer");
}
