//! Certificates made on the spot, and nodes that use them.
#![allow(dead_code)] // each test file uses its part
#![allow(clippy::disallowed_methods)] // sockets, files and processes are real

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use kvstore::cluster::{Member, Membership, RingSettings, assign};
use kvstore::env::Env;
use kvstore::http::body::Body;
use kvstore::http::{Api, ApiSettings, ServerLimits, bind, serve_tls};
use kvstore::rpc::tcp::{self, TcpSettings, TcpTransport};
use kvstore::rpc::{
    BoxFuture, Handler, ReplicaRequest, ReplicaResponse, Request, Response, Transport as _, WriteOrigin,
};
use kvstore::tls::{Settings, Tls};
use kvstore::types::{NodeId, Timestamp};
use kvstore::util::secret_file::Readers;
use kvstore::util::shutdown::Shutdown;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::http_support::{Server, limits, output_of, program, until};

/// Who signs certificates. A clone is the same.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    /// Its own certificate.
    pub pem: String,
}

/// What a certificate says, and how strict the node is that shows it.
pub struct Issue<'a> {
    pub names: &'a [&'a str],
    pub usages: &'a [ExtendedKeyUsagePurpose],
    /// From the first day of one to the first of the other.
    pub years: (i32, i32),
    pub takes_plaintext: bool,
}

impl Default for Issue<'_> {
    fn default() -> Self {
        Self {
            names: &["127.0.0.1", "localhost"],
            usages: &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            years: (2020, 2073),
            takes_plaintext: false,
        }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pem = issuer.pem();
        Self { issuer: Arc::new(issuer), pem }
    }

    /// Its own key, in PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate and its key, in PEM.
    pub fn issue(&self, issue: &Issue<'_>) -> (String, String) {
        let names: Vec<_> = issue.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = issue.usages.to_vec();
        params.not_before = date_time_ymd(issue.years.0, 1, 1);
        params.not_after = date_time_ymd(issue.years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn client(&self) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        config.with_root_certificates(roots)
    }

    /// What a client has that shows such a certificate, and resumes sessions.
    pub fn client_with_certificate(&self, issue: &Issue<'_>) -> Arc<ClientConfig> {
        let (cert, key) = self.issue(issue);
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Arc::new(self.client().with_client_auth_cert(vec![cert], key).unwrap())
    }

    /// What a node has that shows such a certificate and believes those signed here. Its own name is not looked at.
    pub fn tls(&self, issue: &Issue<'_>) -> Arc<Tls> {
        self.tls_believing(self, issue)
    }

    /// The same, believing those signed by another.
    pub fn tls_believing(&self, other: &Self, issue: &Issue<'_>) -> Arc<Tls> {
        let dir = Tempdir::new();
        let (cert, key) = self.issue(issue);
        let settings = dir.settings(&cert, &key, &other.pem);
        let settings = Settings { own: None, takes_plaintext: issue.takes_plaintext, ..settings };
        Arc::new(Tls::load(settings).unwrap())
    }
}

/// The lines of a key that say something.
pub fn key_lines(pem: &str) -> impl Iterator<Item = &str> {
    pem.lines().filter(|line| line.len() > 8 && !line.starts_with("---"))
}

/// A directory of files in PEM.
pub struct Tempdir(tempfile::TempDir);

impl Tempdir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn let_others_read(&self, name: &str) {
        std::fs::set_permissions(self.path().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// Writes the three files; the settings of a node on loopback that names them.
    pub fn settings(&self, cert: &str, key: &str, ca: &str) -> Settings {
        for (name, content) in [("cert.pem", cert), ("key.pem", key), ("ca.pem", ca)] {
            self.write(name, content);
        }
        Settings {
            cert: self.path().join("cert.pem"),
            key: self.path().join("key.pem"),
            key_readers: Readers::default(),
            ca: Some(self.path().join("ca.pem")),
            own: Some(NodeId::from_canonical("127.0.0.1:1")),
            takes_plaintext: false,
        }
    }
}

// ---- clients ----

pub type Secured = StreamOwned<ClientConnection, TcpStream>;

/// A connection that has shaken hands as an ordinary client does.
pub fn connect(addr: SocketAddr, ca: &Authority, name: &str) -> Result<Secured, String> {
    handshake(addr, ca, name, &[b"http/1.1"])
}

pub fn handshake(
    addr: SocketAddr,
    ca: &Authority,
    name: &str,
    protocols: &[&[u8]],
) -> Result<Secured, String> {
    let mut config = ca.client().with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    connect_with(addr, &Arc::new(config), name)
}

pub fn connect_with(addr: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Result<Secured, String> {
    let mut session =
        ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream).map_err(|error| format!("{error} ({error:?})"))?;
    }
    Ok(StreamOwned::new(session, stream))
}

