//! Peers that send garbage, half a request, too much, or nothing: none of them stops a node or makes it grow.
#![allow(clippy::disallowed_methods)] // a client lives in the real world

mod http_support;

use http_support::{Client, Server, limits, within};
use std::io::Write;
use std::time::{Duration, Instant};

fn serves(server: &Server) {
    assert_eq!(server.put("alive", "yes").text(), "OK");
    assert_eq!(server.get("/get?key=alive").text(), "yes");
}

#[test]
fn malformed_heads_are_refused_with_a_text_and_the_connection_is_closed() {
    let server = Server::start();
    let headers = |count: usize| (0..count).fold(String::new(), |all, i| all + &format!("h{i}: x\r\n"));
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (b"garbage\r\n\r\n".to_vec(), 400),
        (b"\0\0\0\0\xff\xfe\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/3.7\r\n\r\n".to_vec(), 400),
        (b"GET /get?key=a b HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: header\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n".to_vec(), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(), 414),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nbig: {}\r\n\r\n", "a".repeat(100_000)).into_bytes(), 431),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", headers(200)).into_bytes(), 431),
    ];
    for (raw, code) in cases {
        let shown = raw[..raw.len().min(60)].escape_ascii().to_string();
        let mut connection = server.connect();
        let _ = connection.send(&raw); // the server may close before all is sent
        let answer = connection.answer().unwrap_or_else(|| panic!("{shown} is answered"));
        assert!(answer.code == code || (code == 414 && answer.code == 431), "{shown}: {}", answer.code);
        assert!(!answer.body.is_empty(), "{shown}");
        assert!(connection.is_closed_silently(), "{shown}");
    }
    let mut speaks_http2 = server.connect();
    speaks_http2.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    assert!(speaks_http2.is_closed_silently(), "no answer would be understood");
    serves(&server);
}

#[test]
fn requests_that_two_readers_may_frame_differently_are_refused() {
    let server = Server::start();
    let smuggled = "GET /get?key=smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases = [
        format!(
            "POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n{smuggled}"),
        "GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\n\r\n".to_owned(),
    ];
    for raw in cases {
        let mut connection = server.connect();
        connection.send(&raw).unwrap();
        let answer = connection.answer().unwrap_or_else(|| panic!("{raw:?} is answered"));
        assert_eq!(answer.code, 400, "{raw:?}");
        assert!(!answer.body.is_empty(), "{raw:?}");
        if raw.contains("smuggled") {
            assert!(connection.is_closed_silently(), "the smuggled request is not run: {raw:?}");
        }
    }
    assert_eq!(server.get("/metrics").json()["reads"], 0, "no smuggled request was run");
}

#[test]
fn a_bare_line_feed_ends_a_line_and_smuggles_nothing() {
    let server = Server::start();
    let mut connection = server.connect();
    connection.send("GET /livez HTTP/1.1\nHost: x\n\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    for _ in 0..2 {
        assert_eq!(connection.answer().unwrap().text(), "alive");
    }
    let mut connection = server.connect();
    connection
        .send("POST /put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\nX\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert_eq!(connection.answer().unwrap().code, 400, "inside a chunk's extension it hides a boundary");
    assert!(connection.is_closed_silently());
}

#[test]
fn half_a_head_is_given_up_and_half_a_body_is_told_so() {
    let server = Server::start();
    let started = Instant::now();
    let mut head = server.connect();
    head.send("GET /livez HTTP/1.1\r\nHost:").unwrap();
    let mut body = server.connect();
    body.send("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"key\":").unwrap();
    assert!(head.is_closed_silently());
    let answer = body.answer().unwrap();
    assert_eq!((answer.code, answer.text()), (408, "the request's body came too slowly"));
    assert!(body.is_closed_silently());
    assert!(started.elapsed() < Duration::from_secs(5));
    serves(&server);
}

#[test]
fn a_head_and_a_body_sent_byte_by_byte_are_given_up_all_the_same() {
    let server = Server::start();
    let drip = |mut connection: Client, text: &'static str| {
        let started = Instant::now();
        for byte in text.bytes().cycle() {
            if connection.stream.write_all(&[byte]).is_err() || started.elapsed() > Duration::from_secs(10) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        started.elapsed()
    };
    let head = server.connect();
    let mut body = server.connect();
    body.send("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    std::thread::scope(|scope| {
        let head = scope.spawn(|| drip(head, "GET /livez HTTP/1.1 "));
        let body = scope.spawn(|| drip(body, "{\"key\":\"k\" "));
        assert!(head.join().unwrap() < Duration::from_secs(5));
        assert!(body.join().unwrap() < Duration::from_secs(5));
    });
    serves(&server);
}

