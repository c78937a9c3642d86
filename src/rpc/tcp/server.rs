//! Server: takes the connections that peers open, and serves their requests.
//!
//! The HTTP side hands over what asks for `/internal/rpc`; from the upgrade on the connection is ours. Requests are
//! served side by side: each is tried on the spot, and only one that has to wait gets a task of its own. Answers
//! go out as they are ready, many in one write. When as much is being served as may be, or a peer does not take its
//! answers, nothing more is read from it, so that it is TCP that holds it back.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::{ALLOW, CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::handshake::{self, Refused};
use super::incoming::{Ended, Incoming};
use super::outbox::{Outbox, Rejected};
use super::problems::Direction;
use super::{
    ANSWER_BYTES_MAX, CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, READ_UNITS, SERVED_UNIT, SERVED_UNITS_MAX, Shared,
    TcpTransport, UPGRADE_PROTOCOL, tune,
};
use crate::rpc::frame::{FRAME_LEN_MAX, Frame, Kind};
use crate::rpc::{Handler, Refusal, ReplicaResponse, Response, decode_request, encode_response_as};
use crate::tls::{PeerCertificate, ServerStream};
use crate::types::NodeId;
use crate::util::patience::PatientStream;
use crate::util::shutdown::ShutdownListener;

/// How long a stopping server waits for what it is serving.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the requests of peers. A clone is the same server.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
    handler: Arc<dyn Handler>,
    shutdown: ShutdownListener,
    /// Connections that peers may still open.
    connections: Arc<Semaphore>,
    /// The connection that serves a peer's worker now; a newer one ends it. Its other end went without a word.
    serving: Arc<Mutex<BTreeMap<(NodeId, u16), CancellationToken>>>,
}

