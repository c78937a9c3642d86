//! Does the cluster keep its word? Simulated rings of real nodes, whose every fault a seed decides.
//!
//! - a seed that is wrong is run again and again with fewer faults, until none can be left out
//! - `SIM_SEED=s cargo test --test simulation` runs one seed, `SIM_SEEDS=n` the first n storms; `SIM_TRACE=1` keeps the
//!   whole trace of a failure in place of its last events.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the simulation is the world

mod sim;

use std::time::Duration;

use kvstore::env::Planted;
use sim::real_node;
use sim::run::{Mix, Options, Report, run};
use sim::shrink::shrink;
use sim::sweep::{explain, sweep};
use sim::toy_register::{self, Bug};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The seeds to run: `SIM_SEED` alone, or as many as are wanted.
fn seeds(count: u64) -> std::ops::Range<u64> {
    number("SIM_SEED").map_or(0..count, |seed| seed..seed + 1)
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
    let (reports, wrong) = sweep(seeds(number("SIM_SEEDS").unwrap_or(100)), |seed| {
        run(&Options::swarm(seed), Planted::default(), &starter)
    });
    if let Some(wrong) = wrong {
        println!("{}\n\nNow with as few faults as it takes:", explain(&wrong));
        panic!("{}", explain(&shrink(wrong, Planted::default(), &starter)));
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
    let (first, _) = sweep(0..20, run);
    let (second, _) = sweep(0..20, run);
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.hash, second.hash, "seed {}", first.options.seed);
    }
}

#[cfg(feature = "planted-mistakes")]
mod planted {
    use std::collections::BTreeSet;

    use kvstore::env::Mistake;

    use super::*;
    use crate::sim::directed::directed;

    /// How many seeds a bug may take.
    const SEEDS_MAX: u64 = 2000;

    fn check(mistake: Mistake) {
        let starter = real_node::starter();
        let planted = Planted::mistake(mistake);
        let (good, wrong) = sweep(seeds(SEEDS_MAX), |seed| run(&directed(seed, mistake), planted, &starter));
        print_traces(&good);
        let Some(wrong) = wrong else { panic!("{mistake:?} is not caught by {} seeds", good.len()) };
        println!("{mistake:?}: caught by seed {}: {}", wrong.options.seed, wrong.wrong[0]);
        let without = run(&wrong.options, Planted::default(), &starter);
        assert!(without.wrong.is_empty(), "it is wrong without the bug too: {}", explain(&without));
    }

    /// One test for each planted bug: that the simulation catches it, and finds nothing wrong without it.
    macro_rules! is_caught {
        ($($name:ident: $mistake:ident,)*) => {
            $(
                #[test]
                fn $name() {
                    check(Mistake::$mistake);
                }
            )*

            #[test]
            fn every_planted_bug_has_its_test() {
                let tested: BTreeSet<String> = [$(stringify!($mistake).to_owned()),*].into();
                let all: BTreeSet<String> = Mistake::ALL.iter().map(|mistake| format!("{mistake:?}")).collect();
                assert_eq!(tested, all);
            }
        };
    }

