//! Two nodes and more on loopback, real sockets, an HTTP server in front as in production.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;
use crate::cluster::{Member, Membership, RingSettings, assign};
use crate::rpc::frame::{FRAME_LEN_MAX, Frame, Kind};
use crate::rpc::{Handler, ReplicaRequest, ReplicaResponse, WriteOrigin, decode_response, encode_request};
use crate::types::{Key, Record, Timestamp, Value};

const PATIENCE: Duration = Duration::from_secs(5);

/// Answers a read with its own key as value, a write with how many bytes it had. The key `big` has a big value, and
/// `wait` waits for the gate to open.
#[derive(Debug)]
struct Echo {
    gate: Arc<Semaphore>,
    started: AtomicUsize,
}

impl Handler for Echo {
    fn handle(&self, _: &NodeId, request: Request) -> BoxFuture<Response> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.clone();
        Box::pin(async move {
            let body = match request.body {
                ReplicaRequest::Read { key } => {
                    if key.as_bytes() == b"wait" {
                        gate.acquire().await.unwrap().forget();
                    }
                    let big = key.as_bytes() == b"big";
                    let value = if big { Bytes::from(vec![9; 3 << 20]) } else { key.to_bytes() };
                    let record = Some(Record::value(Timestamp::from_u64(1), Value::new(value)));
                    ReplicaResponse::Record { voting: true, record }
                }
                ReplicaRequest::Write { items, .. } => {
                    let len = items.iter().map(|(_, record)| record.value_len() as u32).sum();
                    ReplicaResponse::Written { voting: true, overtaken: vec![(len, Timestamp::ZERO)] }
                }
                other => panic!("not asked here: {other:?}"),
            };
            Response { clock: Timestamp::from_u64(2), body }
        })
    }
}

struct TestNode {
    name: NodeId,
    transport: TcpTransport,
    gate: Arc<Semaphore>,
    echo: Arc<Echo>,
    _accepting: tokio_util::task::AbortOnDropHandle<()>,
}

impl TestNode {
    async fn listener() -> (NodeId, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (NodeId::from_canonical(&listener.local_addr().unwrap().to_string()), listener)
    }

    fn start(listener: TcpListener, settings: TcpSettings) -> Self {
        let env = Env::real();
        let name = settings.own.clone();
        let transport = TcpTransport::new(settings, env.clone());
        let gate = Arc::new(Semaphore::new(0));
        let echo = Arc::new(Echo { gate: gate.clone(), started: AtomicUsize::new(0) });
        let server = Server::new(&transport, echo.clone());
        let tasks = env.tasks.clone();
        let accepting = env.tasks.spawn(async move {
            while let Ok((stream, addr)) = listener.accept().await {
                tasks.spawn(serve_http(stream, addr, server.clone()));
            }
        });
        let accepting = tokio_util::task::AbortOnDropHandle::new(accepting);
        Self { name, transport, gate, echo, _accepting: accepting }
    }

    async fn read(&self, to: &NodeId, key: &str) -> Result<Bytes, Error> {
        self.read_within(to, key, PATIENCE).await
    }

