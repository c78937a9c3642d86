//! import: lines of JSON into a ring, through any of its nodes, or into a directory that no node has open.
//!
//! ```text
//! reader, a thread ──batches──> in flight, some at a time ──acknowledged in order──> FILE.progress, once a second
//!                                  └ one that has a key of another in flight waits for it: of two lines the later wins
//! 503, 504, 429, no answer         sent again, later and later, through the next node: writing twice is harmless
//! 400, 413 that names an item      that line is bad
//! ```
//!
//! A bad line ends it, after all before it are written, unless bad lines are to be skipped.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line lives in the real world

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, NodeArgs};
use super::meter::{self, Meter};
use super::reader::{self, BadLine, Batch, How, Item, Place};
use super::{Ended, progress_file, runtime};
use crate::config::{self, Loaded};
use crate::env::Env;
use crate::node::StoppedNode;

/// How often progress is noted.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Bad lines that are told of one by one.
const BAD_LINES_TOLD: u64 = 20;

/// Writes keys and values from lines of JSON
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The lines, as export writes them; - or nothing: stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Write into the directory of a node that is alone and stopped, or make one, in place of asking a node
    #[arg(long, value_name = "DIR", conflicts_with_all = ["connect", "token", "token_file"])]
    dir: Option<PathBuf>,
    /// Go on where an earlier import of this file was acknowledged last
    #[arg(long, conflicts_with = "skip_lines")]
    resume: bool,
    /// Leave out so many lines at the start
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    skip_lines: u64,
    /// Leave out lines that cannot be read or are refused, and count them
    #[arg(long)]
    skip_bad: bool,
    /// Batches of up to 1,000 lines in flight at a time
    #[arg(long, value_name = "BATCHES", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,
    /// Say at the end as JSON what was done
    #[arg(long)]
    json: bool,
    /// With --dir: settings of the node that the directory is made for, as for `kvstore serve`
    #[arg(last = true, value_name = "-NAME VALUE")]
    settings: Vec<OsString>,
}

/// Runs the command. Exit codes: 0 done, 1 failed, 2 bad arguments, 5 no node took the lines.
pub fn run(args: &ImportArgs) -> ExitCode {
    match runtime().block_on(import(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => ended.exit(),
    }
}

/// Where lines go.
enum Target {
    Nodes(Client),
    Directory { node: Box<StoppedNode>, value_size_max: usize },
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    end: Place,
    written: u64,
    skipped: u64,
}

/// Why a batch was not written.
enum Refused {
    /// For one of its lines.
    Line(BadLine),
    /// For whatever else.
    All(Ended),
}

impl Target {
    fn open(args: &ImportArgs) -> Result<Self, Ended> {
        let Some(dir) = &args.dir else {
            if !args.settings.is_empty() {
                return Err(Ended::Usage("settings of a node say something with --dir only".to_owned()));
            }
            return Client::new(&args.node).map(Self::Nodes);
        };
        let settings = [OsString::from("-dir"), dir.clone().into()].into_iter().chain(args.settings.clone());
        let config = match config::load(settings, std::env::vars_os(), Path::new("")) {
            Ok(Loaded::Serve { config, .. }) => config,
            Ok(_) => {
                return Err(Ended::Usage("settings of a node, and nothing else, go behind --".to_owned()));
            }
            Err(error) => return Err(Ended::Usage(error.to_string())),
        };
        let node = StoppedNode::open_or_make(&config, &Env::real())
            .map_err(|error| Ended::Failed(error.to_string()))?;
        Ok(Self::Directory { node: Box::new(node), value_size_max: config.value_size_max })
    }

    /// What a note of progress calls it.
    fn name(&self, args: &ImportArgs) -> String {
        match (self, &args.dir) {
            (Self::Nodes(client), _) => client.nodes(),
            (Self::Directory { .. }, dir) => {
                let dir = dir.as_deref().unwrap_or(Path::new("."));
                std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()).display().to_string()
            }
        }
    }

    /// Writes items in order; gives how many, and those that were refused for what they are.
    async fn write(&self, items: Vec<Item>, skip_bad: bool) -> Result<(u64, Vec<BadLine>), Refused> {
        match self {
            Self::Nodes(client) => write_to_nodes(client, items, skip_bad).await,
            Self::Directory { node, value_size_max } => {
                let (mut good, mut bad) = (Vec::with_capacity(items.len()), Vec::new());
                for item in items {
                    let (key, value) = item.parsed.expect("lines for a directory are read whole");
                    if value.len() > *value_size_max {
                        let problem =
                            format!("value has {} bytes; at most {value_size_max} are allowed", value.len());
                        bad.push(BadLine { number: item.number, problem });
                    } else {
                        good.push((key, value));
                    }
                }
                if let Some(first) = bad.first().filter(|_| !skip_bad) {
                    return Err(Refused::Line(first.clone()));
                }
                let count = good.len() as u64;
                match node.write(good).await {
                    Ok(()) => Ok((count, bad)),
                    Err(error) => Err(Refused::All(Ended::Failed(error.to_string()))),
                }
            }
        }
    }
}

