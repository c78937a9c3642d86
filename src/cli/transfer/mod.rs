//! Data in and out: `export` and `import`.
//!
//! ```text
//! export   pages of /v1/kv ──┐                               ┌──> POST /v1/kv:put, some batches at a time
//!          a directory  ─────┴──> a line of JSON a key ──────┴──> a directory
//!                                 `line` says how it reads
//! ```
//!
//! Both go on where they were cut off (`--resume`), and neither holds more than a few batches in memory. Lines go to
//! stdout and talk to stderr; a reader that has gone is no failure.

pub mod client;
pub mod export;
pub mod import;
pub mod line;
pub mod meter;
mod progress_file;
mod reader;

use std::io::{self, Write as _};
use std::process::ExitCode;

/// Why a command ended before its work was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The world refused, or what was read is bad. Exit code 1.
    Failed(String),
    /// What was asked for makes no sense. Exit code 2.
    Usage(String),
    /// No node answered, or none took the request. Exit code 5.
    Unavailable(String),
    /// Whoever read the output has gone. No failure.
    PipeClosed,
}

impl Ended {
    /// Wraps what the system said about a file.
    pub fn io(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::Failed(format!("{what} {}: {error}", path.display()))
    }

    /// Wraps what the system said about stdout.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }

    /// Says why, and gives the process's exit code.
    pub fn exit(self) -> ExitCode {
        let (code, problem) = match self {
            Self::PipeClosed => return ExitCode::SUCCESS,
            Self::Failed(problem) => (1, problem),
            Self::Usage(problem) => (2, problem),
            Self::Unavailable(problem) => (5, problem),
        };
        let _ = writeln!(io::stderr(), "error: {problem}"); // nobody is left to tell if stderr is closed
        ExitCode::from(code)
    }
}

/// Prints a line of output.
pub fn print_line(text: &str) -> Result<(), Ended> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| Ended::output(&error))
}

/// A runtime for one command.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a process that was just started can have a runtime")
}
