//! Server: listens, accepts, and serves HTTP/1.1 on each connection until it is told to stop.
//!
//! ```text
//! accept ──too many?──> 503, closed
//!    └──> wait for a first byte (an idle connection costs a socket and little else)
//!            └─(TLS: shake hands)─> requests one after the other ──stop──> finish the one in flight, close
//! ```
//!
//! Knows sockets, not keys: whoever implements [`Service`] answers. The same set-up serves `examples/bare_http.rs`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::body::{Body, CutShort};
use crate::tls::{self, PeerCertificate, Tls};
use crate::util::patience::{Pace, PatientStream, Socket as Wire, Timeouts};
use crate::util::shutdown::ShutdownListener;

/// Answers requests.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers one request of the peer at an address. Never fails: what goes wrong is in the answer. Where the peer has shown a
    /// certificate, the request has a [`PeerCertificate`] among its extensions.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Whether making the answer is to end when the peer closes its side. Otherwise it goes on: a peer that has closed the
    /// side it writes to may listen still.
    fn ends_with_its_client(_request: &Request<Incoming>) -> bool {
        false
    }
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at a time; one more is told 503, where plaintext is spoken, and closed.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// How long a peer may keep a connection waiting.
    pub timeouts: Timeouts,
    /// How long requests in flight may take once the server is told to stop.
    pub drain_max: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            head_bytes_max: 32 << 10, // a key of 4 KiB, each byte as %XX, fits twice
            timeouts: Timeouts {
                idle: Duration::from_secs(75), // longer than common clients keep a connection
                header: Duration::from_secs(10),
                write: Duration::from_secs(30),
                linger: Duration::from_secs(30),
                linger_idle: Duration::from_secs(1), // a stopping node waits for that long for idle clients
            },
            drain_max: Duration::from_secs(5),
        }
    }
}

/// Connections that wait to be accepted; the system cuts it to its own maximum.
const BACKLOG: i32 = 4096;
/// How long accepting pauses when the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a failing accept is logged, at most.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// What a connection too many is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 20\r\n\r\ntoo many connections";
/// What plaintext is told on a port that speaks TLS. Peers show the first line in their logs.
const SPEAKS_TLS: &[u8] = b"HTTP/1.1 400 This port speaks TLS\r\nconnection: close\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 36\r\n\r\nthis port speaks TLS: use https://\r\n";