async fn write_to_nodes(
    client: &Client,
    mut items: Vec<Item>,
    skip_bad: bool,
) -> Result<(u64, Vec<BadLine>), Refused> {
    let (mut written, mut bad) = (0, Vec::new());
    // What is left, and how much of it goes into the next request: less, once a node says that it is too much.
    let mut step = items.len();
    while !items.is_empty() {
        let part = &items[..step.min(items.len())];
        let len: usize = part.iter().map(|item| item.raw.len() + 1).sum();
        let mut body = Vec::with_capacity(len + 16);
        body.extend_from_slice(br#"{"items":["#);
        for (index, item) in part.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&item.raw);
        }
        body.extend_from_slice(b"]}");
        let answer = client.ask(&Method::POST, "/v1/kv:put", Bytes::from(body)).await;
        let answer = answer.map_err(Refused::All)?;
        if answer.status == 200 {
            written += part.len() as u64;
            items.drain(..part.len());
            continue;
        }
        let text = answer.text();
        let named = text.strip_prefix("items[").and_then(|rest| rest.split_once("]: "));
        let named = named.and_then(|(index, problem)| Some((index.parse::<usize>().ok()?, problem)));
        match named {
            Some((index, problem)) if matches!(answer.status, 400 | 413) && index < part.len() => {
                let line = BadLine { number: part[index].number, problem: problem.to_owned() };
                if !skip_bad {
                    return Err(Refused::Line(line));
                }
                items.remove(index);
                bad.push(line);
            }
            _ if answer.status == 413 && part.len() > 1 => step = part.len() / 2,
            _ if answer.status == 413 && skip_bad => {
                let item = items.remove(0);
                bad.push(BadLine { number: item.number, problem: text });
            }
            _ => {
                let (first, last) = (part[0].number, part[part.len() - 1].number);
                return Err(Refused::All(answer.refused(&format!("lines {first} to {last}"))));
            }
        }
    }
    Ok((written, bad))
}

/// The lines that are left.
struct Source {
    input: Box<dyn BufRead + Send>,
    /// What was done with those before, and where they end.
    done: Done,
    /// Bytes of the file.
    len: Option<u64>,
}

fn source(args: &ImportArgs, name: &str) -> Result<Source, Ended> {
    let path = &args.file;
    let refused = |error: io::Error| Ended::io("cannot read", path, &error);
    if path == Path::new("-") {
        if args.resume {
            return Err(Ended::Usage(
                "--resume goes on with a file; --skip-lines works with stdin".to_owned(),
            ));
        }
        let mut input: Box<dyn BufRead + Send> = Box::new(BufReader::with_capacity(256 << 10, io::stdin()));
        let end = reader::skip_lines(&mut *input, args.skip_lines).map_err(refused)?;
        return Ok(Source { input, done: Done { end, ..Done::default() }, len: None });
    }
    let mut file = File::open(path).map_err(refused)?;
    let len = file.metadata().map_err(refused)?.len();
    let mut done = Done::default();
    if args.resume {
        if let Some(progress) = progress_file::load(path, name)? {
            done = Done { end: progress.place(), written: progress.written, skipped: progress.skipped };
            file.seek(SeekFrom::Start(done.end.bytes)).map_err(refused)?;
            eprintln!("{}: going on behind line {}", path.display(), done.end.lines);
        } else {
            eprintln!("{}: no note of an earlier import; starting with the first line", path.display());
        }
    }
    let mut input: Box<dyn BufRead + Send> = Box::new(BufReader::with_capacity(256 << 10, file));
    if args.skip_lines > 0 {
        done.end = reader::skip_lines(&mut *input, args.skip_lines).map_err(refused)?;
    }
    Ok(Source { input, done, len: Some(len) })
}

