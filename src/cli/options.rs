//! Options that several commands share: which node, with which token, how patiently, and how much of the ring must agree.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::header::HeaderValue;

use super::dial::{Ca, Target};
use super::exit::Error;
use crate::util::tokens;

/// Where nodes are looked for when nobody says.
const DEFAULT_TARGET: &str = "127.0.0.1:8081";

/// Whom to ask, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
#[allow(clippy::doc_markdown)] // read in a terminal too
pub struct Connect {
    /// Nodes to ask, separated by commas, with https:// before those that speak TLS: the next one is tried when one cannot
    /// be reached [env: KVSTORE_CONNECT] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub connect: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub token: Token,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub ca: Ca,
    /// How long connecting, and then each step of an answer, may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What is shown to nodes that ask for a token.
#[derive(Debug, Clone, Default, Args)]
#[allow(clippy::doc_markdown)] // read in a terminal too
pub struct Token {
    /// Bearer token to show; everyone who lists processes sees it, so --token-file is better [env: KVSTORE_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the token [env: KVSTORE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
}

/// How much of the ring must have a write.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct WriteQuorum {
    /// Replicas that must have it on disk; the ring's W if absent
    #[arg(short = 'w', long = "w", value_name = "N", visible_alias = "write-quorum")]
    pub w: Option<u8>,
    /// Let hints on other nodes count
    #[arg(long)]
    pub sloppy: bool,
}

/// How much of the ring must answer a read.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ReadQuorum {
    /// Replicas that must answer; the ring's R if absent
    #[arg(short = 'r', long = "r", value_name = "N", visible_alias = "read-quorum")]
    pub r: Option<u8>,
}

impl WriteQuorum {
    /// As parameters of a request.
    pub fn query(self) -> Vec<(&'static str, Vec<u8>)> {
        let w = self.w.map(|w| ("w", w.to_string().into_bytes()));
        let sloppy = self.sloppy.then(|| ("sloppy", b"true".to_vec()));
        w.into_iter().chain(sloppy).collect()
    }
}

impl ReadQuorum {
    /// As parameters of a request.
    pub fn query(self) -> Vec<(&'static str, Vec<u8>)> {
        self.r.map(|r| ("r", r.to_string().into_bytes())).into_iter().collect()
    }
}

impl Connect {
    /// The nodes to ask: those of the command line, of the environment, or the default.
    pub fn targets(&self) -> Result<Vec<Target>, Error> {
        let from_env = variable("KVSTORE_CONNECT");
        let named = match &self.connect[..] {
            [] => from_env.as_deref().unwrap_or(DEFAULT_TARGET).split(',').map(str::to_owned).collect(),
            named => named.to_vec(),
        };
        let named = named.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        let targets: Vec<_> = named.map(Target::parse).collect::<Result<_, _>>().map_err(Error::Usage)?;
        if targets.is_empty() {
            return Err(Error::Usage("--connect names no node; say host:port".to_owned()));
        }
        Ok(targets)
    }
}

impl Token {
    /// The header that shows the token, if there is one: that of the command line before that of the environment.
    pub fn header(&self) -> Result<Option<HeaderValue>, Error> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(read_token(file)?),
            (None, None) => match (variable("KVSTORE_TOKEN"), variable("KVSTORE_TOKEN_FILE")) {
                (Some(token), _) => Some(token),
                (None, Some(file)) => Some(read_token(Path::new(&file))?),
                (None, None) => None,
            },
        };
        token.map(|token| header(&token)).transpose()
    }
}

fn header(token: &str) -> Result<HeaderValue, Error> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value =
        value.map_err(|_| Error::Usage("the token has characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The one token in a file. A scope before it is that of the node's own file of tokens, and no part of it.
fn read_token(path: &Path) -> Result<String, Error> {
    let refused = |problem: String| Error::Usage(format!("token file {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let text = tokens::without_comments(text.trim_start_matches('\u{feff}'));
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next()) {
        (Some(line), None) => Ok(line.rsplit_once(':').map_or(line, |(_scope, token)| token).to_owned()),
        (None, _) => Err(refused("it is empty".to_owned())),
        (Some(_), Some(_)) => {
            Err(refused("it has more than one line; put one token into a file of its own".to_owned()))
        }
    }
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Reads a time with its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).map_err(|error| error.to_string())
}

/// A key of the command line: any bytes.
pub fn key(text: &OsString) -> Result<&[u8], Error> {
    use std::os::unix::ffi::OsStrExt as _;
    match text.as_bytes() {
        [] => Err(Error::Usage("a key has at least one byte".to_owned())),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the files are real
mod tests {
    use super::*;

    #[test]
    fn a_token_file_holds_one_token_with_its_scope_or_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (text, token) in [
            ("secret-token\n", Some("secret-token")),
            ("rw:secret-token", Some("secret-token")),
            ("\u{feff}# of the reader\r\nro:secret-token # since May\r\n", Some("secret-token")),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_token(&path).ok().as_deref(), token);
        }
        for bad in ["", "one-token\ntwo-token\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read_token(&path), Err(Error::Usage(_))));
        }
    }
}
