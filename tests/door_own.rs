//! Our own door, /v1; and that a key written by one door is read by all.

mod http_support;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_support::{Answer, Server, encoded, limits};
use serde_json::{Value, json};

fn keys(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let items = json["items"].as_array().unwrap_or_else(|| panic!("{json}"));
    items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_key_written_by_one_door_is_read_and_deleted_by_all() {
    let server = Server::start();
    let key = "door/ключ +%";
    let (path, base64) = (encoded(key), URL_SAFE_NO_PAD.encode(key));
    let value = b"value".as_slice();
    let writes: [(&str, String, Vec<u8>); 7] = [
        ("POST", "/put".to_owned(), json!({"key": key, "value": "value"}).to_string().into()),
        ("POST", "/batch".to_owned(), json!({"items": [{"key": key, "value": "value"}]}).to_string().into()),
        ("POST", "/set".to_owned(), json!({key: "value"}).to_string().into()),
        ("PUT", format!("/kv/{base64}"), json!({"value": STANDARD.encode(value)}).to_string().into()),
        (
            "POST",
            "/kv/batch".to_owned(),
            json!({"keys": [STANDARD.encode(key)], "values": [STANDARD.encode(value)]}).to_string().into(),
        ),
        ("POST", format!("/blobs/{path}"), value.into()),
        ("PUT", format!("/v1/kv/{path}"), value.into()),
    ];
    let deletes: [(&str, String, Vec<u8>); 6] = [
        ("POST", format!("/delete?key={path}"), vec![]),
        ("DELETE", format!("/del?key={path}"), vec![]),
        ("DELETE", format!("/kv/{base64}"), vec![]),
        ("DELETE", format!("/blobs/{path}"), vec![]),
        ("DELETE", format!("/v1/kv/{path}"), vec![]),
        ("POST", "/v1/kv:delete".to_owned(), json!({"keys": [key]}).to_string().into()),
    ];
    for (number, (method, target, body)) in writes.iter().enumerate() {
        let written = server.ask(method, target, body);
        assert!((200..300).contains(&written.code), "{method} {target}: {}", written.text());
        for target in [format!("/get?key={path}"), format!("/blobs/{path}"), format!("/v1/kv/{path}")] {
            assert_eq!(server.get(&target).body, value, "{target}");
        }
        assert_eq!(server.get(&format!("/kv/{base64}")).json()["value"], STANDARD.encode(value));
        assert_eq!(server.get("/scan").json(), json!({key: "value"}));
        assert_eq!(server.get("/blobs").json(), json!([key]));
        assert_eq!(keys(&server.get("/v1/kv")), [key]);
        let range = server.get(&format!("/kv/range?start={path}")).json();
        assert_eq!(range["items"][0]["key"], STANDARD.encode(key));
        let many = server.post("/v1/kv:get", json!({"keys": [key]}).to_string());
        assert_eq!(many.json()["items"][0]["value"], "value");

        let (method, target, body) = &deletes[number % deletes.len()];
        let deleted = server.ask(method, target, body);
        assert!((200..300).contains(&deleted.code), "{method} {target}: {}", deleted.text());
        for target in [
            format!("/get?key={path}"),
            format!("/kv/{base64}"),
            format!("/blobs/{path}"),
            format!("/v1/kv/{path}"),
        ] {
            assert_eq!(server.get(&target).code, 404, "{target}");
        }
    }
}

#[test]
fn bytes_of_any_type_go_in_and_come_out() {
    let server = Server::start();
    let mut client = server.connect();
    let put = client.ask("PUT", "/v1/kv/a%00b", &[("Content-Type", "image/png")], b"\x89PNG\0");
    assert_eq!((put.code, put.body.len()), (204, 0));
    let timestamp: u64 = put.header("x-kv-timestamp").unwrap().parse().unwrap();
    assert_eq!(put.header("x-kv-acks"), Some("durable=1 hinted=0 failed=0 pending=0"));
    let got = server.get("/v1/kv/a%00b");
    assert_eq!((got.code, &got.body[..]), (200, &b"\x89PNG\0"[..]));
    assert_eq!(got.header("content-type"), Some("image/png"));
    let etag = got.header("etag").unwrap();
    assert!(etag.starts_with(&format!("\"{timestamp:016x}-")), "{etag}");
    assert_eq!(client.ask("GET", "/v1/kv/a%00b", &[("If-None-Match", etag)], b"").code, 304);
    assert_eq!(client.ask("GET", "/v1/kv/a%00b", &[("Range", "bytes=1-3")], b"").text(), "PNG");
    let head = server.ask("HEAD", "/v1/kv/a%00b", b"");
    assert_eq!((head.code, head.header("content-length")), (200, Some("5")));
    let deleted = server.ask("DELETE", "/v1/kv/a%00b", b"");
    assert_eq!(deleted.code, 204);
    let gone = server.get("/v1/kv/a%00b");
    assert_eq!((gone.code, gone.json()["code"].as_str()), (404, Some("not_found")));
    assert_eq!(gone.header("x-kv-timestamp"), deleted.header("x-kv-timestamp"));
}

#[test]
fn a_list_is_paged_forwards_and_backwards() {
    let server = Server::start();
    let items: Vec<_> =
        (0..25).map(|i| json!({"key": format!("item:{i:02}"), "value": format!("v{i}")})).collect();
    server.post("/batch", json!({"items": items}).to_string());
    server.put("other", "o");
    let walk = |query: &str| {
        let (mut found, mut pages, mut target) = (Vec::new(), 0, format!("/v1/kv?{query}"));
        loop {
            let page = server.get(&target);
            found.extend(keys(&page));
            pages += 1;
            let json = page.json();
            assert_eq!(page.header("x-next-cursor"), json["next_cursor"].as_str());
            let Some(cursor) = json["next_cursor"].as_str() else { return (found, pages) };
            target = format!("/v1/kv?{query}&cursor={cursor}");
        }
    };
    let expected: Vec<_> = (0..25).map(|i| format!("item:{i:02}")).collect();
    let backwards: Vec<_> = expected.iter().rev().cloned().collect();
    for limit in [1, 7, 25, 1000] {
        let (found, pages) = walk(&format!("prefix=item&limit={limit}"));
        assert_eq!(found, expected, "{limit}");
        assert!(pages <= 26);
        let (found, _) = walk(&format!("prefix=item&limit={limit}&reverse=true"));
        assert_eq!(found, backwards, "{limit}");
    }
    assert_eq!(walk("start=item:23&reverse").0, ["other", "item:24", "item:23"]);
    assert_eq!(walk("start=item:03&end=item:05").0, ["item:03", "item:04", "item:05"]);
    let only = server.get("/v1/kv?prefix=item&limit=2&keys_only");
    assert!(
        only.text().starts_with(r#"{"items":[{"key":"item:00"},{"key":"item:01"}],"next_cursor":""#),
        "{}",
        only.text()
    );
    assert_eq!(server.get("/v1/kv?prefix=other").text(), r#"{"items":[{"key":"other","value":"o"}]}"#);
    assert_eq!(server.get("/v1/kv?prefix=none&reverse").text(), r#"{"items":[]}"#);
}

#[test]
fn a_list_says_types_and_tells_of_bytes_that_are_no_text() {
    let server = Server::start();
    server.connect().ask("PUT", "/v1/kv/%ff", &[("Content-Type", "text/html")], b"\xfe");
    let text = server.get("/v1/kv");
    assert_eq!(text.header("x-kv-lossy"), Some("1"));
    assert_eq!(text.json()["items"][0]["content_type"], "text/html");
    let encoded = server.get("/v1/kv?encoding=base64");
    assert_eq!(encoded.text(), r#"{"items":[{"key":"/w==","value":"/g==","content_type":"text/html"}]}"#);
    assert_eq!(encoded.header("x-kv-lossy"), None);
    let many = server.post("/v1/kv:get?encoding=base64", r#"{"keys":["/w==","AA=="]}"#);
    assert_eq!(
        many.text(),
        r#"{"items":[{"key":"/w==","value":"/g==","content_type":"text/html"}],"missing":["AA=="],"deferred":[]}"#
    );
    let gone = server.post("/v1/kv:delete?encoding=base64", r#"{"keys":["/w=="]}"#);
    assert_eq!(gone.text(), r#"{"deleted":1}"#);
    assert_eq!(server.get("/get?key=%ff").code, 404);
}

#[test]
fn many_keys_are_read_and_deleted_at_once() {
    let server = Server::start();
    server.put("a", "1");
    server.put("c", "3");
    let got = server.post("/v1/kv:get", r#"{"keys":["c","b","a","c"]}"#);
    assert_eq!(
        got.text(),
        r#"{"items":[{"key":"c","value":"3"},{"key":"a","value":"1"},{"key":"c","value":"3"}],"missing":["b"],"deferred":[]}"#
    );
    assert_eq!(
        server.post("/v1/kv:get", r#"{"keys":[]}"#).text(),
        r#"{"items":[],"missing":[],"deferred":[]}"#
    );
    let deleted = server.post("/v1/kv:delete", r#"{"keys":["a","b"]}"#);
    assert_eq!((deleted.code, deleted.text()), (200, r#"{"deleted":2}"#));
    assert!(deleted.header("x-kv-acks").is_some());
    assert_eq!(server.get("/get?key=a").code, 404);
    assert_eq!(server.get("/get?key=c").text(), "3");
}

#[test]
fn values_that_do_not_fit_into_one_answer_are_deferred() {
    let server = Server::start();
    let big = "x".repeat(2 << 20);
    let names: Vec<_> = (0..6).map(|i| format!("big{i}")).collect();
    for name in &names {
        assert_eq!(server.put(name, &big).code, 200);
    }
    let mut asked = names.clone();
    let mut received = Vec::new();
    for _ in 0..names.len() {
        let got = server.post("/v1/kv:get", json!({"keys": asked}).to_string());
        assert_eq!(got.code, 200, "{}", got.text());
        received.extend(keys(&got));
        assert_eq!(got.json()["missing"], json!([]));
        asked = serde_json::from_value(got.json()["deferred"].clone()).unwrap();
        if asked.is_empty() {
            break;
        }
    }
    assert_eq!(received, names);
}

#[test]
fn faults_say_what_a_program_can_do() {
    let server = Server::start();
    let long = format!("/v1/kv/{}", "k".repeat(4097));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("PUT", "/v1/kv/", "", 400, "bad_request"),
        ("PUT", "/v1/kv/k?w=9", "", 400, "bad_request"),
        ("GET", "/v1/kv/%zz", "", 400, "bad_request"),
        ("PUT", &long, "", 413, "too_large"),
        ("POST", "/v1/kv/k", "", 405, "method_not_allowed"),
        ("PUT", "/v1/kv", "", 405, "method_not_allowed"),
        ("GET", "/v1/kv:get", "", 405, "method_not_allowed"),
        ("GET", "/v1/kv?limit=0", "", 400, "bad_request"),
        ("GET", "/v1/kv?reverse=maybe", "", 400, "bad_request"),
        ("GET", "/v1/kv?cursor=x", "", 400, "bad_request"),
        ("POST", "/v1/kv:get", "{}", 400, "bad_request"),
        ("POST", "/v1/kv:get", r#"{"keys":["a",""]}"#, 400, "bad_request"),
        ("POST", "/v1/kv:get?encoding=base64", r#"{"keys":["AA==","?"]}"#, 400, "bad_request"),
        ("POST", "/v1/kv:delete", r#"{"keys":[1]}"#, 400, "bad_request"),
        ("GET", "/v1/kv/none", "", 404, "not_found"),
    ];
    let assert_problem = |answer: &Answer, code: u16, name: &str, retryable: bool| -> Value {
        assert_eq!(answer.code, code, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert_eq!((&problem["code"], &problem["status"]), (&name.into(), &code.into()), "{problem}");
        assert_eq!(
            (&problem["retryable"], &problem["outcome"]),
            (&retryable.into(), &"not_sent".into()),
            "{problem}"
        );
        assert!(
            !problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty()
        );
        problem
    };
    for (method, target, body, code, name) in cases {
        assert_problem(&server.ask(method, target, body.as_bytes()), *code, name, false);
    }
    let indexed = server.post("/v1/kv:get", r#"{"keys":["a",""]}"#).json();
    assert!(indexed["detail"].as_str().unwrap().contains("keys[1]"), "{indexed}");
    server.put("k", "value");
    let beyond = server.connect().ask("GET", "/v1/kv/k", &[("Range", "bytes=9-")], b"");
    assert_problem(&beyond, 416, "bad_range", false);

    let (server, api) = limits();
    let unready = Server::start_unready(server, api);
    let lonely = Server::start_lonely();
    for (method, target, body) in [
        ("PUT", "/v1/kv/k", "v"),
        ("GET", "/v1/kv/k", ""),
        ("DELETE", "/v1/kv/k", ""),
        ("GET", "/v1/kv", ""),
        ("GET", "/v1/kv?reverse", ""),
        ("POST", "/v1/kv:get", r#"{"keys":["k"]}"#),
    ] {
        let answer = unready.ask(method, target, body.as_bytes());
        assert_problem(&answer, 503, "not_ready", true);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_problem(&lonely.ask(method, target, body.as_bytes()), 503, "too_few_replicas", true);
    }
    let deleted = lonely.post("/v1/kv:delete", r#"{"keys":["a","b"]}"#);
    assert_eq!((deleted.code, deleted.header("retry-after")), (503, Some("1")));
    assert_eq!(deleted.json()["deleted"], 0);
    let failed = &deleted.json()["failed"][1];
    assert_eq!((&failed["key"], &failed["outcome"]), (&"b".into(), &"not_sent".into()), "{failed}");
    assert_eq!((&failed["code"], &failed["retryable"]), (&"too_few_replicas".into(), &true.into()));
}

#[test]
fn many_items_of_any_bytes_and_types_are_written_at_once() {
    let server = Server::start();
    let items = json!({"items": [
        {"key": "text", "value": "ä", "content_type": "text/plain", "timestamp": 7},
        {"key_base64": STANDARD.encode(b"\xff\0"), "value_base64": STANDARD.encode(b"\x89PNG"), "content_type": "image/png"},
        {"key": "twice", "value": "1"},
        {"key": "twice", "value": "2", "content_type": "application/octet-stream"},
    ]});
    let written = server.post("/v1/kv:put", items.to_string());
    assert_eq!((written.code, written.json()), (200, json!({"written": 4})));
    assert!(written.header("x-kv-acks").is_some());
    let binary = server.get("/v1/kv/%ff%00");
    assert_eq!((&binary.body[..], binary.header("content-type")), (&b"\x89PNG"[..], Some("image/png")));
    assert_eq!(server.get("/v1/kv/text").header("content-type"), Some("text/plain"));
    assert_eq!(server.get("/get?key=twice").text(), "2");
    assert_eq!(server.get("/get?key=twice").header("content-type"), Some("application/octet-stream"));
    let base64 = json!({"items": [{"key": STANDARD.encode("b"), "value": STANDARD.encode("c")}]});
    assert_eq!(server.post("/v1/kv:put?encoding=base64", base64.to_string()).code, 200);
    assert_eq!(server.get("/get?key=b").text(), "c");
    assert_eq!(server.post("/v1/kv:put", r#"{"items":[]}"#).json(), json!({"written": 0}));

    let bad = [
        (r#"{"items":[{"key":"a","value":"b"},{"key":"a"}]}"#, 400, "items[1]: missing field `value`"),
        (r#"{"items":[{"value":"b"}]}"#, 400, "items[0]: missing field `key`"),
        (
            r#"{"items":[{"key":"a","key_base64":"YQ==","value":""}]}"#,
            400,
            "items[0]: both `key` and `key_base64`",
        ),
        (r#"{"items":[{"key":"","value":""}]}"#, 400, "items[0]: key is empty"),
        (r#"{"items":[{"key":"a","value_base64":"?"}]}"#, 400, "items[0]: bad base64"),
        (
            r#"{"items":[{"key":"a","value":"","content_type":"\n"}]}"#,
            400,
            "items[0]: content_type must be a media type",
        ),
    ];
    for (body, code, detail) in bad {
        let refused = server.post("/v1/kv:put", body);
        assert_eq!(refused.code, code, "{body}");
        let said = refused.json();
        assert!(said["detail"].as_str().unwrap().starts_with(detail), "{said}");
    }
    assert_eq!(server.get("/get?key=a").code, 404, "nothing of a bad request is written");
}

#[test]
fn a_list_says_when_its_values_were_written_if_asked() {
    let server = Server::start();
    let written = server.put("k", "v");
    let timestamp: u64 = written.header("x-kv-timestamp").unwrap().parse().unwrap();
    assert!(server.get("/v1/kv").json()["items"][0].get("timestamp").is_none());
    for query in ["timestamps=true", "timestamps=true&reverse=true", "timestamps=1&keys_only=true"] {
        assert_eq!(
            server.get(&format!("/v1/kv?{query}")).json()["items"][0]["timestamp"],
            timestamp,
            "{query}"
        );
    }
}
