//! dial: the one place where a command's connections to nodes are made, over TCP or TLS.
//!
//! ```text
//! host:port  http://host:port    TCP
//! https://host:port              TLS; the certificate is checked against --ca FILE, or the system's CAs
//! ```
#![allow(clippy::disallowed_methods)] // a client on the command line: its sockets are the real ones

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::cluster::membership::loopback_addresses;
use crate::tls::{self, Trusted};

/// The port of a node that names none.
const DEFAULT_PORT: u16 = 8081;

/// A node as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    authority: String,
    is_tls: bool,
}

impl Target {
    /// Reads `host`, `host:port` or `[::1]:port`, with `http://` or `https://` before it.
    ///
    /// # Errors
    /// A sentence that repeats the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is no node; say host:port, or https://host:port");
        let rest = text.trim();
        let (rest, is_tls) = match rest.strip_prefix("https://") {
            Some(rest) => (rest, true),
            None => (rest.strip_prefix("http://").unwrap_or(rest), false),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| refused())?)
            }
            Some(_) => return Err(format!("{}; an IPv6 address stands in brackets", refused())),
            None => (rest, DEFAULT_PORT),
        };
        let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/?#@".contains(c));
        if !is_host || port == 0 {
            return Err(refused());
        }
        Ok(Self { authority: format!("{host}:{port}"), is_tls })
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Another node of the same ring, which is spoken to in the same way.
    #[must_use]
    pub fn other(&self, authority: &str) -> Self {
        Self { authority: authority.to_owned(), is_tls: self.is_tls }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https://" } else { "" };
        write!(f, "{scheme}{}", self.authority)
    }
}

/// Whom to believe.
#[derive(Debug, Clone, Default, Args)]
#[allow(clippy::doc_markdown)] // read in a terminal too
pub struct Ca {
    /// CA certificates in PEM that https:// nodes are checked against, in place of the system's [env: KVSTORE_CA]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Connects to nodes. A clone believes the same CAs.
#[derive(Debug, Clone)]
pub struct Dialler {
    /// There if any node is spoken to by TLS.
    trusted: Option<Trusted>,
}

/// A connection's sending side, and the task that moves its bytes.
pub type Dialled = (SendRequest<Full<Bytes>>, JoinHandle<hyper::Result<()>>);

impl Dialler {
    /// A dialler for these nodes; CAs are read only if one of them is spoken to by TLS.
    ///
    /// # Errors
    /// A sentence about what was asked for: the CAs cannot be read, or are named for nothing.
    pub fn new<'t>(targets: impl IntoIterator<Item = &'t Target>, ca: &Ca) -> Result<Self, String> {
        if !targets.into_iter().any(|target| target.is_tls) {
            return match &ca.ca {
                None => Ok(Self { trusted: None }),
                Some(_) => Err("--ca is for nodes named with https://; none is".to_owned()),
            };
        }
        let from_env = || std::env::var_os("KVSTORE_CA").filter(|file| !file.is_empty()).map(PathBuf::from);
        let trusted = match ca.ca.clone().or_else(from_env) {
            Some(file) => {
                Trusted::by_file(&file).map_err(|problem| format!("--ca {}: {problem}", file.display()))
            }
            None => Trusted::by_system()
                .map_err(|problem| format!("{problem}; name a file with --ca or KVSTORE_CA")),
        };
        trusted.map(|trusted| Self { trusted: Some(trusted) })
    }

    /// Connects, and shakes hands; takes as long as it takes.
    ///
    /// # Errors
    /// In words, why there is no connection.
    pub async fn dial(&self, target: &Target) -> Result<Dialled, String> {
        // Nodes on ::1 are named 127.0.0.1.
        let connected = match loopback_addresses(target.authority()) {
            Some(either) => TcpStream::connect(&either[..]).await,
            None => TcpStream::connect(target.authority()).await,
        };
        let stream = connected.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match self.trusted.as_ref().filter(|_| target.is_tls) {
            None if target.is_tls => Err("no CA is known for it".to_owned()), // never: `new` knew every target
            None => speak(stream).await,
            Some(trusted) => {
                let name = tls::server_name(target.authority())?;
                let secured = TlsConnector::from(trusted.config()).connect(name, stream).await;
                speak(secured.map_err(|error| told(&error))?).await
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Dialled, String> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    Ok((sender, tokio::spawn(connection)))
}

/// Why TLS failed, and what to do where that is known.
fn told(error: &std::io::Error) -> String {
    let text = tls::told(error);
    let hint =
        if text.contains("not signed by a CA") { "; name its CA with --ca FILE or KVSTORE_CA" } else { "" };
    format!("{text}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_leave_out_what_goes_without_saying() {
        for (text, expected) in [
            ("node1:9000", "node1:9000"),
            ("node1", "node1:8081"),
            ("http://127.0.0.1:8082/", "127.0.0.1:8082"),
            (" [::1]:8081 ", "[::1]:8081"),
            ("https://node1", "https://node1:8081"),
            ("https://[::1]:9000/", "https://[::1]:9000"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), expected);
        }
        for bad in [
            "",
            "node1:",
            ":8081",
            "node1:port",
            "node1:0",
            "::1:8081",
            "a b",
            "a/b:1",
            "https://",
            "ftp://a:1",
            "a:99999",
            "https://https://a:1",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_member_is_spoken_to_in_the_same_way() {
        let secure = Target::parse("https://a:1").unwrap();
        assert_eq!(secure.other("b:2").to_string(), "https://b:2");
        assert_eq!(Target::parse("a:1").unwrap().other("b:2").to_string(), "b:2");
    }

    #[test]
    fn a_ca_that_would_check_nothing_is_refused() {
        let ca = Ca { ca: Some(PathBuf::from("/no/such/file")) };
        let (plain, secure) = (Target::parse("a:1").unwrap(), Target::parse("https://a:1").unwrap());
        assert_eq!(
            Dialler::new([&plain], &ca).unwrap_err(),
            "--ca is for nodes named with https://; none is"
        );
        let Err(text) = Dialler::new([&plain, &secure], &ca) else { panic!("there is no file") };
        assert!(text.contains("/no/such/file"), "{text}");
        assert!(Dialler::new([&plain], &Ca::default()).is_ok());
    }
}