/// The certificate that a node shows to new connections.
pub fn shown(addr: SocketAddr, ca: &Authority) -> Vec<u8> {
    let stream = connect(addr, ca, "127.0.0.1").unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

/// One request on a connection of its own: the status, and the body.
fn request(addr: SocketAddr, ca: &Authority, request: &str) -> (u16, String) {
    let mut stream = connect(addr, ca, "127.0.0.1").unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("ended by a close_notify");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

pub fn ask(addr: SocketAddr, ca: &Authority, method: &str, target: &str) -> (u16, String) {
    request(addr, ca, &format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

pub fn ask_with(addr: SocketAddr, ca: &Authority, method: &str, target: &str, token: &str) -> (u16, String) {
    request(
        addr,
        ca,
        &format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        ),
    )
}

pub fn put(addr: SocketAddr, ca: &Authority, target: &str, token: &str) -> (u16, String) {
    request(
        addr,
        ca,
        &format!(
            "PUT {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: 5\r\n\r\nvalue"
        ),
    )
}

// ---- in this process ----

/// A node alone behind doors that speak TLS.
pub struct Door {
    pub addr: SocketAddr,
    pub tls: Arc<Tls>,
    _server: Server,
}

impl Door {
    pub fn open(tls: Arc<Tls>) -> Self {
        Self::open_with(tls, |_| {})
    }

    /// The same, within other bounds.
    pub fn open_with(tls: Arc<Tls>, change: impl FnOnce(&mut ServerLimits)) -> Self {
        let settings = ApiSettings { tls: Some(tls.clone()), ..ApiSettings::default() };
        let (mut server_limits, api_limits) = limits();
        change(&mut server_limits);
        let server = Server::start_with_all(server_limits, api_limits, settings);
        Self { addr: server.addr, tls, _server: server }
    }

    pub fn post(&self, ca: &Authority, target: &str, body: &str) -> (u16, String) {
        let len = body.len();
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
        );
        request(self.addr, ca, &(head + body))
    }
}

/// Takes every write.
#[derive(Debug)]
struct Taker;

impl Handler for Taker {
    fn handle(&self, _: &NodeId, request: Request) -> BoxFuture<Response> {
        let body = ReplicaResponse::Written { voting: true, overtaken: Vec::new() };
        Box::pin(std::future::ready(Response { clock: request.clock, body }))
    }
}

/// A transport and a server of a ring of two, on a thread of its own.
pub struct Peer {
    pub addr: SocketAddr,
    name: NodeId,
    transport: Arc<TcpTransport>,
    stop: Arc<Shutdown>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Two that dial each other, each with its TLS or with none.
    pub fn pair(one: Option<Arc<Tls>>, other: Option<Arc<Tls>>) -> [Self; 2] {
        Self::pair_with([one, other], [None, None])
    }

    /// The same, each with a secret or with none.
    pub fn pair_with(tls: [Option<Arc<Tls>>; 2], secrets: [Option<&str>; 2]) -> [Self; 2] {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listeners = [bind(any, false).unwrap(), bind(any, false).unwrap()];
        let name =
            |listener: &TcpListener| NodeId::from_canonical(&listener.local_addr().unwrap().to_string());
        let names: Vec<_> = listeners.iter().map(name).collect();
        let mut each = tls.into_iter().zip(secrets);
        listeners.map(|listener| {
            let (tls, secret) = each.next().expect("two of all");
            Self::start(listener, &names, tls, secret.map(str::to_owned))
        })
    }

    fn start(listener: TcpListener, names: &[NodeId], tls: Option<Arc<Tls>>, secret: Option<String>) -> Self {
        let addr = listener.local_addr().unwrap();
        let name = NodeId::from_canonical(&addr.to_string());
        let member = |id: &NodeId| Member { id: id.clone(), weight: 10, zone: None };
        let membership = Membership::new(names.iter().map(member).collect());
        let ring = assign(None, &membership, RingSettings { range_count: 64, replication_factor: 2 });
        let settings = TcpSettings {
            own: name.clone(),
            cluster_name: "test".to_owned(),
            ring: Arc::new(ring),
            secret,
            tls: tls.clone(),
        };
        let stop = Arc::new(Shutdown::default());
        let stopping = stop.listener();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let transport = Arc::new(TcpTransport::new(settings, Env::real()));
                transport.connect();
                tell.send(transport.clone()).unwrap();
                let server = tcp::Server::new(&transport, Arc::new(Taker));
                let (server_limits, api_limits) = limits();
                let api = Api::new(api_limits);
                api.open_to_peers(Box::new(move |mut request, from| {
                    server.accept_upgrade(&mut request, from).map(Body::whole)
                }));
                serve_tls(listener, tls, server_limits, stopping, api.door()).await.unwrap();
                transport.close();
            });
        });
        Self { addr, name, transport: told.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// Whether it can write to the other.
    pub fn reaches(&self, other: &Self) -> bool {
        let body = ReplicaRequest::Write { origin: WriteOrigin::Client, items: Vec::new() };
        let request = Request { clock: Timestamp::from_u64(5), body };
        let call = self.transport.call(&other.name, request, Duration::from_secs(2));
        let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        waiting.block_on(call).is_ok()
    }

    /// What it says stands between them.
    pub fn mismatch(&self, other: &Self) -> Option<String> {
        self.transport.mismatch(&other.name)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.signal();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the peer's thread panicked");
    }
}

