//! log: where log lines go and how they look.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line is where the real world begins

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use crate::util::request_id;

/// Sends the log to stdout and to `node.log` in the data directory.
pub fn init(config: &Config) -> Result<(), String> {
    let unusable = |error: io::Error| format!("cannot use directory {}: {error}", config.dir.display());
    std::fs::create_dir_all(&config.dir).map_err(unusable)?;
    let path = config.dir.join("node.log");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(unusable)?;
    let file = Arc::new(file);
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| format!("bad RUST_LOG {:?}: {error}", config.log_filter))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || Both { file: file.clone() });
    if config.log_json {
        builder.json().map_event_format(|format| WithRequestId { format, json: true }).init();
    } else {
        builder.map_event_format(|format| WithRequestId { format, json: false }).init();
    }
    Ok(())
}

/// Writes each event to stdout and to the log file. Neither's failure stops the node.
struct Both {
    file: Arc<std::fs::File>,
}

impl Write for Both {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let _ = io::stdout().write_all(event);
        let _ = (&*self.file).write_all(event); // appended in one call: events of several threads do not mix
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
