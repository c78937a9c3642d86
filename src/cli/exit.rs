//! How a command ends: what went wrong, for people and for scripts.
//!
//! | code | what it says |
//! | --- | --- |
//! | 0 | done |
//! | 1 | failed: the world refused, or something was found to be wrong |
//! | 2 | usage: a bad argument, flag or setting |
//! | 3 | not found: the key has no value |
//! | 5 | unavailable: no node could be reached, or it answered 503 or 504 |

use std::io::{self, Write as _};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

/// Why a command did not do what it was asked. Its text is one line that says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The world refused.
    #[error("{0}")]
    Failed(String),
    /// It was asked for something that cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// The key has no value.
    #[error("{0}")]
    NotFound(String),
    /// No node could be reached, or none could do it now.
    #[error("{0}")]
    Unavailable(String),
    /// All there is to say was printed; this is the exit code.
    #[error("exit code {0}")]
    Told(u8),
    /// Whoever read the output has gone (`| head`), which is no failure.
    #[error("nobody reads the output")]
    Unread,
}

impl Error {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unavailable(_) => 5,
            Self::Told(code) => *code,
        }
    }

    /// The same about a line of input.
    #[must_use]
    pub fn at_line(self, number: u64) -> Self {
        let at = |text: String| format!("line {number}: {text}");
        match self {
            Self::Failed(text) => Self::Failed(at(text)),
            Self::Usage(text) => Self::Usage(at(text)),
            Self::NotFound(text) => Self::NotFound(at(text)),
            Self::Unavailable(text) => Self::Unavailable(at(text)),
            other => other,
        }
    }

    /// Says on stderr what went wrong: a line, or with `json` one object.
    pub fn tell(&self, json: bool) {
        if matches!(self, Self::Told(_) | Self::Unread) {
            return;
        }
        // Nobody is left to tell if stderr is closed.
        if json {
            let object = serde_json::json!({"error": self.to_string(), "exit_code": self.code()});
            let _ = writeln!(io::stderr(), "{object}");
        } else {
            let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
            let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {self}");
        }
    }
}

impl From<io::Error> for Error {
    /// What writing to stdout met.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Tells what went wrong, if anything did, and turns it into the process's exit code.
pub fn end(json: bool, outcome: Result<(), Error>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.tell(json);
            ExitCode::from(error.code())
        }
    }
}
