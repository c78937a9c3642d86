//! health: whether a node on this machine is ready, for whoever supervises it: a container engine, a script.
//!
//! Takes the flags of `serve`, and the same environment and `.env`, so that it finds the node that they describe. Where that
//! speaks TLS it asks over TLS, whatever certificate is shown: it says nothing secret and hears nothing that is, and a
//! certificate that was replaced, or has expired, does not make a node unready.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use super::raw::RawArgs;
use crate::config::{self, Config, Loaded};
use crate::tls::{self, Trusted};

const USAGE: &str = "usage: kvstore health [-port N] [-name value …]
  Asks the node that these settings describe, on this machine, whether it is ready, and prints what it says.
  Exit codes: 0 ready, 1 not ready or not there, 2 bad flag or setting.
";
/// How long connecting, and each step of the exchange after it, may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read, at most.
const ANSWER_MAX: u64 = 64 << 10;

/// Asks the node that settings describe whether it is ready
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    raw: RawArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match config::load(args.raw.args.iter().cloned(), std::env::vars_os(), Path::new("")) {
        Ok(Loaded::Serve { config, .. }) => {
            report(&ask(SocketAddr::new(near(config.bind_addr), config.port), &config))
        }
        Ok(_) => {
            let _ = io::stdout().write_all(USAGE.as_bytes()); // nobody is left to tell if stdout is closed
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(config::Error::EXIT_CODE)
        }
    }
}

/// Where a node that listens on `bind_addr` is reached from its own machine.
fn near(bind_addr: IpAddr) -> IpAddr {
    match bind_addr {
        IpAddr::V4(addr) if addr.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(addr) if addr.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        addr => addr,
    }
}

/// Asks `/readyz`; the whole answer.
fn ask(addr: SocketAddr, config: &Config) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if config.tls.is_none() {
        return exchange(stream, addr);
    }
    let name = tls::server_name(&config.advertise_addr).map_err(io::Error::other)?;
    let session = ClientConnection::new(Trusted::everybody().config(), name).map_err(io::Error::other)?;
    exchange(StreamOwned::new(session, stream), addr)
}

fn exchange(mut stream: impl io::Read + io::Write, addr: SocketAddr) -> io::Result<String> {
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

fn report(answer: &io::Result<String>) -> ExitCode {
    let (ready, text) = match answer {
        Ok(answer) => judge(answer),
        Err(error) => (false, error.to_string()),
    };
    let _ = writeln!(io::stdout(), "{text}");
    if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether an answer says ready, and its body.
fn judge(answer: &str) -> (bool, String) {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return (false, "the answer is not HTTP".to_owned());
    };
    (head.starts_with("HTTP/1.1 200 "), body.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_ready_and_the_body_says_why() {
        assert_eq!(
            judge("HTTP/1.1 200 OK\r\na: b\r\n\r\n{\"status\":\"ready\"}\n"),
            (true, "{\"status\":\"ready\"}".into())
        );
        assert!(!judge("HTTP/1.1 503 Service Unavailable\r\n\r\n{}").0);
        assert!(!judge("SSH-2.0-x\r\n").0);
    }

    #[test]
    fn a_node_on_a_wildcard_is_asked_on_loopback() {
        assert_eq!(near("0.0.0.0".parse().unwrap()), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(near("::".parse().unwrap()), IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(near("10.0.0.7".parse().unwrap()), IpAddr::from([10, 0, 0, 7]));
    }
}