    is_caught! {
        a_write_acknowledged_before_its_sync_is_caught: AckBeforeSync,
        a_hint_that_counts_towards_w_is_caught: HintCountsAsAck,
        replicas_that_stamp_their_own_time_is_caught: ReplicaStampsItsOwnTime,
        a_read_without_write_back_is_caught: NoWriteBack,
        an_empty_disk_that_votes_is_caught: EmptyDiskVotes,
        a_rebuild_mark_forgotten_in_a_crash_is_caught: RebuildMarkForgotten,
        a_log_cut_at_its_first_bad_frame_is_caught: LogCutAtFirstBadFrame,
        a_directory_that_is_not_synced_is_caught: DirectoryNotSynced,
        a_retry_under_a_new_timestamp_is_caught: RetryUnderNewTimestamp,
        a_timestamp_given_again_after_a_restart_is_caught: TimestampReusedAfterRestart,
        an_expired_value_that_is_forgotten_with_what_it_hides_is_caught: ExpiredForgotten,
        hints_that_are_never_sent_is_caught: HintsNeverSent,
        hints_that_are_not_stored_is_caught: HintsNotStored,
        a_late_replica_without_a_hint_is_caught: NoHintForLateReplica,
        a_deletion_without_a_hint_is_caught: NoHintForDeletion,
        a_newer_hint_deleted_with_an_older_is_caught: NewerHintDeletedWithOlder,
        a_refused_hint_that_is_dropped_is_caught: RefusedHintDropped,
        a_hint_without_its_expiry_is_caught: HintWithoutExpiry,
        an_acknowledgement_of_a_disk_that_does_not_vote_is_caught: NonVotingAckCounts,
        a_read_of_a_disk_that_does_not_vote_is_caught: NonVotingReadCounts,
        a_request_whose_own_w_is_ignored_is_caught: WriteQuorumOfRequestIgnored,
        a_request_whose_own_r_is_ignored_is_caught: ReadQuorumOfRequestIgnored,
        a_write_acknowledged_without_its_quorum_is_caught: UnmetQuorumAcknowledged,
        a_write_that_was_sent_and_is_reported_as_not_sent_is_caught: TimedOutWriteToldNotSent,
        two_hints_on_one_node_that_count_twice_is_caught: HintsOnOneNodeCountTwice,
        a_rebuild_that_does_not_settle_is_caught: NoSettlingBeforeRebuild,
        a_rebuild_from_one_peer_is_caught: RebuildFromOnePeer,
        a_rebuild_cursor_saved_before_its_page_is_caught: RebuildCursorBeforePage,
        a_rebuild_without_tombstones_is_caught: RebuildWithoutTombstones,
        a_rebuild_that_trusts_a_peer_being_rebuilt_is_caught: RebuildTrustsRebuildingPeer,
        a_write_back_without_a_second_question_is_caught: NoSecondQuestionAfterWriteBack,
        replicas_that_are_not_compared_in_the_background_is_caught: NoBackgroundComparison,
        a_scan_beyond_the_shortest_page_is_caught: ScanBeyondShortestPage,
        a_scan_of_disks_that_do_not_vote_is_caught: ScanCountsNonVotingPages,
        a_scan_that_drops_tombstones_too_soon_is_caught: ScanWithoutTombstones,
        a_scan_that_skips_a_key_between_pages_is_caught: ScanSkipsKeyBetweenPages,
        a_skew_that_is_not_checked_is_caught: PeerSkewNotChecked,
        a_disk_set_back_that_nobody_notices_is_caught: SetBackDiskNotNoticed,
        a_foreign_disk_that_nobody_notices_is_caught: ForeignDiskNotNoticed,
        an_empty_node_that_votes_before_it_heard_a_majority_is_caught: EmptyVotesBeforeMajority,
        a_node_that_votes_without_listening_is_caught: VotesWithoutListening,
        tombstones_dropped_with_replicas_is_caught: TombstonesDroppedWithReplicas,
        a_table_that_is_not_synced_is_caught: TableNotSynced,
        a_manifest_that_is_not_synced_is_caught: ManifestNotSynced,
        a_batch_of_one_timestamp_is_caught: BatchOfOneTimestamp,
        a_stop_that_forgets_stragglers_is_caught: StopForgetsStragglers,
        bytes_in_flight_that_are_not_given_back_is_caught: InflightBytesLeaked,
        a_repair_permit_that_is_not_given_back_is_caught: RepairPermitLeaked,
        obsolete_tables_that_stay_is_caught: ObsoleteTablesKept,
        damage_dropped_before_the_fall_is_written_is_caught: FallNotWrittenFirst,
        a_restored_disk_that_votes_is_caught: RestoredDiskVotes,
    }
}
