//! `?ttl=`: values that end, through every door, by a clock that the test moves.

mod http_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_support::{Answer, Server, Start, limits};
use kvstore::cluster::Member;
use kvstore::config::Config;
use kvstore::env::{Env, ManualClock};
use kvstore::http::bind;
use kvstore::types::NodeId;
use serde_json::{Value, json};

/// 2026-11-21T16:45:00Z.
const NOW: u64 = 1_795_279_500_000_000;
const SECOND: u64 = 1_000_000;

/// A node alone, and its clock.
fn start() -> (Server, Arc<ManualClock>, tempfile::TempDir) {
    let clock = Arc::new(ManualClock::at(NOW));
    let dir = tempfile::tempdir().unwrap();
    let own = NodeId::from_canonical("127.0.0.1:1");
    let config = Config {
        advertise_addr: own.as_str().to_owned(),
        members: vec![Member { id: own, weight: 10, zone: None }],
        dir: dir.path().join("data"),
        range_count: 64,
        write_quorum: 1,
        read_quorum: 1,
        ..Config::default()
    };
    let env = Env { clock: clock.clone(), ..Env::real() };
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
    let (server, api) = limits();
    let start = Start { config, env, meets_peers: false };
    (Server::serve_on(listener, server, api, Some(start)), clock, dir)
}

fn ok(answer: &Answer) {
    assert!((200..300).contains(&answer.code), "{} {}", answer.code, answer.text());
}

/// Every way to write a value to a key: method, target without the ttl, body.
fn writes(key: &str) -> Vec<(&'static str, String, Vec<u8>)> {
    let value = STANDARD.encode("v");
    let put = json!({"key": key, "value": "v"});
    let vikdb = json!({"keys": [STANDARD.encode(key)], "values": [value]});
    vec![
        ("POST", "/put?".to_owned(), put.to_string().into()),
        ("POST", "/batch?".to_owned(), json!({"items": [put]}).to_string().into()),
        ("POST", "/set?".to_owned(), json!({key: "v"}).to_string().into()),
        ("PUT", format!("/kv/{}?", URL_SAFE_NO_PAD.encode(key)), json!({"value": value}).to_string().into()),
        ("POST", "/kv/batch?".to_owned(), vikdb.to_string().into()),
        ("POST", format!("/blobs/{key}?"), b"v".to_vec()),
        ("PUT", format!("/blobs/{key}?"), b"v".to_vec()),
        ("PUT", format!("/v1/kv/{key}?"), b"v".to_vec()),
    ]
}

/// What every door says of a key: whether it has a value.
fn seen(server: &Server, key: &str) -> Vec<bool> {
    let vikdb = format!("/kv/{}", URL_SAFE_NO_PAD.encode(key));
    let found =
        [format!("/get?key={key}"), vikdb, format!("/blobs/{key}"), format!("/v1/kv/{key}")].map(|target| {
            let got = server.get(&target).code;
            let headed = server.ask("HEAD", &target, b"").code;
            assert_eq!(got, headed, "{target}");
            got == 200
        });
    let lists: [fn(&Server) -> String; 4] = [
        |server| server.get("/scan").text().to_owned(),
        |server| server.get("/blobs").text().to_owned(),
        |server| server.get("/v1/kv?keys_only=true").text().to_owned(),
        |server| server.get("/v1/kv?reverse=true").text().to_owned(),
    ];
    let listed = lists.map(|list| list(server).contains(&format!("{key:?}")));
    let many = server.post("/v1/kv:get", json!({"keys": [key]}).to_string()).json();
    let named = !many["items"].as_array().unwrap().is_empty();
    found.into_iter().chain(listed).chain([named]).collect()
}

#[test]
fn a_value_written_by_any_door_ends_for_all_of_them() {
    let (server, clock, _dir) = start();
    for (number, (method, target, body)) in writes("key").into_iter().enumerate() {
        ok(&server.put("key", "older"));
        ok(&server.ask(method, &format!("{target}ttl=60s"), &body));
        assert_eq!(seen(&server, "key"), [true; 9], "{method} {target}");
        clock.advance(59 * SECOND);
        assert_eq!(seen(&server, "key"), [true; 9], "{method} {target}, a second before its end");
        clock.advance(SECOND + 1);
        assert_eq!(seen(&server, "key"), [false; 9], "{method} {target}, after its end");
        assert_eq!(server.ask("DELETE", "/del?key=key", b"").code, 404, "there is nothing to remove");
        clock.set(NOW + (number as u64 + 1) * 3600 * SECOND);
    }
    let metrics = server.get("/metrics").json();
    assert!(metrics["expired_reads"].as_u64().unwrap() > 0, "{metrics}");
    assert_eq!(metrics["expired_dropped"], 0);
}

#[test]
fn a_write_without_a_ttl_has_none() {
    let (server, clock, _dir) = start();
    for (method, target, body) in writes("key") {
        ok(&server.ask("PUT", "/v1/kv/key?ttl=1s", b"short"));
        let written = server.ask(method, target.trim_end_matches('?'), &body);
        ok(&written);
        assert_eq!(written.header("x-kv-expires"), None);
        clock.advance(3600 * SECOND);
        assert_eq!(server.get("/get?key=key").body, b"v", "{method} {target}");
        assert_eq!(server.get("/get?key=key").header("x-kv-expires"), None);
    }
}

