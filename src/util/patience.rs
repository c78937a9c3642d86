//! Patience: a connection's stream that gives up on a peer who keeps it waiting.
//!
//! ```text
//! between requests   no byte            idle_timeout      closed
//! a request's head   begun, not ended   header_timeout    closed
//! an answer          not taken          write_timeout     cut
//!                    its client leaves  (if watched)      cut: what makes the answer ends
//! the end            unread input       linger            read and dropped, so that the answer is not lost to a reset,
//!                                       linger_idle       for as long as bytes keep coming
//! ```
//!
//! A body has its own clock (`http::body`). The HTTP library's header timeout is not used: it makes a new timer for
//! every request and cannot tell an idle connection from a slow one.
//!
//! It stands in `util` because two layers meet in it: `http` wraps a connection in one, and `rpc` takes the stream out
//! again when a peer upgrades it. Over TLS it stands above TLS: what it counts and words are requests.
//!
//! The library answers malformed heads by itself, with an empty body; here those answers get a text.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes a read, at most. The HTTP library reads 8 KiB at first, and twice as much, up to 400 KiB, after each read that
/// was filled: memory that no budget counts and that a connection keeps while its peer is silent. So none is ever filled.
const READ_MAX: u64 = (8 << 10) - 1;

/// How long a peer may keep a connection waiting.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Between requests.
    pub idle: Duration,
    /// From the first byte of a request's head to its last.
    pub header: Duration,
    /// Without taking a byte of an answer.
    pub write: Duration,
    /// For the peer to close after we did, while it still sends: a client that sends a long body to be refused reads the
    /// answer only when it has sent all of it.
    pub linger: Duration,
    /// The same, while it sends nothing.
    pub linger_idle: Duration,
}

/// Where a connection stands, shared between its stream and its service.
///
/// Relaxed throughout: both run in the one task of the connection.
#[derive(Debug, Default)]
pub struct Pace {
    /// Counts up when a request begins and when it ends: even between requests, odd while one is answered.
    state: AtomicU64,
    /// Whether the answer being made is for nobody once the peer has closed its side.
    is_watched: AtomicBool,
}

impl Pace {
    const UPGRADED: u64 = u64::MAX;

    /// A request's head is complete.
    pub fn begin(&self) {
        self.state.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer to it is long in the making, and ends when the peer closes its side. To others that only says that it
    /// asks no more: a peer that has closed one side cannot be told from one that has closed both.
    pub fn watch(&self) {
        self.is_watched.store(true, Ordering::Relaxed);
    }

    /// Its answer is made and handed over.
    pub fn end(&self) {
        self.is_watched.store(false, Ordering::Relaxed);
        if self.state() != Self::UPGRADED {
            self.state.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The connection speaks another protocol from now on, which has its own clock.
    pub fn upgrade(&self) {
        self.state.store(Self::UPGRADED, Ordering::Relaxed);
    }

    fn state(&self) -> u64 {
        self.state.load(Ordering::Relaxed)
    }

    fn is_between_requests(state: u64) -> bool {
        state.is_multiple_of(2)
    }
}

/// What a patient stream stands on: a socket, or TLS on one.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Whether the peer has closed its side and nothing that it sent before is left to be read. Wakes the task when that
    /// may have changed.
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool;
}

impl Socket for TcpStream {
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0];
        matches!(self.poll_peek(cx, &mut ReadBuf::new(&mut byte)), Poll::Ready(Ok(0) | Err(_)))
    }
}

/// A stream that gives up as [`Timeouts`] say.
#[derive(Debug)]
pub struct PatientStream<S> {
    /// Reads at most [`READ_MAX`] at a time.
    stream: Take<S>,
    timeouts: Timeouts,
    pace: Arc<Pace>,
    /// The state in which bytes came that have not led to a request yet.
    head_begun_in: Option<u64>,
    read_timer: Timer,
    write_timer: Timer,
    /// What is being written in place of an answer of the library.
    instead: Bytes,
    ended: bool,
    /// Since when what the peer sends is dropped, and what was dropped last: reads that found something.
    lingering: Option<(Instant, u64)>,
}

/// One timer, made when it is first needed, and what it was set for.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    purpose: Option<(Purpose, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Idle,
    Header,
    Write,
    Linger,
}

impl Timer {
    /// Whether `timeout` has passed since this was first asked for `purpose` in `state`.
    ///
    /// An idle timer keeps running while requests come and go, and is set anew only when it fires: what is asked a
    /// hundred thousand times a second costs no clock reading.
    fn has_fired(&mut self, purpose: Purpose, state: u64, timeout: Duration, cx: &mut Context<'_>) -> bool {
        let same_purpose = self.purpose.is_some_and(|(set_for, _)| set_for == purpose);
        let keeps_running =
            same_purpose && (purpose == Purpose::Idle || self.purpose == Some((purpose, state)));
        if !keeps_running {
            self.set(purpose, state, timeout);
        }
        loop {
            let sleep = self.sleep.as_mut().expect("set makes one");
            if sleep.as_mut().poll(cx).is_pending() {
                return false;
            }
            if self.purpose == Some((purpose, state)) {
                return true;
            }
            self.set(purpose, state, timeout);
        }
    }