    async fn read_within(&self, to: &NodeId, key: &str, timeout: Duration) -> Result<Bytes, Error> {
        let response = self.transport.call(to, read(key), timeout).await?;
        match response.body {
            ReplicaResponse::Record { record: Some(record), .. } => Ok(record.as_value().unwrap().to_bytes()),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until calls go through.
    async fn connected(&self, to: &NodeId) {
        eventually(|| async { self.read(to, "k").await.is_ok() }).await;
    }
}

async fn serve_http(stream: TcpStream, addr: SocketAddr, server: Server) {
    let service = service_fn(move |mut request| {
        let response = server.accept_upgrade(&mut request, addr).map(Full::new);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = serving.with_upgrades().await;
}

fn read(key: &str) -> Request {
    let key = Key::new(key.to_owned()).unwrap();
    Request { clock: Timestamp::from_u64(9), body: ReplicaRequest::Read { key } }
}

async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let start = tokio::time::Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "did not come to hold in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn settings(own: &NodeId, members: &[&NodeId]) -> TcpSettings {
    let member = |id: &&NodeId| Member { id: (*id).clone(), weight: 10, zone: None };
    let membership = Membership::new(members.iter().map(member).collect());
    let ring = assign(None, &membership, RingSettings { range_count: 64, replication_factor: 3 });
    TcpSettings {
        own: own.clone(),
        cluster_name: "test".to_owned(),
        ring: Arc::new(ring),
        secret: None,
        tls: None,
    }
}

async fn two_with(change: impl Fn(&mut TcpSettings, bool)) -> (TestNode, TestNode) {
    let (a, a_listener) = TestNode::listener().await;
    let (b, b_listener) = TestNode::listener().await;
    let mut a_settings = settings(&a, &[&a, &b]);
    let mut b_settings = settings(&b, &[&a, &b]);
    change(&mut a_settings, true);
    change(&mut b_settings, false);
    (TestNode::start(a_listener, a_settings), TestNode::start(b_listener, b_settings))
}

async fn two() -> (TestNode, TestNode) {
    two_with(|_, _| {}).await
}

/// Waits until both sides know why they do not talk, and calls fail with it.
async fn refused(a: &TestNode, b: &TestNode) -> (String, String) {
    a.transport.connect();
    b.transport.connect();
    eventually(|| async {
        a.transport.mismatch(&b.name).is_some() && b.transport.mismatch(&a.name).is_some()
    })
    .await;
    let failed = |result| matches!(result, Err(Error::Unreachable(_)));
    eventually(|| async { failed(a.read(&b.name, "k").await) && failed(b.read(&a.name, "k").await) }).await;
    (a.transport.mismatch(&b.name).unwrap(), b.transport.mismatch(&a.name).unwrap())
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let keys: Vec<String> = (0..3000).map(|i| format!("key-{i}")).collect();
    let answers = join_all(keys.iter().map(|key| a.read(&b.name, key))).await;
    for (key, answer) in keys.iter().zip(answers) {
        assert_eq!(answer.unwrap(), key.as_bytes());
    }
    assert_eq!(a.transport.stats().dialled, 1, "they share one connection");
}

#[tokio::test]
async fn a_slow_request_holds_up_nobody() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let slow = a.read(&b.name, "wait");
    let fast = async {
        let answer = a.read(&b.name, "fast").await;
        b.gate.add_permits(1);
        answer
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert_eq!((&slow.unwrap()[..], &fast.unwrap()[..]), (&b"wait"[..], &b"fast"[..]));
}

#[tokio::test]
async fn a_request_is_queued_before_its_future_is_polled() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let before = b.echo.started.load(Ordering::SeqCst);
    let unpolled = a.transport.call(&b.name, read("k"), PATIENCE);
    eventually(|| async { b.echo.started.load(Ordering::SeqCst) > before }).await;
    drop(unpolled);
}

#[tokio::test]
async fn a_late_answer_finds_no_taker() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let late = a.read_within(&b.name, "wait", Duration::from_millis(30)).await;
    assert_eq!(late, Err(Error::TimedOut));
    b.gate.add_permits(1);
    eventually(|| async { a.transport.stats().late_answers == 1 }).await;
    assert_eq!(a.read(&b.name, "next").await.unwrap(), "next");
}

#[tokio::test]
async fn large_messages_go_both_ways_whole() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let sent = Value::new(vec![7; 3 << 20]);
    let items = vec![(Key::new("k").unwrap(), Record::value(Timestamp::ZERO, sent))];
    let body = ReplicaRequest::Write { origin: WriteOrigin::Client, items };
    let request = Request { clock: Timestamp::ZERO, body };
    let response = a.transport.call(&b.name, request, PATIENCE).await.unwrap();
    let expected = ReplicaResponse::Written { voting: true, overtaken: vec![(3 << 20, Timestamp::ZERO)] };
    assert_eq!(response.body, expected);
    let answer = a.read(&b.name, "big").await.unwrap();
    assert!(answer.len() == 3 << 20 && answer.iter().all(|byte| *byte == 9));
}

