//! A node's doors on a port of the system's choosing, and a client that sees every byte.
#![allow(dead_code)] // each test file uses its part
#![allow(clippy::disallowed_methods)] // a client lives in the real world

pub mod ring;

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvstore::cluster::{Member, assign};
use kvstore::config::Config;
use kvstore::env::Env;
use kvstore::http::body::{Body, BodyLimits};
use kvstore::http::{Api, ApiLimits, ApiSettings, ServerLimits, bind, serve_tls};
use kvstore::node::Node;
use kvstore::rpc::tcp::{self, TcpSettings, TcpTransport};
use kvstore::rpc::{BoxFuture, Error, Request, Response, Transport};
use kvstore::tls::Tls;
use kvstore::types::NodeId;
use kvstore::util::shutdown::Shutdown;

/// How long a test waits for an answer before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bounds, small enough to be reached in a test.
pub fn limits() -> (ServerLimits, ApiLimits) {
    let mut server = ServerLimits::default();
    server.timeouts.header = Duration::from_millis(300);
    server.timeouts.linger = Duration::from_millis(300);
    server.timeouts.linger_idle = Duration::from_millis(300);
    server.drain_max = Duration::from_secs(2);
    let api = ApiLimits {
        value_size_max: 2 << 20,
        body: BodyLimits { size_max: 16 << 20, grace: Duration::from_millis(400), rate_min: 64 << 10 },
        inflight_bytes_max: 64 << 20,
    };
    (server, api)
}

/// A network on which nobody else is.
#[derive(Debug)]
struct NoPeers;

impl Transport for NoPeers {
    fn call(&self, to: &NodeId, _: Request, _: Duration) -> BoxFuture<Result<Response, Error>> {
        let nobody = Error::Unreachable(format!("{to} is down"));
        Box::pin(std::future::ready(Err(nobody)))
    }
}

/// A node to be started behind the doors.
pub struct Start {
    pub config: Config,
    pub env: Env,
    /// Whether it talks to its peers over TCP; otherwise nobody else is there.
    pub meets_peers: bool,
}

/// A server on a thread of its own; stops when dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub api: Api,
    stop: Arc<Shutdown>,
    kill: Shutdown,
    thread: Option<JoinHandle<()>>,
    dir: Option<tempfile::TempDir>,
}

impl Server {
    /// A node of one member, ready.
    pub fn start() -> Self {
        let (server, api) = limits();
        Self::start_with(server, api)
    }

    /// The same, within other bounds.
    pub fn start_with(server: ServerLimits, limits: ApiLimits) -> Self {
        Self::run(server, limits, ApiSettings::default(), Some(Self::alone()))
    }

    /// The same, with settings.
    pub fn start_with_settings(settings: ApiSettings) -> Self {
        let (server, limits) = limits();
        Self::run(server, limits, settings, Some(Self::alone()))
    }

    /// The same, within other bounds and with settings.
    pub fn start_with_all(server: ServerLimits, limits: ApiLimits, settings: ApiSettings) -> Self {
        Self::run(server, limits, settings, Some(Self::alone()))
    }

    fn alone() -> Config {
        let own = NodeId::from_canonical("127.0.0.1:1");
        Config {
            advertise_addr: own.as_str().to_owned(),
            members: vec![Member { id: own, weight: 10, zone: None }],
            range_count: 64,
            write_quorum: 1,
            read_quorum: 1,
            ..Config::default()
        }
    }

    /// One node of three of which the others are down, ready.
    pub fn start_lonely() -> Self {
        let (server, api) = limits();
        let members = (1..=3).map(|port| NodeId::from_canonical(&format!("127.0.0.1:{port}")));
        let config = Config {
            advertise_addr: "127.0.0.1:1".to_owned(),
            members: members.map(|id| Member { id, weight: 10, zone: None }).collect(),
            range_count: 64,
            write_quorum: 2,
            read_quorum: 2,
            ..Config::default()
        };
        Self::run(server, api, ApiSettings::default(), Some(config))
    }

