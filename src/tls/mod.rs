//! TLS: what a node shows, whom it believes, and how both change while it runs.
//!
//! ```text
//! TLS_CERT TLS_KEY TLS_CA ── Material::load ──all is well──> swapped in; connections from now on use it
//!        SIGHUP ─────────────────┘   └──────broken──────> the one in force stays
//!
//! client ── TLS ──────────────────────> port      shows its certificate; asks for the client's, and needs none
//! node   ── TLS, its own certificate ─> port      both checked against TLS_CA, for the host of the other's name
//! ```
//!
//! One port speaks TLS to clients and peers. A peer is known by a certificate that `TLS_CA` signed and that names the
//! host of its name ([`PeerCertificate::names`]); the upgrade to the peers' protocol is refused without one. An
//! ordinary client may show none, and what it may do is settled by its token as ever.
//!
//! Sessions are resumed for clients, never between nodes, and a resumed session names nobody: that a certificate was
//! good when the session began says nothing of now. Not done: revocation lists (certificates between nodes are short-lived
//! or their CA is changed), early data (it can be replayed).
//!
//! It knows no HTTP and no protocol of the peers; `http`, `rpc` and the command line hand it their sockets.

mod material;
mod socket;
mod words;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::HandshakeKind;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::types::NodeId;
use crate::util::secret_file::Readers;

pub use material::{Material, Trusted};
pub use words::{is_plaintext, refusal, told};

/// A connection that a peer or client opened.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;
/// A connection that we opened.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// The first byte of a TLS connection: a record of the handshake. No request line begins with it.
pub const FIRST_BYTE: u8 = 0x16;
/// A certificate that ends sooner is warned of.
pub const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// Which files, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `TLS_CERT`: a chain, the node's own certificate first.
    pub cert: PathBuf,
    /// `TLS_KEY`.
    pub key: PathBuf,
    /// Who may read that file.
    pub key_readers: Readers,
    /// `TLS_CA`: who signs the certificates of peers.
    pub ca: Option<PathBuf>,
    /// The name by which peers know this node, where it has peers: its certificate must name the host in it.
    pub own: Option<NodeId>,
    /// `TLS_PLAINTEXT`: a ring on its way to TLS, or back, also speaks and takes plaintext.
    pub takes_plaintext: bool,
}

/// The file that something is wrong with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `TLS_CERT`.
    Cert,
    /// `TLS_KEY`.
    Key,
    /// `TLS_CA`.
    Ca,
}

impl File {
    /// The setting that names it, in lower case.
    pub fn field(self) -> &'static str {
        match self {
            Self::Cert => "tls_cert",
            Self::Key => "tls_key",
            Self::Ca => "tls_ca",
        }
    }
}

/// Why files cannot be used. Whoever runs the node mends them; what was in force stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", .file.field().to_ascii_uppercase())]
pub struct Error {
    /// Which.
    pub file: File,
    /// What is wrong, as the rest of a sentence about the file. Holds nothing of the key.
    pub problem: String,
}

/// Why there is no TLS with a peer that was dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It answered in plaintext.
    #[error("it does not speak TLS")]
    Plaintext,
    /// The certificates do not fit. Trying again helps once somebody has changed one.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A node's certificate, key and CA, as they are in force.
pub struct Tls {
    settings: Settings,
    material: ArcSwap<Material>,
    /// Handshakes that clients and peers began and that came to nothing. Relaxed: it counts.
    handshakes_failed: AtomicU64,
}

impl fmt::Debug for Tls {
    /// Where the files are, and nothing of what is in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub fn load(settings: Settings) -> Result<Self, Error> {
        let material = ArcSwap::from_pointee(Material::load(&settings)?);
        Ok(Self { settings, material, handshakes_failed: AtomicU64::new(0) })
    }

    /// Reads the files again: connections made from now on use what is in them, those there are live on. Blocks on files.
    ///
    /// # Errors
    /// Which of them cannot be used, and why; nothing has changed then. A certificate that has ended, or not begun, is
    /// not taken for one that is good.
    pub fn reload(&self) -> Result<(), Error> {
        let material = Material::load(&self.settings)?;
        if let (Some(problem), None) = (material.untimely(), self.material.load().untimely()) {
            return Err(Error { file: File::Cert, problem });
        }
        self.material.store(Arc::new(material));
        Ok(())
    }

    /// What is in force.
    pub fn material(&self) -> Arc<Material> {
        self.material.load_full()
    }

    /// Whether plaintext is spoken beside TLS.
    pub fn takes_plaintext(&self) -> bool {
        self.settings.takes_plaintext
    }

    /// Whether peers are known by certificates.
    pub fn knows_peers(&self) -> bool {
        self.settings.ca.is_some()
    }

    /// Shakes hands with who opened a connection. No time is kept here.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<ServerStream> {
        let server = self.material.load().server.clone();
        let accepted = TlsAcceptor::from(server).accept(stream).await;
        if accepted.is_err() {
            self.count_failed();
        }
        accepted
    }

    /// Counts a handshake that came to nothing.
    pub fn count_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Handshakes that came to nothing since the start.
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }

    /// Shakes hands with a peer that was dialled: it must show a certificate for the host in its name. No time is kept here.
    pub async fn dial(&self, peer: &NodeId, stream: TcpStream) -> Result<ClientStream, DialError> {
        let client = self.material.load().client.clone();
        let client =
            client.ok_or_else(|| DialError::Refused("there is no TLS_CA to check it by".to_owned()))?;
        let name = host_name(peer).map_err(DialError::Refused)?;
        TlsConnector::from(client).connect(name, stream).await.map_err(|error| {
            if is_plaintext(&error) {
                return DialError::Plaintext;
            }
            refusal(&error).map_or_else(|| DialError::Io(error), DialError::Refused)
        })
    }
}

/// A certificate that was checked against `TLS_CA` in the handshake of the very connection it is known from.
#[derive(Clone)]
pub struct PeerCertificate(Arc<CertificateDer<'static>>);

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerCertificate").finish_non_exhaustive()
    }
}

impl PeerCertificate {
    /// Who is at the other end, if it has shown so.
    pub fn of(stream: &ServerStream) -> Option<Self> {
        let session = stream.get_ref().1;
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            return None;
        }
        session.peer_certificates()?.first().map(|first| Self(Arc::new(first.clone().into_owned())))
    }

    /// Whether it names the host in a node's name. Ports are not in certificates: nodes on one host are one to it.
    pub fn names(&self, node: &NodeId) -> bool {
        let (Ok(name), Ok(certificate)) = (host_name(node), ParsedCertificate::try_from(&*self.0)) else {
            return false;
        };
        verify_server_name(&certificate, &name).is_ok()
    }
}

/// The host in a node's name, as certificates name it. The error is the rest of a sentence.
fn host_name(node: &NodeId) -> Result<ServerName<'static>, String> {
    server_name(node.as_str())
}

/// The host of `host:port` or `[address]:port`, as certificates name it.
///
/// # Errors
/// A sentence: no certificate can name it.
pub fn server_name(authority: &str) -> Result<ServerName<'static>, String> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned()).map_err(|_| format!("no certificate can name {host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_a_host_or_an_address_and_no_port() {
        for (authority, name) in [
            ("node-1.example:8081", "node-1.example"),
            ("my_node:1", "my_node"),
            ("10.0.0.7:8081", "10.0.0.7"),
            ("[2001:db8::7]:8081", "2001:db8::7"),
            ("[::1]:1", "::1"),
        ] {
            assert_eq!(server_name(authority).unwrap().to_str(), name);
        }
        for bad in [":1", "a b:1", "a..b:1"] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }
}
