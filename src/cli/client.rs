//! Client: requests to whichever of some nodes can be reached, over one kept connection.
//!
//! ```text
//! send ──> connection kept? ──no──> connect ──failed──> the next node
//!             └── sent ── 503 (nothing was done) ─────> the next node; the last one's answer stands
//!                    └─── lost on the way: a read goes to the next node, of a write nobody knows
//! ```
#![allow(clippy::disallowed_methods)] // a client on the command line: its time and sockets are the real ones

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dial::{Dialler, Target};
use super::exit::{self, Error};
use super::options::Connect;
use super::output::Out;

/// How long connecting may take while there is another node to try.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection that failed may take to say why.
const DRIVER_PATIENCE: Duration = Duration::from_millis(100);
/// Bytes a second that a body is expected to go out with, at least: it adds to the patience.
const UPLOAD_RATE: u64 = 1 << 20;
/// Bytes of an answer that says what went wrong which are shown, at most.
const PROBLEM_LEN_MAX: usize = 500;

/// Runs a command that talks to a node.
pub fn run<C>(options: &Connect, command: C) -> ExitCode
where
    C: AsyncFnOnce(&mut Client, &mut Out) -> Result<(), Error>,
{
    let mut out = Out::stdout();
    let outcome = Client::new(options).and_then(|mut client| {
        runtime()?.block_on(async {
            command(&mut client, &mut out).await?;
            out.flush()
        })
    });
    if matches!(outcome, Err(Error::Told(_) | Error::NotFound(_))) {
        let _ = out.flush(); // what was found out counts, whatever the exit code
    }
    exit::end(options.json, outcome)
}

/// A runtime for one command.
pub fn runtime() -> Result<Runtime, Error> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Failed(format!("cannot start: {error}")))
}

