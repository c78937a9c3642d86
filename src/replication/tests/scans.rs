//! Scans: how far a page looks, and what it is when it cannot go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::harness::{Fate, Shape, TestRing, key, value};
use crate::engine::WriteBatch;
use crate::replication::{ScanOptions, ValuePage};
use crate::rpc::ReplicaRequest;
use crate::types::{Expiry, Key, KeyRange, Record, Timestamp, Value};

const BEHIND: usize = 30_000;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(999_000_000 + micros)
}

/// A ring on whose disks many records lie before one value, each as `behind` makes it.
async fn ring(behind: impl Fn(Timestamp) -> Record) -> TestRing {
    let ring = TestRing::new(Shape::default());
    for node in &ring.nodes {
        for first in (0..BEHIND).step_by(10_000) {
            let items: Vec<(Key, Record)> =
                (first..first + 10_000).map(|i| (key(&format!("q:{i:06}")), behind(at(1)))).collect();
            node.shared.store.write(WriteBatch::from(items)).await.unwrap();
        }
    }
    for index in 0..3 {
        ring.plant(index, "q:999999", Record::value(at(2), value("last"))).await;
    }
    ring.take_sent();
    ring
}

async fn page(ring: &TestRing, start: Option<bytes::Bytes>, rows_max: usize) -> ValuePage {
    let range = KeyRange { start, ..KeyRange::prefix(b"q:") };
    let (bytes_max, examined_max) = (4 << 20, 100_000);
    let options = ScanOptions { range, read_quorum: None, rows_max, bytes_max, examined_max };
    ring.nodes[0].coordinator.scan_page(options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_value_behind_many_deleted_ones_is_found_by_one_page_whatever_its_limit() {
    let deleted = ring(Record::tombstone).await;
    let expired =
        |timestamp: Timestamp| Record::value(timestamp, value("v").expiring(Some(Expiry::at(timestamp))));
    let expired = ring(expired).await;
    for (ring, what) in [(deleted, "deleted"), (expired, "expired")] {
        for rows_max in [1, 100, 10_000] {
            let page = page(&ring, None, rows_max).await;
            assert_eq!(page.items.len(), 1, "{what}, a limit of {rows_max}");
            assert_eq!((page.resume, page.examined), (None, BEHIND + 1), "{what}, a limit of {rows_max}");
        }
        // Rounds stay small: that is what bounds the memory of a page that asks for little.
        let asked =
            ring.take_sent().into_iter().filter(|(.., request)| matches!(request, ReplicaRequest::Scan(_)));
        assert!(asked.count() >= BEHIND / 2_000, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_values_costs_what_it_asks_for() {
    let ring = ring(|timestamp| Record::value(timestamp, Value::new(vec![0; 100]))).await;
    let page = page(&ring, None, 10).await;
    assert_eq!((page.items.len(), page.examined), (10, 10));
    assert_eq!(page.resume.as_deref(), Some(&b"q:000010"[..]));
    let asked =
        ring.take_sent().into_iter().filter(|(.., request)| matches!(request, ReplicaRequest::Scan(_)));
    assert_eq!(asked.count(), 1, "one round, one other node");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_takes_too_long_ends_where_it_is_and_the_next_goes_on() {
    let ring = ring(Record::tombstone).await;
    ring.keep_alive();
    ring.rule(|_, _, request| match request {
        ReplicaRequest::Scan(_) => Fate::Delay(Duration::from_millis(500)),
        _ => Fate::Deliver,
    });
    let (mut start, mut pages, mut found) = (None, 0, 0);
    loop {
        let started = Instant::now();
        let page = page(&ring, start, 1).await;
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        (pages, found) = (pages + 1, found + page.items.len());
        match page.resume {
            Some(resume) => start = Some(resume),
            None => break,
        }
    }
    assert_eq!(found, 1);
    assert!((2..10).contains(&pages), "{pages}");
}

#[tokio::test(start_paused = true)]
async fn what_was_found_before_nobody_answered_any_more_is_a_page() {
    let ring = ring(Record::tombstone).await;
    let asked = Arc::new(AtomicUsize::new(0));
    ring.rule(move |_, _, request| match request {
        ReplicaRequest::Scan(_) if asked.fetch_add(1, Ordering::Relaxed) >= 3 => Fate::Unreachable,
        _ => Fate::Deliver,
    });
    let page = page(&ring, None, 1).await;
    assert_eq!(page.items.len(), 0);
    assert_eq!(page.resume.as_deref(), Some(&b"q:006000"[..]), "three rounds of 2,000");
}
