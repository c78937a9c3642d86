//! `kvstore bench`: a load generator with unique keys.
//!
//! ```text
//! connections ──each: one request at a time──> targets, round robin
//!      └─ Tally a connection (histograms of microseconds) ──merged──> Report, as text or JSON
//! ```
//!
//! It is a closed loop: a connection sends its next request when it has the answer, so at saturation the
//! latencies shown are those of as many waiting clients, as with `hey`. With `--rate` it is an open one: requests are due at
//! fixed times, and one that could not be sent because answers were late counts from when it was due. Writes go to keys that were never
//! written before (`hey` can only send one body); reads go to keys that were loaded before the clock started
//! or written since. With `--record` every acknowledged write is noted in a file, and `--verify` reads such a
//! file back: that is how the scripts look for lost writes.
#![allow(clippy::disallowed_methods)] // a client on the command line: its time and sockets are the real ones

mod connection;
mod record;
mod report;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::header::HeaderValue;
use indicatif::{ProgressBar, ProgressStyle};

use report::{Report, Tally};
use worker::{Plan, Worker};

use super::dial::{Ca, Dialler, Target};
use super::exit::{Error, end};
use super::help;
use super::options::{Token, duration};

/// Puts load on a node or a ring, and measures.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Nodes to talk to, as http://host:port or https://host:port, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:8081")]
    targets: Vec<String>,
    /// Connections, each with one request at a time
    #[arg(short = 'c', long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// How long to measure, such as 10s or 2m
    #[arg(short = 'z', long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Stop after this many requests instead
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Share of reads, 0 to 100; the others are writes of new keys
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// Send so many requests a second, all connections together, instead of as many as are answered. A request that
    /// goes out late because answers were late counts from when it was due
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Write so many keys a request, by POST /batch
    #[arg(long, value_name = "ITEMS", value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "record")]
    batch: Option<u32>,
    /// Bytes a value
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=8_388_608))]
    value_size: u32,
    /// Keys loaded before the clock starts, when there are reads
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// W for every write; the ring's if absent
    #[arg(short = 'w', long)]
    write_quorum: Option<u8>,
    /// R for every read; the ring's if absent
    #[arg(short = 'r', long)]
    read_quorum: Option<u8>,
    /// Chooses the keys; the same seed writes the same ones
    #[arg(long)]
    seed: Option<u64>,
    /// Note every acknowledged write in this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Read back every write noted in this file instead of measuring; exit code 1 if one is missing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "requests", "duration"])]
    verify: Option<PathBuf>,
    /// Take every 200 for a good answer: for comparing with a server that stores nothing
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    token: Token,
    #[command(flatten)]
    ca: Ca,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 measured, 1 nothing was answered or a write is missing, 2 bad arguments.
pub fn run(args: &BenchArgs) -> ExitCode {
    let targets = match args.targets.iter().map(|text| Target::parse(text)).collect::<Result<Vec<_>, _>>() {
        Ok(targets) => targets,
        Err(problem) => {
            eprintln!("error: --targets: {problem}");
            return ExitCode::from(2);
        }
    };
    let dialler = match Dialler::new(&targets, &args.ca) {
        Ok(dialler) => dialler,
        Err(problem) => return end(args.json, Err(Error::Usage(problem))),
    };
    let authorization = match args.token.header() {
        Ok(authorization) => authorization,
        Err(error) => return end(args.json, Err(error)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a process that was just started can have a runtime");
    runtime.block_on(async {
        match &args.verify {
            Some(path) => record::verify(path, &targets, &dialler, authorization.as_ref(), args).await,
            None => measure(args, &targets, dialler, authorization).await,
        }
    })
}

async fn measure(
    args: &BenchArgs,
    targets: &[Target],
    dialler: Dialler,
    authorization: Option<HeaderValue>,
) -> ExitCode {
    let recorder = match args.record.as_deref().map(record::Recorder::create).transpose() {
        Ok(recorder) => recorder.map(Arc::new),
        Err(error) => {
            eprintln!("error: --record: {error}");
            return ExitCode::FAILURE;
        }
    };
    let plan = Arc::new(Plan::new(args, targets.to_vec(), dialler, authorization, recorder));
    if args.read_percent > 0
        && let Err(problem) = worker::load(&plan, args.keys).await
    {
        eprintln!("error: could not load {} keys to read: {problem}", args.keys);
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    let bar = progress(args, &plan, began);
    let deadline = args.requests.is_none().then(|| began + args.duration);
    let workers: Vec<_> = (0..args.connections)
        .map(|number| Worker::new(plan.clone(), usize::from(number), args.connections.into()))
        .map(|worker| tokio::spawn(worker.run(began, deadline)))
        .collect();
    let mut total = Tally::default();
    for worker in workers {
        total.merge(&worker.await.expect("a worker reports its errors and does not panic"));
    }
    let elapsed = began.elapsed();
    bar.finish_and_clear();
    let named: Vec<_> = targets.iter().map(Target::to_string).collect();
    let report = Report::new(args, &named, &total, elapsed);
    help::say(|out| if args.json { out.json(&report.json()) } else { out.bytes(report.text().as_bytes()) });
    if total.answered() == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A bar on a terminal; nothing elsewhere.
fn progress(args: &BenchArgs, plan: &Arc<Plan>, began: Instant) -> ProgressBar {
    if !console_is_terminal() {
        return ProgressBar::hidden();
    }
    let (length, by_count) = match args.requests {
        Some(requests) => (requests, true),
        None => (u64::try_from(args.duration.as_millis()).unwrap_or(u64::MAX), false),
    };
    let style =
        ProgressStyle::with_template("{elapsed_precise} [{wide_bar}] {msg}").expect("a constant template");
    let bar = ProgressBar::new(length).with_style(style.progress_chars("=> "));
    let (shown, plan) = (bar.clone(), plan.clone());
    tokio::spawn(async move {
        let mut before = 0;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        while !shown.is_finished() {
            tick.tick().await;
            let done = plan.done();
            let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            shown.set_position(if by_count { done } else { elapsed.min(length) });
            shown.set_message(format!("{done} requests, {}/s", (done - before) * 5));
            before = done;
        }
    });
    bar
}

fn console_is_terminal() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal()
}
