//! Link: keeps one connection open from one worker of this node to one peer.
//!
//! ```text
//!          ┌────── dial, (TLS,) upgrade, shake hands ──> Up: calls go through
//!          │                     │ refused                │ lost
//! hurry or backoff <──────────── Down: calls fail at once <──┘
//! ```
//!
//! A node on its way to TLS dials by TLS first, and by plaintext a peer that answers in plaintext.
//!
//! One dial at a time, 50 ms to 1 s apart, with jitter. A peer that opens a connection to us is there: that cuts the wait
//! short; and one that is starting is asked again soon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::connection::Connection;
use super::handshake::{self, Refused};
use super::incoming::{Ended, Incoming};
use super::problems::Direction;
use super::{HANDSHAKE_TIMEOUT, Shared, UPGRADE_PATH, UPGRADE_PROTOCOL, tune};
use crate::cluster::membership::loopback_addresses;
use crate::rpc::{BoxFuture, Error, Request, Response};
use crate::tls::{self, ClientStream, DialError};
use crate::types::NodeId;
use crate::util::shutdown::ShutdownListener;

/// The wait after the first failure, doubled by every further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The wait for a peer that takes no peers yet does not grow beyond that of so many failures: it will, any moment.
const NOT_YET_FAILURES: u32 = 2;

/// The way from one worker to one peer.
#[derive(Debug)]
pub(super) struct Link {
    peer: NodeId,
    worker: u16,
    state: Mutex<State>,
    hurry: Notify,
}

#[derive(Debug)]
enum State {
    Up(Arc<Connection>),
    /// Why not.
    Down(String),
}

/// A connection over which hands were shaken.
enum Open {
    Plain(Incoming<OwnedReadHalf>, OwnedWriteHalf),
    Tls(Incoming<ReadHalf<ClientStream>>, WriteHalf<ClientStream>),
}

impl Link {
    pub fn new(peer: NodeId, worker: u16) -> Arc<Self> {
        let state = Mutex::new(State::Down("not connected yet".to_owned()));
        Arc::new(Self { peer, worker, state, hurry: Notify::new() })
    }

    pub fn call(&self, request: &Request, timeout: Duration) -> BoxFuture<Result<Response, Error>> {
        let connection = match &*self.state.lock() {
            State::Up(connection) => connection.clone(),
            State::Down(reason) => {
                return Box::pin(std::future::ready(Err(Error::Unreachable(reason.clone()))));
            }
        };
        connection.call(request, timeout)
    }

    /// Something has changed: dial now, or look again whether this connection should be.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Keeps the connection until told to stop.
    pub async fn run(self: Arc<Self>, shared: Arc<Shared>, mut shutdown: ShutdownListener) {
        let mut failures = 0;
        loop {
            tokio::select! { biased;
                () = shutdown.signalled() => break,
                attempt = self.attempt(&shared) => failures = match attempt {
                    Ok(()) => 0,
                    Err(Refused::NotYet(_)) => (failures + 1).min(NOT_YET_FAILURES),
                    Err(Refused::Failed(_) | Refused::Problem { .. }) => failures.saturating_add(1),
                },
            }
            if failures == 1 {
                tracing::info!(peer = %self.peer, reason = self.reason(), "cannot be reached");
            }
            tokio::select! { biased;
                () = shutdown.signalled() => break,
                () = self.hurry.notified() => {}
                () = tokio::time::sleep(backoff(failures, shared.env.rng.below(0..1000))) => {}
            }
        }
        self.go_down("this node is stopping");
    }

