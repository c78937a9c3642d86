//! mini-kvstore's door: the examples of its README, types, names, parts and lists of blobs.

mod http_support;

use http_support::{Answer, Server, encoded, limits};

fn assert_json(answer: &Answer, code: u16, expected: &str) {
    assert_eq!((answer.code, answer.text()), (code, expected));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

fn store(server: &Server, key: &str, content_type: &str, body: &[u8]) -> Answer {
    server.connect().ask("POST", &format!("/blobs/{key}"), &[("Content-Type", content_type)], body)
}

#[test]
fn the_examples_of_its_readme_are_answered_as_printed_there() {
    let server = Server::start();
    let stored = store(&server, "user:123", "application/octet-stream", b"Hello, World!");
    // The README prints another etag: it is an example of the form. This one is the CRC-32 of these bytes.
    assert_json(&stored, 201, r#"{"key":"user:123","etag":"ec4ac3d0","size":13,"volume_id":"vol-1"}"#);
    assert_eq!(stored.header("etag"), Some("\"ec4ac3d0\""));
    assert!(stored.header("x-kv-timestamp").is_some() && stored.header("x-kv-acks").is_some());
    let got = server.get("/blobs/user:123");
    assert_eq!((got.code, got.text()), (200, "Hello, World!"));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    assert_eq!(got.header("etag"), Some("\"ec4ac3d0\""));
    store(&server, "user:456", "text/plain", b"x");
    store(&server, "config:settings", "text/plain", b"y");
    assert_json(&server.get("/blobs"), 200, r#"["config:settings","user:123","user:456"]"#);
    let deleted = server.ask("DELETE", "/blobs/user:123", b"");
    assert_eq!((deleted.code, deleted.body.len()), (204, 0));
    assert!(deleted.header("x-kv-acks").is_some());
    assert_json(&server.get("/blobs/user:123"), 404, r#"{"error":"Blob not found"}"#);
    assert_eq!(server.ask("DELETE", "/blobs/user:123", b"").code, 204, "also when there is nothing");

    let health = server.get("/health").json();
    assert_eq!((&health["status"], &health["volume_id"]), (&"healthy".into(), &"vol-1".into()));
    for name in ["keys", "segments", "uptime_secs"] {
        assert!(health[name].is_u64(), "{name}: {health}");
    }
    assert!(health["total_mb"].as_f64().unwrap() > 0.0);
    let metrics = server.get("/metrics").json();
    for name in [
        "total_keys",
        "total_segments",
        "total_bytes",
        "active_segment_id",
        "oldest_segment_id",
        "uptime_secs",
    ] {
        assert!(metrics[name].is_u64(), "{name}: {metrics}");
    }
    for name in ["total_mb", "avg_value_size_bytes"] {
        assert!(metrics[name].as_f64().unwrap() > 0.0, "{name}: {metrics}");
    }
    assert_eq!(metrics["volume_id"], "vol-1");
    assert_eq!((&metrics["writes"], &metrics["reads"], &metrics["scans"]), (&3.into(), &2.into(), &1.into()));
}

#[test]
fn a_blob_keeps_its_type_at_every_door() {
    let server = Server::start();
    store(&server, "page", "text/html; charset=utf-8", b"<p>");
    for target in ["/blobs/page", "/get?key=page", "/v1/kv/page"] {
        let got = server.get(target);
        assert_eq!(got.header("content-type"), Some("text/html; charset=utf-8"), "{target}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(got.header("content-security-policy"), Some("sandbox"), "a stranger's page is not ours");
    }
    server.put("page", "plain");
    assert_eq!(server.get("/blobs/page").header("content-type"), Some("application/octet-stream"));
    let put = server.ask("PUT", "/blobs/page", b"without a type");
    assert_eq!(put.code, 201);
    let got = server.get("/blobs/page");
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    assert_eq!(got.header("content-security-policy"), None);
}

#[test]
fn any_bytes_and_any_key_go_in_and_come_out() {
    let server = Server::start();
    let (_, limits) = limits();
    for (key, body) in [
        ("a/b".to_owned(), b"\0\xff".to_vec()),
        (encoded("a/b c%+?#"), b"1".to_vec()),
        (encoded(b"\xff\xfe\0"), vec![]),
        ("big".to_owned(), vec![0xab; limits.value_size_max]),
    ] {
        let stored = store(&server, &key, "image/png", &body);
        assert_eq!(stored.code, 201, "{key}: {}", stored.text());
        assert_eq!(stored.json()["size"], body.len());
        let got = server.get(&format!("/blobs/{key}"));
        assert!(got.code == 200 && got.body == body, "{key}");
    }
    assert_eq!(server.get("/get?key=a/b").body, b"\0\xff");
    assert_eq!(server.get("/get?key=a/b%20c%25%2B%3F%23").text(), "1", "a plus in a path is a plus");
}

#[test]
fn a_name_that_is_known_brings_no_bytes() {
    let server = Server::start();
    store(&server, "k", "text/plain", b"Hello, World!");
    let ask = |name: &str| server.connect().ask("GET", "/blobs/k", &[("If-None-Match", name)], b"");
    for known in ["\"ec4ac3d0\"", "W/\"ec4ac3d0\"", "\"x\", \"ec4ac3d0\"", "*"] {
        let answer = ask(known);
        assert_eq!((answer.code, answer.header("etag")), (304, Some("\"ec4ac3d0\"")), "{known}");
        assert!(answer.body.is_empty());
    }
    for other in ["\"ec4ac3d1\"", "ec4ac3d0", ""] {
        assert_eq!(ask(other).text(), "Hello, World!", "{other}");
    }
}

#[test]
fn one_range_brings_a_part() {
    let server = Server::start();
    store(&server, "k", "text/plain", b"Hello, World!");
    let ask = |headers: &[(&str, &str)]| server.connect().ask("GET", "/blobs/k", headers, b"");
    for (range, part, content_range) in [
        ("bytes=0-4", "Hello", "bytes 0-4/13"),
        ("bytes=7-", "World!", "bytes 7-12/13"),
        ("bytes=-6", "World!", "bytes 7-12/13"),
        ("bytes=12-99", "!", "bytes 12-12/13"),
    ] {
        let answer = ask(&[("Range", range)]);
        assert_eq!((answer.code, answer.text()), (206, part), "{range}");
        assert_eq!(answer.header("content-range"), Some(content_range));
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    let beyond = ask(&[("Range", "bytes=13-")]);
    assert_json(&beyond, 416, r#"{"error":"Range lies beyond the blob"}"#);
    assert_eq!(beyond.header("content-range"), Some("bytes */13"));
    for whole in ["bytes=0-1,3-4", "bytes=5-1", "lines=1-2"] {
        let answer = ask(&[("Range", whole)]);
        assert_eq!((answer.code, answer.text()), (200, "Hello, World!"), "{whole}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    }
    assert_eq!(ask(&[("Range", "bytes=0-4"), ("If-Range", "\"ec4ac3d0\"")]).code, 206);
    assert_eq!(ask(&[("Range", "bytes=0-4"), ("If-Range", "\"older\"")]).code, 200);
}

#[test]
fn a_head_has_the_headers_and_no_body() {
    let server = Server::start();
    store(&server, "k", "text/plain", b"Hello, World!");
    let head = server.ask("HEAD", "/blobs/k", b"");
    assert_eq!((head.code, head.header("content-length")), (200, Some("13")));
    assert_eq!(head.header("etag"), Some("\"ec4ac3d0\""));
    assert_eq!(head.header("content-type"), Some("text/plain"));
    assert_eq!(server.ask("HEAD", "/blobs/none", b"").code, 404);
}

#[test]
fn keys_are_listed_by_prefix_and_by_page_and_streamed_when_there_are_many() {
    let server = Server::start();
    assert_json(&server.get("/blobs"), 200, "[]");
    let items: Vec<_> = (0..2500).map(|i| format!(r#"{{"key":"item:{i:05}","value":""}}"#)).collect();
    server.post("/batch", format!(r#"{{"items":[{}]}}"#, items.join(",")));
    server.put("other", "");
    let all = server.get("/blobs");
    assert_eq!(all.header("transfer-encoding"), Some("chunked"));
    assert_eq!(all.json().as_array().unwrap().len(), 2501);
    let (mut keys, mut target) = (Vec::new(), "/blobs?prefix=item%3A&limit=900".to_owned());
    loop {
        let page = server.get(&target);
        keys.extend(page.json().as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()));
        let Some(cursor) = page.header("x-next-cursor") else { break };
        target = format!("/blobs?prefix=item%3A&limit=900&cursor={cursor}");
        assert_eq!(page.header("link"), Some(format!("<{target}>; rel=\"next\"").as_str()));
    }
    assert_eq!(keys, (0..2500).map(|i| format!("item:{i:05}")).collect::<Vec<_>>());
}

#[test]
fn what_is_wrong_is_said_in_its_own_shape() {
    let server = Server::start();
    let over = vec![0; limits().1.value_size_max + 1];
    let long = format!("/blobs/{}", "k".repeat(4097));
    let cases: &[(&str, &str, &[u8], u16, &str)] = &[
        ("POST", "/blobs/k", &over, 413, "at most 2097152 are allowed"),
        ("POST", "/blobs/", b"", 400, "key is empty"),
        ("PUT", &long, b"", 413, "key has 4097 bytes"),
        ("GET", "/blobs/%zz", b"", 400, "percent sign"),
        ("GET", "/blobs/k?r=9", b"", 400, "\"r\""),
        ("PUT", "/blobs/k?w=0", b"", 400, "\"w\""),
        ("GET", "/blobs?limit=0", b"", 400, "\"limit\""),
        ("GET", "/blobs?cursor=x", b"", 400, "\"cursor\""),
        ("PATCH", "/blobs/k", b"", 405, "use POST, PUT, GET, HEAD, DELETE, OPTIONS"),
        ("POST", "/blobs", b"", 405, "use GET, HEAD, OPTIONS"),
    ];
    for (method, target, body, code, expected) in cases {
        let answer = server.ask(method, target, body);
        assert_eq!(answer.code, *code, "{method} {target}: {}", answer.text());
        let json = answer.json();
        assert!(json["error"].as_str().unwrap().contains(expected), "{method} {target}: {json}");
        assert_eq!(json.as_object().unwrap().len(), 1);
    }
    assert_eq!(store(&server, "k", &"x".repeat(256), b"").code, 400, "a type has 255 characters at most");
    let (server, api) = limits();
    let unready = Server::start_unready(server, api);
    let lonely = Server::start_lonely();
    for (method, target) in
        [("POST", "/blobs/k"), ("GET", "/blobs/k"), ("DELETE", "/blobs/k"), ("GET", "/blobs")]
    {
        assert_json(&unready.ask(method, target, b""), 503, r#"{"error":"not ready: the node is starting"}"#);
        let alone = lonely.ask(method, target, b"");
        assert_eq!((alone.code, alone.header("retry-after")), (503, Some("1")), "{method} {target}");
        assert!(alone.json()["error"].is_string());
    }
}
