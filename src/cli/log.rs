//! log: where log lines go and how they look.
//!
//! ```text
//! event ──> a line ──┬──> lane ──> stdout                             each lane has a thread and a bounded queue:
//!                    └──> lane ──> node.log, rotated                  a sink that stands still stops nobody
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line is where the real world begins

mod file;
mod lane;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use self::file::RotatedFile;
use self::lane::{Lane, Sink};
use crate::config::Config;
use crate::util::request_id;

/// How long the last lines may take to come out before the process ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// The log of this process. A clone is the same one.
#[derive(Clone)]
pub struct Log {
    stdout: Lane,
    file: Lane,
    dropped: Arc<AtomicU64>,
}

/// Sends the log, and what is said in a panic, to stdout and to `node.log` in the data directory.
pub fn init(config: &Config) -> Result<Log, String> {
    let unusable = |error: io::Error| format!("cannot use directory {}: {error}", config.dir.display());
    std::fs::create_dir_all(&config.dir).map_err(unusable)?;
    let path = config.dir.join("node.log");
    let file = RotatedFile::open(path, config.log_size_max, config.log_files_max).map_err(unusable)?;
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| format!("bad RUST_LOG {:?}: {error}", config.log_filter))?;
    let log = Log::start(file).map_err(|error| format!("cannot start the log: {error}"))?;
    let lines = log.clone();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || lines.clone());
    if config.log_json {
        builder.json().map_event_format(|format| WithRequestId { format, json: true }).init();
    } else {
        builder.map_event_format(|format| WithRequestId { format, json: false }).init();
    }
    let of_panics = log.clone();
    std::panic::set_hook(Box::new(move |info| of_panics.tell_panic(info)));
    Ok(log)
}

impl Log {
    fn start(file: RotatedFile) -> io::Result<Self> {
        let dropped = Arc::<AtomicU64>::default();
        // Not `io::stdout()`: its lock would be held while a write waits, and its buffer keeps half a line.
        let stdout = io::stdout().as_fd().try_clone_to_owned().map(|fd| Stdout(Some(File::from(fd))));
        let stdout = stdout.unwrap_or(Stdout(None)); // a process may be started without one
        Ok(Self {
            stdout: Lane::start("stdout", stdout, dropped.clone())?,
            file: Lane::start("node.log", file, dropped.clone())?,
            dropped,
        })
    }

    /// How many lines did not reach stdout or `node.log`.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }

    /// Says something on stdout alone. Never waits.
    pub fn say(&self, line: &str) {
        self.stdout.push(format!("{line}\n").as_bytes());
    }

    /// Opens `node.log` again: somebody has renamed it.
    pub fn reopen(&self) {
        self.file.reopen();
    }

    /// Waits until all lines are written, but not for long: a sink that takes none does not keep the process.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        self.file.flush(deadline);
        self.stdout.flush(deadline);
    }

    /// Logs a panic, and repeats it on stderr as the standard library would.
    fn tell_panic(&self, info: &PanicHookInfo<'_>) {
        let current = std::thread::current();
        let thread = current.name().unwrap_or("<unnamed>");
        let place = info.location().map_or_else(String::new, |at| format!(" at {at}"));
        let message = payload(info);
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\nstack backtrace:\n{trace}"),
            _ => String::new(),
        };
        let text = format!("thread '{thread}' panicked{place}: {message}{trace}");
        tracing::error!("{text}");
        self.flush();
        tell_stderr(text);
    }
}

/// Writes a line to stderr, unless that takes too long: it may be the same full pipe as stdout, and a process that
/// cannot say why it ends must end all the same.
pub fn tell_stderr(line: String) {
    let (told, is_told) = std::sync::mpsc::channel();
    let teller = std::thread::Builder::new().spawn(move || {
        let _ = writeln!(io::stderr(), "{line}");
        let _ = told.send(());
    });
    if teller.is_ok() {
        let _ = is_told.recv_timeout(FLUSH_PATIENCE);
    }
}

/// What a panic says.
fn payload<'i>(info: &'i PanicHookInfo<'_>) -> &'i str {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}

/// A log is an event's line twice: neither sink's failure stops the node.
impl Write for Log {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.stdout.push(event);
        self.file.push(event); // in one call: events of several threads do not mix
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The process's standard output, if it has one.
struct Stdout(Option<File>);

impl Sink for Stdout {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |stdout| stdout.write_all(lines))
    }
}

/// A format of lines, and which request each is about.
struct WithRequestId<F> {
    format: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithRequestId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(id) = request_id::current() else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            // An id has no character that JSON would escape.
            Some(rest) if self.json => write!(writer, "{{\"request_id\":\"{id}\",{rest}"),
            _ => writeln!(writer, "{} request_id={id}", line.trim_end_matches('\n')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::request_id::RequestId;
    use parking_lot::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let say = || {
            tracing::warn!(peer = "b:1", "slow");
            RequestId::given(b"id-1").unwrap().sync_scope(|| tracing::warn!(peer = "b:1", "slow"));
        };
        if json {
            let format = builder.json().map_event_format(|format| WithRequestId { format, json });
            tracing::subscriber::with_default(format.finish(), say);
        } else {
            let format = builder.map_event_format(|format| WithRequestId { format, json });
            tracing::subscriber::with_default(format.finish(), say);
        }
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_panic_is_in_the_file_before_the_process_goes_on_or_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let log = Log::start(RotatedFile::open(path.clone(), 1 << 20, 1).unwrap()).unwrap();
        let (lines, of_panics) = (log.clone(), log.clone());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone());
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| of_panics.tell_panic(info)));
        tracing::subscriber::with_default(subscriber.finish(), || {
            let number = std::hint::black_box(7);
            std::panic::catch_unwind(|| panic!("the number is {number}")).unwrap_err();
            std::panic::catch_unwind(|| panic!("plain text")).unwrap_err();
        });
        std::panic::set_hook(before);
        let text = std::fs::read_to_string(path).unwrap();
        for expected in ["ERROR", "panicked at src/cli/log.rs:", ": the number is 7", ": plain text"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn a_line_says_which_request_it_is_about() {
        let text = logged(false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            !lines[0].contains("request_id") && lines[1].ends_with(" slow peer=\"b:1\" request_id=id-1"),
            "{text}"
        );
        let json = logged(true);
        let lines: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0].get("request_id"), &lines[1]["request_id"]), (None, &"id-1".into()), "{json}");
        assert_eq!(lines[1]["fields"]["peer"], "b:1");
    }
}
