//! Output: data on stdout, as lines or JSON; bytes shown so that a terminal survives them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;
use serde_json::{Map, Value};

use super::exit::Error;

/// What is well.
pub const GOOD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
/// What wants looking after.
pub const CARE: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));
/// What is wrong.
pub const BAD: Style = Style::new().bold().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
/// What only explains.
pub const FAINT: Style = Style::new().dimmed();
/// What stands out.
pub const STRONG: Style = Style::new().bold();

/// Standard output, buffered until [`Out::flush`].
#[derive(Debug)]
pub struct Out {
    writer: BufWriter<Stdout>,
    is_terminal: bool,
    has_colours: bool,
}

impl Out {
    /// The process's own. Colours where it is a terminal that has them and nobody said `NO_COLOR`.
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        Self {
            is_terminal: stdout.is_terminal(),
            has_colours: AutoStream::choice(&stdout) != ColorChoice::Never,
            writer: BufWriter::new(stdout),
        }
    }

    /// Whether somebody looks at it.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Text in a style, where there are colours.
    pub fn paint<'t>(&self, style: Style, text: &'t str) -> Cow<'t, str> {
        if self.has_colours && !text.is_empty() {
            Cow::Owned(format!("{style}{text}{style:#}"))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// A line.
    pub fn line(&mut self, text: &str) -> Result<(), Error> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    /// A line that is one JSON value.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        serde_json::to_writer(&mut self.writer, value).map_err(io::Error::from)?;
        self.bytes(b"\n")
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.writer.write_all(bytes)?)
    }

    /// Hands over what was written.
    pub fn flush(&mut self) -> Result<(), Error> {
        Ok(self.writer.flush()?)
    }
}

/// Columns of the terminal, or as many as anybody could want where there is none.
pub fn columns() -> usize {
    terminal_size::terminal_size().map_or(usize::MAX, |(width, _)| usize::from(width.0))
}

/// Bytes as text: as they stand where they are plain, otherwise in double quotes with `\xff` and the like, so that no two
/// byte strings look the same and no control character reaches a terminal.
pub fn shown(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain(text) => Cow::Borrowed(text),
        _ => Cow::Owned(quoted(bytes)),
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['"', ' '])
        && !text.ends_with(' ')
        && !text.contains(char::is_control)
}

/// Bytes in double quotes, as the lines of `kvstore repl` are read.
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_hex(&mut text, byte));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| push_hex(&mut text, *byte));
    }
    text.push('"');
    text
}

fn push_hex(text: &mut String, byte: u8) {
    let _ = write!(text, "\\x{byte:02x}"); // writing to memory does not fail
}

/// Puts bytes into an object: as `name` where they are text, otherwise in base64 as `name_base64`.
pub fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// An object that says which key it is about.
pub fn about_key(key: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object
}

/// `1.50 KiB`.
pub fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// `34,006`.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// `1 key`, `34,006 keys`.
pub fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `3h 12m`: the two largest units.
pub fn span(duration: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `1.25 ms`.
pub fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1e3)
}

/// A timestamp's moment, in UTC.
pub fn moment(timestamp: u64) -> String {
    let micros = crate::types::Timestamp::from_u64(timestamp).micros();
    humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}

/// Cuts text to so many columns; `…` says that it was cut.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};
    if text.len() <= columns || text.width() <= columns {
        return Cow::Borrowed(text);
    }
    let (mut cut, mut width) = (String::new(), 1);
    for c in text.chars() {
        width += c.width().unwrap_or(0);
        if width > columns {
            break;
        }
        cut.push(c);
    }
    cut.push('…');
    Cow::Owned(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_shown_as_it_stands_and_all_else_in_quotes() {
        for (bytes, text) in [
            (&b"user:1"[..], "user:1"),
            ("grüße 1".as_bytes(), "grüße 1"),
            (b"", "\"\""),
            (b"a\xffb", "\"a\\xffb\""),
            (b"\x1b[31m", "\"\\x1b[31m\""),
            ("\u{9b}".as_bytes(), "\"\\xc2\\x9b\""),
            (b"a\tb\n", "\"a\\tb\\n\""),
            (b"\"q\"", "\"\\\"q\\\"\""),
            (b"back\\slash", "back\\slash"),
            (b" ", "\" \""),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
    }

    #[test]
    fn moments_and_spans_read_well() {
        let at = crate::types::Timestamp::from_micros(1_700_000_000_000_001).as_u64();
        assert_eq!(moment(at), "2023-11-14T22:13:20.000001Z");
        assert_eq!(span(Duration::from_secs(3 * 3600 + 12 * 60 + 5)), "3h 12m");
        assert_eq!(span(Duration::from_millis(300)), "0s");
        assert_eq!(counted(34_006, "key"), "34,006 keys");
    }

    proptest! {
        #[test]
        fn no_control_character_is_shown_and_no_two_byte_strings_alike(a: Vec<u8>, b: Vec<u8>) {
            prop_assert!(!shown(&a).contains(char::is_control));
            prop_assert_eq!(shown(&a) == shown(&b), a == b);
        }
    }
}
