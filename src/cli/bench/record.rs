//! Notes of acknowledged writes, and the search for lost ones.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::BenchArgs;
use super::connection::Connection;
use crate::cli::dial::{Dialler, Target};
use crate::cli::help;

/// Missing keys named one by one, at most.
const NAMED_MAX: u64 = 10;

/// Notes a line for every acknowledged write: the key, and a hash of its value.
pub(super) struct Recorder {
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Mutex::new(BufWriter::new(File::create(path)?)) })
    }

    /// Notes one. A full disk ends the run: an unnoted write would never be looked for.
    pub(super) fn acknowledged(&self, key: &str, value: &str) {
        writeln!(self.file.lock(), "{key} {:016x}", xxh3_64(value.as_bytes()))
            .expect("the record can be written");
    }
}

/// Reads every noted key back from the targets in turn.
pub(super) async fn verify(
    path: &Path,
    targets: &[Target],
    dialler: &Dialler,
    authorization: Option<&HeaderValue>,
    args: &BenchArgs,
) -> ExitCode {
    let lines =
        match File::open(path).map(|file| BufReader::new(file).lines().collect::<io::Result<Vec<_>>>()) {
            Ok(Ok(lines)) => lines,
            Ok(Err(error)) | Err(error) => {
                eprintln!("error: --verify {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        };
    let suffix = args.read_quorum.map_or(String::new(), |r| format!("&r={r}"));
    let mut connections = Vec::new();
    for target in targets {
        match Connection::open(dialler, target, authorization).await {
            Ok(connection) => connections.push(connection),
            Err(problem) => {
                eprintln!("error: {target}: {problem}");
                return ExitCode::FAILURE;
            }
        }
    }
    let (mut present, mut missing) = (0u64, 0u64);
    let count = connections.len();
    for (index, line) in lines.iter().enumerate() {
        let Some((key, hash)) = line.split_once(' ') else { continue };
        let connection = &mut connections[index % count];
        let path = format!("/get?key={key}{suffix}");
        let problem = match connection.send(Method::GET, &path, Bytes::new()).await {
            Ok((StatusCode::OK, value)) if format!("{:016x}", xxh3_64(&value)) == hash => None,
            Ok((StatusCode::OK, _)) => Some("another value".to_owned()),
            Ok((status, _)) => Some(status.to_string()),
            Err(problem) => Some(problem),
        };
        match problem {
            None => present += 1,
            Some(problem) => {
                missing += 1;
                if missing <= NAMED_MAX {
                    eprintln!("lost: {key}: {problem}");
                }
            }
        }
    }
    help::say(|out| {
        let acknowledged = lines.len();
        if args.json {
            let counts =
                serde_json::json!({"acknowledged": acknowledged, "present": present, "missing": missing});
            return out.json(&counts);
        }
        out.line(&format!("{acknowledged} acknowledged writes, {present} present, {missing} missing"))
    });
    if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