    fn set(&mut self, purpose: Purpose, state: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.purpose = Some((purpose, state));
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(deadline),
            None => self.sleep = Some(Box::pin(sleep_until(deadline))),
        }
    }
}

impl<S: Socket> PatientStream<S> {
    /// Wraps a stream between requests.
    pub fn new(stream: S, timeouts: Timeouts, pace: Arc<Pace>) -> Self {
        Self {
            stream: stream.take(READ_MAX),
            timeouts,
            pace,
            head_begun_in: None,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
            instead: Bytes::new(),
            ended: false,
            lingering: None,
        }
    }

    /// The stream itself, for a protocol that keeps its own clock.
    pub fn into_inner(self) -> S {
        self.stream.into_inner()
    }

    fn waited_too_long(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.pace.state();
        if state == Pace::UPGRADED || !Pace::is_between_requests(state) {
            return Poll::Pending;
        }
        if self.head_begun_in == Some(state) {
            if self.read_timer.has_fired(Purpose::Header, state, self.timeouts.header, cx) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        } else if self.read_timer.has_fired(Purpose::Idle, state, self.timeouts.idle, cx) {
            return Poll::Ready(Ok(())); // an end of input: the library closes cleanly
        }
        Poll::Pending
    }

    /// Writes what stands in for the library's own answer.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            match Pin::new(self.stream.get_mut()).poll_write(cx, &self.instead) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.instead.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.stalled(cx).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the peer has closed its side while an answer is made that ends with it. The library does not look.
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool {
        self.pace.is_watched.load(Ordering::Relaxed) && self.stream.get_mut().has_left(cx)
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.pace.state() != Pace::UPGRADED
            && self.write_timer.has_fired(Purpose::Write, 0, self.timeouts.write, cx)
        {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        Poll::Pending
    }

    /// Whether this is the library's own answer to a head it could not read; then the answer to give instead.
    fn replacement(&self, bytes: &[u8]) -> Option<Bytes> {
        let state = self.pace.state();
        let no_request_made = self.head_begun_in == Some(state) && Pace::is_between_requests(state);
        if !no_request_made || !bytes.starts_with(b"HTTP/1.1 4") {
            return None;
        }
        let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
        let reason = head.strip_prefix("HTTP/1.1 ")?.split("\r\n").next()?;
        let (before, after) = head.split_once("content-length: 0")?;
        let text = match reason.get(..3)? {
            "400" => "malformed request",
            "414" => "the request's target is too long",
            "431" => "the request's head is too long or has too many headers",
            other => other,
        };
        let len = text.len();
        Some(Bytes::from(format!(
            "{before}content-type: text/plain; charset=utf-8\r\ncontent-length: {len}{after}\r\n\r\n{text}"
        )))
    }

    fn written(&mut self, result: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if result.is_pending() {
            return self.stalled(cx).map(Err);
        }
        self.write_timer.purpose = None;
        result
    }
}

impl<S: Socket> AsyncRead for PatientStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        this.stream.set_limit(READ_MAX);
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => this.waited_too_long(cx),
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    this.head_begun_in = Some(this.pace.state());
                } else {
                    this.ended = true;
                }
                Poll::Ready(result)
            }
        }
    }
}

impl<S: Socket> AsyncWrite for PatientStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        if let Some(instead) = this.replacement(bytes) {
            this.instead = instead;
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(this.stream.get_mut()).poll_write(cx, bytes);
        this.written(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        if let [only] = slices
            && let Some(instead) = this.replacement(only)
        {
            this.instead = instead;
            return Poll::Ready(Ok(only.len()));
        }
        let result = Pin::new(this.stream.get_mut()).poll_write_vectored(cx, slices);
        this.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        // The library comes by here whenever the connection's task is woken, also while it only waits for an answer.
        if this.has_left(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        // Of a bare socket it is always done; of TLS it may wait for the peer as a write does.
        match Pin::new(this.stream.get_mut()).poll_flush(cx) {
            Poll::Pending => this.stalled(cx).map(Err),
            Poll::Ready(result) => Poll::Ready(result),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_instead(cx))?;
        match Pin::new(this.stream.get_mut()).poll_shutdown(cx) {
            Poll::Pending => return this.stalled(cx).map(Err),
            Poll::Ready(result) => result?,
        }
        // Closing a socket with unread input resets it, and a reset may overtake the answer on its way.
        let mut scratch = [0u8; 8192];
        while !this.ended && this.pace.state() != Pace::UPGRADED {
            let (since, reads) = *this.lingering.get_or_insert_with(|| (Instant::now(), 0));
            let left = this.timeouts.linger.saturating_sub(since.elapsed());
            if left.is_zero() {
                break; // also for a peer who never stops sending
            }
            let patience = left.min(this.timeouts.linger_idle);
            if this.read_timer.has_fired(Purpose::Linger, reads, patience, cx) {
                break;
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(this.stream.get_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => this.lingering = Some((since, reads + 1)),
                _ => this.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}
