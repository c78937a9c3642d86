//! TLS: who is let in and who is not, on real sockets; a ring over it; certificates that change under load; and the way from
//! plaintext to TLS.
#![allow(clippy::disallowed_methods)] // sockets, files and processes are real

mod http_support;
mod tls_support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_support::until;
use kvstore::config::Config;
use kvstore::tls::{Settings, Tls};
use kvstore::types::NodeId;
use kvstore::util::secret_file::Readers;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustix::process::Signal;
use tls_support::{
    Authority, Door, Issue, Peer, Process, Tempdir, ask, connect, handshake, key_lines, kvstore,
};

/// Longer than any time limit of a [`Door`], shorter than a test may hang.
const PATIENCE: Duration = Duration::from_secs(5);

fn plain(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sets a flag when it is dropped.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends bytes and reads until the server closes; fails when it does not.
fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = plain(addr);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("not closed: {error}"),
    }
}

/// A client's first message, of TLS 1.1 at most.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]); // random
    body.extend([0, 0, 4, 0, 0x2f, 0xc0, 0x13, 1, 0]); // no session, two suites, no compression
    let mut handshake = vec![1, 0, 0, body.len() as u8];
    handshake.extend(body);
    let mut record = vec![0x16, 3, 1, 0, handshake.len() as u8];
    record.extend(handshake);
    record
}

// ---- what a port that speaks TLS takes ----

