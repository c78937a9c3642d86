//! Writes: quorums, hints, honesty of the answers.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Fate, Shape, TestRing, key, value};
use crate::replication::{Acks, NotSent, Standing, WriteError, WriteOptions};
use crate::rpc::{Handler as _, Refusal, ReplicaRequest, ReplicaResponse, Request, WriteOrigin};
use crate::types::{Record, Timestamp};

fn ring() -> TestRing {
    TestRing::new(Shape::default())
}

const SLOPPY: WriteOptions = WriteOptions { write_quorum: None, sloppy: true };

#[tokio::test(start_paused = true)]
async fn a_write_ends_on_all_replicas_with_one_timestamp() {
    let ring = ring();
    let receipt = ring.put(0, "k", "v").await.unwrap();
    assert!(receipt.acks.durable >= 2);
    assert_eq!(receipt.overtaken, None);
    ring.settle().await;
    for node in 0..3 {
        assert_eq!(ring.held(node, "k"), Some(Record::value(receipt.timestamp, value("v"))));
    }
    assert_eq!(ring.hints(0, 1) + ring.hints(0, 2), 0);
}

#[tokio::test(start_paused = true)]
async fn the_answer_comes_at_w_and_says_who_is_pending() {
    let ring = ring();
    let slow = ring.name(2);
    ring.rule(
        move |_, to, _| {
            if *to == slow { Fate::Delay(Duration::from_millis(700)) } else { Fate::Deliver }
        },
    );
    let started = Instant::now();
    let receipt = ring.put(0, "k", "v").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(100));
    assert_eq!(receipt.acks, Acks { durable: 2, hinted: 0, failed: 0, pending: 1 });
    ring.settle().await;
    assert_eq!(ring.held_text(2, "k").as_deref(), Some("v"), "a late reply is no failure");
    assert_eq!(ring.hints(0, 2), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_answer_in_time_gets_a_hint() {
    let ring = ring();
    let lost = ring.name(2);
    ring.rule(move |_, to, _| if *to == lost { Fate::LoseRequest } else { Fate::Deliver });
    assert_eq!(ring.put(0, "k", "v").await.unwrap().acks.pending, 1);
    assert_eq!(ring.hints(0, 2), 0);
    ring.settle().await;
    assert_eq!(ring.hints(0, 2), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answers_were_lost_is_unknown_and_there_all_the_same() {
    let ring = ring();
    ring.rule(|_, _, _| Fate::LoseAnswer);
    let error = ring.put(0, "k", "v").await.unwrap_err();
    assert!(matches!(error, WriteError::Unknown { acks: Acks { durable: 1, failed: 2, .. }, .. }), "{error}");
    for node in 0..3 {
        assert_eq!(ring.held_text(node, "k").as_deref(), Some("v"));
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_reachable_replicas_mean_503_and_nothing_is_sent() {
    let ring = ring();
    ring.believe_dead(0, 1).await;
    ring.believe_dead(0, 2).await;
    ring.take_sent();
    let error = ring.put(0, "k", "v").await.unwrap_err();
    assert!(matches!(
        error,
        WriteError::NotSent(NotSent::TooFewReplicas { needed: 2, reachable: 1, total: 3 })
    ));
    ring.settle().await;
    assert!(ring.take_sent().is_empty());
    assert_eq!(ring.held(0, "k"), None);
    assert_eq!(ring.hints(0, 1) + ring.hints(0, 2), 0);
}

#[tokio::test(start_paused = true)]
async fn too_few_answers_in_time_mean_504_and_the_hints_stay() {
    let ring = ring();
    ring.rule(|_, _, _| Fate::LoseRequest);
    let started = Instant::now();
    let error = ring.put(0, "k", "v").await.unwrap_err();
    assert_eq!(started.elapsed().as_secs(), 2);
    let WriteError::Unknown { acks, needed, causes, .. } = &error else { panic!("{error}") };
    assert_eq!((acks.durable, acks.failed, *needed), (1, 2, 2));
    assert!(causes.contains("b:1: no answer in time"), "{causes}");
    ring.settle().await;
    assert_eq!((ring.hints(0, 1), ring.hints(0, 2)), (1, 1));
    assert_eq!(ring.held_text(0, "k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_quorum_that_cannot_be_met_any_more_is_not_waited_for() {
    let ring = ring();
    ring.rule(|_, _, _| Fate::Unreachable);
    let started = Instant::now();
    assert!(matches!(ring.put(0, "k", "v").await, Err(WriteError::Unknown { .. })));
    assert!(started.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_target_known_down_has_its_hint_on_disk_before_the_answer() {
    let ring = ring();
    ring.believe_dead(0, 2).await;
    let receipt = ring.put(0, "k", "v").await.unwrap();
    assert_eq!(receipt.acks, Acks { durable: 2, hinted: 1, failed: 0, pending: 0 });
    assert_eq!(ring.hints(0, 2), 1);
    ring.nodes[0].fs.crash_lose_all();
    let hints = ring.nodes[0].fs.fork();
    let env = crate::env::Env { fs: std::sync::Arc::new(hints), ..ring.nodes[0].shared.env.clone() };
    let settings = crate::hints::Settings {
        bytes_max: 1 << 20,
        age_max: Duration::from_secs(3600),
        queue_bytes_max: 128 << 20,
        targets: Vec::new(),
        range_of: std::sync::Arc::new(|_| 0),
        ranges_of: std::sync::Arc::new(|_| vec![0]),
    };
    let reopened = crate::hints::HintStore::open(&env, std::path::Path::new("/hints"), settings).unwrap();
    assert_eq!(reopened.pending(&ring.name(2)).0, 1, "it survives a crash right after the answer");
}

#[tokio::test(start_paused = true)]
async fn a_hint_counts_in_no_strict_quorum() {
    let ring = ring();
    ring.believe_dead(0, 2).await;
    let lost = ring.name(1);
    ring.rule(move |_, to, _| if *to == lost { Fate::LoseRequest } else { Fate::Deliver });
    let error = ring.put(0, "k", "v").await.unwrap_err();
    let WriteError::Unknown { acks, .. } = error else { panic!("{error}") };
    assert_eq!((acks.durable, acks.hinted), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_sloppy_quorum_counts_hints_on_distinct_nodes() {
    let ring = TestRing::new(Shape { nodes: 5, ..Shape::default() });
    let primaries = ring.nodes[0].shared.ring.primaries_of_key(b"k").to_vec();
    let at = ring.nodes.iter().position(|node| node.shared.own == primaries[0]).unwrap();
    for down in &primaries[1..] {
        let down = ring.nodes.iter().position(|node| node.shared.own == *down).unwrap();
        ring.believe_dead(at, down).await;
    }
    assert!(matches!(ring.put(at, "k", "v").await, Err(WriteError::NotSent(_))), "strictly it cannot be");
    let coordinator = &ring.nodes[at].coordinator;
    let receipt = coordinator.put(key("k"), value("v"), SLOPPY).await.unwrap();
    assert_eq!((receipt.acks.durable, receipt.acks.hinted), (1, 2));
    let holders = ring
        .nodes
        .iter()
        .filter(|node| primaries[1..].iter().any(|down| node.shared.hints.pending(down).0 > 0));
    assert_eq!(holders.count(), 2, "each hint lies on a node of its own");
}

#[tokio::test(start_paused = true)]
async fn a_sloppy_quorum_needs_w_distinct_nodes() {
    let ring = ring();
    ring.believe_dead(0, 1).await;
    ring.believe_dead(0, 2).await;
    let answer = ring.nodes[0].coordinator.put(key("k"), value("v"), SLOPPY).await;
    assert!(matches!(answer, Err(WriteError::NotSent(NotSent::TooFewReplicas { reachable: 1, .. }))));
}

#[tokio::test(start_paused = true)]
async fn a_sloppy_quorum_turns_to_hints_in_time_when_replicas_are_silent() {
    let ring = TestRing::new(Shape { nodes: 5, ..Shape::default() });
    let primaries = ring.nodes[0].shared.ring.primaries_of_key(b"k").to_vec();
    let at = ring.nodes.iter().position(|node| node.shared.own == primaries[0]).unwrap();
    let silent = primaries[1..].to_vec();
    ring.keep_alive();
    ring.rule(move |_, to, _| if silent.contains(to) { Fate::LoseRequest } else { Fate::Deliver });
    let receipt = ring.nodes[at].coordinator.put(key("k"), value("v"), SLOPPY).await.unwrap();
    assert!(receipt.acks.hinted >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_vote_stores_the_write_and_does_not_count() {
    let ring = ring();
    ring.nodes[2].shared.standing.set(Standing::Rebuilding);
    ring.all_alive();
    let receipt = ring.put(2, "k", "v").await.unwrap();
    assert_eq!(receipt.acks.durable, 2);
    ring.settle().await;
    assert_eq!(ring.held_text(2, "k").as_deref(), Some("v"));
    ring.nodes[1].shared.standing.set(Standing::Rebuilding);
    // Nodes still believe that it votes: its answers say otherwise.
    let error = ring.put(0, "k", "w").await.unwrap_err();
    assert!(
        matches!(error, WriteError::Unknown { acks: Acks { durable: 1, pending: 2, .. }, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_meets_a_newer_record_says_so_and_is_acknowledged() {
    let ring = ring();
    let newer = Timestamp::from_micros(1_000_400_000);
    ring.plant(1, "k", Record::value(newer, value("newer"))).await;
    let receipt = ring.nodes[0]
        .coordinator
        .put(key("k"), value("older"), WriteOptions { write_quorum: Some(3), sloppy: false })
        .await
        .unwrap();
    assert_eq!(receipt.overtaken, Some(newer));
    assert_eq!(ring.nodes[0].coordinator.stats().overtaken, 1);
    assert_eq!(ring.held_text(1, "k").as_deref(), Some("newer"));
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_on_without_its_client() {
    let ring = ring();
    let write = ring.put(0, "k", "v");
    let _ = timeout(Duration::ZERO, write).await; // polled once, then dropped
    ring.settle().await;
    for node in 0..3 {
        assert_eq!(ring.held_text(node, "k").as_deref(), Some("v"));
    }
}

#[tokio::test(start_paused = true)]
async fn only_when_all_replicas_refuse_for_want_of_space_is_it_507() {
    let ring = ring();
    ring.nodes[0].fs.set_capacity(Some(0));
    ring.rule(|_, _, _| Fate::Refuse(Refusal::NoSpace));
    let error = ring.put(0, "k", "v").await.unwrap_err();
    assert!(matches!(error, WriteError::NoSpace), "{error}");
    ring.settle().await;
    assert_eq!(ring.hints(0, 1) + ring.hints(0, 2), 0, "nobody has it, so nobody shall get it");
    ring.nodes[0].fs.set_capacity(None);
    sleep(Duration::from_secs(2)).await;
    ring.all_alive();
    let error = ring.put(0, "k", "v").await.unwrap_err();
    assert!(matches!(error, WriteError::Unknown { .. }), "one replica stored it: {error}");
    ring.settle().await;
    assert_eq!((ring.hints(0, 1), ring.hints(0, 2)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timestamp_too_far_ahead_is_refused_and_counted() {
    let ring = ring();
    ring.nodes[0].clock.advance(10_000_000);
    let error = ring.put(0, "k", "v").await.unwrap_err();
    let WriteError::Unknown { causes, .. } = &error else { panic!("{error}") };
    assert!(causes.contains("ahead"), "{causes}");
    assert_eq!(ring.nodes[1].coordinator.stats().timestamps_refused, 1);
    assert_eq!(ring.held(1, "k"), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_refuses_keys_that_are_not_its_own() {
    let ring = TestRing::new(Shape { nodes: 5, ..Shape::default() });
    let shared = &ring.nodes[0].shared;
    let stranger = (0..100)
        .map(|n| format!("k{n}"))
        .find(|text| !shared.ring.primaries_of_key(text.as_bytes()).contains(&shared.own))
        .unwrap();
    let body = ReplicaRequest::Write {
        origin: WriteOrigin::Client,
        items: vec![(key(&stranger), Record::tombstone(shared.hlc.now()))],
    };
    let replica = crate::replication::Replica::new(shared.clone());
    let response = replica.handle(&ring.name(1), Request { clock: shared.hlc.now(), body }).await;
    assert_eq!(response.body, ReplicaResponse::Refused(Refusal::NotAReplica));
}

#[tokio::test(start_paused = true)]
async fn no_more_bytes_are_in_flight_than_allowed() {
    let mut shape = Shape::default();
    shape.settings.inflight_bytes_max = 2000;
    let ring = TestRing::new(shape);
    ring.rule(|_, _, _| Fate::LoseRequest);
    let big = "x".repeat(1200);
    let (first, second) = tokio::join!(ring.put(0, "k", &big), async {
        sleep(Duration::from_millis(1)).await;
        ring.put(0, "l", &big).await
    });
    assert!(matches!(first, Err(WriteError::Unknown { .. })));
    assert!(matches!(second, Err(WriteError::NotSent(NotSent::Overloaded))));
    ring.heal();
    ring.settle().await;
    assert_eq!(ring.nodes[0].coordinator.stats().inflight_bytes, 0, "all is given back");
    ring.put(0, "l", &big).await.unwrap();
    ring.settle().await;
    ring.put(0, "l", &"x".repeat(5000)).await.expect("a request larger than the bound may go alone");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_serve_sends_nothing() {
    let ring = ring();
    ring.nodes[0].shared.set_phase(crate::replication::Phase::Stopping);
    assert!(matches!(ring.put(0, "k", "v").await, Err(WriteError::NotSent(NotSent::NotReady(_)))));
    assert!(ring.take_sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_a_write() {
    let ring = ring();
    ring.put(0, "k", "v").await.unwrap();
    let receipt = ring.nodes[1].coordinator.delete(key("k"), WriteOptions::default()).await.unwrap();
    ring.settle().await;
    for node in 0..3 {
        assert_eq!(ring.held(node, "k"), Some(Record::tombstone(receipt.timestamp)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_own_copy_was_not_made_keeps_a_hint_for_itself() {
    let ring = ring();
    ring.nodes[0].shared.store.engine().shutdown(Box::new(|_| {}));
    let receipt = ring.put(0, "k", "v").await.unwrap();
    assert_eq!(receipt.acks.durable, 2);
    ring.settle().await;
    assert_eq!(ring.hints(0, 0), 1);
}

#[cfg(feature = "planted-mistakes")]
mod planted {
    use super::*;
    use crate::env::{Mistake, Planted};

    fn ring_with(mistake: Mistake) -> TestRing {
        TestRing::new(Shape { planted: Planted::mistake(mistake), ..Shape::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_that_counts_acknowledges_what_one_disk_has() {
        let ring = ring_with(Mistake::HintCountsAsAck);
        ring.believe_dead(0, 1).await;
        ring.believe_dead(0, 2).await;
        assert!(ring.put(0, "k", "v").await.is_ok());
        assert_eq!((ring.held(1, "k"), ring.held(2, "k")), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_that_stamp_for_themselves_differ() {
        let ring = ring_with(Mistake::ReplicaStampsItsOwnTime);
        ring.nodes[1].clock.advance(100_000);
        ring.put(0, "k", "v").await.unwrap();
        ring.settle().await;
        assert_ne!(ring.held(0, "k"), ring.held(1, "k"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_gives_one_write_two_timestamps() {
        let ring = ring_with(Mistake::RetryUnderNewTimestamp);
        let slow = ring.name(0);
        ring.rule(
            move |from, _, _| {
                if *from == slow { Fate::Delay(Duration::from_millis(800)) } else { Fate::Deliver }
            },
        );
        let receipt = ring.put(0, "k", "v").await.unwrap();
        ring.settle().await;
        assert!(ring.held(1, "k").unwrap().timestamp() > receipt.timestamp);
    }
}

fn items_of(request: &ReplicaRequest) -> usize {
    let ReplicaRequest::Write { items, .. } = request else { panic!("only writes are sent: {request:?}") };
    items.len()
}

#[tokio::test(start_paused = true)]
async fn the_writes_of_one_turn_share_messages_and_a_sync() {
    let ring = ring();
    ring.put(0, "first", "v").await.unwrap();
    ring.settle().await;
    ring.take_sent();
    let syncs = ring.nodes[0].coordinator.engine_stats().wal_syncs;
    let keys: Vec<_> = (0..20).map(|number| format!("k{number}")).collect();
    let receipts = join_all(keys.iter().map(|key| ring.put(0, key, key))).await;
    let timestamps: Vec<_> = receipts.into_iter().map(|receipt| receipt.unwrap().timestamp).collect();
    assert!(timestamps.is_sorted_by(|a, b| a < b), "each has its own");
    let sent: Vec<_> = ring.take_sent().iter().map(|(_, _, request)| items_of(request)).collect();
    assert_eq!(sent, [20, 20]);
    assert_eq!(ring.nodes[0].coordinator.engine_stats().wal_syncs - syncs, 1);
    ring.settle().await;
    for (key, timestamp) in keys.iter().zip(timestamps) {
        for node in 0..3 {
            assert_eq!(ring.held(node, key).map(|record| record.timestamp()), Some(timestamp), "{key}");
            assert_eq!(ring.held_text(node, key).as_ref(), Some(key));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_has_so_many_items_or_bytes_at_most() {
    let ring = ring();
    let keys: Vec<_> = (0..600).map(|number| format!("k{number}")).collect();
    for receipt in join_all(keys.iter().map(|key| ring.put(0, key, "v"))).await {
        receipt.unwrap();
    }
    let mut sent: Vec<_> = ring.take_sent().iter().map(|(_, _, request)| items_of(request)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [88, 88, 256, 256, 256, 256]);
    let big = "v".repeat(300 << 10);
    for receipt in join_all(keys[..8].iter().map(|key| ring.put(0, key, &big))).await {
        receipt.unwrap();
    }
    let mut sent: Vec<_> = ring.take_sent().iter().map(|(_, _, request)| items_of(request)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [2, 2, 3, 3, 3, 3], "a MiB a message");
}

#[tokio::test(start_paused = true)]
async fn each_write_of_a_group_is_told_whether_it_was_overtaken() {
    let ring = ring();
    let newer = Timestamp::from_micros(1_000_400_000);
    ring.plant(1, "k3", Record::value(newer, value("newer"))).await;
    let options = WriteOptions { write_quorum: Some(3), sloppy: false };
    let puts = (0..6)
        .map(|number| ring.nodes[0].coordinator.put(key(&format!("k{number}")), value("older"), options));
    for (number, receipt) in join_all(puts).await.into_iter().enumerate() {
        assert_eq!(receipt.unwrap().overtaken, (number == 3).then_some(newer), "k{number}");
    }
    assert_eq!(ring.nodes[0].coordinator.stats().overtaken, 1);
}

#[tokio::test(start_paused = true)]
async fn writes_that_want_other_quorums_do_not_wait_for_each_other() {
    let ring = ring();
    let cut = ring.name(2);
    ring.rule(move |_, to, _| if *to == cut { Fate::LoseRequest } else { Fate::Deliver });
    let put = |text: &'static str, write_quorum| {
        let options = WriteOptions { write_quorum: Some(write_quorum), sloppy: false };
        ring.nodes[0].coordinator.put(key(text), value("v"), options)
    };
    let (one, two, three) = tokio::join!(put("a", 1), put("b", 2), put("c", 3));
    assert_eq!((one.unwrap().acks.durable, two.unwrap().acks.durable), (1, 2));
    assert!(matches!(three, Err(WriteError::Unknown { acks: Acks { durable: 2, .. }, needed: 3, .. })));
}

#[tokio::test(start_paused = true)]
async fn each_write_of_a_group_that_fails_is_told_its_own_timestamp() {
    let ring = ring();
    ring.rule(|_, _, _| Fate::LoseRequest);
    let outcomes = join_all(["a", "b", "c"].map(|text| ring.put(0, text, "v"))).await;
    let timestamps: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Err(WriteError::Unknown { timestamp, .. }) => timestamp,
            other => panic!("{other:?}"),
        })
        .collect();
    let held: Vec<_> = ["a", "b", "c"].map(|text| ring.held(0, text).unwrap().timestamp()).to_vec();
    assert_eq!(timestamps, held);
    ring.settle().await;
    assert_eq!((ring.hints(0, 1), ring.hints(0, 2)), (3, 3));
}