    /// Dials, and stays while the connection lasts, if there is one.
    async fn attempt(&self, shared: &Arc<Shared>) -> Result<(), Refused> {
        let dialled = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.dial(shared)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(Refused::Failed("no handshake in time".to_owned())));
        let (open, wire) = match dialled {
            Ok(open) => open,
            Err(refused) => {
                shared.counters.dials_failed.inc();
                match &refused {
                    Refused::Problem { text, .. } => {
                        shared.problems.set(&self.peer, Direction::Outgoing, text);
                    }
                    Refused::Failed(_) | Refused::NotYet(_) => {
                        shared.problems.clear(&self.peer, Direction::Outgoing);
                    }
                }
                self.go_down(&refused.to_string());
                return Err(refused);
            }
        };
        shared.problems.clear(&self.peer, Direction::Outgoing);
        shared.counters.dialled.inc();
        let connection = Connection::new(wire, &shared.env.rng, shared.counters.clone());
        *self.state.lock() = State::Up(connection.clone());
        tracing::info!(peer = %self.peer, tls = matches!(open, Open::Tls(..)), "connected");
        let running = async {
            match open {
                Open::Plain(incoming, io) => connection.run(incoming, io, &shared.env.tasks).await,
                Open::Tls(incoming, io) => connection.run(incoming, io, &shared.env.tasks).await,
            }
        };
        let reason = tokio::select! { biased;
            problem = self.problem(shared) => problem,
            ended = running => ended.to_string(),
        };
        tracing::info!(peer = %self.peer, reason, "connection lost");
        self.go_down(&reason);
        Ok(())
    }

    async fn dial(&self, shared: &Shared) -> Result<(Open, u16), Refused> {
        if let Some(text) = shared.problems.incoming(&self.peer) {
            return Err(Refused::Failed(text)); // noted already, and cleared when the peer comes without it
        }
        let (stream, address) = self.connect().await?;
        let Some(tls) = &shared.settings.tls else { return self.enter_plain(shared, stream, address).await };
        match tls.dial(&self.peer, stream).await {
            Ok(stream) => {
                let (read, mut io) = tokio::io::split(stream);
                let mut incoming = Incoming::new(read, BytesMut::new());
                let wire = self.enter(shared, address, &mut incoming, &mut io).await?;
                Ok((Open::Tls(incoming, io), wire))
            }
            Err(DialError::Plaintext) if tls.takes_plaintext() => {
                let (stream, address) = self.connect().await?;
                self.enter_plain(shared, stream, address).await
            }
            Err(error) => Err(self.not_secured(&error)),
        }
    }

    async fn connect(&self) -> Result<(TcpStream, SocketAddr), Refused> {
        let stream = match loopback_addresses(self.peer.as_str()) {
            Some(either) => TcpStream::connect(&either[..]).await?, // the first that is listened on
            None => TcpStream::connect(self.peer.as_str()).await?,
        };
        tune(&stream);
        let address = stream.peer_addr()?;
        Ok((stream, address))
    }

    async fn enter_plain(
        &self,
        shared: &Shared,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(Open, u16), Refused> {
        let (read, mut io) = stream.into_split();
        let mut incoming = Incoming::new(read, BytesMut::new());
        let wire = self.enter(shared, address, &mut incoming, &mut io).await?;
        Ok((Open::Plain(incoming, io), wire))
    }

    /// Asks for the peers' protocol, and shakes hands in it; returns the wire version to speak.
    async fn enter(
        &self,
        shared: &Shared,
        address: SocketAddr,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u16, Refused> {
        io.write_all(upgrade_request(&self.peer).as_bytes()).await?;
        io.flush().await?;
        let status_line = incoming.status_line().await.map_err(|ended| self.not_let_in(ended))?;
        check_upgraded(&status_line, address)?;
        handshake::dial(shared, &self.peer, self.worker, incoming, io).await
    }

    /// In TLS 1.3 a certificate that the other side does not take shows only when it is read from.
    fn not_let_in(&self, ended: Ended) -> Refused {
        match &ended {
            Ended::Io(error) => self.problem_of_tls(tls::refusal(error)).unwrap_or_else(|| ended.into()),
            _ => ended.into(),
        }
    }

    fn not_secured(&self, error: &DialError) -> Refused {
        let text = match error {
            DialError::Plaintext => {
                Some("it does not speak TLS: set TLS_CERT, TLS_KEY and TLS_CA there too".to_owned())
            }
            DialError::Refused(text) => Some(text.clone()),
            DialError::Io(_) => None,
        };
        self.problem_of_tls(text).unwrap_or_else(|| Refused::Failed(error.to_string()))
    }

    fn problem_of_tls(&self, text: Option<String>) -> Option<Refused> {
        let text = format!("TLS: {}", text?);
        Some(Refused::Problem { text, from: Some(self.peer.clone()) })
    }

    /// Waits until the peer's own connections are refused: then ours must not stay either.
    async fn problem(&self, shared: &Shared) -> String {
        loop {
            if let Some(text) = shared.problems.incoming(&self.peer) {
                return text;
            }
            self.hurry.notified().await;
        }
    }

    fn reason(&self) -> String {
        match &*self.state.lock() {
            State::Up(_) => String::new(),
            State::Down(reason) => reason.clone(),
        }
    }

    fn go_down(&self, reason: &str) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Down(reason.to_owned()));
        if let State::Up(connection) = before {
            connection.close(reason);
        }
    }
}