impl Server {
    /// Serves requests by `handler`, as the node that `transport` speaks for, until that is closed.
    pub fn new(transport: &TcpTransport, handler: Arc<dyn Handler>) -> Self {
        Self {
            shared: transport.shared.clone(),
            handler,
            shutdown: transport.shutdown.listener(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            serving: Arc::default(),
        }
    }

    /// Takes at most so many connections of peers, in place of [`CONNECTIONS_MAX`].
    #[must_use]
    pub fn with_connections_max(self, max: usize) -> Self {
        Self { connections: Arc::new(Semaphore::new(max.min(CONNECTIONS_MAX))), ..self }
    }

    /// Answers a request for `/internal/rpc`. When the answer is 101, a task of this runtime takes the connection
    /// over as soon as the answer is sent; the HTTP side must serve with upgrades on. The body is a short text.
    pub fn accept_upgrade<B>(
        &self,
        request: &mut hyper::Request<B>,
        peer_addr: SocketAddr,
    ) -> hyper::Response<Bytes> {
        if request.method() != Method::GET {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        let certificate = request.extensions().get::<PeerCertificate>().cloned();
        if let Some(text) = self.lacks(certificate.as_ref(), peer_addr.ip()) {
            self.shared.problems.say_of_stranger(&peer_addr.ip(), text);
            self.shared.counters.handshakes_refused.inc();
            return answer(StatusCode::FORBIDDEN, text);
        }
        if !asks_for_upgrade(request) {
            let mut response = answer(StatusCode::UPGRADE_REQUIRED, "for nodes of the cluster only");
            upgrade_headers(&mut response);
            return response;
        }
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "too many connections of peers");
        };
        let upgrade = hyper::upgrade::on(request);
        self.shared.env.tasks.spawn(self.clone().take_over(upgrade, peer_addr, certificate, permit));
        let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, "");
        upgrade_headers(&mut response);
        response
    }

    /// What a stranger lacks to knock as a peer, if anything. A certificate is as good as the secret, which is asked for later
    /// where there is one; the secret, or being on this machine, is as good as a certificate only where plaintext is taken.
    fn lacks(&self, certificate: Option<&PeerCertificate>, from: IpAddr) -> Option<&'static str> {
        let settings = &self.shared.settings;
        let needs_certificate = settings.tls.as_ref().is_some_and(|tls| !tls.takes_plaintext());
        if certificate.is_some() {
            None
        } else if needs_certificate {
            Some("peers show a certificate that TLS_CA has signed")
        } else if settings.secret.is_none() && !is_loopback(from) {
            Some("peers on other machines need CLUSTER_SECRET, the same on every node")
        } else {
            None
        }
    }

    async fn take_over(
        self,
        upgrade: OnUpgrade,
        peer_addr: SocketAddr,
        certificate: Option<PeerCertificate>,
        _permit: OwnedSemaphorePermit,
    ) {
        let mut stopping = self.shutdown.clone();
        let upgraded = tokio::select! { biased;
            () = stopping.signalled() => return,
            upgraded = tokio::time::timeout(HANDSHAKE_TIMEOUT, upgrade) => upgraded,
        };
        let Ok(Ok(upgraded)) = upgraded else { return };
        let from = (peer_addr, certificate);
        // The socket itself where it can be had: its halves need no lock between them.
        let upgraded = match upgraded.downcast::<TokioIo<PatientStream<TcpStream>>>() {
            Ok(parts) => {
                let stream = parts.io.into_inner().into_inner();
                tune(&stream);
                let (read, write) = stream.into_split();
                return self
                    .serve(Incoming::new(read, BytesMut::from(&parts.read_buf[..])), write, from)
                    .await;
            }
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<TokioIo<PatientStream<ServerStream>>>() {
            Ok(parts) => {
                let stream = parts.io.into_inner().into_inner();
                tune(stream.get_ref().0);
                let (read, write) = tokio::io::split(stream);
                self.serve(Incoming::new(read, BytesMut::from(&parts.read_buf[..])), write, from).await;
            }
            Err(upgraded) => {
                let (read, write) = tokio::io::split(TokioIo::<Upgraded>::new(upgraded));
                self.serve(Incoming::new(read, BytesMut::new()), write, from).await;
            }
        }
    }

    async fn serve<R, W>(
        self,
        mut incoming: Incoming<R>,
        mut io: W,
        (peer_addr, certificate): (SocketAddr, Option<PeerCertificate>),
    ) where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let shaking = handshake::accept(&self.shared, certificate.as_ref(), &mut incoming, &mut io);
        let (from, worker, wire) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(Ok(who)) => who,
            Ok(Err(refused)) => return self.refuse(&refused, peer_addr),
            Err(_) => return self.refuse(&Refused::Failed("no handshake in time".to_owned()), peer_addr),
        };
        self.shared.problems.clear(&from, Direction::Incoming);
        self.shared.hurry(&from);
        self.shared.counters.accepted.inc();
        let replaced = CancellationToken::new();
        if let Some(before) = self.serving.lock().insert((from.clone(), worker), replaced.clone()) {
            before.cancel(); // under the lock, so that it does not take our entry for its own
        }
        let outbox = Arc::new(Outbox::default());
        let writing = outbox.clone();
        let mut writer = AbortOnDropHandle::new(
            self.shared.env.tasks.spawn(async move { writing.write_to(&mut io).await }),
        );
        let served = Arc::new(Semaphore::new(SERVED_UNITS_MAX));
        let mut stopping = self.shutdown.clone();
        tokio::select! { biased;
            () = stopping.signalled() => {
                // What was asked is answered; who asks from now on learns that nobody is here.
                let all = served.acquire_many(SERVED_UNITS_MAX as u32);
                let _ = tokio::time::timeout(FINISH_TIMEOUT, all).await;
                outbox.finish();
                let _ = tokio::time::timeout(FINISH_TIMEOUT, &mut writer).await;
            }
            () = replaced.cancelled() => {}
            _ = &mut writer => {}
            ended = self.receive(&from, wire, &mut incoming, &outbox, &served) => {
                if let Ended::Frame(error) = &ended {
                    self.shared.counters.bad_frames.inc();
                    tracing::warn!(peer = %from, %error, "connection closed");
                }
            }
        }
        outbox.close();
        let mut serving = self.serving.lock();
        if !replaced.is_cancelled() {
            serving.remove(&(from, worker));
        }
    }

    /// Serves what comes in, until the connection ends.
    async fn receive<R: AsyncRead + Unpin>(
        &self,
        from: &NodeId,
        wire: u16,
        incoming: &mut Incoming<R>,
        outbox: &Arc<Outbox>,
        served: &Arc<Semaphore>,
    ) -> Ended {
        loop {
            let frame = match incoming.frame(FRAME_LEN_MAX).await {
                Ok(frame) => frame,
                Err(ended) => return ended,
            };
            let units = units(&frame);
            let permit = if let Ok(permit) = served.clone().try_acquire_many_owned(units) {
                permit
            } else {
                let permit = served.clone().acquire_many_owned(units).await;
                permit.expect("the semaphore is never closed")
            };
            outbox.below(ANSWER_BYTES_MAX).await;
            if incoming.arrived().elapsed() > frame.deadline() {
                self.shared.counters.expired_unserved.inc();
                continue;
            }
            if let Err(error) = self.start(from, wire, &frame, outbox, permit).await {
                self.shared.counters.bad_frames.inc();
                return Ended::Io(std::io::Error::other(error));
            }
        }
    }

    /// Starts serving a request: to its end if it need not wait, else as a task.
    async fn start(
        &self,
        from: &NodeId,
        wire: u16,
        frame: &Frame,
        outbox: &Arc<Outbox>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), crate::util::coding::DecodeError> {
        let id = frame.request_id;
        let request = decode_request(frame)?;
        let mut response = self.handler.handle(from, request);
        // A task polls it again and leaves its own waker, so that this one may be forgotten.
        match poll_fn(|context| Poll::Ready(response.as_mut().poll(context))).await {
            Poll::Ready(response) => queue(outbox, wire, id, &response),
            Poll::Pending => {
                let outbox = outbox.clone();
                self.shared.env.tasks.spawn(async move {
                    let response = response.await;
                    outbox.below(ANSWER_BYTES_MAX).await;
                    queue(&outbox, wire, id, &response);
                    drop(permit);
                });
            }
        }
        Ok(())
    }

    fn refuse(&self, refused: &Refused, peer_addr: SocketAddr) {
        self.shared.counters.handshakes_refused.inc();
        match refused {
            Refused::Problem { text, from: Some(from) } => {
                self.shared.problems.set(from, Direction::Incoming, text);
                self.shared.hurry(from);
            }
            Refused::Problem { text, from: None } => {
                self.shared.problems.say_of_stranger(&peer_addr.ip(), text);
            }
            Refused::Failed(text) | Refused::NotYet(text) => {
                tracing::debug!(from = %peer_addr, text, "no handshake");
            }
        }
    }
}