#[tokio::test]
async fn a_stranger_is_no_peer() {
    let (a, _b) = two().await;
    let (stranger, _listener) = TestNode::listener().await;
    assert!(matches!(a.read(&stranger, "k").await, Err(Error::Unreachable(_))));
    assert!(matches!(a.read(&a.name, "k").await, Err(Error::Unreachable(_))));
}

#[tokio::test]
async fn a_peer_that_is_killed_fails_the_calls_under_way_and_those_after_at_once() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let b_name = b.name.clone();
    let before = b.echo.started.load(Ordering::SeqCst);
    let call = a.transport.call(&b_name, read("wait"), PATIENCE);
    eventually(|| async { b.echo.started.load(Ordering::SeqCst) > before }).await;
    b.transport.close();
    drop(b);
    assert!(matches!(call.await, Err(Error::Disconnected(_))));
    let start = tokio::time::Instant::now();
    assert!(matches!(a.read(&b_name, "k").await, Err(Error::Unreachable(_))));
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test]
async fn a_peer_that_comes_back_is_connected_again() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let (b_name, address) = (b.name.clone(), b.name.as_str().to_owned());
    b.transport.close();
    drop(b);
    eventually(|| async { a.read(&b_name, "k").await.is_err() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    let b = TestNode::start(socket.listen(64).unwrap(), settings(&b_name, &[&a.name, &b_name]));
    b.transport.connect();
    let start = tokio::time::Instant::now();
    a.connected(&b_name).await;
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn beyond_the_requests_in_flight_a_call_is_refused() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let calls: Vec<_> =
        (0..=REQUESTS_IN_FLIGHT_MAX).map(|_| a.transport.call(&b.name, read("wait"), PATIENCE)).collect();
    b.gate.add_permits(REQUESTS_IN_FLIGHT_MAX);
    let answers = join_all(calls).await;
    assert!(answers[..REQUESTS_IN_FLIGHT_MAX].iter().all(Result::is_ok));
    assert_eq!(answers[REQUESTS_IN_FLIGHT_MAX], Err(Error::Overloaded));
    assert_eq!(a.transport.stats().overloaded, 1);
}

#[tokio::test]
async fn a_server_closed_answers_what_it_was_asked() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    let before = b.echo.started.load(Ordering::SeqCst);
    let call = a.transport.call(&b.name, read("wait"), PATIENCE);
    eventually(|| async { b.echo.started.load(Ordering::SeqCst) > before }).await;
    b.transport.close();
    tokio::task::yield_now().await;
    b.gate.add_permits(1);
    assert!(call.await.is_ok());
}