// ---- processes ----

/// What a run of the binary told.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Told {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

pub fn kvstore(args: &[&str]) -> Told {
    kvstore_with::<&str>(args, &[], b"")
}

pub fn kvstore_with<V: AsRef<str>>(args: &[&str], env: &[(&str, V)], stdin: &[u8]) -> Told {
    let mut command = program(args);
    command.envs(env.iter().map(|(name, value)| (name, value.as_ref())));
    let output = output_of(command, stdin);
    Told {
        code: output.status.code().expect("it ended by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A node's place in a ring of processes, and the process while it runs.
pub struct Process {
    files: Tempdir,
    port: u16,
    peers: Vec<String>,
    /// `WORKER_THREADS`.
    pub workers: u16,
    speaks_tls: bool,
    has_tokens: bool,
    child: Option<Child>,
}

impl Process {
    /// So many places with certificates, of nodes that do not run yet.
    pub fn ring(nodes: usize, ca: &Authority) -> Vec<Self> {
        // The ports are free now; the tests of one file are the only ones that could take one in between.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listeners: Vec<_> = (0..nodes).map(|_| TcpListener::bind(any).unwrap()).collect();
        let ports: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let peers: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let place = |port: &u16| {
            let files = Tempdir::new();
            let (cert, key) = ca.issue(&Issue::default());
            files.settings(&cert, &key, &ca.pem);
            let peers = peers.clone();
            Self { files, port: *port, peers, workers: 2, speaks_tls: true, has_tokens: false, child: None }
        };
        ports.iter().map(place).collect()
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    pub fn dir(&self) -> &Path {
        self.files.path()
    }

    pub fn write(&self, name: &str, content: &str) {
        self.files.write(name, content);
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name)).unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("data/node.log")).unwrap_or_default()
    }

    /// Sends SIGHUP, and waits until the log says once more what comes of it.
    pub fn reload(&self, says: &str) {
        let said = || self.log().matches(says).count();
        let before = said();
        self.signal(Signal::HUP);
        until(says, || said() > before);
    }

    pub fn with_tokens(&mut self, tokens: &str) {
        self.has_tokens = true;
        self.write("tokens", &tokens.replace(',', "\n"));
    }

    pub fn speak_tls(&mut self, speaks_tls: bool) {
        self.speaks_tls = speaks_tls;
    }

    /// What clients name it by.
    pub fn target(&self) -> String {
        let scheme = if self.speaks_tls { "https://" } else { "" };
        format!("{scheme}{}", self.addr())
    }

    /// The settings it is started with.
    pub fn env(&self, takes_plaintext: bool) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.dir().join(name).to_str().unwrap().to_owned();
        let mut env = vec![
            ("NET_PORT", self.port.to_string()),
            ("KVSTORE_DIR", file("data")),
            ("KVSTORE_PEERS", self.peers.join(",")),
            ("CLUSTER_RANGES", "64".to_owned()),
            ("MEMTABLE_SIZE", "4MiB".to_owned()),
            ("WORKER_THREADS", self.workers.to_string()),
        ];
        if self.speaks_tls {
            let files = [("TLS_CERT", "cert.pem"), ("TLS_KEY", "key.pem"), ("TLS_CA", "ca.pem")];
            env.extend(files.map(|(name, of)| (name, file(of))));
            env.push(("TLS_PLAINTEXT", takes_plaintext.to_string()));
        }
        if self.has_tokens {
            env.push(("API_TOKEN_FILE", file("tokens")));
        }
        env
    }

    /// Starts it; where it is alone, waits until it is ready.
    pub fn start(&mut self, takes_plaintext: bool) {
        let env = self.env(takes_plaintext);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
        command.env_clear().envs(env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.dir()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        if self.peers.len() == 1 {
            until("it is ready", || kvstore_with(&["health"], &env, b"").code == 0);
        }
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("it runs").id();
        kill_process(Pid::from_raw(id.cast_signed()).unwrap(), signal).unwrap();
    }

    /// Stops it as an operator would.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Puts another certificate and key in place; the node does not know yet.
    pub fn renew(&self, ca: &Authority) {
        let (cert, key) = ca.issue(&Issue::default());
        self.write("cert.pem", &cert);
        self.write("key.pem", &key);
    }

    /// The certificate in its file.
    pub fn certificate(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.read("cert.pem").as_bytes()).unwrap().to_vec()
    }

    /// A file of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
