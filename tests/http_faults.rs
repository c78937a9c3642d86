//! What a client is told when a replica's disk hangs, rots or is full, over real connections to real nodes.

mod http_support;

use http_support::ring::Ring;
use http_support::{Answer, until};

/// A value that does not compress to nothing.
fn value(number: u64) -> String {
    let mut state = number + 1;
    let mut hex = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", state ^ (state >> 29))
    };
    (0..32).map(|_| hex()).collect()
}

fn key(number: u64) -> String {
    format!("key{number:05}")
}

/// Writes keys 0 to `count` with their values through a node.
fn load(ring: &Ring, node: usize, count: u64) {
    for first in (0..count).step_by(500) {
        let item = |n| serde_json::json!({"key": key(n), "value": value(n)});
        let items: Vec<_> = (first..count.min(first + 500)).map(item).collect();
        let answer = ring.at(node).post("/batch", serde_json::json!({"items": items}).to_string());
        assert_eq!(answer.text(), "Batch Processed");
    }
}

fn put_body(key: &str) -> String {
    serde_json::json!({"key": key, "value": "new"}).to_string()
}

/// Stops a node and starts it again, so that what it holds is in tables and in no cache.
fn stop_and_restart(ring: &mut Ring, node: usize) {
    ring.stop(node);
    ring.restart(node);
}

