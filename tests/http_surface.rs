//! The plain dialect and the operators' pages, request by request, as a client sees them.

mod http_support;

use http_support::{Server, encoded, limits};
use std::time::Duration;

#[test]
fn the_rows_of_the_contract_are_answered_word_for_word() {
    let server = Server::start();
    let ok = |method: &str, target: &str, body: &str, code: u16, expected: &str| {
        let answer = server.ask(method, target, body.as_bytes());
        assert_eq!((answer.code, answer.text()), (code, expected), "{method} {target} {body}");
        answer
    };
    ok("POST", "/put", r#"{"key":"user:1001","value":"Alice Smith"}"#, 200, "OK");
    ok("GET", "/get?key=user:1001", "", 200, "Alice Smith");
    ok("GET", "/get?key=nobody", "", 404, "Not Found");
    ok(
        "POST",
        "/batch",
        r#"{"items":[{"key":"product:101","value":"Laptop"},{"key":"product:102","value":"Mouse"},{"key":"product:103","value":"Keyboard"}]}"#,
        200,
        "Batch Processed",
    );
    ok("POST", "/batch", r#"{"items":[]}"#, 200, "Batch Processed");
    ok(
        "GET",
        "/scan?start=product:101&end=product:103",
        "",
        200,
        r#"{"product:101":"Laptop","product:102":"Mouse","product:103":"Keyboard"}"#,
    );
    ok("GET", "/scan?start=b&end=a", "", 200, "{}");
    ok("GET", "/scan?prefix=user:", "", 200, r#"{"user:1001":"Alice Smith"}"#);
    ok("POST", "/delete?key=user:1001", "", 200, "Deleted");
    ok("POST", "/delete?key=never:there", "", 200, "Deleted");
    ok("GET", "/get?key=user:1001", "", 404, "Not Found");
    ok("GET", "/nowhere", "", 404, "No such path");
    ok("GET", "/put/", "", 404, "No such path");
    ok("GET", "/livez", "", 200, "alive");
}

#[test]
fn writes_and_reads_say_when_and_where() {
    let server = Server::start();
    let put = server.put("k", "hello");
    let timestamp: u64 = put.header("x-kv-timestamp").unwrap().parse().unwrap();
    assert_eq!(put.header("x-kv-acks"), Some("durable=1 hinted=0 failed=0 pending=0"));
    let get = server.get("/get?key=k");
    assert_eq!(get.header("content-type"), Some("application/octet-stream"));
    assert_eq!(get.header("x-kv-timestamp"), Some(timestamp.to_string().as_str()));
    let etag = get.header("etag").unwrap();
    assert!(etag.starts_with(&format!("\"{timestamp:016x}-")), "{etag}");
    assert_eq!(etag.len(), 16 + 1 + 8 + 2);
    let deleted = server.post("/delete?key=k", "");
    let later: u64 = deleted.header("x-kv-timestamp").unwrap().parse().unwrap();
    assert!(later > timestamp);
    assert!(deleted.header("x-kv-acks").is_some());
    let batch = server.post("/batch", r#"{"items":[{"key":"a","value":"1"},{"key":"a","value":"2"}]}"#);
    assert!(batch.header("x-kv-timestamp").is_some() && batch.header("x-kv-acks").is_some());
    assert_eq!(server.get("/get?key=a").text(), "2", "a later duplicate wins");
}

#[test]
fn an_equal_value_written_again_has_another_etag() {
    let server = Server::start();
    server.put("k", "same");
    let first = server.get("/get?key=k");
    server.put("k", "same");
    let second = server.get("/get?key=k");
    assert_ne!(first.header("etag"), second.header("etag"));
    let hash = |etag: &str| etag.split('-').nth(1).unwrap().to_owned();
    assert_eq!(hash(first.header("etag").unwrap()), hash(second.header("etag").unwrap()));
}

#[test]
fn head_is_get_without_the_body() {
    let server = Server::start();
    server.put("k", "hello");
    for target in ["/get?key=k", "/get?key=none", "/health", "/metrics", "/ring", "/nowhere", "/get"] {
        let mut connection = server.connect();
        let head = connection.ask("HEAD", target, &[], b"");
        let get = connection.ask("GET", target, &[], b"");
        assert_eq!(head.code, get.code, "{target}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{target}");
        if target != "/metrics" && target != "/health" {
            assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{target}");
        }
    }
}

#[test]
fn every_bad_request_is_refused_with_what_and_where() {
    let server = Server::start();
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("POST", "/put", "", 400, "body is empty"),
        ("POST", "/put", "{", 400, "line 1 column 1"),
        ("POST", "/put", "not json", 400, "bad JSON body"),
        ("POST", "/put", r#"{"value":"v"}"#, 400, "missing field `key`"),
        ("POST", "/put", r#"{"key":"k"}"#, 400, "missing field `value`"),
        ("POST", "/put", r#"{"key":1,"value":"v"}"#, 400, "expected a string"),
        ("POST", "/put", r#"{"key":"k","value":{"a":1}}"#, 400, "expected a string"),
        ("POST", "/put", r#"{"key":"k","value":null}"#, 400, "expected a string"),
        ("POST", "/put", r#"{"key":"k","key":"l","value":"v"}"#, 400, "duplicate field `key`"),
        ("POST", "/put", r#"{"key":"","value":"v"}"#, 400, "key is empty"),
        ("POST", "/put", r#"{"key":"k","value":"v"} {}"#, 400, "trailing characters"),
        ("POST", "/put", "[]", 400, "bad JSON body"),
        ("POST", "/put?w=0", r#"{"key":"k","value":"v"}"#, 400, "\"w\" must be a whole number from 1 to 1"),
        ("POST", "/put?w=2", r#"{"key":"k","value":"v"}"#, 400, "\"w\""),
        ("POST", "/put?w=x", r#"{"key":"k","value":"v"}"#, 400, "\"w\""),
        ("POST", "/put?w=", r#"{"key":"k","value":"v"}"#, 400, "\"w\""),
        ("POST", "/put?sloppy=maybe", r#"{"key":"k","value":"v"}"#, 400, "\"sloppy\""),
        ("GET", "/get", "", 400, "\"key\" is missing"),
        ("GET", "/get?key=", "", 400, "key is empty"),
        ("GET", "/get?key=%zz", "", 400, "percent sign"),
        ("GET", "/get?key=a%2", "", 400, "percent sign"),
        ("GET", "/get?key=a&key=b", "", 400, "given twice"),
        ("GET", "/get?key=a&r=9", "", 400, "\"r\""),
        ("POST", "/delete", "", 400, "\"key\" is missing"),
        ("POST", "/delete?key=", "", 400, "key is empty"),
        ("POST", "/batch", "{}", 400, "missing field `items`"),
        (
            "POST",
            "/batch",
            r#"{"items":[{"key":"a","value":"b"},{"key":"c"}]}"#,
            400,
            "items[1]: missing field",
        ),
        (
            "POST",
            "/batch",
            r#"{"items":[{"key":"a","value":"b"},{"key":"","value":""}]}"#,
            400,
            "items[1]: key is empty",
        ),
        ("GET", "/scan?limit=0", "", 400, "\"limit\" must be a whole number from 1 to 10000"),
        ("GET", "/scan?limit=10001", "", 400, "\"limit\""),
        ("GET", "/scan?limit=-1", "", 400, "\"limit\""),
        ("GET", "/scan?cursor=nonsense", "", 400, "\"cursor\""),
        ("GET", "/scan?cursor=", "", 400, "\"cursor\""),
        ("GET", "/scan?encoding=rot13", "", 400, "\"encoding\""),
        ("GET", "/explain", "", 400, "\"key\" is missing"),
        ("GET", "/ring?key=", "", 400, "key is empty"),
        ("GET", "/metrics?format=xml", "", 400, "\"format\""),
        ("GET", "/readyz?verbose=perhaps", "", 400, "\"verbose\""),
    ];
    for (method, target, body, code, expected) in cases {
        let answer = server.ask(method, target, body.as_bytes());
        assert_eq!(answer.code, *code, "{method} {target} {body}: {}", answer.text());
        assert!(answer.text().contains(expected), "{method} {target} {body}: {}", answer.text());
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }
    assert_eq!(server.get("/get?key=a").code, 404, "a batch with a bad item writes nothing");
}

#[test]
fn keys_and_values_too_long_are_refused_and_the_longest_are_not() {
    let server = Server::start();
    let long = "k".repeat(4096);
    assert_eq!(server.put(&long, "v").code, 200);
    assert_eq!(server.get(&format!("/get?key={}", encoded(&long))).text(), "v");
    let longer = "k".repeat(4097);
    for answer in [
        server.put(&longer, "v"),
        server.get(&format!("/get?key={longer}")),
        server.post(&format!("/delete?key={longer}"), ""),
        server.post("/batch", format!(r#"{{"items":[{{"key":"{longer}","value":"v"}}]}}"#)),
    ] {
        assert_eq!(answer.code, 413);
        assert!(answer.text().contains("key has 4097 bytes"), "{}", answer.text());
    }
    let (_, limits) = limits();
    assert_eq!(server.put("big", &"v".repeat(limits.value_size_max)).code, 200);
    let over = server.put("big", &"v".repeat(limits.value_size_max + 1));
    assert_eq!(over.code, 413);
    assert!(over.text().contains("at most 2097152 are allowed"), "{}", over.text());
    let escaped = format!(r#"{{"key":"big","value":"{}"}}"#, r"\u0041".repeat(limits.value_size_max));
    assert_eq!(server.post("/put", escaped).code, 200, "a value is measured after decoding");
}

#[test]
fn other_methods_are_refused_with_those_that_are_allowed() {
    let server = Server::start();
    let cases = [
        ("/put", "POST, OPTIONS", &["GET", "HEAD", "PUT", "DELETE", "PATCH"][..]),
        ("/batch", "POST, OPTIONS", &["GET"]),
        ("/delete?key=k", "POST, OPTIONS", &["GET", "DELETE"]),
        ("/get?key=k", "GET, HEAD, OPTIONS", &["POST", "PUT", "BREW"]),
        ("/scan", "GET, HEAD, OPTIONS", &["POST"]),
        ("/metrics", "GET, HEAD, OPTIONS", &["POST"]),
        ("/ring", "GET, HEAD, OPTIONS", &["DELETE"]),
        ("/internal/rpc", "GET, OPTIONS", &["POST"]),
    ];
    for (target, allow, methods) in cases {
        for method in methods {
            let answer = server.ask(method, target, b"");
            assert_eq!(answer.code, 405, "{method} {target}");
            assert_eq!(answer.header("allow"), Some(allow), "{method} {target}");
            assert!(*method == "HEAD" || !answer.body.is_empty());
        }
        let options = server.ask("OPTIONS", target, b"");
        assert_eq!((options.code, options.header("allow")), (204, Some(allow)), "{target}");
    }
}

#[test]
fn awkward_keys_and_values_come_back_byte_for_byte() {
    let server = Server::start();
    let megabyte: String = (0..1u32 << 20)
        .map(|i| char::from(b' ' + (i.wrapping_mul(2_654_435_761) >> 25) as u8 % 95))
        .collect();
    let keys = [
        "plain",
        "a/b",
        "a&b=c",
        "a+b",
        "100%",
        "with space",
        "line\nbreak\r\n",
        "nul\0key",
        "ключ😀",
        "%2F",
        "\u{7f}\u{80}",
        "\"quoted\\\"",
    ];
    let values = [
        "__DELETED__",
        "",
        "nul\0value",
        "\n",
        "OK",
        "Not Found",
        "\u{fffd}",
        "\"\\\u{8}\u{c}\n\r\t</script>",
        megabyte.as_str(),
    ];
    for key in keys {
        for value in values {
            assert_eq!(server.put(key, value).text(), "OK");
            let answer = server.get(&format!("/get?key={}", encoded(key)));
            assert_eq!(answer.code, 200);
            assert!(answer.body == value.as_bytes(), "{key:?} {:?}", value.get(..20));
        }
    }
    assert_eq!(server.get("/get?key=a%2Bb").code, 200);
    assert_eq!(server.put("a b", "spaced").code, 200);
    assert_eq!(server.get("/get?key=a+b").text(), "spaced");
    server.post("/delete?key=a%2Bb", "");
    assert_eq!(server.get("/get?key=a%2Bb").code, 404);
    assert_eq!(server.get("/get?key=a+b").code, 200, "another key");
}

#[test]
fn a_key_that_is_no_text_can_be_deleted_and_asked_for() {
    let server = Server::start();
    assert_eq!(server.post("/delete?key=%ff%fe%00", "").text(), "Deleted");
    assert_eq!(server.get("/get?key=%ff%fe%00").code, 404);
    let explained = server.get("/explain?key=%ff%fe%00").json();
    assert_eq!(explained["replicas"][0]["state"], "tombstone");
}

#[test]
fn before_the_node_is_ready_it_lives_but_takes_no_data_requests() {
    let (server, api) = limits();
    let server = Server::start_unready(server, api);
    for (method, target, body) in [
        ("POST", "/put", r#"{"key":"k","value":"v"}"#),
        ("GET", "/get?key=k", ""),
        ("POST", "/batch", r#"{"items":[]}"#),
        ("GET", "/scan", ""),
        ("POST", "/delete?key=k", ""),
        ("GET", "/explain?key=k", ""),
        ("GET", "/ring", ""),
        ("GET", "/cluster/status", ""),
        ("GET", "/internal/rpc", ""),
    ] {
        let answer = server.ask(method, target, body.as_bytes());
        assert_eq!((answer.code, answer.text()), (503, "not ready: the node is starting"), "{target}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(server.get("/livez").code, 200);
    let ready = server.get("/readyz");
    assert_eq!(ready.code, 503);
    assert_eq!(ready.text(), r#"{"status":"not ready","reasons":["recovered: the node is starting"]}"#);
    let health = server.get("/health");
    assert_eq!(health.code, 200);
    assert!(health.text().starts_with(r#"{"status":"healthy","ready":false"#), "{}", health.text());
    assert_eq!(server.get("/metrics").json()["errors"], 10, "answers of 500 and above are counted");
}

#[test]
fn readiness_and_health_say_what_is_amiss() {
    let server = Server::start();
    assert_eq!(server.get("/readyz").text(), r#"{"status":"ready","reasons":[]}"#);
    let verbose = server.get("/readyz?verbose").json();
    assert_eq!(verbose["checks"][0]["name"], "recovered");
    assert_eq!(verbose["checks"][0]["ok"], true);
    assert!(server.get("/health").text().starts_with(r#"{"status":"healthy","ready":true"#));
    server.api.drain();
    let ready = server.get("/readyz");
    assert_eq!((ready.code, ready.header("retry-after")), (503, Some("1")));
    assert!(ready.text().contains("stopping: the node is stopping"));
    assert_eq!(server.put("k", "v").code, 200, "a stopping node finishes what it is asked");
}

#[test]
fn metrics_count_client_requests_in_json_and_in_prometheus_text() {
    let server = Server::start();
    server.put("k", "v");
    server.put("k", "w");
    server.get("/get?key=k");
    server.post("/batch", r#"{"items":[{"key":"a","value":"1"},{"key":"b","value":"2"}]}"#);
    server.get("/scan");
    server.post("/delete?key=k", "");
    let json = server.get("/metrics").json();
    for (name, count) in
        [("writes", 2), ("reads", 1), ("batches", 1), ("scans", 1), ("deletes", 1), ("errors", 0)]
    {
        assert_eq!(json[name], count, "{name}");
    }
    for name in ["compactions", "flushes", "wal_syncs", "l0_files"] {
        assert!(json[name].is_u64(), "{name}");
    }
    assert_eq!(json["latency_micros"]["put"]["count"], 2);
    let text = server.get("/metrics?format=prometheus");
    assert!(text.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "kvstore_writes_total 2",
        "kvstore_http_requests_total{route=\"put\",code=\"200\"} 2",
        "kvstore_http_request_duration_seconds_bucket{operation=\"write\",route=\"put\",le=\"+Inf\"} 2",
        "kvstore_http_request_duration_seconds_count{operation=\"write\",route=\"put\"} 2",
        "kvstore_level_files{level=\"0\"} 0",
        "kvstore_peer_up{peer=\"127.0.0.1:1\"} 1",
        "# TYPE kvstore_writes_total counter",
        "# TYPE kvstore_http_request_duration_seconds histogram",
    ] {
        assert!(text.text().lines().any(|known| known == line), "{line}\n{}", text.text());
    }
}

#[test]
fn prometheus_text_is_well_formed() {
    let server = Server::start();
    server.put("k", "v");
    let answer = server.get("/metrics?format=prometheus");
    let mut typed: Vec<&str> = Vec::new();
    for line in answer.text().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(!typed.contains(&name), "{name} is typed once");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            typed.push(name);
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            let name = series.split('{').next().unwrap();
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(typed.contains(&name) || typed.contains(&base), "{line}");
            assert!(name.starts_with("kvstore_") || name.starts_with("process_"), "{line}");
        }
    }
}

#[test]
fn accept_decides_between_json_and_prometheus_text() {
    let server = Server::start();
    let cases = [
        ("*/*", false),
        ("application/json", false),
        ("text/html,application/xhtml+xml,*/*;q=0.8", false),
        ("text/plain", true),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", true),
        ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", true),
        ("text/plain;q=0", false),
        ("text/plain; q=0.0, application/json", false),
        ("TEXT/PLAIN", true),
        ("application/json, text/plain, */*", false), // axios
        ("text/plain;q=0.5, application/json", false),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            true,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            true,
        ),
    ];
    for (accept, text) in cases {
        let answer = server.connect().ask("GET", "/metrics", &[("Accept", accept)], b"");
        assert_eq!(answer.body.starts_with(b"# HELP"), text, "{accept}");
        assert_eq!(answer.header("vary"), Some("accept"));
    }
    let forced = server.connect().ask("GET", "/metrics?format=json", &[("Accept", "text/plain")], b"");
    assert!(forced.json().is_object());
}

#[test]
fn the_cluster_the_ring_and_a_key_are_explained() {
    let server = Server::start();
    server.put("k", "value");
    let status = server.get("/cluster/status");
    assert!(
        status
            .text()
            .starts_with(r#"{"node_id":"127.0.0.1:1","nodes":[{"name":"127.0.0.1:1","state":"up","share":1"#)
    );
    let status = status.json();
    for name in ["replication_factor", "write_quorum", "read_quorum"] {
        assert_eq!(status[name], 1, "{name}");
    }
    assert_eq!(status["nodes"][0]["hints_pending"], 0);
    let ring = server.get("/ring").json();
    assert_eq!(ring["ranges"].as_array().unwrap().len(), 64);
    assert_eq!(ring["ranges"][63]["last"], "ffffffffffffffff");
    let place = server.get("/ring?key=k").json();
    assert_eq!(place["primaries"][0], "127.0.0.1:1");
    assert_eq!(place["fallbacks"].as_array().unwrap().len(), 0);
    let (token, range) = (place["token"].as_str().unwrap(), place["range"].as_u64().unwrap());
    assert_eq!(u64::from_str_radix(token, 16).unwrap() >> 58, range);
    let explained = server.get("/explain?key=k").json();
    assert_eq!(explained["winner"], "127.0.0.1:1");
    assert_eq!(explained["replicas"][0]["state"], "value");
    assert_eq!(explained["replicas"][0]["size"], 5);
    assert_eq!(server.get("/explain?key=none").json()["replicas"][0]["state"], "missing");
}

#[test]
fn many_requests_are_answered_in_order_on_one_connection() {
    let server = Server::start();
    let mut connection = server.connect();
    for round in 0..50 {
        let body = format!(r#"{{"key":"k","value":"{round}"}}"#);
        assert_eq!(connection.ask("POST", "/put", &[], body.as_bytes()).text(), "OK");
        assert_eq!(connection.ask("GET", "/get?key=k", &[], b"").text(), round.to_string());
    }
    let mut pipelined = Vec::new();
    for round in 0..20 {
        server.put(&format!("p{round}"), &format!("v{round}"));
        pipelined.extend_from_slice(format!("GET /get?key=p{round} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    }
    connection.send(pipelined).unwrap();
    for round in 0..20 {
        assert_eq!(connection.answer().unwrap().text(), format!("v{round}"));
    }
}

#[test]
fn chunked_bodies_and_expectations_are_understood() {
    let server = Server::start();
    let mut connection = server.connect();
    connection
        .send("POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n{\"key\":\"k\",\r\nb\r\n\"value\":\"v\"\r\n1\r\n}\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(connection.answer().unwrap().text(), "OK");
    assert_eq!(server.get("/get?key=k").text(), "v");
    connection
        .send("POST /put HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 23\r\n\r\n")
        .unwrap();
    let mut interim = [0; 25];
    std::io::Read::read_exact(&mut connection.stream, &mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.send(r#"{"key":"k","value":"w"}"#).unwrap();
    assert_eq!(connection.answer().unwrap().text(), "OK");
}

#[test]
fn an_old_client_and_one_that_stops_sending_are_answered() {
    let server = Server::start();
    server.put("k", "v");
    let mut old = server.connect();
    old.send("GET /get?key=k HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.answer().unwrap().text(), "v");
    assert!(old.is_closed_silently());
    let mut half_closed = server.connect();
    half_closed.send("GET /get?key=k HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    half_closed.end_sending();
    assert_eq!(half_closed.answer().unwrap().text(), "v");
}

#[test]
fn a_stopping_server_finishes_what_is_in_flight_and_closes_the_rest() {
    let server = Server::start();
    let mut idle = server.connect();
    assert_eq!(idle.ask("GET", "/livez", &[], b"").code, 200);
    let mut silent = server.connect();
    let mut busy = server.connect();
    busy.send("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\n\r\n{\"key\":\"k\"").unwrap();
    // The request in flight is known to be there once a later one on another connection was answered.
    assert_eq!(server.get("/livez").code, 200);
    server.signal_stop();
    assert!(idle.is_closed_silently());
    assert!(silent.is_closed_silently());
    busy.send(",\"value\":\"v\"}").unwrap();
    let answer = busy.answer().unwrap();
    assert_eq!((answer.code, answer.text()), (200, "OK"));
    assert!(busy.is_closed_silently());
    let took = server.stop();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_request_that_never_ends_does_not_keep_a_stopping_server() {
    let (mut limits, mut api) = limits();
    limits.drain_max = Duration::from_millis(300);
    api.body.grace = Duration::from_secs(60);
    let server = Server::start_with(limits, api);
    let mut busy = server.connect();
    busy.send("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\n\r\n{").unwrap();
    assert_eq!(server.get("/livez").code, 200);
    let took = server.stop();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_node_without_its_peers_refuses_and_says_that_nothing_was_sent() {
    let server = Server::start_lonely();
    let refused = |answer: http_support::Answer| {
        assert_eq!((answer.code, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
        assert!(!answer.body.is_empty());
        answer
    };
    refused(server.put("k", "v"));
    refused(server.post("/delete?key=k", ""));
    refused(server.get("/get?key=k"));
    refused(server.get("/scan"));
    let batch =
        refused(server.post("/batch", r#"{"items":[{"key":"a","value":"1"},{"key":"b","value":"2"}]}"#));
    assert_eq!(batch.header("content-type"), Some("application/json"));
    assert!(
        batch.text().starts_with(r#"{"failed":[{"key":"a","outcome":"not_sent","reason":""#),
        "{}",
        batch.text()
    );
    assert_eq!(batch.json()["failed"].as_array().unwrap().len(), 2);
    assert_eq!(server.post("/put?w=4", r#"{"key":"k","value":"v"}"#).code, 400, "w is at most N");
    assert_eq!(server.get("/livez").code, 200);
    let explained = server.get("/explain?key=k").json();
    let states: Vec<_> =
        explained["replicas"].as_array().unwrap().iter().map(|replica| &replica["state"]).collect();
    assert_eq!(states.iter().filter(|state| **state == "unreachable").count(), 2, "{states:?}");
    assert!(server.get("/metrics").json()["errors"].as_u64().unwrap() >= 5);
}

#[test]
fn a_scan_is_paged_by_cursor_and_streamed_without() {
    let server = Server::start();
    let items: Vec<_> = (0..2500).map(|i| format!(r#"{{"key":"item:{i:05}","value":"v{i}"}}"#)).collect();
    assert_eq!(
        server.post("/batch", format!(r#"{{"items":[{}]}}"#, items.join(","))).text(),
        "Batch Processed"
    );
    let whole = server.get("/scan");
    assert_eq!(whole.header("transfer-encoding"), Some("chunked"));
    assert!(whole.complete);
    let expected: Vec<_> = (0..2500).map(|i| format!(r#""item:{i:05}":"v{i}""#)).collect();
    assert_eq!(whole.text(), format!("{{{}}}", expected.join(",")));
    let (mut paged, mut pages) = (Vec::new(), 0);
    let mut target = "/scan?prefix=item%3A&limit=700".to_owned();
    loop {
        let page = server.get(&target);
        assert!(page.json().as_object().unwrap().len() <= 700);
        let inside = page.text().trim_matches(['{', '}']).to_owned();
        paged.extend((!inside.is_empty()).then_some(inside));
        pages += 1;
        let Some(cursor) = page.header("x-next-cursor") else { break };
        let link = page.header("link").unwrap();
        target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
        assert_eq!(target, format!("/scan?prefix=item%3A&limit=700&cursor={cursor}"));
    }
    assert!((4..10).contains(&pages), "{pages}");
    assert_eq!(paged.join(","), expected.join(","));
    let both_ends = server.get("/scan?start=item:00010&end=item:00012");
    assert_eq!(both_ends.text(), r#"{"item:00010":"v10","item:00011":"v11","item:00012":"v12"}"#);
    let encoded = server.get("/scan?start=item:00010&end=item:00010&encoding=base64");
    assert_eq!(encoded.text(), r#"{"aXRlbTowMDAxMA==":"djEw"}"#);
}