#[test]
fn a_slow_head_on_a_connection_that_was_used_before_is_given_up_too() {
    let server = Server::start();
    let mut connection = server.connect();
    assert_eq!(connection.ask("GET", "/livez", &[], b"").code, 200);
    connection.send("GET /li").unwrap();
    assert!(connection.is_closed_silently());
}

#[test]
fn an_idle_connection_is_closed_after_its_time_and_not_before() {
    let (mut limits, api) = limits();
    limits.timeouts.idle = Duration::from_millis(600);
    let server = Server::start_with(limits, api);
    let started = Instant::now();
    let (mut fresh, mut used) = (server.connect(), server.connect());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(used.ask("GET", "/livez", &[], b"").code, 200);
    let asked = Instant::now();
    assert!(fresh.is_closed_silently());
    assert!(started.elapsed() >= Duration::from_millis(590));
    assert!(used.is_closed_silently());
    let idle = asked.elapsed();
    assert!((590..5000).contains(&idle.as_millis()), "{idle:?}");
}

#[test]
fn an_idle_connection_outlives_the_time_for_a_head() {
    let server = Server::start();
    let mut connection = server.connect();
    assert_eq!(connection.ask("GET", "/livez", &[], b"").code, 200);
    std::thread::sleep(Duration::from_millis(900)); // three times what a head may take
    assert_eq!(connection.ask("GET", "/livez", &[], b"").code, 200);
}

#[test]
fn a_reader_that_takes_nothing_is_cut() {
    let (mut limits, api) = limits();
    limits.timeouts.write = Duration::from_millis(300);
    let server = Server::start_with(limits, api);
    assert_eq!(server.put("big", &"v".repeat(2 << 20)).code, 200);
    let mut connection = server.connect();
    let request = "GET /get?key=big HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20);
    connection.send(request).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let mut complete = 0;
    while connection.answer().is_some_and(|answer| answer.complete) {
        complete += 1;
    }
    assert!(complete < 20, "the rest was not kept for a reader that did not read");
    serves(&server);
}

#[test]
fn a_body_announced_too_long_is_refused_at_once_and_a_chunked_one_when_it_is() {
    let server = Server::start();
    let mut announced = server.connect();
    announced.send("POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 943718400\r\n\r\n").unwrap();
    let answer = announced.answer().unwrap();
    assert_eq!((answer.code, answer.text()), (413, "body has more than 16777216 bytes"));
    let mut endless = server.connect();
    endless.send("POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
    let started = Instant::now();
    while endless.send(&chunk).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10), "the server stops taking it");
    }
    assert_eq!(endless.answer().map(|answer| answer.code), Some(413));
    serves(&server);
}

#[test]
fn a_sender_that_never_listens_still_gets_its_413() {
    let server = Server::start();
    let answer = within(Duration::from_secs(10), {
        let mut connection = server.connect();
        move || {
            // As curl does with `-H Expect:`: head and body at once, the answer read afterwards.
            let _ = connection.send("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 17000000\r\n\r\n");
            let _ = connection.send(vec![b' '; 1 << 20]);
            connection.answer()
        }
    });
    assert_eq!(answer.map(|answer| answer.code), Some(413));
}

