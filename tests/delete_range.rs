//! `POST /delete-range`: what a scan of a range finds is deleted, and what is told when it stops half way.

mod http_support;

use http_support::ring::Ring;
use http_support::{Server, until};
use serde_json::{Value, json};

fn fill(server: &Server, count: usize) {
    for from in (0..count).step_by(1_000) {
        let items = (from..count.min(from + 1_000)).map(|n| json!({"key": format!("k{n:05}"), "value": "v"}));
        let answer = server.post("/batch", json!({"items": items.collect::<Vec<_>>()}).to_string());
        assert_eq!(answer.code, 200, "{}", answer.text());
    }
}

fn keys(server: &Server) -> Vec<String> {
    let scanned: Value = server.get("/scan").json();
    scanned.as_object().unwrap().keys().cloned().collect()
}

fn deleted(server: &Server, query: &str) -> u64 {
    let answer = server.post(&format!("/delete-range?{query}"), "");
    assert_eq!(
        (answer.code, answer.header("content-type")),
        (200, Some("application/json")),
        "{}",
        answer.text()
    );
    answer.json()["deleted"].as_u64().unwrap()
}

#[test]
fn both_ends_are_included_as_in_a_scan() {
    let server = Server::start();
    fill(&server, 10);
    assert_eq!(server.post("/delete-range?start=k00002&end=k00004", "").text(), r#"{"deleted":3}"#);
    assert_eq!(keys(&server), ["k00000", "k00001", "k00005", "k00006", "k00007", "k00008", "k00009"]);
    assert_eq!(deleted(&server, "end=k00001"), 2);
    assert_eq!(deleted(&server, "start=k00008"), 2);
    assert_eq!(deleted(&server, "start=k00007&end=k00005"), 0);
    assert_eq!(deleted(&server, "prefix=k0000&end=k00005"), 1);
    assert_eq!(deleted(&server, "start=k00000&end=k00004"), 0, "they were deleted before");
    assert_eq!(keys(&server), ["k00006", "k00007"]);
    assert_eq!(server.get("/get?key=k00002").code, 404);
    assert_eq!(deleted(&server, "all=true"), 2);
    assert!(keys(&server).is_empty());
}

#[test]
fn everything_goes_only_when_that_is_said() {
    let server = Server::start();
    fill(&server, 3);
    for query in
        ["", "?", "?start=", "?start=&end=&prefix=", "?strat=a", "?all=false", "?all=yes", "?limit=3"]
    {
        let refused = server.post(&format!("/delete-range{query}"), "");
        assert_eq!(refused.code, 400, "{query}: {}", refused.text());
    }
    for query in
        ["?all=true&start=a", "?all=true&prefix=k", "?start=a&w=9", "?start=a&cursor=nonsense", "?start=%"]
    {
        assert_eq!(server.post(&format!("/delete-range{query}"), "").code, 400, "{query}");
    }
    assert_eq!(server.get("/delete-range?all=true").code, 405);
    assert_eq!(keys(&server).len(), 3);
}

#[test]
fn our_own_door_has_it_too() {
    let server = Server::start();
    fill(&server, 10);
    assert_eq!(server.post("/v1/kv:delete-range?prefix=k0000", "").json(), json!({"deleted": 10}));
    let refused = server.post("/v1/kv:delete-range", "");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert_eq!((refused.code, &refused.json()["code"]), (400, &json!("bad_request")));
}

#[test]
fn a_range_of_many_pages_goes_whole() {
    let server = Server::start();
    fill(&server, 3_500);
    assert_eq!(deleted(&server, "start=k00100&end=k03399"), 3_300);
    assert_eq!(keys(&server).len(), 200);
    assert_eq!(server.get("/metrics").json()["deletes"], 1, "one request is one delete");
}

#[test]
fn a_range_that_cannot_be_deleted_says_how_far_it_came_and_where_to_go_on() {
    let mut ring = Ring::start(3);
    fill(ring.at(0), 50);
    ring.cut_power(1);
    ring.cut_power(2);
    until("node 0 believes the others down", || {
        [1, 2].iter().all(|node| ring.status(0, *node)["state"] == "down")
    });
    let answer = ring.at(0).post("/delete-range?start=k00010", "");
    assert_eq!((answer.code, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    let told = answer.json();
    assert_eq!(
        (&told["deleted"], &told["retryable"], &told["outcome"]),
        (&json!(0), &json!(true), &json!("not_sent"))
    );
    assert!(told["error"].as_str().unwrap().contains("replicas"), "{told}");
    let problem = ring.at(0).post("/v1/kv:delete-range?start=k00010", "");
    assert_eq!((problem.code, problem.header("content-type")), (503, Some("application/problem+json")));
    let problem = problem.json();
    assert_eq!((&problem["code"], &problem["deleted"]), (&json!("too_few_replicas"), &json!(0)));
    let cursor = told["next_cursor"].as_str().unwrap().to_owned();
    assert_eq!(problem["next_cursor"], cursor.as_str());
    ring.restart(1);
    ring.restart(2);
    ring.until_all_are_up();
    assert_eq!(deleted(ring.at(0), &format!("start=k00010&cursor={cursor}")), 40);
    assert_eq!(keys(ring.at(2)).len(), 10);
}

#[test]
fn it_ends_with_its_client() {
    #![allow(clippy::disallowed_methods)] // whether it goes on is seen by waiting
    const COUNT: usize = 40_000;
    let server = Server::start();
    fill(&server, COUNT);
    let mut client = server.connect();
    client.send("POST /delete-range?all=true HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    let tombstoned = || COUNT - keys(&server).len();
    let first = keys(&server).swap_remove(0);
    until("it has begun", || server.get(&format!("/get?key={first}")).code == 404);
    drop(client);
    let mut last = tombstoned();
    until("it has ended", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let before = std::mem::replace(&mut last, tombstoned());
        before == last
    });
    assert!(last < COUNT, "all was deleted though nobody waited for it");
}
