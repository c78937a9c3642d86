//! VikDB's door: the examples of its README, and what it answers to bad requests.

mod http_support;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_support::{Answer, Server, encoded, limits};

fn assert_json(answer: &Answer, code: u16, expected: &str) {
    assert_eq!((answer.code, answer.text()), (code, expected));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn the_examples_of_its_readme_are_answered_as_printed_there() {
    let server = Server::start();
    let path = "/kv/dGVzdC1rZXk=";
    let put = server.ask("PUT", path, br#"{"value": "dGVzdC12YWx1ZQ=="}"#);
    assert_json(&put, 200, r#"{"success":true,"message":"key stored successfully"}"#);
    assert_json(&server.get(path), 200, r#"{"success":true,"value":"dGVzdC12YWx1ZQ=="}"#);
    let deleted = server.ask("DELETE", path, b"");
    assert_json(&deleted, 200, r#"{"success":true,"message":"key deleted successfully"}"#);
    assert_json(&server.get(path), 404, r#"{"success":false,"error":"key not found"}"#);

    let batch =
        server.post("/kv/batch", r#"{"keys": ["a2V5MQ==", "a2V5Mg=="], "values": ["dmFsdWUx", "dmFsdWUy"]}"#);
    assert_json(&batch, 200, r#"{"success":true,"count":2}"#);
    server.put("key3", "value3");
    server.put("key4", "value4");
    let items = concat!(
        r#"{"success":true,"items":[{"key":"a2V5Mg==","value":"dmFsdWUy"},"#,
        r#"{"key":"a2V5Mw==","value":"dmFsdWUz"}]}"#
    );
    assert_json(&server.get("/kv/range?start=key2&end=key4"), 200, items);
    let body = r#"{ "start_key": "a2V5Mg==", "end_key": "a2V5NA==" }"#;
    assert_json(&server.post("/kv/range", body), 200, items);

    let health = server.get("/health").json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["role"], "peer");
    for name in ["memtable_size", "wal_size"] {
        assert!(health[name].as_u64().unwrap() > 0, "{name}: {health}");
    }
    assert_eq!(health["sstable_count"], 0);
    let status = server.get("/cluster/status").json();
    assert_eq!(status["replication"], true);
    assert_eq!(status["is_leader"], true);
    assert_eq!(status["role"], "peer");
}

#[test]
fn ranges_are_open_where_no_end_is_named() {
    let server = Server::start();
    for key in ["a", "b", "c"] {
        server.put(key, key);
    }
    let keys = |answer: Answer| -> Vec<String> {
        let json = answer.json();
        assert_eq!(json["success"], true, "{json}");
        let items = json["items"].as_array().unwrap();
        let key = |item: &serde_json::Value| STANDARD.decode(item["key"].as_str().unwrap()).unwrap();
        items.iter().map(|item| String::from_utf8(key(item)).unwrap()).collect()
    };
    assert_eq!(keys(server.get("/kv/range?start=b")), ["b", "c"]);
    assert_eq!(keys(server.get("/kv/range?start=b&end=")), ["b", "c"]);
    assert_eq!(keys(server.get("/kv/range?start=a&end=c")), ["a", "b"]);
    assert_eq!(keys(server.post("/kv/range", r#"{"start_key":"Yg=="}"#)), ["b", "c"]);
    assert_json(&server.get("/kv/range?start=c&end=a"), 200, r#"{"success":true,"items":[]}"#);
    assert_json(&server.get("/kv/range?start=x"), 200, r#"{"success":true,"items":[]}"#);
}

#[test]
fn a_long_range_is_streamed_whole() {
    let server = Server::start();
    let items: Vec<_> = (0..2500).map(|i| format!(r#"{{"key":"k{i:05}","value":"v{i}"}}"#)).collect();
    server.post("/batch", format!(r#"{{"items":[{}]}}"#, items.join(",")));
    let range = server.get("/kv/range?start=k");
    assert_eq!(range.header("transfer-encoding"), Some("chunked"));
    assert!(range.complete);
    let json = range.json();
    assert_eq!(json["items"].as_array().unwrap().len(), 2500);
    assert_eq!(json["items"][2499]["value"], STANDARD.encode("v2499"));
}

#[test]
fn any_bytes_go_in_and_come_out() {
    let server = Server::start();
    let (_, limits) = limits();
    for value in [&b""[..], b"\0\xff\xfe", &vec![0xaa; limits.value_size_max]] {
        let key = URL_SAFE_NO_PAD.encode(b"\xff\xfe\0key");
        let body = format!(r#"{{"value":"{}"}}"#, STANDARD.encode(value));
        let put = server.ask("PUT", &format!("/kv/{key}"), body.as_bytes());
        assert_eq!(put.code, 200, "{}", put.text());
        assert!(put.header("x-kv-timestamp").is_some() && put.header("x-kv-acks").is_some());
        let get = server.get(&format!("/kv/{key}"));
        assert_eq!(get.json()["value"], STANDARD.encode(value));
        assert!(get.header("etag").is_some() && get.header("x-kv-timestamp").is_some());
        let plain = server.get(&format!("/get?key={}", encoded(b"\xff\xfe\0key")));
        assert!(plain.body == value, "{} bytes", value.len());
        let padded = format!("/kv/{key}%3D%3D");
        assert_eq!(server.get(&padded).code, if key.len() % 4 == 2 { 200 } else { 404 });
    }
}

#[test]
fn a_key_that_does_not_decode_is_taken_as_it_stands() {
    let server = Server::start();
    server.ask("PUT", "/kv/user:1", br#"{"value":"djE="}"#);
    assert_eq!(server.get("/get?key=user:1").text(), "v1");
    server.put("a/b c", "v2");
    assert_json(&server.get("/kv/a/b%20c"), 200, r#"{"success":true,"value":"djI="}"#);
}

#[test]
fn what_is_wrong_is_said_in_its_own_shape() {
    let server = Server::start();
    let over = format!(r#"{{"value":"{}"}}"#, STANDARD.encode(vec![0; limits().1.value_size_max + 1]));
    let long = format!("/kv/{}", URL_SAFE_NO_PAD.encode(vec![b'k'; 4097]));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("PUT", "/kv/aw", "", 400, "body is empty"),
        ("PUT", "/kv/aw", "{}", 400, "missing field `value`"),
        ("PUT", "/kv/aw", r#"{"value":7}"#, 400, "expected a string"),
        ("PUT", "/kv/aw", r#"{"value":"@@"}"#, 400, "value: bad base64"),
        ("PUT", "/kv/aw", &over, 413, "at most 2097152 are allowed"),
        ("PUT", "/kv/", r#"{"value":""}"#, 400, "key is empty"),
        ("PUT", &long, r#"{"value":""}"#, 413, "key has 4097 bytes"),
        ("GET", "/kv/%zz", "", 400, "percent sign"),
        ("GET", "/kv/aw?r=9", "", 400, "\"r\""),
        ("DELETE", "/kv/aw?w=0", "", 400, "\"w\""),
        ("GET", "/kv/range", "", 400, "\"start\" is missing"),
        ("GET", "/kv/range?end=b", "", 400, "\"start\" is missing"),
        ("GET", "/kv/range?start=a&start=b", "", 400, "given twice"),
        ("POST", "/kv/range", "{}", 400, "\"start_key\" is missing"),
        ("POST", "/kv/range", r#"{"start_key":"a"}"#, 400, "start_key: bad base64"),
        ("POST", "/kv/range", r#"{"start_key":"YQ==","end_key":"?"}"#, 400, "end_key: bad base64"),
        ("POST", "/kv/batch", r#"{"keys":["YQ=="],"values":[]}"#, 400, "equally many: 1 keys, 0 values"),
        ("POST", "/kv/batch", r#"{"keys":["YQ==","!"],"values":["",""]}"#, 400, "keys[1]: bad base64"),
        ("POST", "/kv/batch", r#"{"keys":["YQ=="],"values":["!"]}"#, 400, "values[0]: bad base64"),
        ("POST", "/kv/batch", r#"{"values":[]}"#, 400, "missing field `keys`"),
        ("POST", "/kv/aw", "", 405, "method not allowed; use PUT, GET, HEAD, DELETE, OPTIONS"),
        ("PUT", "/kv/range", "", 405, "method not allowed; use GET, HEAD, POST, OPTIONS"),
        ("GET", "/kv/batch", "", 405, "method not allowed; use POST, OPTIONS"),
    ];
    for (method, target, body, code, expected) in cases {
        let answer = server.ask(method, target, body.as_bytes());
        assert_eq!(answer.code, *code, "{method} {target}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {target}");
        let json = answer.json();
        assert_eq!(json["success"], false, "{json}");
        assert!(json["error"].as_str().unwrap().contains(expected), "{method} {target}: {json}");
        assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
        assert_eq!(answer.header("allow").is_some(), *code == 405);
    }
    assert_eq!(server.get("/kv/range?start=a").json()["items"].as_array().unwrap().len(), 0);
}

#[test]
fn faults_from_before_the_dialect_have_its_shape_too() {
    let assert_failed = |answer: Answer, code: u16| {
        assert_eq!(answer.code, code, "{}", answer.text());
        assert_eq!(answer.json()["success"], false);
        assert!(!answer.json()["error"].as_str().unwrap().is_empty());
        answer
    };
    let (server, api) = limits();
    let unready = Server::start_unready(server, api);
    let targets = [
        ("PUT", "/kv/aw", r#"{"value":""}"#),
        ("GET", "/kv/aw", ""),
        ("DELETE", "/kv/aw", ""),
        ("GET", "/kv/range?start=a", ""),
        ("POST", "/kv/range", r#"{"start_key":"YQ=="}"#),
        ("POST", "/kv/batch", r#"{"keys":["YQ=="],"values":["YQ=="]}"#),
    ];
    let lonely = Server::start_lonely();
    for (method, target, body) in targets {
        let answer = assert_failed(unready.ask(method, target, body.as_bytes()), 503);
        assert_eq!(answer.json()["error"], "not ready: the node is starting");
        let answer = assert_failed(lonely.ask(method, target, body.as_bytes()), 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let mut two_hosts = unready.connect();
    two_hosts.send("GET /kv/aw HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap();
    assert_failed(two_hosts.answer().unwrap(), 400);
    let mut too_long = lonely.connect();
    too_long.send("PUT /kv/aw HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n").unwrap();
    assert_failed(too_long.answer().unwrap(), 413);
}

#[test]
fn its_requests_are_counted_with_all_others() {
    let server = Server::start();
    server.ask("PUT", "/kv/aw", br#"{"value":""}"#);
    server.get("/kv/aw");
    server.get("/kv/range?start=a");
    server.post("/kv/batch", r#"{"keys":[],"values":[]}"#);
    server.ask("DELETE", "/kv/aw", b"");
    let metrics = server.get("/metrics").json();
    for name in ["writes", "reads", "scans", "batches", "deletes"] {
        assert_eq!(metrics[name], 1, "{name}");
    }
    assert_eq!(metrics["latency_micros"]["vikdb_put"]["count"], 1);
}
