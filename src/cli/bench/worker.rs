//! What one connection of the load generator does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::BenchArgs;
use super::connection::Connection;
use super::record::Recorder;
use super::report::{Operation, Tally};
use crate::cli::dial::{Dialler, Target};
use crate::env::Rng;

/// How long a connection waits before it dials again.
const REDIAL_AFTER: Duration = Duration::from_millis(20);
/// Keys a request when keys are loaded to be read.
const LOAD_BATCH: u64 = 500;

/// What all connections share.
pub(super) struct Plan {
    targets: Vec<Target>,
    dialler: Dialler,
    authorization: Option<HeaderValue>,
    read_percent: u64,
    requests_max: u64,
    put_path: String,
    get_suffix: String,
    value: String,
    /// Keys a write; `None`: one, by `/put`.
    batch: Option<u64>,
    /// Between two requests of a connection, where a rate is asked for.
    interval: Option<Duration>,
    unchecked: bool,
    seed: u64,
    recorder: Option<Arc<Recorder>>,
    /// Requests begun. Relaxed, like those below: counters that order nothing.
    begun: AtomicU64,
    /// Requests ended.
    ended: AtomicU64,
    /// Keys given out to be written.
    given: AtomicU64,
    /// Keys below it were acknowledged before the clock started.
    loaded: AtomicU64,
}

impl Plan {
    pub(super) fn new(
        args: &BenchArgs,
        targets: Vec<Target>,
        dialler: Dialler,
        authorization: Option<HeaderValue>,
        recorder: Option<Arc<Recorder>>,
    ) -> Self {
        let rng = Rng::from_entropy();
        let value = (0..args.value_size).map(|_| char::from(b'a' + rng.below(0..26) as u8)).collect();
        Self {
            targets,
            dialler,
            authorization,
            read_percent: args.read_percent.into(),
            requests_max: args.requests.unwrap_or(u64::MAX),
            put_path: args.write_quorum.map_or("/put".to_owned(), |w| format!("/put?w={w}")),
            get_suffix: args.read_quorum.map_or(String::new(), |r| format!("&r={r}")),
            value,
            batch: args.batch.map(u64::from),
            interval: args.rate.map(|rate| Duration::from_secs(1) * u32::from(args.connections) / rate),
            unchecked: args.unchecked,
            seed: args.seed.unwrap_or_else(|| rng.u64()),
            recorder,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            given: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
        }
    }

