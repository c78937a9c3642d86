//! Batches: grouping, order, honesty per item.

use super::harness::{Fate, Shape, TestRing, key, value};
use crate::replication::{Mutation, WriteError, WriteOptions};
use crate::rpc::ReplicaRequest;

fn items(count: usize) -> Vec<(crate::types::Key, Mutation)> {
    (0..count).map(|n| (key(&format!("key{n}")), Mutation::Put(value(&n.to_string())))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_costs_one_message_a_replica_and_group() {
    let ring = TestRing::new(Shape::default());
    ring.take_sent();
    let receipt = ring.nodes[0].coordinator.batch(items(900), WriteOptions::default()).await;
    assert!(receipt.failed.is_empty());
    assert!(receipt.acks.unwrap().durable >= 2);
    ring.settle().await;
    let sent = ring.take_sent();
    let records = |request: &ReplicaRequest| match request {
        ReplicaRequest::Write { items, .. } => items.len(),
        _ => 0,
    };
    assert_eq!(sent.len(), 2, "three nodes are one replica set, and this one is not sent anything");
    assert!(sent.iter().all(|(_, _, request)| records(request) == 900));
    for node in 0..3 {
        assert_eq!(ring.held_text(node, "key899").as_deref(), Some("899"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_is_cut_into_bounded_messages() {
    let ring = TestRing::new(Shape::default());
    ring.take_sent();
    let receipt = ring.nodes[0].coordinator.batch(items(2500), WriteOptions::default()).await;
    assert!(receipt.failed.is_empty());
    ring.settle().await;
    assert_eq!(ring.take_sent().len(), 6);
    let big = "x".repeat(600 << 10);
    let batch = (0..4).map(|n| (key(&format!("big{n}")), Mutation::Put(value(&big)))).collect();
    let receipt = ring.nodes[0].coordinator.batch(batch, WriteOptions::default()).await;
    assert!(receipt.failed.is_empty());
    ring.settle().await;
    assert_eq!(ring.take_sent().len(), 8, "each goes alone");
}

#[tokio::test(start_paused = true)]
async fn of_two_items_with_one_key_the_later_wins() {
    let ring = TestRing::new(Shape::default());
    let mut batch = items(1500);
    batch.insert(0, (key("twice"), Mutation::Put(value("first"))));
    batch.push((key("twice"), Mutation::Put(value("last"))));
    batch.push((key("key3"), Mutation::Delete));
    let receipt = ring.nodes[1].coordinator.batch(batch, WriteOptions::default()).await;
    assert!(receipt.failed.is_empty());
    ring.settle().await;
    for node in 0..3 {
        assert_eq!(ring.held_text(node, "twice").as_deref(), Some("last"));
        assert!(ring.held(node, "key3").unwrap().is_tombstone());
        assert!(ring.held(node, "key3").unwrap().timestamp() == receipt.timestamp);
    }
}

#[tokio::test(start_paused = true)]
async fn each_item_of_a_batch_is_answered_for() {
    let ring = TestRing::new(Shape { nodes: 6, ..Shape::default() });
    let at = &ring.nodes[0].shared;
    let others = at.ring.primaries_of_key(b"key0").iter().filter(|node| **node != at.own);
    let cut: Vec<_> = others.take(2).cloned().collect();
    let batch = items(200);
    let expected: Vec<_> = batch
        .iter()
        .map(|(key, _)| key.clone())
        .filter(|key| {
            let replicas = at.ring.primaries_of_key(key.as_bytes());
            replicas.iter().filter(|node| cut.contains(node)).count() == 2
        })
        .collect();
    assert!(!expected.is_empty() && expected.len() < 200);
    ring.rule(move |_, to, _| if cut.contains(to) { Fate::LoseRequest } else { Fate::Deliver });
    let receipt = ring.nodes[0].coordinator.batch(batch, WriteOptions::default()).await;
    let failed: Vec<_> = receipt.failed.iter().map(|item| item.key.clone()).collect();
    assert_eq!(failed, expected, "in the order they were given");
    assert!(receipt.failed.iter().all(|item| matches!(item.error, WriteError::Unknown { .. })));
    assert_eq!(receipt.acks.unwrap().durable, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_nothing_is_no_work() {
    let ring = TestRing::new(Shape::default());
    ring.take_sent();
    let receipt = ring.nodes[0].coordinator.batch(Vec::new(), WriteOptions::default()).await;
    assert!(receipt.acks.is_none() && receipt.failed.is_empty());
    assert!(ring.take_sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_items_hold_no_more_messages_in_flight_than_allowed() {
    let ring = TestRing::new(Shape::default());
    ring.rule(|_, _, _| Fate::LoseRequest);
    ring.take_sent();
    let coordinator = ring.nodes[0].coordinator.clone();
    let batch = coordinator.batch(items(100_000), WriteOptions::default());
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), batch).await;
    let sent = ring.take_sent().len();
    assert_eq!(sent, 2 * 4, "BATCH_CONCURRENCY chunks, two peers each");
}
