//! Server: listens, accepts, and serves HTTP/1.1 on each connection until it is told to stop.
//!
//! ```text
//! accept ──too many?──> 503, closed
//!    └──> wait for a first byte (an idle connection costs a socket and little else)
//!            └──> requests one after the other ──stop──> finish the one in flight, close
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
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::body::{Body, CutShort};
use crate::util::patience::{Pace, PatientStream, Timeouts};
use crate::util::shutdown::ShutdownListener;

/// Answers requests.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers one request of the peer at an address. Never fails: what goes wrong is in the answer.
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
    /// Connections at a time; one more is told 503 and closed.
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
                linger: Duration::from_secs(1),
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
                let _ = stream.try_write(TOO_MANY); // it fits into an empty socket buffer, or the peer is gone
            }
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true); // a refusal costs time, not correctness
                connections.spawn(connection(
                    stream,
                    peer,
                    http.clone(),
                    limits,
                    stop.clone(),
                    service.clone(),
                ));
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

async fn connection<S: Service>(
    stream: TcpStream,
    peer: SocketAddr,
    http: Arc<http1::Builder>,
    limits: ServerLimits,
    mut stop: ShutdownListener,
    service: S,
) {
    // Looked for, since a fresh socket passes for readable before anything has come.
    let mut first_byte = [0];
    let found = tokio::select! {
        biased;
        found = timeout(limits.timeouts.idle, stream.peek(&mut first_byte)) => found,
        () = stop.signalled() => return,
    };
    if !matches!(found, Ok(Ok(1))) {
        return;
    }
    let pace = Arc::new(Pace::default());
    let io = TokioIo::new(PatientStream::new(stream, limits.timeouts, pace.clone()));
    let answer = service_fn(|request: Request<Incoming>| {
        pace.begin();
        if S::ends_with_its_client(&request) {
            pace.watch();
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
