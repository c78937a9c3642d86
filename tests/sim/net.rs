//! The network: every message is encoded, delayed, perhaps lost, repeated, overtaken or cut off, and decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kvstore::env::{Rng, Tasks};
use kvstore::rpc::{
    BoxFuture, Error, Frame, Handler, ReplicaResponse, Request, Response, Transport, decode_request,
    decode_response, encode_request, encode_response,
};
use kvstore::types::NodeId;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use super::trace::Trace;
use crate::trace;

/// How messages fare.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weather {
    /// The longest that most messages take.
    pub delay_max: Duration,
    /// The share of messages that take far longer, and how long at most.
    pub slow: f64,
    pub slow_max: Duration,
    /// The share that never arrives.
    pub lost: f64,
    /// The share that arrives twice.
    pub repeated: f64,
}

impl Weather {
    /// Nothing is lost, repeated or overtaken for long.
    pub fn fair() -> Self {
        Self {
            delay_max: Duration::from_millis(3),
            slow: 0.0,
            slow_max: Duration::ZERO,
            lost: 0.0,
            repeated: 0.0,
        }
    }
}

/// The network of one world. A clone is the same one.
#[derive(Clone)]
pub struct SimNet {
    shared: Arc<Shared>,
}

struct Shared {
    names: Vec<NodeId>,
    rng: Rng,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    seats: Vec<Seat>,
    weather: Weather,
    /// Pairs (from, to) between which nothing gets through.
    cut: BTreeSet<(usize, usize)>,
    /// When each pair that was cut was last let through again.
    mended: BTreeMap<(usize, usize), Instant>,
    /// Since when messages fare as they do.
    weather_since: Instant,
    request_id: u64,
}

#[derive(Clone, Default)]
struct Seat {
    /// Counts starts: what an earlier life sends is lost.
    life: u64,
    serving: Option<(Arc<dyn Handler>, Tasks)>,
}

/// One node's side of the network, in one of its lives.
pub struct SimTransport {
    net: SimNet,
    own: usize,
    life: u64,
}

/// Where an answer goes; whoever comes first takes it.
type Reply = Arc<Mutex<Option<oneshot::Sender<Result<Response, Error>>>>>;

/// A request under way.
#[derive(Clone)]
struct Flight {
    from: usize,
    to: usize,
    id: u64,
    bytes: Bytes,
    reply: Reply,
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimTransport of {}", self.own)
    }
}

impl SimNet {
    /// A network between nodes of these names, none of them serving yet.
    pub fn new(names: Vec<NodeId>, rng: Rng, trace: Trace) -> Self {
        let state = State {
            seats: vec![Seat::default(); names.len()],
            weather: Weather::fair(),
            cut: BTreeSet::new(),
            mended: BTreeMap::new(),
            weather_since: Instant::now(),
            request_id: 0,
        };
        Self { shared: Arc::new(Shared { names, rng, trace, state: Mutex::new(state) }) }
    }

    /// Begins a new life of a node: what it sends.
    pub fn transport(&self, node: usize) -> Arc<dyn Transport> {
        let mut state = self.shared.state.lock();
        let seat = &mut state.seats[node];
        seat.life += 1;
        Arc::new(SimTransport { net: self.clone(), own: node, life: seat.life })
    }

    /// From now on requests reach the node.
    pub fn serve(&self, node: usize, handler: Arc<dyn Handler>, tasks: Tasks) {
        self.shared.state.lock().seats[node].serving = Some((handler, tasks));
    }

    /// Nothing reaches the node any more, and nothing it sent is answered.
    pub fn remove(&self, node: usize) {
        let mut state = self.shared.state.lock();
        state.seats[node].serving = None;
        state.seats[node].life += 1;
    }

    /// Sets how messages fare from now on.
    pub fn set_weather(&self, weather: Weather) {
        let mut state = self.shared.state.lock();
        state.weather = weather;
        state.weather_since = Instant::now();
    }

    /// Lets nothing through from one node to another, or lets it through again.
    pub fn set_cut(&self, from: usize, to: usize, cut: bool) {
        let mut state = self.shared.state.lock();
        if cut {
            state.cut.insert((from, to));
        } else if state.cut.remove(&(from, to)) {
            state.mended.insert((from, to), Instant::now());
        }
    }

    /// Whether anything is cut.
    pub fn is_cut_anywhere(&self) -> bool {
        !self.shared.state.lock().cut.is_empty()
    }

    /// Whether messages between two nodes have arrived both ways, each soon, since `since`.
    pub fn is_good_since(&self, one: usize, other: usize, since: Instant) -> bool {
        let state = self.shared.state.lock();
        let is_fair = state.weather.lost == 0.0 && state.weather.slow == 0.0 && state.weather_since <= since;
        let is_open = |pair| {
            !state.cut.contains(&pair) && state.mended.get(&pair).is_none_or(|mended| *mended <= since)
        };
        one == other || (is_fair && is_open((one, other)) && is_open((other, one)))
    }