#[test]
fn a_write_that_waits_for_a_hanging_replica_is_504_and_its_hint_brings_it_there() {
    let mut ring = Ring::start(3);
    ring.hang(2);
    let (put, delete, batch) = std::thread::scope(|scope| {
        let put = scope.spawn(|| ring.at(0).post("/put?w=3", put_body("put")));
        let delete = scope.spawn(|| ring.at(0).post("/delete?key=deleted&w=3", ""));
        let batch = scope
            .spawn(|| ring.at(0).post("/batch?w=3", format!(r#"{{"items":[{}]}}"#, put_body("batched"))));
        (put.join().unwrap(), delete.join().unwrap(), batch.join().unwrap())
    });
    let told = format!(
        "2 of 3 replicas acknowledged in time; some may have the write all the same ({}: no answer in time)",
        ring.name(2)
    );
    for answer in [&put, &delete] {
        assert_eq!((answer.code, answer.text()), (504, told.as_str()));
        assert_eq!(answer.header("retry-after"), None, "a retry would write a second time");
    }
    for answer in [&put, &delete, &batch] {
        assert_eq!(answer.header("x-kv-acks"), Some("durable=2 hinted=0 failed=1 pending=0"));
        assert!(answer.header("x-kv-timestamp").is_some());
    }
    assert_eq!(batch.code, 504);
    let failed = &batch.json()["failed"];
    assert_eq!(failed.as_array().unwrap().len(), 1);
    assert_eq!((&failed[0]["key"], &failed[0]["outcome"]), (&"batched".into(), &"unknown".into()));
    assert_eq!(failed[0]["reason"], told.as_str());

    // Who does not ask for all replicas notices nothing, and neither do readers at the node whose disk hangs.
    assert_eq!(ring.at(0).put("quorum", "v").text(), "OK");
    assert_eq!(ring.at(2).get("/get?key=put").text(), "new");

    // What hung in the third node is lost with its power; the hints of the first bring it all the same.
    until("four hints are stored", || ring.status(0, 2)["hints_pending"] == 4);
    ring.cut_power(2);
    ring.restart(2);
    until("the hints are delivered", || ring.status(0, 2)["hints_pending"] == 0);
    for (key, state, answer) in [("put", "value", &put), ("deleted", "tombstone", &delete)] {
        let held = ring.held(0, 2, key);
        assert_eq!(held["state"], state, "{held}");
        assert_eq!(answer.header("x-kv-timestamp"), Some(held["timestamp"].to_string().as_str()));
    }
    assert_eq!(ring.held(0, 2, "batched")["state"], "value");
    assert_eq!(ring.held(0, 2, "quorum")["state"], "value");
}

#[test]
fn a_read_that_waits_for_a_hanging_replica_is_504_and_others_are_not() {
    let mut ring = Ring::start(3);
    load(&ring, 0, 1000);
    stop_and_restart(&mut ring, 2); // what is in memory would be answered without the disk
    ring.until_all_are_up();
    ring.hang(2);
    let (get, scan) = std::thread::scope(|scope| {
        let get = scope.spawn(|| ring.at(0).get("/get?key=key00007&r=3"));
        let scan = scope.spawn(|| ring.at(0).get("/scan?r=3"));
        (get.join().unwrap(), scan.join().unwrap())
    });
    let told = format!("2 of 3 replicas answered in time ({}: no answer in time)", ring.name(2));
    for answer in [get, scan] {
        assert_eq!((answer.code, answer.text()), (504, told.as_str()));
    }
    for node in 0..3 {
        let answer = ring.at(node).get("/get?key=key00007");
        assert_eq!((answer.code, answer.text()), (200, value(7).as_str()), "through node {node}");
    }
    assert_eq!(ring.at(1).get("/scan").json().as_object().unwrap().len(), 1000);
    ring.let_go(2);
    assert_eq!(ring.at(0).get("/get?key=key00007&r=3").text(), value(7));
}

/// A place in the middle of the data of a table.
fn one_place(len: u64) -> Vec<u64> {
    vec![len / 2]
}

/// Every block of the data but the last ones, which lie before what is read when the table is opened.
fn all_over(len: u64) -> Vec<u64> {
    assert!(len > 256 << 10, "{len}");
    (0..len - (64 << 10)).step_by(2048).collect()
}

#[test]
fn a_key_whose_only_copy_is_damaged_is_500_and_the_flipped_bytes_are_never_served() {
    let mut ring = Ring::start(1);
    load(&ring, 0, 2000);
    ring.stop(0);
    ring.rot(0, one_place);
    ring.restart(0);
    assert_eq!(ring.at(0).get("/readyz").code, 200, "what is damaged is met when it is read");
    let mut damaged = Vec::new();
    for n in 0..2000 {
        let answer = ring.at(0).get(&format!("/get?key={}", key(n)));
        if answer.code == 500 {
            assert!(answer.text().starts_with("every reachable copy is damaged ("), "{}", answer.text());
            assert!(answer.text().contains(&ring.name(0)));
            damaged.push(n);
        } else {
            assert_eq!((answer.code, answer.text()), (200, value(n).as_str()), "{}", key(n));
        }
    }
    assert!((1..200).contains(&damaged.len()), "one block: {damaged:?}");
    let metrics = ring.at(0).get("/metrics").json();
    assert_eq!(metrics["errors"], damaged.len());
    assert!(metrics["corruptions"].as_u64().unwrap() > 0);
    // A later write is newer than anything that the damage hides.
    let lost = key(damaged[0]);
    assert_eq!(ring.at(0).put(&lost, "written again").text(), "OK");
    assert_eq!(ring.at(0).get(&format!("/get?key={lost}")).text(), "written again");
}

#[test]
fn a_scan_that_meets_damage_never_looks_complete() {
    let mut ring = Ring::start(1);
    load(&ring, 0, 5000);
    ring.stop(0);
    ring.rot(0, one_place);
    ring.restart(0);
    let mut connection = ring.at(0).connect();
    let streamed = connection.ask("GET", "/scan", &[], b"");
    assert_eq!(streamed.code, 200, "the first pages are whole");
    assert!(!streamed.complete, "the chunked body is aborted");
    assert!(connection.is_closed_silently());
    let text = streamed.text();
    let begun = format!("{{\"{}\":\"{}\"", key(0), value(0));
    assert!(text.starts_with(&begun) && !text.ends_with('}'), "{}", &text[..100]);
    let rows: serde_json::Map<_, _> = serde_json::from_str(&format!("{text}}}")).expect("whole pages");
    assert!((1000..5000).contains(&rows.len()), "{}", rows.len());
    for (n, (name, row)) in (0..).zip(&rows) {
        assert_eq!((name.as_str(), row.as_str()), (key(n).as_str(), Some(value(n).as_str())));
    }
    // A page has its status still to be sent, and names no next one.
    let next = key(rows.len() as u64);
    let page = ring.at(0).get(&format!("/scan?start={next}&limit=1000"));
    assert_eq!(page.code, 500);
    assert!(page.text().starts_with("every reachable copy is damaged ("), "{}", page.text());
    assert_eq!(page.header("x-next-cursor"), None);
    assert_eq!(ring.at(0).get("/scan?limit=1000").json().as_object().unwrap().len(), 1000);
}

#[test]
fn a_damaged_copy_is_answered_for_by_another_replica_until_none_is_left() {
    let mut ring = Ring::start(3);
    load(&ring, 0, 1500);
    for node in [2, 1, 0] {
        ring.stop(node);
        if node == 2 {
            ring.rot(2, all_over);
        }
        ring.restart(node);
        ring.until_all_are_up();
    }
    for node in 0..3 {
        for n in (0..1500).step_by(50) {
            for r in ["", "&r=1"] {
                let answer = ring.at(node).get(&format!("/get?key={}{r}", key(n)));
                assert_eq!((answer.code, answer.text()), (200, value(n).as_str()), "{} at {node}", key(n));
            }
        }
        let all = ring.at(node).get("/scan");
        assert!(all.complete);
        let rows = all.json();
        assert_eq!(rows.as_object().unwrap().len(), 1500);
        assert!((0..1500).all(|n| rows[key(n)] == value(n).as_str()));
    }
    assert!(ring.at(2).get("/metrics").json()["corruptions"].as_u64().unwrap() > 0, "it was met");
    let all_asked = ring.at(0).get(&format!("/get?key={}&r=3", key(1)));
    assert_eq!(all_asked.code, 504, "two are sound, so not every copy is damaged");
    assert!(all_asked.text().contains(&ring.name(2)), "{}", all_asked.text());
    for node in [1, 0] {
        ring.stop(node);
        ring.rot(node, all_over);
        ring.restart(node);
        ring.until_all_are_up();
    }
    for node in 0..3 {
        let answer = ring.at(node).get(&format!("/get?key={}", key(1)));
        assert_eq!(answer.code, 500, "{}", answer.text());
        assert!((0..3).all(|of| answer.text().contains(&ring.name(of))), "{}", answer.text());
        assert_eq!(ring.at(node).get("/scan").code, 500);
    }
    assert_eq!(ring.at(1).put(&key(1), "written again").text(), "OK");
    assert_eq!(ring.at(2).get(&format!("/get?key={}", key(1))).text(), "written again");
}

/// Asserts that every kind of write is refused for want of space.
fn refused_for_want_of_space(ring: &Ring) {
    for answer in [ring.at(0).put("new", "v"), ring.at(0).post("/delete?key=key00001", "")] {
        assert_eq!((answer.code, answer.text()), (507, "out of space on every replica"));
    }
    let batch = ring.at(0).post("/batch", format!(r#"{{"items":[{}]}}"#, put_body("new")));
    assert_eq!(batch.code, 507);
    let failed = &batch.json()["failed"][0];
    assert_eq!((&failed["key"], &failed["outcome"]), (&"new".into(), &"not_sent".into()));
    assert_eq!(failed["reason"], "out of space on every replica");
}

#[test]
fn a_full_disk_is_507_while_reads_go_on_and_writes_resume_with_the_space() {
    for nodes in [1, 3] {
        let ring = Ring::start(nodes);
        load(&ring, 0, 100);
        let nothing_new = |answer: &Answer| assert_eq!(answer.code, 404, "what was refused is nowhere");
        for _ in 0..2 {
            (0..nodes).for_each(|node| ring.fill(node, true));
            refused_for_want_of_space(&ring);
            for node in 0..nodes {
                assert_eq!(ring.at(node).get("/get?key=key00001").text(), value(1));
                assert_eq!(ring.at(node).get("/scan").json().as_object().unwrap().len(), 100);
                nothing_new(&ring.at(node).get("/get?key=new"));
            }
            (0..nodes).for_each(|node| ring.fill(node, false));
            assert_eq!(ring.at(0).put("after", "v").text(), "OK");
            assert_eq!(ring.at(0).post("/delete?key=after", "").text(), "Deleted");
            nothing_new(&ring.at(0).get("/get?key=new"));
        }
        if nodes == 3 {
            assert_eq!(ring.status(0, 1)["hints_pending"], 0, "nobody has it, so nobody shall get it");
        }
    }
}

#[test]
fn a_replica_without_space_gets_its_hints_when_it_has_some_again() {
    let ring = Ring::start(3);
    ring.fill(2, true);
    assert_eq!(ring.at(0).put("one full", "v").text(), "OK");
    ring.fill(1, true);
    let answer = ring.at(0).put("two full", "v");
    assert_eq!(answer.code, 504, "one has it: {}", answer.text());
    assert!(
        answer.text().contains(&ring.name(1)) && answer.text().contains(&ring.name(2)),
        "{}",
        answer.text()
    );
    (1..3).for_each(|node| ring.fill(node, false));
    for node in 1..3 {
        until("the hints are delivered", || ring.held(0, node, "two%20full")["state"] == "value");
    }
    until("the hint is delivered", || ring.held(0, 2, "one%20full")["state"] == "value");
}

/// A value larger than the hint queue got no hint, silently; one larger than the commit queue was always refused.
#[test]
fn the_largest_value_is_stored_replicated_hinted_scanned_and_rebuilt() {
    let largest = "v".repeat(http_support::ring::LIMITS.value_size_max);
    let mut ring = Ring::start(3);
    assert_eq!(ring.at(0).put("everywhere", &largest).code, 200);
    ring.stop(2);
    for n in 0..5 {
        assert_eq!(ring.at(n % 2).put(&format!("missed{n}"), &largest).code, 200);
    }
    let waiting = |at: usize| ring.status(at, 2)["hints_pending"].as_u64().unwrap();
    until("each has its hint", || waiting(0) + waiting(1) == 5);
    ring.restart(2);
    let keys = ["everywhere", "missed0", "missed1", "missed2", "missed3", "missed4"];
    let all_held = |ring: &Ring| {
        until("it holds them all", || keys.iter().all(|key| ring.held(0, 2, key)["state"] == "value"));
    };
    all_held(&ring);
    for n in 0..5 {
        let page = ring.at(1).get(&format!("/scan?prefix=missed{n}"));
        assert!(
            page.code == 200 && page.text().len() > largest.len(),
            "{} bytes of a scan",
            page.text().len()
        );
    }
    ring.cut_power(2);
    ring.wipe(2);
    ring.restart(2);
    ring.until_all_are_up();
    all_held(&ring);
}