/// Opens a port. With `shared`, several listeners of this process may have it, and the system spreads connections over
/// them; without, a port that is taken is refused.
pub fn bind(addr: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restarted node does not wait for its old connections to fade
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves connections of `listener` until `stop`, then finishes what is in flight, for [`ServerLimits::drain_max`] at
/// most. To be called on a current-thread runtime.
pub async fn serve<S: Service>(
    listener: std::net::TcpListener,
    limits: ServerLimits,
    stop: ShutdownListener,
    service: S,
) -> io::Result<()> {
    serve_tls(listener, None, limits, stop, service).await
}

/// The same over TLS, if there is one: who connects in plaintext is told so.
pub async fn serve_tls<S: Service>(
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    limits: ServerLimits,
    mut stop: ShutdownListener,
    service: S,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let http = Arc::new(builder(limits));
    let mut connections = JoinSet::new();
    let mut quiet_until = Instant::now();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.signalled() => break,
            Some(_) = connections.join_next() => continue, // a connection's end, good or bad, is its own
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() >= limits.connections_max => {
                // Who speaks TLS could not read it, and would take it for plaintext.
                if tls.is_none() {
                    let _ = stream.try_write(TOO_MANY); // it fits into an empty socket buffer, or the peer is gone
                }
            }
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true); // a refusal costs time, not correctness
                let exchange = Exchange {
                    peer,
                    certificate: None,
                    http: http.clone(),
                    limits,
                    stop: stop.clone(),
                    service: service.clone(),
                };
                connections.spawn(connection(stream, tls.clone(), exchange));
            }
            Err(error) => {
                if Instant::now() >= quiet_until {
                    quiet_until = Instant::now() + ACCEPT_LOG_INTERVAL;
                    tracing::warn!(%error, connections = connections.len(), "cannot accept");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = timeout(limits.drain_max, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(connections = connections.len(), "cut: still busy after the time to drain");
        connections.shutdown().await;
    }
    Ok(())
}

fn builder(limits: ServerLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // A half-closed peer has asked and listens still: `printf … | nc` does that.
    http.half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(None) // PatientStream's task
        .max_header_size(limits.head_bytes_max);
    http
}

/// What a connection's requests are served with.
struct Exchange<S> {
    peer: SocketAddr,
    /// Who the peer has shown to be.
    certificate: Option<PeerCertificate>,
    http: Arc<http1::Builder>,
    limits: ServerLimits,
    stop: ShutdownListener,
    service: S,
}

async fn connection<S: Service>(stream: TcpStream, tls: Option<Arc<Tls>>, mut exchange: Exchange<S>) {
    // Looked for, since a fresh socket passes for readable before anything has come.
    let mut first_byte = [0];
    let found = tokio::select! {
        biased;
        found = timeout(exchange.limits.timeouts.idle, stream.peek(&mut first_byte)) => found,
        () = exchange.stop.signalled() => return,
    };
    if !matches!(found, Ok(Ok(1))) {
        return;
    }
    match tls {
        None => exchange.serve(stream).await,
        // Boxed, so that a connection that waits for its first byte is no larger for it.
        Some(tls) if first_byte[0] == tls::FIRST_BYTE => Box::pin(secured(stream, &tls, exchange)).await,
        Some(tls) if tls.takes_plaintext() => exchange.serve(stream).await,
        Some(tls) => {
            tls.count_failed();
            refuse_plaintext(stream, exchange.limits.timeouts.linger_idle).await;
        }
    }
}

/// Shakes hands, in the time that a request's head may take, and serves.
async fn secured<S: Service>(stream: TcpStream, tls: &Tls, mut exchange: Exchange<S>) {
    let peer = exchange.peer;
    let accepted = tokio::select! {
        biased;
        accepted = timeout(exchange.limits.timeouts.header, tls.accept(stream)) => accepted,
        () = exchange.stop.signalled() => return,
    };
    match accepted {
        Ok(Ok(stream)) => {
            exchange.certificate = PeerCertificate::of(&stream);
            exchange.serve(stream).await;
        }
        Ok(Err(error)) => {
            let error = tls::refusal(&error).unwrap_or_else(|| error.to_string());
            tracing::debug!(%peer, error, "no TLS");
        }
        Err(_) => {
            tls.count_failed();
            tracing::debug!(%peer, "no TLS: the handshake took too long");
        }
    }
}

/// Tells a peer to use TLS, and drops what it has sent, so that the answer is not lost to a reset.
async fn refuse_plaintext(mut stream: TcpStream, linger: Duration) {
    let told = async {
        stream.write_all(SPEAKS_TLS).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 1024];
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(linger, told).await; // who does not listen misses a hint
}

impl<S: Service> Exchange<S> {
    /// Serves requests one after the other, until one side ends.
    async fn serve<W: Wire + Send + 'static>(self, stream: W) {
        let Self { peer, certificate, http, limits, mut stop, service } = self;
        let pace = Arc::new(Pace::default());
        let io = TokioIo::new(PatientStream::new(stream, limits.timeouts, pace.clone()));
        let answer = service_fn(|mut request: Request<Incoming>| {
            pace.begin();
            if S::ends_with_its_client(&request) {
                pace.watch();
            }
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            let guard = AnswerGuard { pace: pace.clone() };
            let service = service.clone();
            async move {
                let response = service.answer(request, peer).await;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    guard.pace.upgrade();
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| Paced { body, _guard: guard }))
            }
        });
        let mut serving = pin!(http.serve_connection(io, answer).with_upgrades());
        let result = tokio::select! {
            biased;
            result = serving.as_mut() => result,
            () = stop.signalled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Marks the end of an answer when it is dropped: handed over whole, or given up.
struct AnswerGuard {
    pace: Arc<Pace>,
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.pace.end();
    }
}

/// A body whose end is the end of its answer.
struct Paced {
    body: Body,
    _guard: AnswerGuard,
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