    /// Lets everything through.
    pub fn heal(&self) {
        let mut state = self.shared.state.lock();
        for pair in std::mem::take(&mut state.cut) {
            state.mended.insert(pair, Instant::now());
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.shared.state.lock().cut.contains(&(from, to))
    }

    fn is_alive(&self, node: usize, life: u64) -> bool {
        self.shared.state.lock().seats[node].life == life
    }

    fn serving(&self, node: usize) -> Option<(Arc<dyn Handler>, Tasks)> {
        self.shared.state.lock().seats[node].serving.clone()
    }

    /// How long one copy of a message takes; `None` when it is lost.
    fn draw_delay(&self) -> Option<Duration> {
        let weather = self.shared.state.lock().weather;
        let rng = &self.shared.rng;
        if weather.lost > 0.0 && rng.chance(weather.lost) {
            return None;
        }
        let slow = weather.slow > 0.0 && rng.chance(weather.slow);
        let longest = if slow { weather.slow_max } else { weather.delay_max };
        Some(Duration::from_micros(rng.below(100..longest.as_micros() as u64 + 200)))
    }

    fn draw_copies(&self) -> usize {
        let repeated = self.shared.state.lock().weather.repeated;
        1 + usize::from(repeated > 0.0 && self.shared.rng.chance(repeated))
    }

    fn send(&self, from: usize, to: usize, request: &Request, timeout: Duration, reply: &Reply) {
        let trace = &self.shared.trace;
        let id = {
            let mut state = self.shared.state.lock();
            state.request_id += 1;
            state.request_id
        };
        let mut bytes = BytesMut::new();
        if encode_request(request, id, timeout, &mut bytes).is_err() {
            answer(reply, Err(Error::Overloaded));
            return;
        }
        let bytes = bytes.freeze();
        trace!(trace, "#{id} {from}->{to} {} {:016x}", kind_of(request), xxh3_64(&bytes));
        if self.serving(to).is_none() && !self.is_cut(from, to) && self.shared.rng.chance(0.7) {
            let reply = reply.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                answer(&reply, Err(Error::Unreachable("nobody listens".to_owned())));
            });
            return;
        }
        for _ in 0..self.draw_copies() {
            if self.is_cut(from, to) {
                continue;
            }
            let Some(delay) = self.draw_delay() else {
                trace!(trace, "#{id} lost");
                continue;
            };
            let flight = Flight { from, to, id, bytes: bytes.clone(), reply: reply.clone() };
            tokio::spawn(self.clone().deliver(flight, delay));
        }
    }

    /// Carries one copy of a request to its receiver, and the answer back.
    async fn deliver(self, flight: Flight, delay: Duration) {
        sleep(delay).await;
        let Flight { from, to, id, bytes, reply } = flight;
        let trace = self.shared.trace.clone();
        if self.is_cut(from, to) {
            return;
        }
        let Some((handler, tasks)) = self.serving(to) else {
            if self.shared.rng.chance(0.5) {
                answer(&reply, Err(Error::Disconnected("reset".to_owned())));
            }
            return;
        };
        let frame = Frame::decode(bytes).expect("what was encoded is a frame");
        let request = decode_request(&frame).expect("what was encoded is a request");
        let sender = self.shared.names[from].clone();
        let Ok(response) = tasks.spawn(async move { handler.handle(&sender, request).await }).await else {
            if self.shared.rng.chance(0.5) {
                answer(&reply, Err(Error::Disconnected("reset".to_owned())));
            }
            return; // it crashed, or the simulation says so: a panic is noted by the hook
        };
        let mut bytes = BytesMut::new();
        encode_response(&response, id, &mut bytes).expect("answers fit a frame");
        let Some(delay) = self.draw_delay() else {
            trace!(trace, "#{id} answer lost");
            return;
        };
        if self.is_cut(to, from) {
            return;
        }
        sleep(delay).await;
        if self.is_cut(to, from) {
            return;
        }
        let bytes = bytes.freeze();
        trace!(trace, "#{id} {from}<-{to} {} {:016x}", answer_of(&response), xxh3_64(&bytes));
        let frame = Frame::decode(bytes).expect("what was encoded is a frame");
        answer(&reply, Ok(decode_response(&frame).expect("what was encoded is an answer")));
    }
}

fn answer(reply: &Reply, with: Result<Response, Error>) {
    if let Some(sender) = reply.lock().take() {
        let _ = sender.send(with); // nobody waits any more
    }
}

fn kind_of(request: &Request) -> String {
    let text = format!("{:?}", request.body);
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

fn answer_of(response: &Response) -> String {
    match &response.body {
        ReplicaResponse::Refused(refusal) => refusal.to_string(),
        other => format!("{other:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned(),
    }
}

impl Transport for SimTransport {
    fn call(&self, to: &NodeId, request: Request, timeout: Duration) -> BoxFuture<Result<Response, Error>> {
        let deadline = Instant::now() + timeout;
        let (sender, receiver) = oneshot::channel();
        let reply: Reply = Arc::new(Mutex::new(Some(sender)));
        let to = self.net.shared.names.iter().position(|name| name == to).expect("a member");
        if self.net.is_alive(self.own, self.life) {
            self.net.send(self.own, to, &request, timeout, &reply);
        }
        Box::pin(async move {
            match timeout_at(deadline, receiver).await {
                Ok(Ok(answered)) => answered,
                Ok(Err(_)) => {
                    sleep_until(deadline).await; // every copy is lost
                    Err(Error::TimedOut)
                }
                Err(_) => Err(Error::TimedOut),
            }
        })
    }
}
