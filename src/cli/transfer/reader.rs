//! Reader: a file of lines in batches, on a thread of its own, so that a slow pipe stops nobody.
//!
//! What is read ahead is bounded: a few batches, each closed at so many lines or bytes; one line may exceed that alone.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line lives in the real world

use std::io::{self, BufRead};

use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use super::line;
use crate::types::{Key, Value};

/// Lines a batch, at most.
const BATCH_LINES: usize = 1_000;
/// Bytes a batch.
const BATCH_BYTES: usize = 1 << 20;
/// Batches read ahead.
const AHEAD: usize = 2;
/// The longest line: a value of the largest size that is usual, with every byte escaped.
const LINE_BYTES_MAX: u64 = 128 << 20;

/// Where in a file one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Bytes before it.
    pub bytes: u64,
    /// Lines before it.
    pub lines: u64,
}

/// A line that is good.
#[derive(Debug)]
pub struct Item {
    /// Its number, from 1.
    pub number: u64,
    /// As it was written.
    pub raw: Vec<u8>,
    /// What it says; left out where it is passed on as it is.
    pub parsed: Option<(Key, Value)>,
    /// `xxh3_64` of its key.
    pub hash: u64,
}

/// A line that is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub number: u64,
    /// What is wrong.
    pub problem: String,
}

/// Lines that belong together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Those that are good.
    pub items: Vec<Item>,
    /// Those that are not; reading ends with the first of them unless they are to be skipped.
    pub bad: Vec<BadLine>,
    /// The end of the last of them.
    pub end: Place,
    /// Why reading ended, if it failed.
    pub failed: Option<String>,
}

/// What to do with lines.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Whether items are to hold what they say.
    pub parsed: bool,
    /// Whether bad lines are skipped.
    pub skip_bad: bool,
}

/// Reads `input`, which stands at `from`, from a thread of its own until nobody takes batches any more.
pub fn start(mut input: Box<dyn BufRead + Send>, from: Place, how: How) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut at = from;
        loop {
            let (batch, is_last) = read_batch(&mut *input, &mut at, how);
            let is_empty = batch.items.is_empty() && batch.bad.is_empty() && batch.failed.is_none();
            if (!is_empty && sender.blocking_send(batch).is_err()) || is_last {
                return;
            }
        }
    });
    receiver
}

/// Steps over lines.
pub fn skip_lines(input: &mut dyn BufRead, count: u64) -> io::Result<Place> {
    let mut at = Place::default();
    let mut line = Vec::new();
    while at.lines < count {
        line.clear();
        let read = read_line(input, &mut line)?;
        if read == 0 {
            break;
        }
        at.bytes += read;
        at.lines += 1;
    }
    Ok(at)
}

/// Reads one line with its end; of one that is too long no more than that is kept. Says how long it is; 0 at the end.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let mut read = 0;
    loop {
        let part = input.fill_buf()?;
        if part.is_empty() {
            return Ok(read);
        }
        let end = part.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let part = &part[..end.unwrap_or(part.len())];
        if read + part.len() as u64 <= LINE_BYTES_MAX {
            line.extend_from_slice(part);
        }
        let len = part.len();
        read += len as u64;
        input.consume(len);
        if end.is_some() {
            return Ok(read);
        }
    }
}

fn read_batch(input: &mut dyn BufRead, at: &mut Place, how: How) -> (Batch, bool) {
    let mut batch = Batch::default();
    let (mut bytes, mut is_last) = (0, false);
    while batch.items.len() < BATCH_LINES && bytes < BATCH_BYTES && !is_last {
        let mut line = Vec::new();
        let read = match read_line(input, &mut line) {
            Ok(read) => read,
            Err(error) => {
                batch.failed = Some(error.to_string());
                is_last = true;
                break;
            }
        };
        if read == 0 {
            is_last = true;
            break;
        }
        let number = at.lines + 1;
        let begin = if at.bytes == 0 && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }; // a byte order mark
        let text = line[begin..].trim_ascii();
        let read_as = if read > LINE_BYTES_MAX {
            Err(format!("longer than {LINE_BYTES_MAX} bytes"))
        } else if text.is_empty() {
            Ok(None)
        } else {
            line::parse(text).map(Some)
        };
        match read_as {
            Ok(Some((key, value))) => {
                bytes += text.len();
                let hash = xxh3_64(key.as_bytes());
                let parsed = how.parsed.then_some((key, value));
                let raw = if how.parsed { Vec::new() } else { text.to_vec() };
                batch.items.push(Item { number, raw, parsed, hash });
            }
            Ok(None) => {}
            Err(problem) => {
                batch.bad.push(BadLine { number, problem });
                if !how.skip_bad {
                    batch.end = *at; // before it, so that it is met again
                    return (batch, true);
                }
            }
        }
        at.bytes += read;
        at.lines = number;
    }
    batch.end = *at;
    (batch, is_last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, skip_bad: bool) -> Batch {
        let how = How { parsed: false, skip_bad };
        read_batch(&mut text.as_bytes(), &mut Place::default(), how).0
    }

    #[test]
    fn lines_end_as_on_any_system_and_blank_ones_are_none() {
        let batch =
            read("\u{feff}{\"key\":\"a\",\"value\":\"1\"}\r\n\n  \n{\"key\":\"b\",\"value\":\"2\"}", false);
        assert_eq!(batch.items.iter().map(|item| item.number).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(batch.end.lines, 4);
        assert_eq!(batch.bad, []);
    }

    #[test]
    fn reading_ends_before_a_bad_line_unless_it_is_skipped() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\"}\n{\"key\":\"c\",\"value\":\"3\"}\n";
        let batch = read(text, false);
        assert_eq!(
            (batch.items.len(), batch.bad[0].number, batch.end),
            (1, 2, Place { bytes: 24, lines: 1 })
        );
        let batch = read(text, true);
        assert_eq!((batch.items.len(), batch.bad.len(), batch.end.lines), (2, 1, 3));
        assert_eq!(batch.end.bytes, text.len() as u64);
    }

    #[test]
    fn batches_are_bounded_and_follow_each_other() {
        let line = "{\"key\":\"a\",\"value\":\"1\"}\n";
        let text = line.repeat(2_500);
        let mut input = text.as_bytes();
        let mut at = Place::default();
        let how = How { parsed: true, skip_bad: false };
        let counts = [1_000, 1_000, 500];
        for count in counts {
            assert_eq!(read_batch(&mut input, &mut at, how).0.items.len(), count);
        }
        assert_eq!(at, Place { bytes: text.len() as u64, lines: 2_500 });
    }
}