#[test]
fn bodies_in_flight_are_bounded_together() {
    let (limits, mut api) = limits();
    api.inflight_bytes_max = 4 << 20;
    api.body.grace = Duration::from_secs(5);
    let server = Server::start_with(limits, api);
    let half = vec![b' '; 2 << 20];
    let mut holder = server.connect();
    holder.send("POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 3500000\r\n\r\n").unwrap();
    holder.send(&half).unwrap();
    let started = Instant::now();
    while server.get("/metrics").json()["http_bytes_in_flight"].as_u64().unwrap() < 2 << 20 {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    let refused = server.post("/batch", &half);
    assert_eq!((refused.code, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.text(), "too many bytes in flight; try again");
    serves(&server);
    drop(holder);
    let started = Instant::now();
    while server.get("/metrics").json()["http_bytes_in_flight"] != 0 {
        assert!(started.elapsed() < Duration::from_secs(5), "what was given up is given back");
    }
    assert_eq!(server.put("k", &"v".repeat(1 << 20)).code, 200);
}

#[test]
fn fifteen_hundred_idle_connections_keep_nobody_waiting() {
    let server = Server::start();
    let wanted = 1500;
    let (mut idle, mut used) = (Vec::new(), Vec::new());
    for number in 0..wanted {
        match std::net::TcpStream::connect(server.addr) {
            Ok(stream) => idle.push(stream),
            // Both ends count against this process's descriptors.
            Err(error) => {
                assert!(number > 400, "{error} after {number}");
                idle.truncate(number - 50);
                break;
            }
        }
    }
    for _ in 0..20 {
        used.push(server.connect());
    }
    for connection in &mut used {
        assert_eq!(connection.ask("GET", "/livez", &[], b"").code, 200);
    }
    serves(&server);
}

#[test]
fn a_connection_too_many_is_told_so() {
    let (mut limits, api) = limits();
    limits.connections_max = 3;
    let server = Server::start_with(limits, api);
    let mut held: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for connection in &mut held {
        assert_eq!(connection.ask("GET", "/livez", &[], b"").code, 200);
    }
    let answer = server.connect().answer().unwrap();
    assert_eq!((answer.code, answer.text()), (503, "too many connections"));
    drop(held);
    let started = Instant::now();
    loop {
        let mut connection = server.connect();
        let _ = connection.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
        if connection.answer().is_some_and(|answer| answer.code == 200) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "a place that was given up is free again");
    }
}

#[test]
fn a_batch_of_100_000_items_is_taken_whole() {
    let server = Server::start();
    let items: Vec<_> = (0..100_000).map(|i| format!(r#"{{"key":"item:{i:06}","value":"v{i}"}}"#)).collect();
    let body = format!(r#"{{"items":[{}]}}"#, items.join(","));
    let answer = within(Duration::from_secs(60), {
        let mut connection = server.connect();
        connection.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        move || connection.ask("POST", "/batch", &[], body.as_bytes())
    });
    assert_eq!(answer.text(), "Batch Processed");
    assert_eq!(server.get("/get?key=item:099999").text(), "v99999");
    let metrics = server.get("/metrics").json();
    assert_eq!(
        (&metrics["batches"], &metrics["writes"]),
        (&1.into(), &0.into()),
        "batch items are no writes"
    );
    let all = server.get("/scan").json();
    assert_eq!(all.as_object().unwrap().len(), 100_000);
}

#[test]
fn a_client_that_leaves_in_the_middle_harms_nobody() {
    let server = Server::start();
    server.put("big", &"v".repeat(1 << 20));
    for cut in [10, 40, 70, 90] {
        let raw =
            b"POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\n\r\n{\"key\":\"k\",\"value\":\"v\"}";
        for _ in 0..20 {
            let mut connection = server.connect();
            let _ = connection.send(&raw[..cut.min(raw.len() - 1)]);
            let mut reader = server.connect();
            let _ = reader.send("GET /get?key=big HTTP/1.1\r\nHost: x\r\n\r\n");
        }
    }
    serves(&server);
}