#[test]
fn the_end_is_told_with_the_value_and_explained() {
    let (server, clock, _dir) = start();
    let written = server.ask("PUT", "/v1/kv/key?ttl=90", b"v");
    assert_eq!(written.header("x-kv-expires"), Some("2026-11-21T16:46:30.000000Z"));
    for target in ["/get?key=key", "/blobs/key", "/v1/kv/key", "/kv/a2V5"] {
        let got = server.get(target);
        assert_eq!(got.header("x-kv-expires"), written.header("x-kv-expires"), "{target}");
        assert_eq!(server.ask("HEAD", target, b"").header("x-kv-expires"), written.header("x-kv-expires"));
    }
    let listed = server.get("/v1/kv").json();
    assert_eq!(listed["items"][0]["expires_at"], "2026-11-21T16:46:30.000000Z");
    let replica = |server: &Server| server.get("/explain?key=key").json()["replicas"][0].clone();
    let before = replica(&server);
    assert_eq!((&before["state"], &before["expired"]), (&json!("value"), &json!(false)));
    assert_eq!(before["expires_at"], "2026-11-21T16:46:30.000000Z");
    clock.advance(90 * SECOND);
    let after = replica(&server);
    assert_eq!(
        (&after["state"], &after["expired"], &after["size"]),
        (&json!("tombstone"), &json!(true), &json!(0))
    );
    assert_eq!((&after["expires_at"], &after["timestamp"]), (&before["expires_at"], &before["timestamp"]));
    let gone = server.get("/get?key=key");
    assert_eq!((gone.code, gone.header("x-kv-expires")), (404, Some("2026-11-21T16:46:30.000000Z")));
    ok(&server.put("key", "for ever"));
    let explained = replica(&server);
    assert_eq!((explained.get("expires_at"), explained.get("expired")), (None, None));
}

#[test]
fn an_item_of_a_batch_may_have_a_ttl_of_its_own() {
    let (server, clock, _dir) = start();
    let items = json!({"items": [
        {"key": "short", "value": "v", "ttl": "5s"},
        {"key": "seconds", "value": "v", "ttl": 10},
        {"key": "as the others", "value": "v"},
    ]});
    ok(&server.post("/batch?ttl=1m", items.to_string()));
    ok(&server.post("/put?ttl=1m", json!({"key": "one", "value": "v", "ttl": "5s"}).to_string()));
    ok(&server.ask("PUT", "/kv/dmlr", json!({"value": "dg==", "ttl": "5s"}).to_string().as_bytes()));
    let left = |server: &Server| -> Vec<String> {
        let scanned: Value = server.get("/scan").json();
        scanned.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(left(&server), ["as the others", "one", "seconds", "short", "vik"]);
    clock.advance(6 * SECOND);
    assert_eq!(left(&server), ["as the others", "seconds"]);
    clock.advance(6 * SECOND);
    assert_eq!(left(&server), ["as the others"]);
    clock.advance(60 * SECOND);
    assert!(left(&server).is_empty());
}

#[test]
fn what_is_no_ttl_is_refused_and_nothing_is_written() {
    let (server, _clock, _dir) = start();
    for (method, target, body) in writes("key") {
        for bad in
            ["0", "0s", "-1", "", "soon", "1.5s", "1w", "500us", "7301d", "99999999999999999999", "1s+"]
        {
            let refused = server.ask(method, &format!("{target}ttl={bad}"), &body);
            assert_eq!(refused.code, 400, "{method} {target}ttl={bad}");
            let text = refused.text();
            assert!(text.contains("ms, s, m, h or d") && text.contains("7300d"), "{text}");
        }
    }
    let items = json!({"items": [{"key": "a", "value": "v"}, {"key": "b", "value": "v", "ttl": 0}]});
    let refused = server.post("/batch", items.to_string());
    assert_eq!(refused.code, 400);
    assert!(refused.text().contains("items[1]: "), "{}", refused.text());
    assert_eq!(server.get("/scan").json(), json!({}));
}

#[test]
fn a_deletion_has_no_ttl() {
    let (server, _clock, _dir) = start();
    ok(&server.put("key", "v"));
    let deletes = [
        ("POST", "/delete?key=key&ttl=1s"),
        ("DELETE", "/del?key=key&ttl=1s"),
        ("DELETE", "/kv/a2V5?ttl=1s"),
        ("DELETE", "/blobs/key?ttl=1s"),
        ("DELETE", "/v1/kv/key?ttl=1s"),
        ("POST", "/v1/kv:delete?ttl=1s"),
        ("POST", "/delete-range?start=a&ttl=1s"),
        ("POST", "/v1/kv:delete-range?start=a&ttl=1s"),
    ];
    for (method, target) in deletes {
        let refused = server.ask(method, target, br#"{"keys":["key"]}"#);
        assert_eq!(refused.code, 400, "{target}");
        assert!(refused.text().contains("a deletion has none"), "{}", refused.text());
    }
    assert_eq!(server.get("/get?key=key").body, b"v");
}

#[test]
fn expired_values_take_no_place_in_pages() {
    let (server, clock, _dir) = start();
    for n in 0..40 {
        let target = if n % 4 == 0 { "/put" } else { "/put?ttl=10s" };
        ok(&server.post(target, json!({"key": format!("k{n:02}"), "value": "v"}).to_string()));
    }
    clock.advance(11 * SECOND);
    let (mut keys, mut target) = (Vec::new(), "/scan?limit=3".to_owned());
    loop {
        let page = server.get(&target);
        keys.extend(page.json().as_object().unwrap().keys().cloned());
        let Some(cursor) = page.header("x-next-cursor") else { break };
        target = format!("/scan?limit=3&cursor={cursor}");
    }
    let expected: Vec<_> = (0..40).step_by(4).map(|n| format!("k{n:02}")).collect();
    assert_eq!(keys, expected);
    let prefixed = server.get("/scan?prefix=k0").json();
    assert_eq!(prefixed.as_object().unwrap().len(), 3);
}