#[tokio::test]
async fn nodes_of_different_rings_say_so_on_both_sides_and_do_not_talk() {
    let (a, b) = two_with(|settings, is_a| {
        settings.cluster_name = if is_a { "red" } else { "blue" }.to_owned();
    })
    .await;
    let (on_a, on_b) = refused(&a, &b).await;
    assert_eq!(on_a, "cluster name is red here, blue there");
    assert_eq!(on_b, "cluster name is blue here, red there");
    assert_eq!(b.echo.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn nodes_of_different_q_do_not_talk() {
    let (a, b) = two_with(|settings, is_a| {
        let membership = settings.ring.membership().clone();
        let range_count = if is_a { 64 } else { 128 };
        let ring = assign(None, &membership, RingSettings { range_count, replication_factor: 3 });
        settings.ring = Arc::new(ring);
    })
    .await;
    assert_eq!(refused(&a, &b).await.0, "Q is 64 here, 128 there");
}

#[tokio::test]
async fn a_node_dialled_by_another_name_than_its_own_is_refused_by_both() {
    let (a, a_listener) = TestNode::listener().await;
    let (b, b_listener) = TestNode::listener().await;
    let alias = NodeId::from_canonical(&b.as_str().replace("127.0.0.1", "localhost"));
    let a = TestNode::start(a_listener, settings(&a, &[&a, &alias]));
    let b = TestNode::start(b_listener, settings(&b, &[&a.name, &b]));
    a.transport.connect();
    eventually(|| async {
        a.transport.mismatch(&alias).is_some() && b.transport.mismatch(&a.name).is_some()
    })
    .await;
    let on_a = a.transport.mismatch(&alias).unwrap();
    assert!(on_a.contains(&format!("the node dialled as {alias} calls itself {}", b.name)), "{on_a}");
    assert!(matches!(b.read(&a.name, "k").await, Err(Error::Unreachable(_))));
}

fn secrets(a: Option<&'static str>, b: Option<&'static str>) -> impl Fn(&mut TcpSettings, bool) {
    move |settings, is_a| settings.secret = if is_a { a } else { b }.map(str::to_owned)
}

#[tokio::test]
async fn nodes_with_the_same_secret_talk() {
    let (a, b) = two_with(secrets(Some("s3cret"), Some("s3cret"))).await;
    a.connected(&b.name).await;
    b.connected(&a.name).await;
}

#[tokio::test]
async fn a_wrong_secret_is_refused_on_both_sides() {
    let (a, b) = two_with(secrets(Some("s3cret"), Some("other"))).await;
    let (on_a, on_b) = refused(&a, &b).await;
    assert!(on_a.contains("CLUSTER_SECRET is not the same"), "{on_a}");
    assert!(on_b.contains("CLUSTER_SECRET is not the same"), "{on_b}");
    assert_eq!(b.echo.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_missing_secret_is_refused_on_both_sides() {
    let (a, b) = two_with(secrets(Some("s3cret"), None)).await;
    let (on_a, on_b) = refused(&a, &b).await;
    assert!(on_a.contains("CLUSTER_SECRET is set here, not set there"), "{on_a}");
    assert!(on_b.contains("CLUSTER_SECRET is not set here, set there"), "{on_b}");
}

#[tokio::test]
async fn without_a_secret_only_loopback_may_knock() {
    let (a, _b) = two().await;
    let server = Server::new(&a.transport, a.echo.clone());
    let knock = |from: &str| {
        let mut request = hyper::Request::get(UPGRADE_PATH)
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "KVSTORE-RPC/1")
            .body(())
            .unwrap();
        server.accept_upgrade(&mut request, SocketAddr::new(from.parse().unwrap(), 5000)).status().as_u16()
    };
    assert_eq!(knock("10.0.0.7"), 403);
    assert_eq!(knock("::ffff:10.0.0.7"), 403);
    assert_eq!(knock("127.0.0.1"), 101);
    assert_eq!(knock("::ffff:127.3.2.1"), 101);
    assert_eq!(knock("::1"), 101);
    let mut plain = hyper::Request::get(UPGRADE_PATH).body(()).unwrap();
    let response = server.accept_upgrade(&mut plain, SocketAddr::from(([127, 0, 0, 1], 5000)));
    assert_eq!(response.status(), 426);
    assert_eq!(response.headers()["upgrade"], UPGRADE_PROTOCOL);
}

/// A connection as a stranger opens it, upgraded, its handshake yet to come.
async fn knock(to: &TestNode) -> TcpStream {
    let mut stream = TcpStream::connect(to.name.as_str()).await.unwrap();
    let head = format!(
        "GET {UPGRADE_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    assert!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen));
    stream
}

/// A connection as `from` opens it, its handshake done by hand.
async fn shaken(to: &TestNode, from: &TestNode) -> TcpStream {
    let (read, mut write) = knock(to).await.into_split();
    let mut incoming = incoming::Incoming::new(read, BytesMut::new());
    handshake::dial(&from.transport.shared, &to.name, 7, &mut incoming, &mut write).await.unwrap();
    // The verdict is the last that comes before a request: nothing was read beyond it.
    incoming.into_inner().reunite(write).unwrap()
}

/// Waits until the other side closes the connection, whatever it says before.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // An error is a reset, which closes it too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time");
}

#[tokio::test]
async fn garbage_before_the_handshake_closes_the_connection() {
    let (a, b) = two().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &[0; 100]] {
        let mut stream = knock(&b).await;
        stream.write_all(garbage).await.unwrap();
        closed(&mut stream).await;
    }
    eventually(|| async { b.transport.stats().handshakes_refused == 3 }).await;
    a.connected(&b.name).await;
}

#[tokio::test]
async fn a_stranger_who_says_nothing_is_closed_in_time() {
    let (_a, b) = two().await;
    let mut stream = knock(&b).await;
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_frame_with_a_flipped_bit_closes_the_connection_and_is_counted() {
    let (a, b) = two().await;
    let mut stream = shaken(&b, &a).await;
    let mut wire = BytesMut::new();
    encode_request(&read("k"), 1, PATIENCE, &mut wire).unwrap();
    wire[20] ^= 1;
    stream.write_all(&wire).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(b.transport.stats().bad_frames, 1);
}

#[tokio::test]
async fn a_frame_that_says_it_is_too_long_closes_the_connection_at_once() {
    let (a, b) = two().await;
    let mut stream = shaken(&b, &a).await;
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(b.transport.stats().bad_frames, 1);
}

#[tokio::test]
async fn an_answer_in_place_of_a_request_closes_the_connection() {
    let (a, b) = two().await;
    let mut stream = shaken(&b, &a).await;
    let mut wire = BytesMut::new();
    Frame::encode(1, Kind::HintsStored, 1000, Timestamp::ZERO, &mut wire, |_| {}).unwrap();
    stream.write_all(&wire).await.unwrap();
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_request_in_two_halves_is_answered_once_it_is_whole() {
    let (a, b) = two().await;
    let mut stream = shaken(&b, &a).await;
    let mut wire = BytesMut::new();
    encode_request(&read("halves"), 77, PATIENCE, &mut wire).unwrap();
    let half = wire.split_to(wire.len() / 2);
    stream.write_all(&half).await.unwrap();
    stream.flush().await.unwrap();
    tokio::task::yield_now().await;
    stream.write_all(&wire).await.unwrap();
    let mut incoming = incoming::Incoming::new(stream, BytesMut::new());
    let frame = incoming.frame(FRAME_LEN_MAX).await.unwrap();
    assert_eq!(frame.request_id, 77);
    assert!(decode_response(&frame).is_ok());
}

#[tokio::test]
async fn half_a_request_and_then_nothing_is_no_request() {
    let (a, b) = two().await;
    let mut stream = shaken(&b, &a).await;
    let mut wire = BytesMut::new();
    encode_request(&read("k"), 1, PATIENCE, &mut wire).unwrap();
    stream.write_all(&wire[..wire.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    closed(&mut stream).await;
    assert_eq!(b.echo.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_new_connection_of_the_same_worker_replaces_the_old_one() {
    let (a, b) = two().await;
    let mut old = shaken(&b, &a).await;
    let _new = shaken(&b, &a).await;
    closed(&mut old).await;
}

#[tokio::test]
async fn settings_are_shown_without_the_secret() {
    let (a, _b) = two_with(secrets(Some("s3cret"), None)).await;
    assert!(!format!("{:?}", a.transport).contains("s3cret"));
}

#[tokio::test]
async fn a_second_worker_has_connections_of_its_own() {
    let (a, b) = two().await;
    a.connected(&b.name).await;
    set_worker(1);
    a.connected(&b.name).await;
    set_worker(0);
    assert_eq!(a.transport.stats().dialled, 2);
}