/// An import under way: what is acknowledged, in order.
struct Import<'a> {
    args: &'a ImportArgs,
    target: String,
    meter: Meter,
    /// All before its end is acknowledged.
    done: Done,
    /// Batches acknowledged before an earlier one was, by their numbers.
    early: BTreeMap<u64, Done>,
    /// The number of the next batch to be acknowledged.
    next: u64,
    saved: Instant,
    told: u64,
    /// Why it ends before its time.
    failed: Option<Ended>,
}

impl Import<'_> {
    fn source_name(&self) -> String {
        if self.is_file() { self.args.file.display().to_string() } else { "stdin".to_owned() }
    }

    fn is_file(&self) -> bool {
        self.args.file != Path::new("-")
    }

    fn words(&self, bad: &BadLine) -> String {
        format!("{}, line {}: {}", self.source_name(), bad.number, bad.problem)
    }

    fn tell(&mut self, bad: &BadLine) {
        self.told += 1;
        let text = self.words(bad);
        if !self.args.skip_bad {
            self.failed.get_or_insert(Ended::Failed(text));
        } else if self.told <= BAD_LINES_TOLD {
            eprintln!("{text}; skipped");
        } else if self.told == BAD_LINES_TOLD + 1 {
            eprintln!("further bad lines are skipped and counted in silence");
        }
    }

    fn acknowledge(&mut self, number: u64, done: Done) {
        self.early.insert(number, done);
        while let Some(done) = self.early.remove(&self.next) {
            self.next += 1;
            self.done.end = done.end;
            self.done.written += done.written;
            self.done.skipped += done.skipped;
        }
        let Done { end, written, .. } = self.done;
        self.meter.at(end.bytes, format!("{written} keys"));
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save();
        }
    }

    /// Notes progress. A note that cannot be written costs a resume, not the import.
    fn save(&mut self) {
        self.saved = Instant::now();
        if self.is_file() {
            let Done { end, written, skipped } = self.done;
            if let Err(error) = progress_file::save(&self.args.file, &self.target, end, written, skipped) {
                tracing::debug!(%error, "progress not noted");
            }
        }
    }

    /// Says what was done.
    fn end(mut self) -> Result<(), Ended> {
        let took = self.meter.end();
        let Done { end, written, skipped } = self.done;
        let rate = meter::rate(written, took);
        if self.failed.is_some() {
            self.save();
        } else if self.is_file() {
            progress_file::remove(&self.args.file);
        }
        if self.args.json {
            let said = serde_json::json!({
                "complete": self.failed.is_none(), "written": written, "skipped": skipped, "lines": end.lines,
                "seconds": took.as_secs_f64(), "keys_per_second": rate,
            });
            super::print_line(&said.to_string())?;
        }
        let skipped = if skipped > 0 { format!(", {skipped} bad lines skipped") } else { String::new() };
        let from = self.source_name();
        match self.failed {
            None => {
                if !self.args.json {
                    eprintln!("imported {written} keys from {from} in {took:.1?}, {rate} a second{skipped}");
                }
                Ok(())
            }
            Some(failed) => {
                let how = if self.args.file == Path::new("-") {
                    format!("--skip-lines {}", end.lines)
                } else {
                    "--resume".to_owned()
                };
                eprintln!(
                    "{from}: {written} keys written{skipped}; all up to line {} is there: {how} goes on",
                    end.lines
                );
                Err(failed)
            }
        }
    }
}