fn upgrade_request(peer: &NodeId) -> String {
    format!(
        "GET {UPGRADE_PATH} HTTP/1.1\r\nHost: {peer}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\r\n"
    )
}

/// Reads the answer to the upgrade request.
fn check_upgraded(status_line: &str, address: SocketAddr) -> Result<(), Refused> {
    match status_line.split(' ').nth(1) {
        Some("101") if status_line.starts_with("HTTP/1.1 ") => Ok(()),
        Some("503") => Err(Refused::NotYet(format!("{address} is starting"))),
        Some("403") => Err(Refused::Problem {
            text: format!("{address} takes no peers from other machines without CLUSTER_SECRET"),
            from: None,
        }),
        Some("400") if status_line.ends_with("speaks TLS") => Err(Refused::Problem {
            text: format!("{address} speaks TLS: set TLS_CERT, TLS_KEY and TLS_CA here too"),
            from: None,
        }),
        _ => {
            let shown: String = status_line.chars().filter(|c| !c.is_control()).take(80).collect();
            Err(Refused::Failed(format!(
                "{address} does not speak {UPGRADE_PROTOCOL}: it answered {shown:?}"
            )))
        }
    }
}

/// How long to wait after so many failures in a row; `jitter` is 0 to 999, for half to the whole of it.
fn backoff(failures: u32, jitter: u64) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX);
    let millionths = 500_000 + jitter * 500;
    Duration::from_micros(whole.as_millis() as u64 * millionths / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_50_ms_to_a_second_and_are_cut_by_half_at_most() {
        let ms = |failures, jitter| backoff(failures, jitter).as_millis();
        assert_eq!((ms(0, 0), ms(1, 0), ms(1, 999)), (25, 25, 49));
        assert_eq!((ms(2, 0), ms(3, 0)), (50, 100));
        assert_eq!((ms(40, 0), ms(u32::MAX, 999)), (500, 999));
    }

    #[test]
    fn only_101_opens_a_connection() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(check_upgraded("HTTP/1.1 101 Switching Protocols", address).is_ok());
        for problem in ["HTTP/1.1 403 Forbidden", "HTTP/1.1 400 This port speaks TLS"] {
            assert!(matches!(check_upgraded(problem, address), Err(Refused::Problem { .. })), "{problem}");
        }
        let starting = check_upgraded("HTTP/1.1 503 Service Unavailable", address);
        assert!(matches!(starting, Err(Refused::NotYet(_))));
        for other in ["HTTP/1.1 200 OK", "HTTP/1.1", "", "SSH-2.0-x 101", "HTTP/1.1 404 Not Found"] {
            assert!(matches!(check_upgraded(other, address), Err(Refused::Failed(_))), "{other}");
        }
    }
}