/// A path with parameters, all of them encoded.
pub fn with_query(path: &str, parameters: &[(&'static str, Vec<u8>)]) -> String {
    let mut whole = path.to_owned();
    for (at, (name, value)) in parameters.iter().enumerate() {
        whole.push(if at == 0 { '?' } else { '&' });
        whole.push_str(name);
        whole.push('=');
        whole.extend(percent_encode(value, NON_ALPHANUMERIC));
    }
    whole
}

/// Where a key lives at our own door.
pub fn path_of(key: &[u8], parameters: &[(&'static str, Vec<u8>)]) -> String {
    with_query(&format!("/v1/kv/{}", percent_encode(key, NON_ALPHANUMERIC)), parameters)
}

/// Talks to one of some nodes.
#[derive(Debug)]
pub struct Client {
    targets: Vec<Target>,
    /// The one that is talked to.
    at: usize,
    dialler: Dialler,
    authorization: Option<HeaderValue>,
    patience: Duration,
    /// Kept for the next request.
    connection: Option<Connection>,
}

/// A connection, and the task that moves its bytes.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

/// What is asked.
#[derive(Debug, Clone)]
struct Question {
    method: Method,
    path_and_query: String,
    content_type: Option<HeaderValue>,
    body: Bytes,
}

/// Why there is no answer.
enum Trouble {
    /// Nothing was sent.
    NotSent(String),
    /// It was sent, perhaps.
    Lost(String),
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(options: &Connect) -> Result<Self, Error> {
        let targets = options.targets()?;
        Ok(Self {
            dialler: Dialler::new(&targets, &options.ca).map_err(Error::Usage)?,
            targets,
            at: 0,
            authorization: options.token.header()?,
            patience: options.timeout,
            connection: None,
        })
    }

    /// The same for another node of the ring, no more patient than that.
    #[must_use]
    pub fn of_member(&self, name: &str, patience: Duration) -> Self {
        Self {
            targets: vec![self.target().other(name)],
            at: 0,
            dialler: self.dialler.clone(),
            authorization: self.authorization.clone(),
            patience: self.patience.min(patience),
            connection: None,
        }
    }

    /// The node that is talked to.
    pub fn target(&self) -> &Target {
        &self.targets[self.at]
    }

    /// `GET`.
    pub async fn get(&mut self, path_and_query: &str) -> Result<Answer, Error> {
        self.send(Method::GET, path_and_query, None, Bytes::new()).await
    }

    /// `GET`, and JSON of an expected shape.
    pub async fn get_json<T: DeserializeOwned>(&mut self, path_and_query: &str) -> Result<T, Error> {
        self.get(path_and_query).await?.good().await?.json().await
    }

    /// Sends a request; the answer may be a refusal ([`Answer::good`]).
    ///
    /// # Errors
    /// `Unavailable`, and whether a write may have been done.
    pub async fn send(
        &mut self,
        method: Method,
        path_and_query: &str,
        content_type: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let question = Question { method, path_and_query: path_and_query.to_owned(), content_type, body };
        let (mut problems, mut busy) = (Vec::new(), None);
        for _ in 0..self.targets.len() {
            let target = self.target().clone();
            match self.send_here(&question).await {
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => busy = Some(answer),
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lost(problem)) if question.method != Method::GET => {
                    return Err(Error::Unavailable(format!(
                        "{target}: {problem}; it may have been done all the same: read it, or send it again"
                    )));
                }
                Err(Trouble::NotSent(problem) | Trouble::Lost(problem)) => {
                    problems.push(format!("{target}: {problem}"));
                }
            }
            if self.targets.len() > 1 {
                self.at = (self.at + 1) % self.targets.len();
                self.connection = None;
            }
        }
        busy.ok_or_else(|| {
            let problems = problems.join("; ");
            Error::Unavailable(format!(
                "cannot reach {problems}. Is a node running there? Name others with --connect host:port or KVSTORE_CONNECT"
            ))
        })
    }

    /// Sends to the current node; over a new connection if the kept one turns out to have ended.
    async fn send_here(&mut self, question: &Question) -> Result<Answer, Trouble> {
        let target = self.target().clone();
        loop {
            let kept = self.connection.take().filter(|connection| !connection.sender.is_closed());
            let is_kept = kept.is_some();
            let mut connection = if let Some(connection) = kept {
                connection
            } else {
                let is_only = self.targets.len() == 1;
                let patience = if is_only { self.patience } else { self.patience.min(CONNECT_PATIENCE) };
                self.connect(&target, patience).await.map_err(Trouble::NotSent)?
            };
            let request = question
                .request(target.authority(), self.authorization.as_ref())
                .map_err(Trouble::NotSent)?;
            if let Err(error) = connection.sender.ready().await {
                if is_kept {
                    continue;
                }
                return Err(Trouble::NotSent(connection.cause(&error).await));
            }
            let patience = self.patience + Duration::from_secs(question.body.len() as u64 / UPLOAD_RATE);
            match timeout(patience, connection.sender.try_send_request(request)).await {
                Ok(Ok(response)) => {
                    self.connection = Some(connection);
                    let (head, body) = response.into_parts();
                    let (status, headers) = (head.status, head.headers);
                    let target = target.to_string();
                    return Ok(Answer { target, status, headers, body, patience: self.patience });
                }
                Ok(Err(mut error)) => match error.take_message() {
                    Some(_) if is_kept => {} // it had ended meanwhile, and nothing was sent
                    Some(_) => return Err(Trouble::NotSent(connection.cause(error.error()).await)),
                    None => return Err(Trouble::Lost(connection.cause(error.error()).await)),
                },
                Err(_) => return Err(Trouble::Lost(format!("no answer within {patience:?}"))),
            }
        }
    }

    async fn connect(&self, target: &Target, patience: Duration) -> Result<Connection, String> {
        let connected = timeout(patience, self.dialler.dial(target)).await;
        let (sender, driver) = connected.map_err(|_| format!("no connection within {patience:?}"))??;
        Ok(Connection { sender, driver })
    }
}

impl Connection {
    /// Why it ended: what its task met, if that says more than the request that was given up.
    async fn cause(self, error: &hyper::Error) -> String {
        drop(self.sender);
        match timeout(DRIVER_PATIENCE, self.driver).await {
            Ok(Ok(Err(cause))) => described(&cause),
            _ => described(error),
        }
    }
}

/// What hyper says, with its cause.
fn described(error: &hyper::Error) -> String {
    use std::error::Error as _;
    let text = error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    // A server that speaks first is none of HTTP.
    if error.is_parse() || text.contains("unexpected message") {
        return "the answer is not HTTP; is it a kvstore node?".to_owned();
    }
    text
}

impl Question {
    fn request(
        &self,
        target: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request =
            Request::builder().method(self.method.clone()).uri(&self.path_and_query).header(HOST, target);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(content_type) = &self.content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        request.body(Full::new(self.body.clone())).map_err(|error| error.to_string())
    }
}

/// The head of an answer, and its body to be read.
#[derive(Debug)]
pub struct Answer {
    /// Who gave it.
    target: String,
    /// Its status.
    pub status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    patience: Duration,
}

/// What our own door says of a fault.
#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
    code: String,
    outcome: String,
}

impl Answer {
    /// A header of text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = timeout(self.patience, self.body.frame()).await;
            let lost =
                |problem: String| Error::Unavailable(format!("{}: answer cut short: {problem}", self.target));
            match frame.map_err(|_| lost(format!("nothing came within {:?}", self.patience)))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(lost(described(&error))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body.
    pub async fn bytes(mut self) -> Result<Vec<u8>, Error> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    /// The whole body, as JSON of an expected shape.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let target = self.target.clone();
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::Failed(format!("{target}: an answer that this version does not know: {error}"))
        })
    }

    /// The answer if it is one of success; otherwise what the node says is wrong, and what to do about it.
    pub async fn good(self) -> Result<Self, Error> {
        if self.status.is_success() { Ok(self) } else { Err(self.refusal().await) }
    }

    async fn refusal(self) -> Error {
        let (status, target) = (self.status, self.target.clone());
        let body = self.bytes().await.unwrap_or_default();
        let problem: Option<Problem> = serde_json::from_slice(&body).ok();
        let text = match &problem {
            Some(problem) => problem.detail.clone(),
            None => String::from_utf8_lossy(&body).trim().chars().take(PROBLEM_LEN_MAX).collect(),
        };
        let said = if text.is_empty() { format!("{target}: {status}") } else { format!("{target}: {text}") };
        let unknown = problem.as_ref().is_some_and(|problem| problem.outcome == "unknown");
        match status.as_u16() {
            400 => Error::Usage(said),
            401 => Error::Failed(format!("{said}; show one with --token-file FILE, or KVSTORE_TOKEN")),
            403 => Error::Failed(format!("{said}; use a token of another scope")),
            404 if problem.as_ref().is_some_and(|problem| problem.code == "not_found") => {
                Error::NotFound(said)
            }
            404 => Error::Failed(format!("{said}; is it a kvstore node, and not an older one?")),
            503 => Error::Unavailable(format!("{said}; nothing was done, so try again, or another node")),
            504 if unknown => {
                Error::Unavailable(format!("{said}; reading it, or writing it again, settles it"))
            }
            504 => Error::Unavailable(format!("{said}; try again")),
            507 => Error::Failed(format!("{said}; nothing was written: make room on the nodes' disks")),
            _ => Error::Failed(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_parameters_are_encoded_whatever_they_are() {
        assert_eq!(path_of(b"a/b?\xff ..", &[]), "/v1/kv/a%2Fb%3F%FF%20%2E%2E");
        let parameters = [("prefix", b"a&b".to_vec()), ("limit", b"3".to_vec())];
        assert_eq!(with_query("/v1/kv", &parameters), "/v1/kv?prefix=a%26b&limit=3");
    }
}
