//! The status page and its events, as a browser meets them. `scripts/test_page.sh` looks at them with a real one.
#![allow(clippy::disallowed_methods)] // a viewer lives in the real world

mod http_support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use http_support::{Server, limits};
use serde_json::Value;

/// A stream of events.
struct Events {
    head: String,
    lines: BufReader<TcpStream>,
}

impl Events {
    fn open(server: &Server) -> Self {
        let mut stream = server.connect().stream;
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut head, mut lines) = (String::new(), BufReader::new(stream));
        while !head.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        Self { head, lines }
    }

    /// The next event; `None` when the stream has come to its end.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let ended = self.lines.read_line(&mut line).unwrap() == 0 || line == "0\r\n";
            if let Some(data) = line.strip_prefix("data: ") {
                let event = serde_json::from_str(data).unwrap();
                line.clear();
                self.lines.read_line(&mut line).unwrap();
                assert_eq!(line, "\n", "an empty line ends an event");
                return Some(event);
            } else if ended {
                return None;
            }
        }
    }
}

#[test]
fn the_page_is_html_that_may_load_nothing() {
    let server = Server::start();
    let page = server.get("/");
    assert_eq!((page.code, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().starts_with("<!doctype html>") && page.text().contains("EventSource(\"events\")"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(policy.contains("connect-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(server.ask("HEAD", "/", b"").code, 200);
    let refused = server.post("/", "");
    assert_eq!((refused.code, refused.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
}

#[test]
fn the_page_is_there_before_the_node_is_and_events_are_not() {
    let (server, api) = limits();
    let server = Server::start_unready(server, api);
    assert_eq!(server.get("/").code, 200);
    let events = server.get("/events");
    assert_eq!((events.code, events.header("retry-after")), (503, Some("1")));
}

#[test]
fn events_say_how_each_node_is_and_what_it_does() {
    let server = Server::start_lonely();
    let mut events = Events::open(&server);
    assert!(events.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", events.head);
    assert!(events.head.contains("content-type: text/event-stream\r\n"), "{}", events.head);
    assert!(events.head.contains("cache-control: no-store\r\n"), "{}", events.head);
    let first = events.next().unwrap();
    assert_eq!(first["node_id"], "127.0.0.1:1");
    assert_eq!((&first["replication_factor"], &first["write_quorum"]), (&3.into(), &2.into()));
    assert_eq!(first["nodes"].as_array().unwrap().len(), 3);
    let own = &first["nodes"][0];
    assert_eq!(own["name"], "127.0.0.1:1");
    assert!(own["load"]["engine"]["level_files"].is_array());
    assert!(own["load"]["interval_ms"].is_null(), "nothing was measured yet: {own}");
    assert!(first["nodes"][1]["load"].is_null(), "a node that is away says nothing");

    // A rate is of the last interval: it is seen in one of the next events, whenever those come.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        server.get("/get?key=nobody"); // refused, since the others are down: counted all the same
        let event = events.next().unwrap();
        let load = &event["nodes"][0]["load"];
        assert!(load["interval_ms"].as_u64().unwrap() >= 900, "{load}");
        assert!((0.0..64.0).contains(&load["cpu_cores"].as_f64().unwrap()), "{load}");
        let reads = &load["operations"]["reads"];
        if reads["per_second"].as_f64().is_some_and(|rate| rate > 0.0) {
            assert!(reads["p99_micros"].as_u64() >= reads["p50_micros"].as_u64(), "{load}");
            assert!(load["errors_per_second"].as_f64().unwrap() > 0.0, "{load}");
            break;
        }
        assert!(Instant::now() < deadline, "{load}");
    }
}

#[test]
fn all_viewers_see_the_same_events_once_a_second() {
    let server = Server::start();
    let mut viewers: Vec<_> = (0..10).map(|_| Events::open(&server)).collect();
    let started = Instant::now();
    for round in 0..3 {
        let seen: Vec<_> = viewers.iter_mut().map(|viewer| viewer.next().unwrap()).collect();
        // Who came while the first was made is counted from the next on.
        assert!(round == 0 || seen.iter().all(|event| event["viewers"] == 10), "{}", seen[0]["viewers"]);
    }
    assert!(started.elapsed() >= Duration::from_millis(1_800), "{:?}", started.elapsed());
}

#[test]
fn a_viewer_who_leaves_does_not_take_the_events_with_him() {
    let server = Server::start();
    let (mut first, mut second) = (Events::open(&server), Events::open(&server));
    first.next().unwrap();
    drop(first);
    for _ in 0..3 {
        second.next().unwrap();
    }
    assert_eq!(second.next().unwrap()["viewers"], 1);
}

#[test]
fn one_viewer_too_many_is_refused() {
    let server = Server::start();
    let mut viewers: Vec<_> = (0..100).map(|_| Events::open(&server)).collect();
    assert!(viewers.iter_mut().all(|viewer| viewer.next().is_some()));
    assert_eq!(server.get("/events").code, 503);
    assert_eq!(server.ask("HEAD", "/events", b"").code, 200, "who wants no events takes no place");
    assert_eq!(server.get("/health").code, 200);
}

#[test]
fn a_stopping_node_ends_the_stream_in_order() {
    let server = Server::start();
    let mut events = Events::open(&server);
    events.next().unwrap();
    server.api.drain();
    while events.next().is_some() {}
    let mut rest = String::new();
    server.signal_stop();
    events.lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "\r\n", "the last chunk is whole, and then the connection ends");
    assert!(server.stop() < Duration::from_secs(2), "nothing was left to cut");
}
