//! What clients, browsers and proxies send at the edges of HTTP: conditions, codings, parts, other sites' pages, misspelt
//! names. Each is done as the standard says, or refused; none is dropped silently.
#![allow(clippy::disallowed_methods)] // a client lives in the real world

mod http_support;

use std::time::{Duration, Instant};

use http_support::{Answer, Server, limits};
use kvstore::http::ApiSettings;
use kvstore::http::access::Access;
use kvstore::http::router::{Parameters, Pattern, Route};
use kvstore::util::hosts::Hosts;
use kvstore::util::tokens::Tokens;

/// Endpoints that give a value with its `ETag`.
const READS: [&str; 4] = ["/get?key=k", "/kv/aw==", "/blobs/k", "/v1/kv/k"];

/// A request that each route takes: method, target, body.
fn request_of(route: Route) -> (&'static str, String, &'static str) {
    let row = route.row();
    let path = match row.pattern {
        Pattern::Is(path) => path.to_owned(),
        Pattern::Under(prefix) => format!("{prefix}k"),
        Pattern::Other => "/nowhere".to_owned(),
    };
    let (query, body) = match route {
        Route::Put | Route::SimpleSet => ("", r#"{"key":"k","value":"new"}"#),
        Route::Get | Route::Delete | Route::SimpleDelete | Route::Explain => ("?key=k", ""),
        Route::Batch | Route::OwnPutMany => ("", r#"{"items":[{"key":"k","value":"new"}]}"#),
        Route::DeleteRange | Route::OwnDeleteRange => ("?all=true", ""),
        Route::VikdbRange => ("?start=a", ""),
        Route::VikdbBatch => ("", r#"{"keys":["aw=="],"values":["bmV3"]}"#),
        Route::VikdbPut => ("", r#"{"value":"bmV3"}"#),
        Route::OwnGetMany | Route::OwnDeleteMany => ("", r#"{"keys":["k"]}"#),
        Route::CheckpointMake | Route::CheckpointRemove => ("?name=copy", ""),
        Route::BlobPut | Route::OwnPut => ("", "new"),
        _ => ("", ""),
    };
    let method = row.methods.first().copied().unwrap_or("GET");
    (method, path + query, body)
}

/// The routes that change something.
fn writes() -> impl Iterator<Item = Route> {
    let writes = |route: &Route| matches!(route.row().access, Access::Write | Access::AdminWrite);
    Route::ALL.into_iter().filter(writes)
}

fn ask(server: &Server, route: Route, headers: &[(&str, &str)]) -> Answer {
    let (method, target, body) = request_of(route);
    server.connect().ask(method, &target, headers, body.as_bytes())
}

fn ask_with_host(server: &Server, method: &str, target: &str, host: &str, more: &str) -> Answer {
    let mut client = server.connect();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")).unwrap();
    client.answer_to(method).unwrap()
}

// ---- conditions ----

#[test]
fn conditions_on_reads_are_judged_in_the_order_of_the_standard() {
    let server = Server::start();
    server.put("k", "first");
    let old: Vec<_> = READS.map(|read| server.get(read).header("etag").unwrap().to_owned()).into();
    server.put("k", "second value");
    let (past, future) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    for (read, old) in READS.iter().zip(&old) {
        let now = server.get(read).header("etag").unwrap().to_owned();
        let (now, old) = (now.as_str(), old.as_str());
        let (weak, listed) = (format!("W/{now}"), format!("{old}, \"x,y\" , {now}"));
        let cases: &[(&[(&str, &str)], u16)] = &[
            (&[("If-Match", now)], 200),
            (&[("If-Match", &listed)], 200),
            (&[("If-Match", "*")], 200),
            (&[("If-Match", old), ("If-Match", now)], 200),
            (&[("If-Match", old)], 412),
            (&[("If-Match", &weak)], 412), // compared strongly
            (&[("If-Match", "nonsense")], 412),
            (&[("If-Match", "")], 412),
            (&[("If-None-Match", now)], 304),
            (&[("If-None-Match", &weak)], 304), // compared weakly
            (&[("If-None-Match", &listed)], 304),
            (&[("If-None-Match", "*")], 304),
            (&[("If-None-Match", old)], 200),
            (&[("If-Modified-Since", future)], 304),
            (&[("If-Modified-Since", past)], 200),
            (&[("If-Modified-Since", "yesterday")], 200), // no date: ignored
            (&[("If-Modified-Since", past), ("If-Modified-Since", future)], 200),
            (&[("If-Unmodified-Since", past)], 412),
            (&[("If-Unmodified-Since", future)], 200),
            (&[("If-Unmodified-Since", "yesterday")], 200),
            (&[("If-Match", now), ("If-Unmodified-Since", past)], 200), // the date is not looked at
            (&[("If-Match", old), ("If-None-Match", now)], 412),        // the first in the order decides
            (&[("If-Match", now), ("If-None-Match", now)], 304),
            (&[("If-None-Match", old), ("If-Modified-Since", future)], 200), // the date is not looked at
            (&[("If-Unmodified-Since", past), ("If-None-Match", now)], 412),
        ];
        for (headers, code) in cases {
            for method in ["GET", "HEAD"] {
                let answer = server.connect().ask(method, read, headers, b"");
                assert_eq!(answer.code, *code, "{method} {read} {headers:?}");
                if *code != 412 {
                    assert_eq!(answer.header("etag"), Some(now), "{read} {headers:?}");
                    assert!(answer.header("x-kv-timestamp").is_some());
                }
                let described = ["content-type", "content-range", "accept-ranges"];
                assert!(
                    *code != 304 || described.iter().all(|name| answer.header(name).is_none()),
                    "{answer:?}"
                );
                assert!(method == "HEAD" || *code == 304 || !answer.body.is_empty());
            }
        }
        let absent = read.replace("key=k", "key=none").replace("aw==", "bm9uZQ==").replace("/k", "/none");
        let absent = absent.replace("/nonev", "/kv");
        for headers in [[("If-Match", "*")], [("If-None-Match", "*")], [("If-Unmodified-Since", past)]] {
            assert_eq!(server.connect().ask("GET", &absent, &headers, b"").code, 404, "{absent} {headers:?}");
        }
    }
    let failed = server.connect().ask("GET", "/v1/kv/k", &[("If-Match", "\"x\"")], b"");
    assert_eq!(failed.json()["code"], "precondition_failed");
    let dated = server.get("/openapi.json").header("etag").unwrap().to_owned();
    assert_eq!(server.connect().ask("GET", "/openapi.json", &[("If-None-Match", &dated)], b"").code, 304);
    assert_eq!(server.connect().ask("GET", "/openapi.json", &[("If-Match", "\"x\"")], b"").code, 412);
}

#[test]
fn ranges_of_two_versions_are_not_joined() {
    let server = Server::start();
    server.put("k", "first");
    for read in ["/blobs/k", "/v1/kv/k"] {
        server.put("k", "first");
        let first = server.get(read).header("etag").unwrap().to_owned();
        server.put("k", "second");
        let second = server.get(read).header("etag").unwrap().to_owned();
        let part = |headers: &[(&str, &str)]| {
            let headers: Vec<_> = [("Range", "bytes=2-")].iter().chain(headers).copied().collect();
            let answer = server.connect().ask("GET", read, &headers, b"");
            (answer.code, String::from_utf8(answer.body).unwrap())
        };
        let weak = format!("W/{second}");
        assert_eq!(part(&[]), (206, "cond".to_owned()));
        assert_eq!(part(&[("If-Match", &first)]).0, 412);
        assert_eq!(part(&[("If-Match", &second)]), (206, "cond".to_owned()));
        assert_eq!(part(&[("If-Range", &second)]), (206, "cond".to_owned()));
        assert_eq!(part(&[("If-None-Match", &second)]).0, 304, "the condition comes before the range");
        // A weak name, a date and nonsense are no proof that the client holds a part of this version.
        for other in [first.as_str(), weak.as_str(), "Fri, 01 Jan 2100 00:00:00 GMT", "nonsense", "*"] {
            assert_eq!(part(&[("If-Range", other)]), (200, "second".to_owned()), "{read} {other}");
        }
        assert_eq!(part(&[("If-Range", &second), ("If-Range", &first)]).0, 200);
        let beyond = |headers: &[(&str, &str)]| {
            let headers: Vec<_> = [("Range", "bytes=99-")].iter().chain(headers).copied().collect();
            server.connect().ask("GET", read, &headers, b"")
        };
        assert_eq!((beyond(&[]).code, beyond(&[]).header("content-range")), (416, Some("bytes */6")));
        assert_eq!(beyond(&[("If-Match", &first)]).code, 412);
        assert_eq!(beyond(&[("If-None-Match", &second)]).code, 304);
        assert_eq!(beyond(&[("If-Range", &first)]).code, 200);
        assert_eq!(part(&[("Range", "bytes=0-1")]).0, 200, "two ranges lines are none");
    }
}

#[test]
fn conditional_writes_are_refused_everywhere_and_write_nothing() {
    let server = Server::start();
    server.put("k", "kept");
    let etag = server.get("/get?key=k").header("etag").unwrap().to_owned();
    for route in writes() {
        for condition in [
            ("If-Match", etag.as_str()),
            ("If-Match", "\"other\""),
            ("If-None-Match", "*"),
            ("If-Unmodified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
            ("If-Unmodified-Since", "nonsense"),
        ] {
            let answer = ask(&server, route, &[condition]);
            assert_eq!(answer.code, 501, "{route:?} {condition:?}: {}", answer.text());
            assert!(answer.text().contains("conditional writes are not implemented"), "{}", answer.text());
            assert_eq!(
                server.get("/get?key=k").header("etag"),
                Some(etag.as_str()),
                "{route:?} {condition:?}"
            );
        }
    }
    let own = server.connect().ask("PUT", "/v1/kv/k", &[("If-None-Match", "*")], b"new").json();
    assert_eq!((&own["code"], &own["outcome"]), (&"not_implemented".into(), &"not_sent".into()));
    let vikdb = server.connect().ask("DELETE", "/kv/aw==", &[("If-Match", "*")], b"").json();
    assert_eq!(vikdb["success"], false);
    // What the standard has a write ignore is ignored.
    for ignored in [
        ("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
        ("If-Range", "\"x\""),
        ("Range", "bytes=0-1"),
    ] {
        assert_eq!(
            server.connect().ask("PUT", "/v1/kv/other", &[ignored], b"whole").code,
            204,
            "{ignored:?}"
        );
        assert_eq!(server.get("/get?key=other").text(), "whole");
    }
}

// ---- parts and codings ----

#[test]
fn a_part_of_a_value_and_a_body_in_a_coding_are_refused() {
    let server = Server::start();
    server.put("k", "kept");
    for route in writes() {
        let part = ask(&server, route, &[("Content-Range", "bytes 2-3/4")]);
        assert_eq!(part.code, 400, "{route:?}");
        assert!(part.text().contains("Content-Range"), "{}", part.text());
        for coding in ["gzip", "br", "x-unknown", "identity, gzip"] {
            let coded = ask(&server, route, &[("Content-Encoding", coding)]);
            assert_eq!(
                (coded.code, coded.header("accept-encoding")),
                (415, Some("identity")),
                "{route:?} {coding}"
            );
        }
        let plain = server.get("/get?key=k");
        assert_eq!((plain.code, plain.text()), (200, "kept"), "{route:?}");
    }
    let keys = server.connect().ask("POST", "/v1/kv:get", &[("Content-Encoding", "gzip")], b"\x1f\x8b");
    assert_eq!((keys.code, keys.json()["code"].as_str()), (415, Some("unsupported_coding")));
    let whole = server.connect().ask("PUT", "/v1/kv/k", &[("Content-Encoding", "Identity")], b"new");
    assert_eq!(whole.code, 204);
    assert_eq!(server.connect().ask("GET", "/v1/kv/k", &[("Content-Encoding", "gzip")], b"").code, 200);
}

#[test]
fn a_transfer_coding_that_is_not_chunked_is_not_implemented() {
    let server = Server::start();
    for (codings, code) in [
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding: identity, chunked", 501),
        ("Transfer-Encoding: chunked, chunked", 501),
        ("Transfer-Encoding: Chunked", 204),
        ("Transfer-Encoding: gzip", 400), // nobody knows where the body ends
    ] {
        let mut client = server.connect();
        let head = format!("PUT /v1/kv/te HTTP/1.1\r\nHost: x\r\n{codings}\r\n\r\n");
        client.send(format!("{head}3\r\nabc\r\n0\r\n\r\n")).unwrap();
        let answer = client.answer_to("PUT").unwrap();
        assert_eq!(answer.code, code, "{codings}");
        assert!(code == 204 || server.get("/get?key=te").code == 404, "{codings}");
        server.post("/delete?key=te", "");
    }
}

// ---- other sites ----

#[test]
fn a_page_of_another_site_writes_nothing_and_the_nodes_own_page_may() {
    let server = Server::start();
    server.put("k", "kept");
    let own = format!("http://localhost:{}", server.addr.port());
    for route in writes() {
        let evil: [&[(&str, &str)]; 5] = [
            &[
                ("Origin", "https://evil.test"),
                ("Sec-Fetch-Site", "cross-site"),
                ("Sec-Fetch-Mode", "no-cors"),
            ],
            &[("Sec-Fetch-Site", "cross-site")],
            &[("Sec-Fetch-Site", "same-site"), ("Origin", "http://localhost:3000")],
            &[("Origin", "https://evil.test"), ("Content-Type", "application/x-www-form-urlencoded")],
            &[("Origin", "null")],
        ];
        for headers in evil {
            let answer = ask(&server, route, headers);
            assert_eq!(answer.code, 403, "{route:?} {headers:?}: {}", answer.text());
            assert!(answer.header("www-authenticate").is_none(), "a browser is not asked for a password");
        }
        assert_eq!(server.get("/get?key=k").text(), "kept", "{route:?}");
    }
    let cross = server.connect().ask("PUT", "/v1/kv/k", &[("Origin", "https://evil.test")], b"new");
    assert_eq!(cross.json()["code"], "cross_site");
    let host = format!("localhost:{}", server.addr.port());
    for origin in
        ["", &format!("Origin: {own}\r\n"), &format!("Origin: {own}\r\nSec-Fetch-Site: same-origin\r\n")]
    {
        let more = format!("{origin}Content-Length: 0\r\n");
        assert_eq!(ask_with_host(&server, "PUT", "/v1/kv/own", &host, &more).code, 204, "{origin}");
    }
    let page = server.connect().ask("GET", "/ring", &[("Sec-Fetch-Site", "same-origin")], b"");
    assert_eq!(page.code, 200);
    let asked = server.connect().ask("OPTIONS", "/put", &[("Origin", "https://evil.test")], b"");
    assert!(asked.headers.iter().all(|(name, _)| !name.starts_with("access-control-")), "{asked:?}");
}

#[test]
fn a_token_is_proof_enough_that_no_other_site_asks() {
    let tokens = Tokens::parse("rw:bbbbbbbb").unwrap();
    let server = Server::start_with_settings(ApiSettings { tokens, ..ApiSettings::default() });
    let evil = "Origin: https://app.test\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 1\r\n";
    let put = |more: &str| {
        let mut client = server.connect();
        client.send(format!("PUT /v1/kv/k HTTP/1.1\r\nHost: kv.app.test\r\n{evil}{more}\r\nx")).unwrap();
        client.answer_to("PUT").unwrap().code
    };
    assert_eq!(put("Authorization: Bearer bbbbbbbb\r\n"), 204);
    assert_eq!(put(""), 401);
    assert_eq!(put("Authorization: Basic bWU6YmJiYmJiYmI=\r\n"), 403, "a browser sends passwords unasked");
}

#[test]
fn a_node_is_asked_for_by_a_name_that_it_knows() {
    let mut hosts = Hosts::parse("kv.example.com,*.shop.example").unwrap();
    hosts.know("node1.example.net:8081");
    let server = Server::start_with_settings(ApiSettings { hosts, ..ApiSettings::default() });
    let port = server.addr.port();
    // As curl and hey send it, browsers, proxies, containers, and clients of the names that are known.
    for host in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        "10.0.3.7".to_owned(),
        "kvstore-1:8081".to_owned(),
        "kvstore_backend".to_owned(),
        "host.docker.internal:8081".to_owned(),
        "kvstore-0.kvstore.default.svc.cluster.local:8081".to_owned(),
        "kv.example.com".to_owned(),
        "eu.shop.example:443".to_owned(),
        "node1.example.net:8081".to_owned(),
        String::new(),
    ] {
        assert_eq!(ask_with_host(&server, "GET", "/get?key=k", &host, "").code, 404, "{host}");
        assert_eq!(
            ask_with_host(&server, "PUT", "/v1/kv/x", &host, "Content-Length: 0\r\n").code,
            204,
            "{host}"
        );
    }
    for host in [
        "evil.test",
        "evil.test:8081",
        "127.0.0.1.evil.test",
        "kv.example.com.evil.test",
        "localhost.evil.test",
    ] {
        let same_origin = format!("Origin: http://{host}\r\nSec-Fetch-Site: same-origin\r\n");
        for target in
            ["/get?key=k", "/v1/kv/k", "/scan", "/metrics", "/", "/events", "/cluster/status", "/health"]
        {
            let answer = ask_with_host(&server, "GET", target, host, &same_origin);
            assert_eq!(answer.code, 403, "{host} {target}");
            assert!(answer.text().contains("KVSTORE_ALLOWED_HOSTS"), "{}", answer.text());
        }
        let put = ask_with_host(&server, "PUT", "/v1/kv/k", host, "Content-Length: 0\r\n");
        assert_eq!((put.code, put.json()["code"].as_str()), (403, Some("unknown_host")), "{host}");
        // Probes tell nothing of the data, and peers prove who they are.
        for target in ["/livez", "/readyz", "/openapi.json"] {
            assert_eq!(ask_with_host(&server, "GET", target, host, "").code, 200, "{host} {target}");
        }
        assert_eq!(
            ask_with_host(&server, "GET", "/internal/rpc", host, "").code,
            503,
            "no peers are awaited here"
        );
    }
    assert_eq!(server.get("/get?key=k").code, 404, "nothing was written");
    // A target that names its host overrides the field.
    assert_eq!(ask_with_host(&server, "GET", "http://evil.test/get?key=k", "localhost", "").code, 403);
    assert_eq!(ask_with_host(&server, "GET", "http://localhost/get?key=k", "evil.test", "").code, 404);
    let mut old = server.connect();
    old.send("GET /get?key=k HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.answer().unwrap().code, 404, "no browser");
}

// ---- names that are misspelt ----

#[test]
fn an_unknown_parameter_is_refused_where_it_could_change_what_is_done() {
    let server = Server::start();
    server.put("k", "kept");
    for route in Route::ALL {
        let (method, target, body) = request_of(route);
        if matches!(route, Route::Rpc | Route::Unknown | Route::Events) {
            continue;
        }
        let target = format!("{target}{}tll=60s", if target.contains('?') { '&' } else { '?' });
        let answer = server.ask(method, &target, body.as_bytes());
        match route.row().parameters {
            Parameters::Only(_) => {
                assert_eq!(answer.code, 400, "{route:?}: {}", answer.text());
                assert!(answer.text().contains("unknown parameter"), "{route:?}: {}", answer.text());
            }
            Parameters::Any => {
                assert!(!answer.text().contains("unknown parameter"), "{route:?}: {}", answer.text());
                server.put("k", "kept");
            }
        }
        assert_eq!(server.get("/get?key=k").text(), "kept", "{route:?}");
    }
    for (target, meant) in [
        ("/scan?prefx=k", "did you mean \"prefix\"?"),
        ("/v1/kv?keysonly", "did you mean \"keys_only\"?"),
        ("/v1/kv?Limit=1", "did you mean \"limit\"?"),
        ("/get?key=k&R=1", "did you mean \"r\"?"),
    ] {
        let answer = server.get(target);
        assert!(
            answer.code == 400
                && answer
                    .text()
                    .contains(&meant.replace('"', if target.starts_with("/v1") { "\\\"" } else { "\"" })),
            "{target}: {}",
            answer.text()
        );
    }
}

#[test]
fn an_unknown_name_in_json_is_refused_where_it_may_be_meant() {
    let server = Server::start();
    let refused = |target: &str, body: &str, expected: &str| {
        let answer = server.post(target, body);
        assert_eq!(answer.code, 400, "{target} {body}");
        assert!(answer.text().contains(expected), "{target} {body}: {}", answer.text());
    };
    refused("/put", r#"{"key":"k","value":"v","tll":60}"#, "did you mean `ttl`?");
    refused("/put", r#"{"key":"k","value":"v","Value":"w"}"#, "did you mean `value`?");
    refused(
        "/batch",
        r#"{"items":[{"key":"a","value":"b"},{"key":"k","value":"v","tll":1}]}"#,
        "items[1]: unknown field `tll`",
    );
    refused("/batch", r#"{"items":[],"itmes":[]}"#, "did you mean `items`?");
    refused("/v1/kv:put", r#"{"items":[{"key":"k","value":"v","expires":"1h"}]}"#, "unknown field `expires`");
    refused("/v1/kv:put", r#"{"items":[],"more":1}"#, "unknown field `more`");
    refused("/v1/kv:get", r#"{"keys":[],"more":1}"#, "unknown field `more`");
    refused("/v1/kv:delete", r#"{"keys":["k"],"dry_run":true}"#, "unknown field `dry_run`");
    let extra = r#"{"id":1,"type":"x","key":"k","value":"v","meta":{"ttl":1},"timestamp":7}"#;
    assert_eq!(server.post("/put", extra).text(), "OK");
    assert_eq!(
        server.post("/batch", format!(r#"{{"items":[{extra}],"note":null}}"#)).text(),
        "Batch Processed"
    );
    assert_eq!(server.post("/set", r#"{"key":"k","value":"v","tll":60}"#).text(), "OK");
    assert_eq!(server.ask("PUT", "/kv/aw==", br#"{"value":"dg==","tll":60}"#).code, 200);
    let exported = r#"{"items":[{"key":"k","value":"v","content_type":"text/html","timestamp":7}]}"#;
    assert_eq!(server.post("/v1/kv:put", exported).code, 200);
}

// ---- pages ----

#[test]
fn a_page_looks_as_far_behind_deleted_keys_whatever_its_limit_is() {
    let server = Server::start();
    for first in (0..30_000).step_by(10_000) {
        let items: Vec<_> =
            (first..first + 10_000).map(|i| format!(r#"{{"key":"q:{i:06}","value":"v"}}"#)).collect();
        assert_eq!(server.post("/batch", format!(r#"{{"items":[{}]}}"#, items.join(","))).code, 200);
    }
    assert_eq!(server.post("/delete-range?prefix=q:", "").json()["deleted"], 30_000);
    server.put("q:999999", "last");
    let scanned = server.get("/scan?prefix=q:&limit=1");
    assert_eq!((scanned.text(), scanned.header("x-next-cursor")), (r#"{"q:999999":"last"}"#, None));
    let listed = server.get("/v1/kv?prefix=q:&limit=1&keys_only");
    assert_eq!(listed.text(), r#"{"items":[{"key":"q:999999"}]}"#);
    assert_eq!(server.get("/blobs?prefix=q:&limit=1").text(), r#"["q:999999"]"#);
    assert_eq!(
        server.get("/v1/kv?prefix=q:&limit=1&reverse&keys_only").text(),
        r#"{"items":[{"key":"q:999999"}]}"#
    );
}

// ---- the connection ----

#[test]
fn options_of_the_whole_server_are_told() {
    let server = Server::start();
    let answer = server.ask("OPTIONS", "*", b"");
    assert_eq!((answer.code, answer.header("allow")), (204, Some("POST, GET, HEAD, DELETE, PUT, OPTIONS")));
    assert_eq!(server.ask("GET", "*", b"").code, 404);
    assert_eq!(server.ask("OPTIONS", "/nowhere", b"").code, 404);
}

#[test]
fn an_upload_that_is_refused_early_is_told_so_however_long_it_takes() {
    let (mut limits, api) = limits();
    limits.timeouts.linger = Duration::from_secs(20);
    limits.timeouts.linger_idle = Duration::from_secs(5);
    let server = Server::start_with(limits, api);
    for (method, target, code) in [("PUT", "/nowhere", 404), ("PATCH", "/put", 405), ("PUT", "/v1/kv/a", 413)]
    {
        let mut client = server.connect();
        client
            .send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n"))
            .unwrap();
        for _ in 0..20 {
            client.send(vec![0; 1_000_000]).unwrap_or_else(|error| panic!("{method} {target}: {error}"));
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(client.answer_to(method).map(|answer| answer.code), Some(code), "{method} {target}");
    }
}

#[test]
fn a_refused_sender_that_never_ends_or_stops_half_way_is_cut() {
    let (mut limits, api) = limits();
    limits.timeouts.linger = Duration::from_millis(1500);
    limits.timeouts.linger_idle = Duration::from_millis(1400);
    let server = Server::start_with(limits, api);
    let head = "PUT /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n";
    let started = Instant::now();
    let mut endless = server.connect();
    endless.send(head).unwrap();
    while endless.send([0; 10_000]).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(15), "the server stops taking it");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() >= Duration::from_millis(1400), "{:?}", started.elapsed());
    let started = Instant::now();
    let mut silent = server.connect();
    silent.send(head).unwrap();
    assert_eq!(silent.answer_to("PUT").unwrap().code, 404);
    while silent.fill() {}
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
