//! The simulation as a program: whole rings of real nodes in one thread, whose every fault a seed decides.
//!
//! ```bash
//! cargo run --example sim -- --seed 9             # one seed; the same seed prints the same bytes
//! cargo run --example sim -- --seeds 0..500       # many, on two threads; ends at the first that is wrong
//! cargo run --example sim -- --seed 9 --trace     # with everything that happens
//! ```
//!
//! Exit code 0: nothing is wrong; 1: something is, and what it takes to show it is printed; 2: a flag is wrong.
//!
//! It is an example and no command of `kvstore`, so that the binary that people run carries no faults to inject and no checkers.
//! Its source is `tests/sim`, which the tests use too.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the simulation is the world
#![allow(dead_code)] // the tests use the rest of it

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kvstore::env::Planted;
use sim::real_node;
use sim::run::{Options, Report, run};
use sim::shape::Shape;
use sim::shrink::shrink;
use sim::sweep::{explain, sweep};

/// Seeds between two prints.
const SEEDS_A_PRINT: u64 = 20;

/// Runs simulated rings and checks their promises.
#[derive(Parser)]
struct Flags {
    /// Run this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds, the second not included.
    #[arg(long, value_parser = parse_range, value_name = "A..B", default_value = "0..100")]
    seeds: Range<u64>,
    /// So many nodes, in place of what each seed draws.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// Let each storm last so long, in place of one simulated minute.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    minutes: Option<u16>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Do not look for fewer faults that show what is wrong.
    #[arg(long)]
    no_shrink: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let (from, to) = text.split_once("..").ok_or("write it as 0..100")?;
    Ok(number(from)?..number(to)?)
}

impl Flags {
    fn options(&self, seed: u64) -> Options {
        let mut options = Options::swarm(seed);
        if let Some(nodes) = self.nodes {
            let shape = Shape::plain(usize::from(nodes), options.shape.timeout_max());
            options = options.with_shape(shape);
        }
        if let Some(minutes) = self.minutes {
            options.storm = Duration::from_secs(60) * u32::from(minutes);
        }
        options.trace = self.trace;
        options
    }
}

fn print(report: &Report, trace: bool) {
    if trace {
        println!("{}", report.last.join("\n"));
    }
    let Report { options, answered, operations, events, hash, .. } = report;
    println!("seed {}: {answered} of {operations} answered, {events} events, {hash:016x}", options.seed);
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let starter = real_node::starter();
    let seeds = flags.seed.map_or(flags.seeds.clone(), |seed| seed..seed + 1);
    let mut from = seeds.start;
    while from < seeds.end {
        let to = seeds.end.min(from + SEEDS_A_PRINT);
        let (right, wrong) = sweep(from..to, |seed| run(&flags.options(seed), Planted::default(), &starter));
        for report in &right {
            print(report, flags.trace);
        }
        if let Some(wrong) = wrong {
            println!("{}", explain(&wrong));
            if !flags.no_shrink {
                println!("\nNow with as few faults as it takes:");
                println!("{}", explain(&shrink(wrong, Planted::default(), &starter)));
            }
            return ExitCode::FAILURE;
        }
        from = to;
    }
    ExitCode::SUCCESS
}
