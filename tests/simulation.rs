//! Does the cluster keep its word? Simulated rings of real nodes, whose every fault a seed decides.
//!
//! - `SIM_SEED=s cargo test --test simulation` runs one seed, `SIM_SEEDS=n` the first n storms; `SIM_TRACE=1` keeps the
//!   whole trace of a failure in place of its last events.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the simulation is the world

mod sim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstore::env::Planted;
use parking_lot::Mutex;
use sim::real_node;
use sim::run::{Mix, Options, Report, run};
use sim::toy_register::{self, Bug};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The seeds to run: `SIM_SEED` alone, or as many as are wanted.
fn seeds(count: u64) -> std::ops::Range<u64> {
    number("SIM_SEED").map_or(0..count, |seed| seed..seed + 1)
}

fn explain(report: &Report) -> String {
    let Report { options, wrong, last, .. } = report;
    let (shown, seed) = (wrong.len().min(10), options.seed);
    format!(
        "{}\n\n{options:#?}\n\n{} things are wrong, {shown} of them are:\n{}\n\nrerun: SIM_SEED={seed} cargo test --test simulation",
        last.join("\n"),
        wrong.len(),
        wrong[..shown].join("\n"),
    )
}

#[test]
fn a_toy_register_without_bugs_keeps_its_word() {
    for seed in seeds(40) {
        let report = run(&Options::toy(seed), Planted::default(), &toy_register::starter(Bug::None));
        assert!(report.wrong.is_empty(), "{}", explain(&report));
        assert!(
            report.answered > 50,
            "seed {seed}: only {} of {} answered",
            report.answered,
            report.operations
        );
    }
}

#[test]
fn every_bug_of_a_toy_register_that_versions_show_is_caught() {
    let bugs =
        [Bug::AckBeforeSync, Bug::DirectoryNotSynced, Bug::NoWriteBack, Bug::QuorumOfOne, Bug::NoTombstones];
    for bug in bugs {
        let starter = toy_register::starter(bug);
        let caught = (0..300).find(|seed| {
            let report = run(&Options::toy(*seed), Planted::default(), &starter);
            report.wrong.iter().any(|wrong| wrong.starts_with("versions"))
        });
        println!("{bug:?}: seed {caught:?}");
        assert!(caught.is_some(), "{bug:?}");
    }
}

#[test]
fn a_write_with_two_timestamps_is_caught_by_the_checker_of_values_alone() {
    let starter = toy_register::starter(Bug::RetryUnderNewTimestamp);
    let caught = (0..300).find(|seed| {
        let mut options = Options::toy(*seed);
        options.keys = 2;
        options.mix = Mix { puts: 50, gets: 50, ..Mix::default() };
        let wrong = run(&options, Planted::default(), &starter).wrong;
        assert!(!wrong.iter().any(|wrong| wrong.starts_with("versions")), "{wrong:?}");
        !wrong.is_empty()
    });
    println!("seed {caught:?}");
    assert!(caught.is_some());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let hash = || run(&Options::toy(seed), Planted::default(), &toy_register::starter(Bug::None)).hash;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

/// How many threads run seeds: each has a world of its own.
const THREADS: usize = 2;

/// Runs seeds on all threads until one is wrong; returns the wrong one with the lowest number, and all others.
fn run_all(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Report + Sync) -> (Vec<Report>, Option<Report>) {
    let next = AtomicU64::new(seeds.start);
    let wrong_seed = AtomicU64::new(u64::MAX);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed > wrong_seed.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = run(seed);
                    if !report.wrong.is_empty() {
                        wrong_seed.fetch_min(seed, Ordering::Relaxed);
                    }
                    reports.lock().push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner();
    reports.sort_by_key(|report| report.options.seed);
    let wrong = reports.iter().position(|report| !report.wrong.is_empty()).map(|at| reports.remove(at));
    (reports, wrong)
}

/// Prints whole traces, where they are asked for.
fn print_traces(reports: &[Report]) {
    if std::env::var_os("SIM_TRACE").is_some() {
        for report in reports {
            println!("{}", report.last.join("\n"));
        }
    }
}

#[test]
fn a_ring_of_real_nodes_keeps_its_word_in_every_storm() {
    let starter = real_node::starter();
    let (reports, wrong) = run_all(seeds(number("SIM_SEEDS").unwrap_or(100)), |seed| {
        run(&Options::swarm(seed), Planted::default(), &starter)
    });
    if let Some(wrong) = wrong {
        panic!("{}", explain(&wrong));
    }
    print_traces(&reports);
    let (operations, answered): (usize, usize) =
        reports.iter().fold((0, 0), |(all, done), report| (all + report.operations, done + report.answered));
    let events: u64 = reports.iter().map(|report| report.events).sum();
    println!("{} seeds: {answered} of {operations} operations answered, {events} events", reports.len());
    let enough = reports.len() < 50 || answered * 3 > operations; // a single storm may be a heavy one
    assert!(enough, "the storms are too heavy: {answered} of {operations} answered");
}

#[test]
fn the_same_seed_gives_the_same_trace_of_real_nodes() {
    let starter = real_node::starter();
    let run = |seed| {
        let mut options = Options::swarm(seed);
        options.storm = Duration::from_secs(20);
        run(&options, Planted::default(), &starter)
    };
    let (first, _) = run_all(0..20, run);
    let (second, _) = run_all(0..20, run);
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.hash, second.hash, "seed {}", first.options.seed);
    }
}

