//! Options in search of one planted bug: what the bug needs to show is always on, and little else.

use std::time::Duration;

use kvstore::env::Mistake;

use super::faults::Faults;
use super::run::{Mix, Options};
use super::shape::Shape;

/// Half writes, half reads.
const HALVES: Mix = Mix {
    puts: 50,
    deletes: 0,
    batches: 0,
    scans: 0,
    delete_ranges: 0,
    gets: 50,
    own_quorums: 0.0,
    sloppy: 0.0,
    expiring: 0.0,
};

/// The options of a seed in search of one bug.
pub fn directed(seed: u64, mistake: Mistake) -> Options {
    let mut options = Options::swarm(seed);
    let timeout = options.shape.timeout_max().min(Duration::from_millis(800));
    options.shape = Shape::plain(3, timeout);
    options.storm = Duration::from_secs(30);
    options.think_ms_max = options.think_ms_max.min(100);
    options.keys = options.keys.min(4);
    options.hints_bytes_max = 1 << 30;
    let Mix { deletes, batches, scans, .. } = options.mix;
    options.mix = Mix { deletes, batches, scans, gets: 40, ..HALVES };
    let calm = Faults { gap_max: Duration::from_secs(3), ..Faults::none() };
    let faults = &mut options.faults;
    match mistake {
        Mistake::AckBeforeSync | Mistake::DirectoryNotSynced => faults.power_cuts = true,
        Mistake::HintCountsAsAck => (faults.partitions, faults.crashes) = (true, true),
        Mistake::ReplicaStampsItsOwnTime => faults.clock_offsets = true,
        Mistake::NoWriteBack => faults.weather.lost = 0.1,
        Mistake::EmptyDiskVotes | Mistake::NonVotingReadCounts | Mistake::RebuildFromOnePeer => {
            (options.clients, options.mix) = (5, HALVES);
            options.faults = Faults { wipes_apart: true, ..Faults::none() };
        }
        Mistake::RebuildMarkForgotten => (faults.wipes, faults.crash_in_rebuild) = (true, true),
        Mistake::LogCutAtFirstBadFrame => faults.rot = true,
        Mistake::RetryUnderNewTimestamp => {
            faults.weather.slow = 0.1;
            options.keys = 1;
            options.mix.deletes = 0;
        }
        Mistake::TimestampReusedAfterRestart => {
            // Many keys, so that what the last writes before the crash wrote can be read in the end.
            options.keys = 64;
            options.value_len_max = 64;
            options.pool_delay_max = Duration::from_millis(20);
            options.clients = 6;
            options.think_ms_max = 3;
            options.storm = Duration::from_secs(16);
            options.mix = HALVES;
            options.shape = Shape::plain(3, Duration::from_millis(300));
            options.clock_skew_max = Duration::from_secs(5);
            options.faults = Faults { turn_backs: true, ..Faults::none() };
        }
        Mistake::ExpiredForgotten => {
            // Keys that are left alone for long enough, and tables that are compacted as often as can be.
            (options.keys, options.clients) = (32, 5);
            (options.memtable_size, options.value_len_max) = (8 << 10, 2000);
            options.mix = Mix { puts: 40, expiring: 0.5, ..HALVES };
            options.faults = Faults::none();
        }
        Mistake::HintsNeverSent | Mistake::HintsNotStored => {
            options.faults = Faults { partitions: true, ..calm };
        }
        Mistake::NoHintForLateReplica => {
            // In a sloppy write replicas are given up before their calls fail.
            (options.keys, options.mix) = (16, Mix { own_quorums: 1.0, sloppy: 1.0, ..HALVES });
            options.faults = calm;
            options.faults.weather.lost = 0.05;
        }
        Mistake::NoHintForDeletion => {
            (options.keys, options.mix.deletes) = (16, 40);
            options.faults = Faults { partitions: true, ..calm };
        }
        Mistake::NewerHintDeletedWithOlder => {
            (options.keys, options.clients, options.mix) = (2, 5, HALVES);
            options.faults = calm;
            (options.faults.weather.lost, options.faults.weather.delay_max) =
                (0.2, Duration::from_millis(40));
        }
        Mistake::RefusedHintDropped => {
            // A node that stops refuses what comes.
            (options.keys, options.clients, options.mix) = (16, 5, HALVES);
            options.pool_delay_max = Duration::from_millis(20);
            options.faults = Faults { restarts: true, partitions: true, ..calm };
            options.faults.weather.lost = 0.1;
        }
        Mistake::HintWithoutExpiry => {
            (options.keys, options.mix.expiring) = (16, 0.8);
            options.faults = Faults { partitions: true, ..calm };
        }
        Mistake::NonVotingAckCounts => {
            options.faults = Faults { wipes: true, ..calm };
            options.faults.weather.delay_max = Duration::from_millis(40);
        }
        Mistake::WriteQuorumOfRequestIgnored | Mistake::ReadQuorumOfRequestIgnored => {
            options.mix = Mix { own_quorums: 0.8, ..HALVES };
            options.faults = Faults { partitions: true, ..calm };
            options.faults.weather.delay_max = Duration::from_millis(40);
        }
        Mistake::UnmetQuorumAcknowledged | Mistake::TimedOutWriteToldNotSent => {
            options.faults = Faults { partitions: true, pauses: true, ..calm };
            options.faults.weather.lost = 0.1;
        }
        Mistake::HintsOnOneNodeCountTwice => {
            options.mix = Mix { own_quorums: 1.0, sloppy: 1.0, ..HALVES };
            options.faults = Faults { partitions: true, crashes: true, ..calm };
        }
        Mistake::NoSettlingBeforeRebuild => {
            (options.keys, options.clients, options.think_ms_max, options.mix) = (16, 6, 10, HALVES);
            options.shape = Shape::plain(3, Duration::from_millis(1500));
            options.faults = Faults { wipes: true, slow_disks: true, ..calm };
            options.faults.down_max = Duration::from_millis(50);
            options.faults.gap_max = Duration::from_secs(1);
            let weather = &mut options.faults.weather;
            (weather.slow, weather.slow_max) = (0.3, Duration::from_millis(1400));
        }
        Mistake::RebuildCursorBeforePage => {
            (options.keys, options.shape) = (32, write_all(Duration::from_millis(700)));
            (options.mix, options.pool_delay_max) = (HALVES, Duration::from_millis(300));
            options.faults = Faults { wipes: true, crash_in_rebuild: true, ..calm };
            options.faults.down_max = Duration::from_millis(50);
        }
        Mistake::RebuildWithoutTombstones => {
            (options.keys, options.mix.deletes) = (16, 30);
            options.faults = Faults { wipes: true, ..calm };
        }
        Mistake::RebuildTrustsRebuildingPeer => {
            (options.keys, options.mix) = (32, HALVES);
            options.shape = Shape { replication_factor: 5, ..Shape::plain(5, timeout) };
            for node in &mut options.shape.nodes {
                (node.write_quorum, node.read_quorum) = (3, 3);
            }
            options.faults = Faults { wipes_of_two: true, ..Faults::none() };
        }
        Mistake::NoSecondQuestionAfterWriteBack => {
            (options.keys, options.clients, options.think_ms_max, options.mix) = (1, 6, 20, HALVES);
            options.faults = Faults { clock_offsets: true, ..calm };
            let weather = &mut options.faults.weather;
            (weather.lost, weather.slow) = (0.1, 0.1);
            (weather.delay_max, weather.slow_max) = (Duration::from_millis(40), Duration::from_millis(300));
        }
        Mistake::NoBackgroundComparison => {
            (options.keys, options.mix.gets) = (32, 2);
            options.faults = Faults { crashes: true, ..calm };
            options.faults.weather.lost = 0.1;
            options.faults.gap_max = Duration::from_secs(1);
        }
        Mistake::ScanBeyondShortestPage => {
            (options.keys, options.mix) = (32, Mix { scans: 20, deletes: 20, ..HALVES });
            options.faults = Faults { partitions: true, ..calm };
        }
        Mistake::ScanCountsNonVotingPages => {
            (options.clients, options.think_ms_max) = (5, 30);
            options.mix = Mix { scans: 30, ..HALVES };
            options.shape = Shape::plain(3, timeout);
            options.faults = Faults { wipes: true, crashes: true, partitions: true, ..calm };
            options.faults.weather.lost = 0.2;
        }
        Mistake::ScanWithoutTombstones => {
            (options.keys, options.mix) = (8, Mix { scans: 20, deletes: 40, ..HALVES });
            options.faults = Faults { partitions: true, ..calm };
        }
        Mistake::ScanSkipsKeyBetweenPages => {
            (options.keys, options.mix) = (16, Mix { scans: 10, ..HALVES });
            options.faults = calm;
        }
        Mistake::PeerSkewNotChecked => {
            options.mix = HALVES;
            options.faults = Faults { far_jumps: true, ..calm };
        }
        Mistake::SetBackDiskNotNoticed | Mistake::VotesWithoutListening => {
            (options.keys, options.mix, options.shape) = (16, HALVES, write_all(timeout));
            options.faults = Faults { set_backs: true, ..calm };
            options.faults.gap_max = Duration::from_secs(2);
        }
        Mistake::ForeignDiskNotNoticed => {
            (options.keys, options.mix, options.shape) = (32, HALVES, Shape::plain(5, timeout));
            options.faults = Faults { copies: true, ..calm };
        }
        Mistake::EmptyVotesBeforeMajority => {
            options.mix = HALVES;
            options.faults = Faults { wipes_alone: true, ..Faults::none() };
        }
        Mistake::TombstonesDroppedWithReplicas => {
            (options.keys, options.mix) = (16, Mix { deletes: 40, ..HALVES });
            (options.memtable_size, options.value_len_max) = (8 << 10, 2000);
            options.faults = calm;
        }
        Mistake::TableNotSynced | Mistake::ManifestNotSynced => {
            (options.keys, options.mix, options.think_ms_max) = (16, HALVES, 20);
            (options.memtable_size, options.value_len_max) = (8 << 10, 2000);
            options.faults = Faults { power_cuts: true, ..calm };
        }
        Mistake::BatchOfOneTimestamp => {
            (options.keys, options.mix) = (4, Mix { batches: 30, ..HALVES });
            options.faults = calm;
        }
        Mistake::StopForgetsStragglers => {
            (options.keys, options.clients, options.think_ms_max, options.mix) = (64, 6, 10, HALVES);
            options.shape = Shape::plain(3, Duration::from_secs(1));
            options.faults = Faults { restarts: true, ..calm };
            options.faults.weather.lost = 0.1;
        }
        Mistake::InflightBytesLeaked | Mistake::RepairPermitLeaked => {
            options.mix = HALVES;
            options.faults = Faults { partitions: true, ..calm };
            options.faults.weather.lost = 0.1;
        }
        Mistake::ObsoleteTablesKept => {
            (options.keys, options.mix, options.think_ms_max) = (16, HALVES, 20);
            (options.memtable_size, options.value_len_max) = (8 << 10, 2000);
            options.faults = calm;
        }
        Mistake::FallNotWrittenFirst => {
            (options.keys, options.mix, options.shape) = (16, HALVES, write_all(timeout));
            options.faults = Faults { rot: true, crash_in_rebuild: true, ..calm };
            options.faults.down_max = Duration::from_millis(300);
        }
        Mistake::RestoredDiskVotes => {
            (options.keys, options.mix, options.shape) = (16, HALVES, write_all(timeout));
            options.faults = Faults { restores: true, ..calm };
        }
    }
    options
}

/// Three nodes with W = 3 and R = 1: every disk that votes must hold all that was acknowledged.
fn write_all(timeout: Duration) -> Shape {
    let mut shape = Shape::plain(3, timeout);
    for node in &mut shape.nodes {
        (node.write_quorum, node.read_quorum) = (3, 1);
    }
    shape
}
