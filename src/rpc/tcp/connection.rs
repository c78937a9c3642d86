//! Connection: requests of ours in flight on one connection, and who waits for which answer.
//!
//! A request gets a number of its own for as long as the connection lives; its answer carries it back. Who waits
//! no longer has taken their entry away, so a late answer finds no taker and is dropped and counted. Whose time is up is found
//! by looking through all who wait, ten times a second: a timer for each would cost more than all else here. When the
//! connection ends, all who still wait learn at once that their requests may have arrived.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::incoming::{Ended, Incoming};
use super::outbox::{Outbox, Rejected};
use super::{Counters, QUEUE_BYTES_MAX, REQUESTS_IN_FLIGHT_MAX};
use crate::env::rng::SeededHasher;
use crate::env::{Rng, Tasks};
use crate::rpc::frame::FRAME_LEN_MAX;
use crate::rpc::{BoxFuture, Error, Request, Response, decode_response, encode_request_as};

type Answer = Result<Response, Error>;

/// How much later than its timeout a call may fail.
const TIMEOUT_STEP: Duration = Duration::from_millis(100);

/// The requesting side of an open connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The wire version that both sides speak.
    wire: u16,
    outbox: Outbox,
    waiting: Mutex<Waiting>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Waiting {
    /// Never given twice on a connection.
    next_id: u64,
    takers: HashMap<u64, Taker, SeededHasher>,
    closed: Option<String>,
}

/// Who waits for an answer.
#[derive(Debug)]
struct Taker {
    answer: oneshot::Sender<Answer>,
    deadline: Instant,
}

/// A place in `takers`, given back when nobody waits any more.
struct Place {
    connection: Arc<Connection>,
    id: u64,
    /// Whether the entry was taken out already.
    answered: bool,
}

impl Place {
    fn taken(mut self) {
        self.answered = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.waiting.lock().takers.remove(&self.id);
        }
    }
}

impl Connection {
    pub fn new(wire: u16, rng: &Rng, counters: Arc<Counters>) -> Arc<Self> {
        let waiting = Waiting { next_id: 1, takers: HashMap::with_hasher(rng.hasher()), closed: None };
        Arc::new(Self { wire, outbox: Outbox::default(), waiting: Mutex::new(waiting), counters })
    }

    /// Queues a request at once; the future waits for its answer, and fails within [`TIMEOUT_STEP`] after `timeout`.
    pub fn call(self: Arc<Self>, request: &Request, timeout: Duration) -> BoxFuture<Answer> {
        match self.queue(request, timeout) {
            Ok((place, answer)) => Box::pin(async move {
                let answer = answer.await;
                place.taken(); // whoever sent it took the entry, and so did whoever dropped the sender
                answer.unwrap_or_else(|_| Err(Error::Disconnected("closed".to_owned())))
            }),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn queue(
        self: Arc<Self>,
        request: &Request,
        timeout: Duration,
    ) -> Result<(Place, oneshot::Receiver<Answer>), Error> {
        let (answer, receiver) = oneshot::channel();
        let now = Instant::now();
        let id = {
            let mut waiting = self.waiting.lock();
            if let Some(reason) = &waiting.closed {
                return Err(Error::Unreachable(reason.clone()));
            }
            if waiting.takers.len() >= REQUESTS_IN_FLIGHT_MAX {
                return Err(self.overloaded());
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.takers.insert(id, Taker { answer, deadline: now + timeout });
            id
        };
        let place = Place { connection: self, id, answered: false };
        let connection = &place.connection;
        let patience = Some((now, timeout));
        let pushed = connection.outbox.push(patience, QUEUE_BYTES_MAX, |out| {
            encode_request_as(connection.wire, request, id, timeout, out)
        });
        match pushed {
            Ok(()) => Ok((place, receiver)),
            Err(Rejected::Closed) => Err(Error::Unreachable("connection closed".to_owned())),
            Err(Rejected::Full) => Err(connection.overloaded()),
            Err(Rejected::TooLarge(error)) => {
                tracing::error!(%error, "a request was not sent");
                Err(connection.overloaded())
            }
        }
    }

    fn overloaded(&self) -> Error {
        self.counters.overloaded.inc();
        Error::Overloaded
    }

    /// Carries requests and answers until the connection ends; returns why it did.
    pub async fn run<R, W>(self: Arc<Self>, mut incoming: Incoming<R>, mut io: W, tasks: &Tasks) -> Ended
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let connection = self.clone();
        let mut writer = AbortOnDropHandle::new(tasks.spawn(async move {
            let written = connection.outbox.write_to(&mut io).await;
            connection.counters.expired_unsent.add(*written.as_ref().unwrap_or(&0));
            written
        }));
        let ended = tokio::select! { biased;
            ended = self.receive(&mut incoming) => ended,
            written = &mut writer => match written {
                Ok(Err(error)) => Ended::Io(error),
                Ok(Ok(_)) | Err(_) => Ended::Closed,
            },
            never = self.expire() => match never {},
        };
        if let Ended::Frame(_) = ended {
            self.counters.bad_frames.inc();
        }
        self.close(&ended.to_string());
        ended
    }

    async fn receive<R: AsyncRead + Unpin>(&self, incoming: &mut Incoming<R>) -> Ended {
        loop {
            let frame = match incoming.frame(FRAME_LEN_MAX).await {
                Ok(frame) => frame,
                Err(ended) => return ended,
            };
            let Ok(response) = decode_response(&frame) else {
                self.counters.bad_frames.inc();
                return Ended::Io(std::io::Error::other("an answer that cannot be read"));
            };
            let taker = self.waiting.lock().takers.remove(&frame.request_id);
            match taker {
                Some(taker) => drop(taker.answer.send(Ok(response))), // whoever waited may be gone by now
                None => self.counters.late_answers.inc(),
            }
        }
    }

    /// Tells those whose time is up.
    async fn expire(&self) -> Infallible {
        loop {
            tokio::time::sleep(TIMEOUT_STEP).await;
            let now = Instant::now();
            let expired: Vec<Taker> = {
                let mut waiting = self.waiting.lock();
                waiting.takers.extract_if(|_, taker| taker.deadline <= now).map(|(_, taker)| taker).collect()
            };
            for taker in expired {
                let _ = taker.answer.send(Err(Error::TimedOut));
            }
        }
    }

    /// Ends the connection: calls fail from now on, and those under way at once.
    pub fn close(&self, reason: &str) {
        let takers = {
            let mut waiting = self.waiting.lock();
            waiting.closed.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut waiting.takers)
        };
        self.outbox.close();
        for taker in takers.into_values() {
            let _ = taker.answer.send(Err(Error::Disconnected(reason.to_owned())));
        }
    }
}