    /// The doors of a node that is still starting.
    pub fn start_unready(server: ServerLimits, limits: ApiLimits) -> Self {
        Self::run(server, limits, ApiSettings::default(), None)
    }

    fn run(server: ServerLimits, limits: ApiLimits, settings: ApiSettings, config: Option<Config>) -> Self {
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let start = config.map(|config| Start {
            config: Config { dir: dir.path().join("data"), ..config },
            env: Env::real(),
            meets_peers: false,
        });
        let tls = settings.tls.clone();
        let mut running = Self::serve_api(listener, server, tls, Api::with(limits, settings), start);
        running.dir = Some(dir);
        running
    }

    /// Serves on a port of the caller's, and a node in a world of the caller's.
    pub fn serve_on(
        listener: TcpListener,
        server: ServerLimits,
        limits: ApiLimits,
        start: Option<Start>,
    ) -> Self {
        Self::serve_api(listener, server, None, Api::new(limits), start)
    }

    fn serve_api(
        listener: TcpListener,
        server: ServerLimits,
        tls: Option<Arc<Tls>>,
        api: Api,
        start: Option<Start>,
    ) -> Self {
        let addr = listener.local_addr().unwrap();
        let (stop, kill) = (Arc::new(Shutdown::default()), Shutdown::default());
        let (opened, stopping, mut killed) = (api.clone(), stop.listener(), kill.listener());
        let (tell_ready, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let node = start.map(|start| start.run(&opened));
                tell_ready.send(()).unwrap();
                tokio::select! {
                    biased;
                    () = killed.signalled() => return, // and with the runtime go all its tasks
                    served = serve_tls(listener, tls, server, stopping, opened.door()) => served.unwrap(),
                }
                if let Some(node) = &node {
                    node.stop().await;
                }
            });
        });
        ready.recv().expect("the node starts");
        Self { addr, api, stop, kill, thread: Some(thread), dir: None }
    }

    /// Ends the server as `kill -9` would: nothing is flushed, nobody is told.
    pub fn kill(mut self) {
        self.kill.signal();
        self.end();
    }

    /// Tells the server to stop, without waiting.
    pub fn signal_stop(&self) {
        self.stop.signal();
    }

    /// Stops the server, waits, and says how long it took.
    pub fn stop(mut self) -> Duration {
        let started = Instant::now();
        self.end();
        started.elapsed()
    }

    fn end(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn connect(&self) -> Client {
        Client::to(self.addr)
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        self.connect().ask(method, target, &[], body)
    }

    pub fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, b"")
    }

    pub fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask("POST", target, body.as_ref())
    }

    /// Puts any text under any text.
    pub fn put(&self, key: &str, value: &str) -> Answer {
        self.post("/put", serde_json::json!({"key": key, "value": value}).to_string())
    }
}

impl Start {
    /// Starts the node on the current runtime and opens the doors.
    fn run(self, api: &Api) -> Node {
        let Self { config, env, meets_peers } = self;
        if !meets_peers {
            let node = Node::start(config, env, Arc::new(NoPeers)).unwrap();
            api.open(node.coordinator());
            return node;
        }
        let settings = TcpSettings {
            own: config.own_id(),
            cluster_name: config.cluster_name.clone(),
            ring: Arc::new(assign(None, &config.membership(), config.ring_settings())),
            secret: config.secret.clone(),
            tls: None,
        };
        let transport = Arc::new(TcpTransport::new(settings, env.clone()));
        transport.connect();
        let node = Node::start(config, env, transport.clone()).unwrap();
        let peers = tcp::Server::new(&transport, node.handler());
        api.open_to_peers(Box::new(move |mut request, from| {
            peers.accept_upgrade(&mut request, from).map(Body::whole)
        }));
        api.open(node.coordinator());
        node
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came to its end, or the connection was cut.
    pub complete: bool,
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Client {
    pub fn to(addr: SocketAddr) -> Self {
        Self::try_to(addr).unwrap()
    }

    /// Connects to a server that may be gone.
    pub fn try_to(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new() })
    }

