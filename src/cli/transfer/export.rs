//! export: every key and value as a line of JSON, from any node or from a directory.
//!
//! ```text
//! any node      GET /v1/kv, page after page, each a quorum read        each record was current at some moment
//! a directory   what one node's tables and logs hold, opened to read   nothing there is changed
//! --resume      FILE up to its last whole line ──> goes on behind that line's key
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line lives in the real world

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Deserialize;

use super::client::{Client, NodeArgs};
use super::line::Content;
use super::meter::{self, Meter};
use super::{Ended, line, runtime};
use crate::engine::ReadOnlyEngine;
use crate::env::Env;
use crate::node;
use crate::types::{ContentType, KeyRange, Timestamp};

/// Keys a page.
const PAGE_KEYS: usize = 1_000;
/// Bytes looked at a time for where the last line begins.
const LOOK_BACK: u64 = 64 << 10;

/// Writes every key and value as a line of JSON
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Read a stopped node's directory, or a checkpoint, in place of asking a node: that one copy alone
    #[arg(long, value_name = "DIR", conflicts_with_all = ["connect", "token", "token_file"])]
    dir: Option<PathBuf>,
    /// Write to this file in place of stdout; it must be new, empty, or continued by --resume
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with a file that was cut off, behind its last whole line
    #[arg(long, requires = "output")]
    resume: bool,
    /// Only keys that begin with this
    #[arg(long)]
    prefix: Option<String>,
    /// Only keys from this one on
    #[arg(long)]
    start: Option<String>,
    /// Only keys up to this one, itself included
    #[arg(long)]
    end: Option<String>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Say at the end as JSON what was done: on stdout with --output, else on stderr
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 done, 1 failed, 2 bad arguments, 5 no node answered.
pub fn run(args: &ExportArgs) -> ExitCode {
    match runtime().block_on(export(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => ended.exit(),
    }
}

async fn export(args: &ExportArgs) -> Result<(), Ended> {
    let mut output = Output::open(args)?;
    let meter = Meter::endless();
    match &args.dir {
        Some(dir) => from_directory(args, dir, &mut output, &meter)?,
        None => from_nodes(args, &mut output, &meter).await?,
    }
    let synced = output.finish();
    let took = meter.end();
    synced?;
    let Output { keys, bytes, .. } = output;
    let rate = meter::rate(keys, took);
    if args.json {
        let seconds = took.as_secs_f64();
        let said =
            serde_json::json!({"keys": keys, "bytes": bytes, "seconds": seconds, "keys_per_second": rate});
        if args.output.is_some() {
            return super::print_line(&said.to_string());
        }
        eprintln!("{said}");
    } else {
        eprintln!("exported {keys} keys, {}, in {took:.1?}, {rate} a second", meter::bytes(bytes));
    }
    Ok(())
}

/// Where lines go.
struct Output {
    out: BufWriter<Box<dyn Write>>,
    file: Option<File>,
    /// The key behind which to go on.
    last_key: Option<Vec<u8>>,
    buffer: Vec<u8>,
    keys: u64,
    bytes: u64,
}

impl Output {
    fn open(args: &ExportArgs) -> Result<Self, Ended> {
        let to = |out: Box<dyn Write>, file, last_key| Self {
            out: BufWriter::with_capacity(256 << 10, out),
            file,
            last_key,
            buffer: Vec::new(),
            keys: 0,
            bytes: 0,
        };
        let Some(path) = &args.output else { return Ok(to(Box::new(io::stdout()), None, None)) };
        let refused = |error: io::Error| Ended::io("cannot write", path, &error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(refused)?;
        let mut last_key = None;
        if file.metadata().map_err(refused)?.len() > 0 {
            if !args.resume {
                let path = path.display();
                return Err(Ended::Usage(format!("{path} is not empty; --resume goes on with it")));
            }
            last_key = resume_point(&mut file, path, args)?;
        }
        let clone = file.try_clone().map_err(refused)?;
        Ok(to(Box::new(clone), Some(file), last_key))
    }

    fn line(&mut self, key: &[u8], content: Option<Content<'_>>, timestamp: Timestamp) -> Result<(), Ended> {
        self.buffer.clear();
        line::push(&mut self.buffer, key, content, timestamp);
        self.out.write_all(&self.buffer).map_err(|error| Ended::output(&error))?;
        self.keys += 1;
        self.bytes += self.buffer.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Ended> {
        self.out.flush().map_err(|error| Ended::output(&error))?;
        self.file.as_ref().map_or(Ok(()), File::sync_all).map_err(|error| Ended::output(&error))
    }
}

/// Cuts a torn last line off, and gives the key of the last whole one; `None` when there is none.
fn resume_point(file: &mut File, path: &Path, args: &ExportArgs) -> Result<Option<Vec<u8>>, Ended> {
    let refused = |error: io::Error| Ended::io("cannot read", path, &error);
    let end =
        last_newline(file, file.metadata().map_err(refused)?.len()).map_err(refused)?.map_or(0, |at| at + 1);
    file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(refused)?;
    if end == 0 {
        return Ok(None);
    }
    let begin = last_newline(file, end - 1).map_err(refused)?.map_or(0, |at| at + 1);
    let mut last = vec![0; (end - begin) as usize];
    file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_exact(&mut last)).map_err(refused)?;
    let path = path.display();
    let (key, has_value) = line::key_of(&last)
        .map_err(|problem| Ended::Failed(format!("{path}: the last line is no export's: {problem}")))?;
    if has_value == args.keys_only {
        let how = if has_value { "with values; leave --keys-only out" } else { "with --keys-only" };
        return Err(Ended::Usage(format!("{path} was made {how}")));
    }
    if !range(args, None).contains(&key) {
        return Err(Ended::Usage(format!("{path} ends with a key outside of what is asked for")));
    }
    Ok(Some(key))
}

/// Where the last newline before `end` is.
fn last_newline(file: &mut File, end: u64) -> io::Result<Option<u64>> {
    let mut end = end;
    while end > 0 {
        let begin = end.saturating_sub(LOOK_BACK);
        let mut part = vec![0; (end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(begin + at as u64));
        }
        end = begin;
    }
    Ok(None)
}

/// The keys asked for, behind one of them if it is given.
fn range(args: &ExportArgs, behind: Option<&[u8]>) -> KeyRange {
    let bytes = |text: &Option<String>| {
        text.as_ref().filter(|text| !text.is_empty()).map(|text| Bytes::from(text.clone()))
    };
    let mut range = KeyRange::inclusive(bytes(&args.start), bytes(&args.end));
    if let Some(prefix) = bytes(&args.prefix) {
        range = range.intersect(KeyRange::prefix(&prefix));
    }
    let behind = behind.map(|key| Bytes::from([key, b"\0"].concat()));
    range.intersect(KeyRange { start: behind, end: None })
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    key: String,
    value: Option<String>,
    content_type: Option<String>,
    expires_at: Option<String>,
    timestamp: Option<u64>,
}

async fn from_nodes(args: &ExportArgs, output: &mut Output, meter: &Meter) -> Result<(), Ended> {
    let client = Client::new(&args.node)?;
    let mut query = format!("/v1/kv?encoding=base64&timestamps=true&limit={PAGE_KEYS}");
    let mut add = |name: &str, value: &[u8]| {
        query.extend(["&", name, "="]);
        query.extend(percent_encode(value, NON_ALPHANUMERIC));
    };
    if args.keys_only {
        add("keys_only", b"true");
    }
    for (name, text) in [("prefix", &args.prefix), ("end", &args.end)] {
        if let Some(text) = text {
            add(name, text.as_bytes());
        }
    }
    match &output.last_key {
        Some(key) => add("start", &[&key[..], b"\0"].concat()),
        None => add("start", args.start.as_deref().unwrap_or_default().as_bytes()),
    }
    let mut cursor: Option<String> = None;
    loop {
        let target =
            cursor.as_ref().map_or_else(|| query.clone(), |cursor| format!("{query}&cursor={cursor}"));
        let answer = client.ask(&Method::GET, &target, Bytes::new()).await?;
        if answer.status != 200 {
            return Err(answer.refused("cannot list the keys"));
        }
        let page: Page = serde_json::from_slice(&answer.body)
            .map_err(|error| Ended::Failed(format!("{}: not a page of keys: {error}", client.nodes())))?;
        for item in &page.items {
            let decode = |text: &str| {
                STANDARD
                    .decode(text)
                    .map_err(|error| Ended::Failed(format!("{}: bad base64: {error}", client.nodes())))
            };
            let value = item.value.as_deref().map(decode).transpose()?;
            let timestamp = Timestamp::from_u64(item.timestamp.unwrap_or_default());
            let (content_type, expires_at) = (item.content_type.as_deref(), item.expires_at.as_deref());
            let content = value.as_deref().map(|value| Content { value, content_type, expires_at });
            output.line(&decode(&item.key)?, content, timestamp)?;
        }
        meter.at(output.keys, format!("{} keys, {}", output.keys, meter::bytes(output.bytes)));
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

fn from_directory(args: &ExportArgs, dir: &Path, output: &mut Output, meter: &Meter) -> Result<(), Ended> {
    let env = Env::real();
    let failed = |error: crate::engine::Error| Ended::Failed(error.to_string());
    let engine = ReadOnlyEngine::open(&env, &node::engine_dir(&env, dir)).map_err(failed)?;
    eprintln!(
        "{}: one node's copy: in a ring, others may hold newer values, and keys that are not theirs are not here",
        dir.display()
    );
    let now = Timestamp::from_micros(env.clock.wall_micros());
    for item in engine.scan(&range(args, output.last_key.as_deref())) {
        let (key, record) = item.map_err(failed)?;
        let Some(value) = record.value_at(now) else { continue };
        let content_type = value.content_type().map(ContentType::as_bytes);
        let content_type = content_type.and_then(|text| std::str::from_utf8(text).ok());
        let expires_at = value.expires_at().map(|end| end.to_string());
        let expires_at = expires_at.as_deref();
        let content = Content { value: value.as_bytes(), content_type, expires_at };
        output.line(key.as_bytes(), (!args.keys_only).then_some(content), record.timestamp())?;
        if output.keys.is_multiple_of(1024) {
            meter.at(output.keys, format!("{} keys, {}", output.keys, meter::bytes(output.bytes)));
        }
    }
    Ok(())
}
