//! Peers and clients on one port: the real HTTP server in front of the real transport.
#![allow(clippy::disallowed_methods)] // sockets are what is tested

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvstore::cluster::{Member, Membership, RingSettings, assign};
use kvstore::env::Env;
use kvstore::http::body::{Body, BodyLimits};
use kvstore::http::{Api, ApiLimits, ServerLimits, bind, serve};
use kvstore::rpc::tcp::{Server, TcpSettings, TcpTransport};
use kvstore::rpc::{
    BoxFuture, Handler, ReplicaRequest, ReplicaResponse, Request, Response, Transport, WriteOrigin,
};
use kvstore::types::{Key, NodeId, Record, Timestamp, Value};
use kvstore::util::shutdown::Shutdown;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

/// Says how many bytes of values it was sent.
#[derive(Debug)]
struct Weigher;

impl Handler for Weigher {
    fn handle(&self, _: &NodeId, request: Request) -> BoxFuture<Response> {
        let ReplicaRequest::Write { items, .. } = request.body else { panic!("only writes are sent here") };
        let len = items.iter().map(|(_, record)| record.value_len() as u32).sum();
        let body = ReplicaResponse::Written { voting: true, overtaken: vec![(len, Timestamp::ZERO)] };
        Box::pin(std::future::ready(Response { clock: request.clock, body }))
    }
}

struct Node {
    name: NodeId,
    transport: TcpTransport,
    /// Dropping it stops the HTTP server.
    _shutdown: Shutdown,
}

fn start(listener: std::net::TcpListener, names: &[NodeId], own: &NodeId) -> Node {
    let member = |id: &NodeId| Member { id: id.clone(), weight: 10, zone: None };
    let membership = Membership::new(names.iter().map(member).collect());
    let ring = assign(None, &membership, RingSettings { range_count: 64, replication_factor: 3 });
    let settings = TcpSettings {
        own: own.clone(),
        cluster_name: "test".to_owned(),
        ring: Arc::new(ring),
        secret: Some("s3cret".to_owned()),
        tls: None,
    };
    let env = Env::real();
    let transport = TcpTransport::new(settings, env.clone());
    let server = Server::new(&transport, Arc::new(Weigher));
    let api = Api::new(ApiLimits {
        value_size_max: 1 << 20,
        body: BodyLimits { size_max: 1 << 20, grace: Duration::from_secs(5), rate_min: 1024 },
        inflight_bytes_max: 1 << 24,
    });
    api.open_to_peers(Box::new(move |mut request, from| {
        server.accept_upgrade(&mut request, from).map(Body::whole)
    }));
    let shutdown = Shutdown::default();
    let limits = ServerLimits::default();
    env.tasks.spawn(serve(listener, limits, shutdown.listener(), api.door()));
    Node { name: own.clone(), transport, _shutdown: shutdown }
}

fn nodes() -> Vec<Node> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners: Vec<_> = (0..3).map(|_| bind(any, false).unwrap()).collect();
    let name = |listener: &std::net::TcpListener| {
        NodeId::from_canonical(&listener.local_addr().unwrap().to_string())
    };
    let names: Vec<_> = listeners.iter().map(name).collect();
    listeners.into_iter().zip(&names).map(|(listener, own)| start(listener, &names, own)).collect()
}

async fn weigh(from: &Node, to: &Node, len: usize) -> Result<u32, kvstore::rpc::Error> {
    let item = (Key::new("key").unwrap(), Record::value(Timestamp::ZERO, Value::new(vec![7; len])));
    let body = ReplicaRequest::Write { origin: WriteOrigin::Client, items: vec![item] };
    let request = Request { clock: Timestamp::from_u64(5), body };
    let response = from.transport.call(&to.name, request, Duration::from_secs(5)).await?;
    match response.body {
        ReplicaResponse::Written { overtaken, .. } => Ok(overtaken[0].0),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn three_nodes_talk_to_each_other_over_the_port_that_serves_clients() {
    let nodes = nodes();
    let start = Instant::now();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.name != from.name) {
            while weigh(from, to, 1).await.is_err() {
                assert!(start.elapsed() < Duration::from_secs(5), "{:?}", from.transport.mismatch(&to.name));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(weigh(from, to, 3 << 20).await, Ok(3 << 20));
        }
    }
    // A client is served beside them.
    let mut client = tokio::net::TcpStream::connect(nodes[0].name.as_str()).await.unwrap();
    client.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn whoever_asks_for_the_peers_path_without_an_upgrade_is_told_what_it_is_for() {
    let nodes = nodes();
    let mut client = tokio::net::TcpStream::connect(nodes[0].name.as_str()).await.unwrap();
    client.write_all(b"GET /internal/rpc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.to_lowercase().contains("upgrade: kvstore-rpc/1\r\n"), "{answer}");
    assert!(answer.ends_with("for nodes of the cluster only"), "{answer}");
}