    /// Requests ended so far.
    pub(super) fn done(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// The nth key of this run: spread over the whole ring and the whole order of keys.
    fn key(&self, index: u64) -> String {
        format!("bench:{:016x}", xxh3_64_with_seed(&index.to_le_bytes(), self.seed))
    }

    /// The body of a batch of these keys.
    fn batch_of(&self, indices: Range<u64>) -> Bytes {
        let items: Vec<_> = indices
            .map(|index| format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", self.key(index), self.value))
            .collect();
        Bytes::from(format!("{{\"items\":[{}]}}", items.join(",")))
    }

    /// When a connection is to send its nth request: the connections take turns within an interval.
    fn due(&self, began: Instant, connection: usize, connections: u32, nth: u32) -> Option<Instant> {
        let interval = self.interval?;
        Some(began + interval * nth + interval * (connection as u32) / connections.max(1))
    }

    fn target(&self, index: usize) -> &Target {
        &self.targets[index % self.targets.len()]
    }
}

/// Writes the keys that reads will ask for.
pub(super) async fn load(plan: &Plan, keys: u64) -> Result<(), String> {
    let mut connection = Connection::open(&plan.dialler, plan.target(0), plan.authorization.as_ref()).await?;
    let mut next = 0;
    while next < keys.max(1) {
        let end = (next + LOAD_BATCH).min(keys.max(1));
        let (status, answer) = connection.send(Method::POST, "/batch", plan.batch_of(next..end)).await?;
        if status != StatusCode::OK {
            return Err(describe(status, &answer));
        }
        next = end;
    }
    plan.given.store(next, Ordering::Relaxed);
    plan.loaded.store(next, Ordering::Relaxed);
    Ok(())
}

/// One connection.
pub(super) struct Worker {
    plan: Arc<Plan>,
    /// Among `connections`.
    number: usize,
    connections: u32,
    /// Which target it talks to.
    index: usize,
    rng: Rng,
    connection: Option<Connection>,
    tally: Tally,
}

impl Worker {
    pub(super) fn new(plan: Arc<Plan>, number: usize, connections: u32) -> Self {
        let rng = Rng::from_seed(plan.seed ^ number as u64);
        Self { plan, number, connections, index: number, rng, connection: None, tally: Tally::default() }
    }

    /// Sends requests until the time is up or all are sent; returns what it saw.
    pub(super) async fn run(mut self, began: Instant, deadline: Option<Instant>) -> Tally {
        let mut nth = 0;
        while deadline.is_none_or(|deadline| Instant::now() < deadline)
            && self.plan.begun.fetch_add(1, Ordering::Relaxed) < self.plan.requests_max
        {
            let operation =
                if self.rng.below(0..100) < self.plan.read_percent { Operation::Get } else { Operation::Put };
            let due = self.plan.due(began, self.number, self.connections, nth);
            nth += 1;
            let sent = match due {
                Some(due) if due > Instant::now() => {
                    tokio::time::sleep_until(due.into()).await;
                    Instant::now() // our own timer's lateness is not the server's
                }
                Some(due) => due,
                None => Instant::now(),
            };
            let outcome = match operation {
                Operation::Put => self.put().await,
                Operation::Get => self.get().await,
            };
            let ended = Instant::now();
            self.plan.ended.fetch_add(1, Ordering::Relaxed);
            match outcome {
                Ok(()) => self.tally.answered_after(operation, ended - sent, ended - began),
                Err(problem) => self.tally.failed(operation, problem),
            }
        }
        self.tally
    }

    async fn put(&mut self) -> Result<(), String> {
        let plan = self.plan.clone();
        if let Some(items) = plan.batch {
            let first = plan.given.fetch_add(items, Ordering::Relaxed);
            let body = plan.batch_of(first..first + items);
            let (status, answer) = self.send(Method::POST, "/batch", body).await?;
            return if status == StatusCode::OK { Ok(()) } else { Err(describe(status, &answer)) };
        }
        let key = plan.key(plan.given.fetch_add(1, Ordering::Relaxed));
        let body = Bytes::from(format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}", plan.value));
        let (status, answer) = self.send(Method::POST, &plan.put_path, body).await?;
        if status != StatusCode::OK {
            return Err(describe(status, &answer));
        }
        if let Some(recorder) = &plan.recorder {
            recorder.acknowledged(&key, &plan.value);
        }
        Ok(())
    }

    async fn get(&mut self) -> Result<(), String> {
        let plan = self.plan.clone();
        let key = plan.key(self.rng.below(0..plan.loaded.load(Ordering::Relaxed).max(1)));
        let path = format!("/get?key={key}{}", plan.get_suffix);
        let (status, answer) = self.send(Method::GET, &path, Bytes::new()).await?;
        match status {
            StatusCode::OK if plan.unchecked || answer.len() == plan.value.len() => Ok(()),
            StatusCode::OK => {
                Err(format!("a value of {} bytes in place of {}", answer.len(), plan.value.len()))
            }
            _ => Err(describe(status, &answer)),
        }
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        if !self.connection.as_ref().is_some_and(Connection::is_open) {
            let plan = &self.plan;
            match Connection::open(&plan.dialler, plan.target(self.index), plan.authorization.as_ref()).await
            {
                Ok(connection) => self.connection = Some(connection),
                Err(problem) => {
                    self.index += 1; // the next target, like any client with more than one address
                    tokio::time::sleep(REDIAL_AFTER).await;
                    return Err(problem);
                }
            }
        }
        let connection = self.connection.as_mut().expect("opened above");
        let answer = connection.send(method, path, body).await;
        if answer.is_err() {
            self.connection = None; // a late answer must not be taken for the next one's
            self.index += 1;
        }
        answer
    }
}

fn describe(status: StatusCode, answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    format!("{} {}", status.as_u16(), text.chars().take(200).collect::<String>())
}