#[cfg(feature = "planted-mistakes")]
mod planted {
    use kvstore::env::Mistake;

    use super::*;

    /// How many seeds a mistake may take.
    const SEEDS_MAX: u64 = 2000;

    fn is_caught(mistake: Mistake) {
        let starter = real_node::starter();
        let planted = Planted::mistake(mistake);
        let (good, wrong) =
            run_all(seeds(SEEDS_MAX), |seed| run(&Options::directed(seed, mistake), planted, &starter));
        print_traces(&good);
        let Some(wrong) = wrong else { panic!("{mistake:?} is not caught by {} seeds", good.len()) };
        println!("{mistake:?}: caught by seed {}: {}", wrong.options.seed, wrong.wrong[0]);
        let without = run(&wrong.options, Planted::default(), &starter);
        assert!(without.wrong.is_empty(), "it is wrong without the mistake too: {}", explain(&without));
    }

    #[test]
    fn a_write_acknowledged_before_its_sync_is_caught() {
        is_caught(Mistake::AckBeforeSync);
    }

    #[test]
    fn a_hint_that_counts_towards_w_is_caught() {
        is_caught(Mistake::HintCountsAsAck);
    }

    #[test]
    fn replicas_that_stamp_their_own_time_are_caught() {
        is_caught(Mistake::ReplicaStampsItsOwnTime);
    }

    #[test]
    fn a_read_without_write_back_is_caught() {
        is_caught(Mistake::NoWriteBack);
    }

    #[test]
    fn an_empty_disk_that_votes_is_caught() {
        is_caught(Mistake::EmptyDiskVotes);
    }

    #[test]
    fn a_rebuild_mark_forgotten_in_a_crash_is_caught() {
        is_caught(Mistake::RebuildMarkForgotten);
    }

    #[test]
    fn a_log_cut_at_its_first_bad_frame_is_caught() {
        is_caught(Mistake::LogCutAtFirstBadFrame);
    }

    #[test]
    fn a_directory_that_is_not_synced_is_caught() {
        is_caught(Mistake::DirectoryNotSynced);
    }

    #[test]
    fn a_retry_under_a_new_timestamp_is_caught() {
        is_caught(Mistake::RetryUnderNewTimestamp);
    }

    #[test]
    fn a_timestamp_given_again_after_a_restart_is_caught() {
        is_caught(Mistake::TimestampReusedAfterRestart);
    }

    #[test]
    fn an_expired_value_that_is_forgotten_with_what_it_hides_is_caught() {
        is_caught(Mistake::ExpiredForgotten);
    }
}