    pub fn send(&mut self, raw: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(raw.as_ref())
    }

    /// Says that nothing more will be sent.
    pub fn end_sending(&self) {
        self.stream.shutdown(Half::Write).unwrap();
    }

    pub fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, target, headers, body).expect("an answer")
    }

    /// Asks a server that may be killed meanwhile; `None` when the connection ended before the answer's head.
    pub fn try_ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Answer> {
        let mut raw = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        for (name, value) in headers {
            raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if ["POST", "PUT"].contains(&method) || !body.is_empty() {
            raw.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        raw.extend_from_slice(b"\r\n");
        raw.extend_from_slice(body);
        self.send(raw).ok()?;
        self.answer_to(method)
    }

    /// Reads an answer; `None` when the connection ended instead.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let head = self.line_block()?;
        let mut lines = head.split("\r\n");
        let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<_> = lines.map(header).collect();
        let mut answer = Answer { code, headers, body: Vec::new(), complete: true, trailers: Vec::new() };
        if method == "HEAD" || code == 204 || code == 304 || code == 101 {
            return Some(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut answer);
        } else {
            let len = answer.header("content-length").expect("a length").parse().unwrap();
            while self.unread.len() < len && self.fill() {}
            answer.complete = self.unread.len() >= len;
            answer.body = self.unread.drain(..len.min(self.unread.len())).collect();
        }
        Some(answer)
    }

    fn chunks(&mut self, answer: &mut Answer) {
        loop {
            let Some(size) = self.line() else {
                answer.complete = false;
                return;
            };
            let size = usize::from_str_radix(&size, 16).unwrap();
            if size == 0 {
                while let Some(line) = self.line().filter(|line| !line.is_empty()) {
                    answer.trailers.push(header(&line));
                }
                return;
            }
            while self.unread.len() < size + 2 {
                if !self.fill() {
                    answer.complete = false;
                    return;
                }
            }
            answer.body.extend(self.unread.drain(..size));
            self.unread.drain(..2);
        }
    }

    fn line(&mut self) -> Option<String> {
        self.until(b"\r\n")
    }

    fn line_block(&mut self) -> Option<String> {
        self.until(b"\r\n\r\n")
    }

    fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                let text = String::from_utf8(self.unread.drain(..at).collect()).unwrap();
                self.unread.drain(..end.len());
                return Some(text);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Reads some bytes; false at the end, or when the connection was reset.
    ///
    /// # Panics
    /// When nothing came for too long: a server that hangs.
    pub fn fill(&mut self) -> bool {
        let mut some = vec![0; 64 << 10];
        match self.stream.read(&mut some) {
            Ok(count) => {
                self.unread.extend_from_slice(&some[..count]);
                count > 0
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    /// Waits for the connection's end, and says whether it came without another byte.
    pub fn is_closed_silently(&mut self) -> bool {
        self.unread.is_empty() && !self.fill()
    }
}

fn header(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap();
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

/// Form-encodes bytes.
pub fn encoded(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |text, byte| text + &format!("%{byte:02x}"))
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The binary, in an environment that says nothing and a directory without `.env`.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
    command.args(args).env_clear().current_dir(std::env::temp_dir());
    command
}

/// Runs a command to its end, with this on its stdin.
pub fn output_of(mut command: Command, stdin: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin); // it may not want any
    child.wait_with_output().unwrap()
}

/// Waits until a node in a process of its own says that it runs, or ends; its further output is read and dropped.
pub fn says_that_it_runs(child: &mut Child) -> bool {
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let runs = loop {
            line.clear();
            match said.read_line(&mut line) {
                Ok(0) | Err(_) => break false,
                Ok(_) if line.contains("Node running on port") => break true,
                Ok(_) => {}
            }
        };
        let _ = tell.send(runs); // nobody waits any more
        io::copy(&mut said, &mut io::sink()) // or the node would wait for a reader
    });
    told.recv_timeout(PATIENCE).expect("it starts or ends in time")
}

/// Runs `work`, and fails if it takes longer than `patience`.
pub fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(patience).expect("done in time")
}
