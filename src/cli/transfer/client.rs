//! Client: requests to any of some nodes, patiently.
#![allow(clippy::disallowed_methods)] // the command line lives in the real world

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::Ended;
use crate::cli::dial::{Ca, Dialler, Target};
use crate::cli::options::Token;

const DEFAULT_NODE: &str = "127.0.0.1:8081";
/// The first rest before a request is sent again, doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long to go on trying where nobody has ever answered: a node that is starting does.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(3);

/// Which nodes, and who asks.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Nodes to talk to, separated by commas, with https:// before those that speak TLS; the next one is asked when one does
    /// not answer [env: `KVSTORE_CONNECT`] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub connect: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub token: Token,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub ca: Ca,
    /// How long one request may take
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// How long to go on trying while no node takes a request
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub retry_for: Duration,
}

/// Reads a time.
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).map_err(|error| error.to_string())
}

/// What a node answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// When to come back, if it says.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// Whether the same request may get another answer later: nothing was done, or perhaps something that may be done
    /// again.
    fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 429 | 503 | 504 | 507)
    }

    /// The body as text, on one line.
    pub fn text(&self) -> String {
        let problem = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str()).map(str::to_owned);
        let text = detail.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().replace('\n', " "));
        text.chars().take(400).collect()
    }

    /// What an answer means that is not what was asked for.
    pub fn refused(&self, what: &str) -> Ended {
        Ended::Failed(format!("{what}: {} {}", self.status, self.text()))
    }
}

/// Speaks to one node at a time, over as many connections as there are requests at once.
#[derive(Debug)]
pub struct Client {
    nodes: Vec<Target>,
    dialler: Dialler,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    retry_for: Duration,
    /// Which node is asked.
    current: AtomicUsize,
    /// Whether any of them has ever answered. Relaxed: a hint.
    met: AtomicBool,
    /// Connections to it that nobody uses.
    idle: Mutex<Vec<(usize, SendRequest<Full<Bytes>>)>>,
}

impl Client {
    /// Reads the options, and the environment where they say nothing.
    pub fn new(args: &NodeArgs) -> Result<Self, Ended> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let mut nodes = args.connect.clone();
        if nodes.is_empty() {
            let named = var("KVSTORE_CONNECT").unwrap_or_else(|| DEFAULT_NODE.to_owned());
            nodes = named.split(',').map(str::to_owned).collect();
        }
        let nodes: Vec<_> =
            nodes.iter().map(|node| Target::parse(node)).collect::<Result<_, _>>().map_err(Ended::Usage)?;
        let dialler = Dialler::new(&nodes, &args.ca).map_err(Ended::Usage)?;
        let authorization = args.token.header().map_err(|error| Ended::Usage(error.to_string()))?;
        Ok(Self {
            nodes,
            dialler,
            authorization,
            timeout: args.timeout,
            retry_for: args.retry_for,
            current: AtomicUsize::new(0),
            met: AtomicBool::new(false),
            idle: Mutex::default(),
        })
    }

    /// The nodes, as they were named.
    pub fn nodes(&self) -> String {
        self.nodes.iter().map(Target::to_string).collect::<Vec<_>>().join(",")
    }

    /// Asks until a node gives an answer that will not be another one in a moment.
    ///
    /// # Errors
    /// [`Ended::Unavailable`] once that took too long.
    pub async fn ask(&self, method: &Method, target: &str, body: Bytes) -> Result<Answer, Ended> {
        let (started, mut backoff) = (Instant::now(), BACKOFF_MIN);
        loop {
            let node = self.current.load(Ordering::Relaxed);
            let (problem, rest) = match self.send(node, method, target, body.clone()).await {
                Ok(answer) if !answer.is_passing() => return Ok(answer),
                Ok(answer) => (format!("{} {}", answer.status, answer.text()), answer.retry_after),
                Err(problem) => {
                    self.turn_from(node);
                    (problem, None)
                }
            };
            // Spread over half as much again, so that requests that were refused together do not come back together.
            let jitter = backoff.mul_f64(rand::random_range(0.0..0.5));
            let rest = rest.unwrap_or_default().max(backoff) + jitter;
            let met = self.met.load(Ordering::Relaxed);
            let patience = if met { self.retry_for } else { self.retry_for.min(STRANGERS_PATIENCE) };
            if started.elapsed() + rest > patience {
                let node = &self.nodes[node % self.nodes.len()];
                return Err(Ended::Unavailable(format!("{node}: {problem}")));
            }
            sleep(rest).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// In words, why there is no answer: what was asked for may have been done.
    async fn send(&self, node: usize, method: &Method, target: &str, body: Bytes) -> Result<Answer, String> {
        let name = &self.nodes[node % self.nodes.len()];
        let exchange = async {
            let mut sender = self.connection(node, name).await?;
            let mut request = Request::builder().method(method).uri(target).header(HOST, name.authority());
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            if !body.is_empty() {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
            let status = response.status().as_u16();
            let retry_after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok());
            let retry_after = retry_after.and_then(|after| after.parse().ok()).map(Duration::from_secs);
            let body = response.into_body().collect().await.map_err(|error| chain(&error))?.to_bytes();
            self.idle.lock().push((node, sender));
            self.met.store(true, Ordering::Relaxed);
            Ok(Answer { status, retry_after, body })
        };
        match timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer in {:?}", self.timeout)),
        }
    }

    async fn connection(&self, node: usize, name: &Target) -> Result<SendRequest<Full<Bytes>>, String> {
        loop {
            let idle = self.idle.lock().pop();
            match idle {
                Some((of, mut sender)) if of == node => {
                    if sender.ready().await.is_ok() {
                        return Ok(sender);
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        let (sender, _driver) = self.dialler.dial(name).await?; // its end shows in the next request
        Ok(sender)
    }

    /// Lets the next node be asked, unless another request has turned already.
    fn turn_from(&self, node: usize) {
        let _ = self.current.compare_exchange(node, node + 1, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