/// Queues an answer. When the connection is gone nobody waits for it.
fn queue(outbox: &Outbox, wire: u16, id: u64, response: &Response) {
    let queued = outbox.push(None, usize::MAX, |out| encode_response_as(wire, response, id, out));
    if let Err(Rejected::TooLarge(error)) = queued {
        tracing::error!(%error, "an answer was not sent");
        let refused = Response { clock: response.clock, body: ReplicaResponse::Refused(Refusal::Busy) };
        let _ = outbox.push(None, usize::MAX, |out| encode_response_as(wire, &refused, id, out));
    }
}

/// What serving a frame takes of a connection's share.
fn units(frame: &Frame) -> u32 {
    let least =
        if matches!(frame.kind, Kind::Read | Kind::ReadVersions | Kind::Scan) { READ_UNITS } else { 1 };
    frame.body.len().div_ceil(SERVED_UNIT).clamp(least, SERVED_UNITS_MAX) as u32
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn asks_for_upgrade<B>(request: &hyper::Request<B>) -> bool {
    let has = |name, wanted: &str| {
        request.headers().get_all(name).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted))
        })
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, UPGRADE_PROTOCOL)
}

fn answer(status: StatusCode, text: &'static str) -> hyper::Response<Bytes> {
    let mut response = hyper::Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = status;
    response
}

fn upgrade_headers(response: &mut hyper::Response<Bytes>) {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
}