async fn import(args: &ImportArgs) -> Result<(), Ended> {
    if args.file != Path::new("-") {
        // Before a directory is made for lines that are not there.
        File::open(&args.file).map_err(|error| Ended::io("cannot read", &args.file, &error))?;
    }
    let target = Target::open(args)?;
    let name = target.name(args);
    let Source { input, done, len } = source(args, &name)?;
    let how = How { parsed: matches!(target, Target::Directory { .. }), skip_bad: args.skip_bad };
    let batches = reader::start(input, done.end, how);
    let import = Import {
        args,
        target: name,
        meter: len.map_or_else(Meter::endless, Meter::of_bytes),
        done,
        early: BTreeMap::new(),
        next: 0,
        saved: Instant::now(),
        told: 0,
        failed: None,
    };
    let import = write_all(import, &target, batches).await?;
    if let Target::Directory { node, .. } = target {
        node.close().await.map_err(|error| Ended::Failed(error.to_string()))?;
    }
    import.end()
}

/// Writes all batches, some at a time, until they end or one fails.
async fn write_all<'a>(
    mut import: Import<'a>,
    target: &Target,
    mut batches: tokio::sync::mpsc::Receiver<Batch>,
) -> Result<Import<'a>, Ended> {
    let signals =
        |kind| signal(kind).map_err(|error| Ended::Failed(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) =
        (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let skip_bad = import.args.skip_bad;
    let concurrency = usize::from(import.args.concurrency);
    let mut flying = FuturesUnordered::new();
    let mut keys_flying: HashSet<u64> = HashSet::new();
    let (mut number, mut waiting, mut is_over) = (0, None::<Batch>, false);
    // Why the lines end before their time: told once all before is written.
    let mut end: Option<Ended> = None;
    loop {
        if let Some(batch) = waiting.take_if(|batch| {
            flying.len() < concurrency && batch.items.iter().all(|item| !keys_flying.contains(&item.hash))
        }) {
            let hashes: Vec<u64> = batch.items.iter().map(|item| item.hash).collect();
            keys_flying.extend(&hashes);
            let done = Done {
                end: batch.end,
                written: 0,
                skipped: if skip_bad { batch.bad.len() as u64 } else { 0 },
            };
            let own = number;
            number += 1;
            flying.push(async move {
                let outcome = target.write(batch.items, skip_bad).await;
                (own, hashes, outcome, done)
            });
        }
        if flying.is_empty() && (import.failed.is_some() || (is_over && waiting.is_none())) {
            if let Some(failed) = end.take() {
                import.failed.get_or_insert(failed);
            }
            return Ok(import);
        }
        let may_read = waiting.is_none() && !is_over && import.failed.is_none();
        tokio::select! {
            biased;
            // What is in flight may be written or not; it is not acknowledged, so it will be written again.
            _ = interrupt.recv() => {
                import.failed.get_or_insert(Ended::Failed("interrupted".to_owned()));
                flying.clear();
            }
            _ = terminate.recv() => {
                import.failed.get_or_insert(Ended::Failed("terminated".to_owned()));
                flying.clear();
            }
            Some((own, hashes, outcome, mut done)) = flying.next(), if !flying.is_empty() => {
                for hash in &hashes {
                    keys_flying.remove(hash);
                }
                match outcome {
                    Ok((written, bad)) => {
                        for bad in &bad {
                            import.tell(bad);
                        }
                        done.written = written;
                        done.skipped += bad.len() as u64;
                        import.acknowledge(own, done);
                    }
                    Err(Refused::Line(bad)) => import.tell(&bad),
                    Err(Refused::All(ended)) => { import.failed.get_or_insert(ended); }
                }
            }
            batch = batches.recv(), if may_read => match batch {
                None => is_over = true,
                Some(batch) => {
                    if skip_bad {
                        for bad in &batch.bad {
                            import.tell(bad);
                        }
                    } else if let Some(bad) = batch.bad.first() {
                        end = Some(Ended::Failed(import.words(bad)));
                    }
                    if let Some(problem) = &batch.failed {
                        end = Some(Ended::Failed(format!("cannot read {}: {problem}", import.source_name())));
                    }
                    waiting = Some(batch);
                }
            },
        }
    }
}