#[test]
fn what_is_no_tls_is_told_so_and_closed() {
    let ca = Authority::new("the ring's");
    let door = Door::open(ca.tls(&Issue::default()));
    let told = exchange(door.addr, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    assert!(told.ends_with("\r\n\r\nthis port speaks TLS: use https://\r\n"), "{told}");
    assert!(told.contains("content-length: 36\r\n"), "{told}");
    // An alert: a record of type 21, fatal.
    let told = exchange(door.addr, &hello_of_tls_1_1());
    assert!(told[0] == 21 && told[5] == 2 && [40, 70].contains(&told[6]), "no version in common: {told:?}");
    let told = exchange(door.addr, &[0x16; 300]);
    assert!(told.is_empty() || told[0] == 21, "{told:?}");
    // A client that wants HTTP/2 and nothing else.
    let error = handshake(door.addr, &ca, "127.0.0.1", &[b"h2"]).unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    until("all four are counted", || door.tls.handshakes_failed() == 4);
    assert_eq!(ask(door.addr, &ca, "GET", "/livez").0, 200, "and it serves all the same");
}

#[test]
fn half_a_handshake_and_silence_are_cut_in_time() {
    let ca = Authority::new("the ring's");
    let door = Door::open(ca.tls(&Issue::default()));
    for sent in [&[0x16][..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], &hello_of_tls_1_1()[..20]] {
        let started = Instant::now();
        assert_eq!(exchange(door.addr, sent), b"");
        assert!(started.elapsed() >= Duration::from_millis(250), "it was given time");
        assert!(started.elapsed() < PATIENCE);
    }
    // A handshake and then silence is an idle connection, and half a head after it a slow one.
    let mut slow = connect(door.addr, &ca, "127.0.0.1").unwrap();
    slow.write_all(b"GET /livez HT").unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

#[test]
fn a_client_believes_nobody_but_whom_its_ca_signed_for_that_name() {
    let (ca, other) = (Authority::new("the ring's"), Authority::new("another"));
    let good = Door::open(ca.tls(&Issue::default()));
    assert!(connect(good.addr, &ca, "127.0.0.1").is_ok());
    let error = connect(good.addr, &other, "127.0.0.1").unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let error = connect(good.addr, &ca, "node1.example").unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let expired = Door::open(ca.tls(&Issue { years: (2000, 2001), ..Issue::default() }));
    let error = connect(expired.addr, &ca, "127.0.0.1").unwrap_err();
    assert!(error.contains("expired"), "{error}");
}

#[test]
fn bodies_of_any_size_and_pipelined_requests_pass() {
    let ca = Authority::new("the ring's");
    let door = Door::open(ca.tls(&Issue::default()));
    let mut stream = connect(door.addr, &ca, "127.0.0.1").unwrap();
    let value = "v".repeat(1 << 20);
    let body = serde_json::json!({"key": "large", "value": value}).to_string();
    let head = format!("POST /put HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream.write_all(b"GET /get?key=large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("closed by a close_notify");
    let text = String::from_utf8(answers).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 3);
    assert!(text.contains(&value), "the whole value came back");
}

#[test]
fn a_reader_that_takes_nothing_is_cut_over_tls_too() {
    let ca = Authority::new("the ring's");
    let door = Door::open_with(ca.tls(&Issue::default()), |limits| {
        limits.timeouts.write = Duration::from_millis(300);
    });
    let body = serde_json::json!({"key": "big", "value": "v".repeat(2 << 20)}).to_string();
    assert_eq!(door.post(&ca, "/put", &body).0, 200);
    let mut stream = connect(door.addr, &ca, "127.0.0.1").unwrap();
    stream.write_all("GET /get?key=big HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20).as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let mut taken = Vec::new();
    assert!(stream.read_to_end(&mut taken).is_err(), "cut, and not ended");
    assert!(taken.len() < 40 << 20, "the rest was not kept for a reader that did not read");
    assert_eq!(ask(door.addr, &ca, "GET", "/livez").0, 200);
}

#[test]
fn a_deletion_over_tls_ends_with_its_client_however_it_goes() {
    const COUNT: usize = 40_000;
    let ca = Authority::new("the ring's");
    for says_goodbye in [true, false] {
        let door = Door::open(ca.tls(&Issue::default()));
        for from in (0..COUNT).step_by(2000) {
            let items =
                (from..from + 2000).map(|key| serde_json::json!({"key": format!("k{key:05}"), "value": "v"}));
            let items = serde_json::json!({"items": items.collect::<Vec<_>>()}).to_string();
            assert_eq!(door.post(&ca, "/batch", &items).0, 200);
        }
        let mut client = connect(door.addr, &ca, "127.0.0.1").unwrap();
        let asked = "POST /delete-range?prefix=k HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        client.write_all(asked.as_bytes()).unwrap();
        until("it has begun", || ask(door.addr, &ca, "GET", "/get?key=k00000").0 == 404);
        if says_goodbye {
            client.conn.send_close_notify();
            client.flush().unwrap();
        } else {
            drop(client);
        }
        let left = || ask(door.addr, &ca, "GET", "/scan?prefix=k&limit=10000").1.len();
        let mut last = left();
        until("it has ended", || {
            std::thread::sleep(Duration::from_millis(300));
            last == std::mem::replace(&mut last, left())
        });
        assert_ne!(ask(door.addr, &ca, "GET", "/get?key=k39999").0, 404, "nobody waited for the last key");
    }
}

// ---- peers ----

fn mismatch(dialler: &Peer, server: &Peer) -> String {
    let mut found = None;
    until("the peer is refused", || {
        found = dialler.mismatch(server);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn peers_are_let_in_by_certificates_that_fit_and_by_nothing_else() {
    let (ca, other) = (Authority::new("the ring's"), Authority::new("another"));
    let fits = || Some(ca.tls(&Issue::default()));
    let with = |issue: &Issue| Some(ca.tls(issue));
    for (what, dialler, server, says) in [
        (
            "another CA is believed",
            Some(other.tls_believing(&other, &Issue::default())),
            fits(),
            "its certificate is not signed",
        ),
        (
            "another CA signed",
            Some(other.tls_believing(&ca, &Issue::default())),
            fits(),
            "it refuses our certificate",
        ),
        ("expired", with(&Issue { years: (2000, 2001), ..Issue::default() }), fits(), "it has expired"),
        (
            "not yet",
            with(&Issue { years: (2999, 3000), ..Issue::default() }),
            fits(),
            "it refuses our certificate",
        ),
        (
            "for servers only",
            with(&Issue { usages: &[ServerAuth], ..Issue::default() }),
            fits(),
            "it refuses our certificate",
        ),
        (
            "of another host",
            with(&Issue { names: &["node9.example"], ..Issue::default() }),
            fits(),
            "does not name the host of 127.0.0.1:",
        ),
        (
            "to another host",
            fits(),
            with(&Issue { names: &["node9.example"], ..Issue::default() }),
            "does not name 127.0.0.1",
        ),
        (
            "to an expired one",
            fits(),
            with(&Issue { years: (2000, 2001), ..Issue::default() }),
            "has expired",
        ),
        (
            "to one for clients only",
            fits(),
            with(&Issue { usages: &[ClientAuth], ..Issue::default() }),
            "serverAuth",
        ),
        ("plaintext to TLS", None, fits(), "speaks TLS: set TLS_CERT"),
        ("TLS to plaintext", fits(), None, "does not speak TLS"),
    ] {
        let [dialler, server] = Peer::pair(dialler, server);
        let found = mismatch(&dialler, &server);
        assert!(found.contains(says), "{what}: {found}");
        assert!(!dialler.reaches(&server), "{what}");
    }
}

#[test]
fn certificates_that_fit_do_without_a_secret_and_plaintext_needs_to_be_asked_for() {
    let ca = Authority::new("the ring's");
    let strict = || Some(ca.tls(&Issue::default()));
    let lenient = || Some(ca.tls(&Issue { takes_plaintext: true, ..Issue::default() }));
    for (what, one, other) in [
        ("both strict", strict(), strict()),
        ("one on its way", lenient(), strict()),
        ("both on their way", lenient(), lenient()),
        ("one on its way, one plaintext", lenient(), None),
    ] {
        let [one, other] = Peer::pair(one, other);
        until(what, || one.reaches(&other) && other.reaches(&one));
    }
    // Where there is a secret it is asked for, too.
    for (secrets, says) in [
        ([Some("one-secret"), Some("other-secret")], "CLUSTER_SECRET is not the same"),
        ([Some("one-secret"), None], "CLUSTER_SECRET is set here, not set there"),
    ] {
        let [one, other] = Peer::pair_with([strict(), strict()], secrets);
        let found = mismatch(&one, &other);
        assert!(found.contains(says), "{found}");
    }
}

#[test]
fn an_ordinary_client_is_no_peer_over_tls_either() {
    let ca = Authority::new("the ring's");
    let [server, _] = Peer::pair(Some(ca.tls(&Issue::default())), Some(ca.tls(&Issue::default())));
    let mut stream = connect(server.addr, &ca, "127.0.0.1").unwrap();
    let upgrade =
        "GET /internal/rpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: kvstore-rpc/1\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[test]
fn a_session_that_is_resumed_is_nobodys() {
    let ca = Authority::new("the ring's");
    let [server, _] = Peer::pair(Some(ca.tls(&Issue::default())), Some(ca.tls(&Issue::default())));
    let config = ca.client_with_certificate(&Issue::default());
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut stream = tls_support::connect_with(server.addr, &config, "127.0.0.1").unwrap();
        let upgrade =
            "GET /internal/rpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: kvstore-rpc/1\r\n\r\n";
        stream.write_all(upgrade.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        answers.push((stream.conn.handshake_kind().unwrap(), String::from_utf8_lossy(&answer).into_owned()));
    }
    assert_eq!(answers[0], (rustls::HandshakeKind::Full, "HTTP/1.1 101".to_owned()));
    assert_eq!(answers[1], (rustls::HandshakeKind::Resumed, "HTTP/1.1 403".to_owned()));
}

// ---- files ----

#[test]
fn files_that_do_not_fit_are_refused_in_one_line_that_repeats_nothing_of_the_key() {
    let (ca, other) = (Authority::new("the ring's"), Authority::new("another"));
    let dir = Tempdir::new();
    let (cert, key) = ca.issue(&Issue::default());
    let (_, other_key) = ca.issue(&Issue::default());
    let (server_only, server_key) = ca.issue(&Issue { usages: &[ServerAuth], ..Issue::default() });
    let (elsewhere, elsewhere_key) = ca.issue(&Issue { names: &["node9.example"], ..Issue::default() });
    let cut = &cert[..cert.len() / 2];
    let garbled = key.replace('A', "!");
    for (what, cert, key, ca, says) in [
        ("no certificate", "", &*key, &*ca.pem, "TLS_CERT: there is no certificate in it"),
        ("a cut certificate", cut, &key, &ca.pem, "TLS_CERT: it is not PEM"),
        ("the key for the certificate", &key, &key, &ca.pem, "TLS_CERT: there is no certificate in it"),
        ("no key", &cert, &cert, &ca.pem, "TLS_KEY: there is no private key in it"),
        ("a garbled key", &cert, &garbled, &ca.pem, "TLS_KEY: "),
        ("another key", &cert, &other_key, &ca.pem, "TLS_KEY: it is not the key of the first certificate"),
        ("no CA", &cert, &key, "", "TLS_CA: there is no certificate in it"),
        ("another CA", &cert, &key, &other.pem, "TLS_CERT: peers will refuse it: by TLS_CA it is not signed"),
        (
            "no client",
            &server_only,
            &server_key,
            &ca.pem,
            "TLS_CERT: peers will refuse it: by TLS_CA it is for something else",
        ),
        (
            "the CA's own",
            &ca.pem,
            &ca.key(),
            &ca.pem,
            "TLS_CERT: peers will refuse it: by TLS_CA it is a CA's own",
        ),
        (
            "another host",
            &elsewhere,
            &elsewhere_key,
            &ca.pem,
            "TLS_CERT: peers will refuse it: by TLS_CA it does not name 127.0.0.1",
        ),
    ] {
        let settings = dir.settings(cert, key, ca);
        let error = Tls::load(settings).expect_err(what).to_string();
        assert!(error.starts_with(says), "{what}: {error}");
        assert!(!error.contains('\n'), "{error}");
        for line in key_lines(key) {
            assert!(!error.contains(line), "{error}");
        }
    }
    let settings = dir.settings(&cert, &key, &ca.pem);
    Tls::load(settings.clone()).unwrap();
    let missing = Settings { key: dir.path().join("nowhere.pem"), ..settings.clone() };
    assert!(Tls::load(missing).unwrap_err().to_string().starts_with("TLS_KEY: No such file"));
    let folder = Settings { ca: Some(dir.path().to_owned()), ..settings.clone() };
    assert_eq!(Tls::load(folder).unwrap_err().to_string(), "TLS_CA: it is not a regular file");
    dir.let_others_read("key.pem");
    Tls::load(Settings { key_readers: Readers::Everyone, ..settings.clone() }).unwrap();
    let error = Tls::load(settings).unwrap_err().to_string();
    assert!(error.starts_with("TLS_KEY: everyone on this machine may use it"), "{error}");
}

#[test]
fn a_reload_takes_all_or_nothing_and_no_expired_certificate_for_a_good_one() {
    let ca = Authority::new("the ring's");
    let dir = Tempdir::new();
    let (cert, key) = ca.issue(&Issue::default());
    let tls = Tls::load(dir.settings(&cert, &key, &ca.pem)).unwrap();
    let before = tls.material().to_string();
    let (next_cert, next_key) = ca.issue(&Issue::default());
    dir.settings(&next_cert, &key, &ca.pem); // half of a rotation
    assert!(tls.reload().unwrap_err().to_string().contains("TLS_KEY"));
    assert_eq!(tls.material().to_string(), before);
    let (old_cert, old_key) = ca.issue(&Issue { years: (2000, 2001), ..Issue::default() });
    dir.settings(&old_cert, &old_key, &ca.pem);
    assert!(tls.reload().unwrap_err().to_string().contains("TLS_CERT: it has expired"));
    assert_eq!(tls.material().to_string(), before);
    dir.settings(&next_cert, &next_key, &ca.pem);
    tls.reload().unwrap();
    assert_ne!(tls.material().to_string(), before);
    // Who starts with an expired one starts, and may exchange it.
    dir.settings(&old_cert, &old_key, &ca.pem);
    let expired = Tls::load(dir.settings(&old_cert, &old_key, &ca.pem)).unwrap();
    assert!(
        expired.material().warning().unwrap().contains("2001-01-01"),
        "{:?}",
        expired.material().warning()
    );
    dir.settings(&next_cert, &next_key, &ca.pem);
    expired.reload().unwrap();
    assert_eq!(expired.material().warning(), None);
}

#[test]
fn nothing_shows_the_key() {
    let ca = Authority::new("the ring's");
    let dir = Tempdir::new();
    let (cert, key) = ca.issue(&Issue::default());
    let settings = dir.settings(&cert, &key, &ca.pem);
    let tls = Tls::load(settings.clone()).unwrap();
    let config = Config { tls: Some(settings), ..Config::default() };
    let shown = format!("{tls:?} {:?} {} {config:?}", tls.material(), tls.material());
    for line in key_lines(&key) {
        assert!(!shown.contains(line), "{shown}");
    }
}

// ---- processes ----

#[test]
fn three_nodes_over_tls_serve_quorums_with_one_down_while_certificates_change() {
    let ca = Authority::new("the ring's");
    let secret_token = "rw:token-of-this-test,admin:administrator-token";
    let mut ring: Vec<Process> = Process::ring(3, &ca);
    for node in &mut ring {
        node.with_tokens(secret_token);
        node.start(false);
    }
    let all: Vec<_> = ring.iter().map(|node| format!("https://{}", node.addr())).collect();
    let (all, ca_file) = (all.join(","), ring[0].file("ca.pem"));
    let client = |args: &[&str]| {
        kvstore(
            &[
                args,
                &["--connect", &all, "--ca", ca_file.to_str().unwrap(), "--token", "administrator-token"],
            ]
            .concat(),
        )
    };
    until("all are up", || client(&["status", "--json"]).out.matches("\"state\":\"up\"").count() == 3);
    ring[2].kill();
    client(&["put", "k", "over TLS"]).ok();
    assert_eq!(client(&["get", "k", "-r", "2"]).ok().out, "over TLS");
    // Frames of many records.
    let large = "l".repeat(5 << 20);
    let file = ring[0].file("large");
    std::fs::write(&file, &large).unwrap();
    client(&["put", "large", "--file", file.to_str().unwrap()]).ok();
    assert!(client(&["get", "large", "-r", "2"]).ok().out == large);
    ring[2].start(false);
    until("all are up again", || client(&["status", "--json"]).out.matches("\"state\":\"up\"").count() == 3);
    assert!(client(&["doctor"]).out.contains("good for "), "{:?}", client(&["doctor"]));

    // Rotation under load: new connections all the time, and old ones that live on.
    let addr = ring[0].addr();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut kept = connect(addr, &ca, "127.0.0.1").unwrap();
    let first = tls_support::shown(addr, &ca);
    let workers: Vec<_> = (0..3)
        .map(|worker| {
            let (stop, done, ca) = (stop.clone(), done.clone(), ca.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let target = format!("/v1/kv/rotated-{worker}");
                    let (code, body) = tls_support::put(addr, &ca, &target, "token-of-this-test");
                    assert_eq!(code, 204, "{body}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let before = done.load(Ordering::Relaxed);
        for node in &ring {
            node.renew(&ca);
            node.signal(Signal::HUP);
        }
        until("some more requests", || done.load(Ordering::Relaxed) > before + 10);
    }
    // A broken file keeps what is there.
    until("the last certificate is in force", || tls_support::shown(addr, &ca) == ring[0].certificate());
    let last = ring[0].certificate();
    assert_ne!(first, last);
    ring[0].write("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    ring[0].reload("TLS not reloaded");
    assert_eq!(tls_support::shown(addr, &ca), last);
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("not one request failed");
    }
    // What was opened before the first rotation is served still.
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Tokens are read again, too: the old one is not known any more.
    ring[0].with_tokens("rw:another-token-now");
    ring[0].signal(Signal::HUP);
    until("the old one is refused", || {
        tls_support::put(addr, &ca, "/v1/kv/k", "token-of-this-test").0 == 401
    });
    assert_eq!(tls_support::put(addr, &ca, "/v1/kv/k", "another-token-now").0, 204);
    ring[0].with_tokens("");
    ring[0].reload("API_TOKEN_FILE not reloaded");
    assert_eq!(tls_support::put(addr, &ca, "/v1/kv/k", "another-token-now").0, 204, "they stay");
    let metrics =
        tls_support::ask_with(addr, &ca, "GET", "/metrics?format=prometheus", "another-token-now").1;
    assert!(metrics.contains("kvstore_tls_certificate_expiry_timestamp_seconds 325"), "{metrics}");
    for node in &ring {
        let log = node.log();
        for secret in ["token-of-this-test", "administrator-token", "another-token-now"] {
            assert!(!log.contains(secret), "{log}");
        }
        for line in key_lines(&node.read("key.pem")) {
            assert!(!log.contains(line), "{log}");
        }
    }
}

#[test]
fn a_ring_goes_from_plaintext_to_tls_without_missing_a_write() {
    let ca = Authority::new("the ring's");
    let mut ring = Process::ring(3, &ca);
    for node in &mut ring {
        node.speak_tls(false);
        node.workers = 1; // a worker has links of its own, and one that takes a write says nothing of another's
        node.start(false);
    }
    let ca_file = ring[0].file("ca.pem").to_str().unwrap().to_owned();
    let put = |target: &str, key: &str, w: &str| {
        let ca = if target.starts_with("https://") { &["--ca", &*ca_file][..] } else { &[] };
        kvstore(&[&["put", key, "v", "--connect", target, "-w", w], ca].concat())
    };
    let until_all_take = |target: &str| {
        until("all three replicas take a write", || put(target, "all", "3").code == 0);
    };
    let until_all_take_by_each = |ring: &[Process]| {
        for node in ring {
            until_all_take(&node.target());
        }
    };
    until_all_take_by_each(&ring);
    let written = AtomicU64::new(0);
    for takes_plaintext in [true, false] {
        for turn in 0..3 {
            let other = ring[(turn + 1) % 3].target();
            let is_done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let key = format!("k{}", written.fetch_add(1, Ordering::Relaxed));
                        put(&other, &key, "2").ok();
                    }
                });
                let _done = Finally(&is_done); // also when what follows fails, or the writer would never end
                ring[turn].stop();
                ring[turn].speak_tls(true);
                ring[turn].start(takes_plaintext);
                until_all_take_by_each(&ring);
            });
        }
    }
    let written = written.into_inner();
    assert!(written > 6);
    let target = format!("https://{}", ring[0].addr());
    for key in 0..written {
        let read =
            || kvstore(&["get", &format!("k{key}"), "-r", "3", "--connect", &target, "--ca", &ca_file]);
        until("all three replicas have it", || read().out == "v");
    }
    let refused = kvstore(&["get", "k0", "--connect", &ring[1].addr().to_string()]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("this port speaks TLS: use https://"), "{refused:?}");
}

#[test]
fn the_command_line_believes_what_it_is_told_to() {
    let (ca, other) = (Authority::new("the ring's"), Authority::new("another"));
    let mut node = Process::ring(1, &ca).remove(0);
    node.start(false);
    node.write("other.pem", &other.pem);
    let (addr, dir) = (node.addr(), node.dir().to_owned());
    let (https, file) = (format!("https://{addr}"), |name: &str| dir.join(name).to_str().unwrap().to_owned());
    let (ca_file, other_file) = (file("ca.pem"), file("other.pem"));
    kvstore(&["put", "k", "v", "--connect", &https, "--ca", &ca_file]).ok();
    let refused = kvstore(&["get", "k", "--connect", &https, "--ca", &other_file]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.err.contains("not signed by a CA that is trusted here; name its CA with --ca"),
        "{refused:?}"
    );
    let refused = kvstore(&["get", "k", "--connect", &addr.to_string(), "--ca", &ca_file]);
    assert_eq!(refused.code, 2, "{refused:?}");
    // The other two clients.
    let bench =
        ["bench", "--targets", &https, "--ca", &ca_file, "-n", "50", "-c", "2", "--keys", "5", "--json"];
    assert!(kvstore(&bench).ok().out.contains("\"problems\":{}"));
    let lines = kvstore(&["export", "--connect", &https, "--ca", &ca_file, "--prefix", "k"]).ok().out;
    assert!(lines.contains("\"key\":\"k\""), "{lines}");
    std::fs::write(dir.join("in.jsonl"), "{\"key\":\"imported\",\"value\":\"v\"}\n").unwrap();
    kvstore(&["import", &file("in.jsonl"), "--connect", &https, "--ca", &ca_file]).ok();
    let repl = tls_support::kvstore_with(
        &["repl", "--connect", &https],
        &[("KVSTORE_CA", &ca_file)],
        b"get imported\n",
    );
    assert_eq!(repl.ok().out, "v\n");
    let health =
        tls_support::kvstore_with(&["health", "-port", &addr.port().to_string()], &node.env(false), b"");
    assert_eq!(health.code, 0, "{health:?}");
    // Towards one that speaks plaintext.
    let door = http_support::Server::start();
    let refused = kvstore(&["get", "k", "--connect", &format!("https://{}", door.addr), "--ca", &ca_file]);
    assert!(refused.err.contains("it does not speak TLS; it answered in plaintext"), "{refused:?}");
}

#[test]
fn settings_that_would_not_protect_are_refused() {
    let ca = Authority::new("the ring's");
    let dir = Tempdir::new();
    let (cert, key) = ca.issue(&Issue::default());
    dir.settings(&cert, &key, &ca.pem);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, ca_file) = (at("cert.pem"), at("key.pem"), at("ca.pem"));
    let run = |flags: &[&str]| kvstore(&[&["config"], flags].concat());
    run(&["-tls-cert", &cert, "-tls-key", &key]).ok();
    for (flags, says) in [
        (&["-tls-cert", &cert][..], "TLS_CERT="),
        (&["-tls-key", &key], "of no use without TLS_CERT"),
        (&["-tls-ca", &ca_file], "of no use without TLS_CERT and TLS_KEY"),
        (&["-tls-plaintext", "true"], "of no use without"),
        (&["-tls-plaintext", "yes"], "allowed are true or false"),
        (&["-tls-cert", &cert, "-tls-key", &key, "-peers", "127.0.0.1:9"], "with peers, TLS_CA must say"),
        (&["-tls-cert", &cert, "-tls-key", &ca_file], "TLS_KEY="),
        (
            &[
                "-tls-cert",
                &cert,
                "-tls-key",
                &key,
                "-tls-ca",
                &ca_file,
                "-peers",
                "b:9",
                "-advertise-addr",
                "a.example:9",
            ],
            "does not name a.example",
        ),
    ] {
        let refused = run(flags);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.err.contains(says), "{says}: {refused:?}");
    }
    let warned =
        |flags: &[&str]| run(&[&["-bind-addr", "0.0.0.0", "-api-token", "a-token-of-many"], flags].concat());
    let clear = warned(&[]);
    assert!(format!("{}{}", clear.out, clear.err).contains("in clear"), "{clear:?}");
    let sealed = warned(&["-tls-cert", &cert, "-tls-key", &key]);
    assert!(!format!("{}{}", sealed.out, sealed.err).contains("in clear"), "{sealed:?}");
    let both = warned(&["-tls-cert", &cert, "-tls-key", &key, "-tls-plaintext", "true"]);
    assert!(format!("{}{}", both.out, both.err).contains("ALSO SPEAKS PLAINTEXT"), "{both:?}");
}

#[test]
fn a_name_of_a_node_is_what_its_certificate_must_name() {
    let dir = Tempdir::new();
    let ca = Authority::new("the ring's");
    let (cert, key) =
        ca.issue(&Issue { names: &["node1.example", "10.0.0.7", "2001:db8::7"], ..Issue::default() });
    for (own, is_named) in [
        ("node1.example:1", true),
        ("10.0.0.7:1", true),
        ("[2001:db8::7]:1", true),
        ("node2.example:1", false),
        ("10.0.0.8:1", false),
    ] {
        let settings =
            Settings { own: Some(NodeId::from_canonical(own)), ..dir.settings(&cert, &key, &ca.pem) };
        assert_eq!(Tls::load(settings).is_ok(), is_named, "{own}");
    }
}
