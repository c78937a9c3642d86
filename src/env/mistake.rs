//! Mistakes that a test of the tests plants, to see that the simulation catches them.
//!
//! Without the feature `planted-mistakes` every question answers `false` at compile time.

/// A mistake that stores of this kind have really made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A write is acknowledged before the sync that covers it.
    AckBeforeSync,
    /// A hint counts towards W in strict mode.
    HintCountsAsAck,
    /// Every replica stamps a write with its own clock.
    ReplicaStampsItsOwnTime,
    /// A read answers with the winner before it is on N − R + 1 replicas.
    NoWriteBack,
    /// A node with an empty disk votes at once.
    EmptyDiskVotes,
    /// That a rebuild is under way is not written down, so a crash in the middle forgets it.
    RebuildMarkForgotten,
    /// Recovery cuts a log at its first bad frame, even where later frames prove that it was synced.
    LogCutAtFirstBadFrame,
    /// A new file's directory entry is not synced.
    DirectoryNotSynced,
    /// A write that is slow to be acknowledged is sent again under a later timestamp.
    RetryUnderNewTimestamp,
    /// The clock's high-water mark is not kept, so a restart with the clock set back gives timestamps twice.
    TimestampReusedAfterRestart,
    /// Compaction drops an expired value outright, though it still hides what it overwrote.
    ExpiredForgotten,
    /// Hints are stored, and never delivered.
    HintsNeverSent,
    /// A hint is reported as stored, and is not.
    HintsNotStored,
    /// A replica that has not answered by the deadline gets no hint.
    NoHintForLateReplica,
    /// Hints are kept for values, not for deletions.
    NoHintForDeletion,
    /// Deleting a delivered hint also deletes a newer one that was stored meanwhile.
    NewerHintDeletedWithOlder,
    /// A hint that its target refused for now is taken for delivered.
    RefusedHintDropped,
    /// A hint delivers its value without the time at which it ends.
    HintWithoutExpiry,
    /// The acknowledgement of a disk that does not vote counts towards W.
    NonVotingAckCounts,
    /// A replica whose disk does not vote says that its answers to reads count.
    NonVotingReadCounts,
    /// The W that a request asks for is ignored.
    WriteQuorumOfRequestIgnored,
    /// The R that a request asks for is ignored.
    ReadQuorumOfRequestIgnored,
    /// A write whose quorum can no longer be met is acknowledged all the same.
    UnmetQuorumAcknowledged,
    /// A write that did not meet its quorum in time is reported as not sent.
    TimedOutWriteToldNotSent,
    /// In a sloppy write every hint counts towards W, also a second one on the same node.
    HintsOnOneNodeCountTwice,
    /// A rebuild does not wait until the writes that counted the lost disk are decided.
    NoSettlingBeforeRebuild,
    /// A rebuild ends once it has read one peer.
    RebuildFromOnePeer,
    /// A rebuild's cursor is saved before the page that it covers is stored.
    RebuildCursorBeforePage,
    /// A rebuild takes over values, not tombstones.
    RebuildWithoutTombstones,
    /// A rebuild counts a peer that is being rebuilt itself as one whose disk votes.
    RebuildTrustsRebuildingPeer,
    /// A replica that was written back counts as holding the winner without being asked what it holds now.
    NoSecondQuestionAfterWriteBack,
    /// The replicas that a read did not need are never compared with what it found.
    NoBackgroundComparison,
    /// A scan merges pages up to the end of the longest, where the others have not said what they hold.
    ScanBeyondShortestPage,
    /// A scan relies on pages of disks that do not vote.
    ScanCountsNonVotingPages,
    /// A scan drops tombstones before it merges, so that older values on other replicas show.
    ScanWithoutTombstones,
    /// A scan's next page begins behind the first key that the page before left out.
    ScanSkipsKeyBetweenPages,
    /// A peer's timestamp is accepted however far it is ahead.
    PeerSkewNotChecked,
    /// That a peer remembers a later state of this disk is ignored.
    SetBackDiskNotNoticed,
    /// That a peer remembers another disk under this name is ignored.
    ForeignDiskNotNoticed,
    /// An empty node votes before it has heard a majority.
    EmptyVotesBeforeMajority,
    /// A node votes as its disk says before it has listened to its peers.
    VotesWithoutListening,
    /// Compaction drops tombstones although other replicas may hold what they hide.
    TombstonesDroppedWithReplicas,
    /// A table is named in the manifest before its bytes are synced.
    TableNotSynced,
    /// The manifest is not synced before the log that a flush made obsolete is reused.
    ManifestNotSynced,
    /// All items of a batch get the same timestamp.
    BatchOfOneTimestamp,
    /// A node that stops does not wait for replicas that have not answered yet.
    StopForgetsStragglers,
    /// The bytes in flight of a read that fails are never given back.
    InflightBytesLeaked,
    /// The permit of a background repair is never given back.
    RepairPermitLeaked,
    /// Tables that a compaction replaced stay on the disk.
    ObsoleteTablesKept,
    /// Damaged data is dropped before the disk says that it no longer votes.
    FallNotWrittenFirst,
    /// A directory restored from a checkpoint votes at once, though it is older than what it acknowledged.
    RestoredDiskVotes,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 51] = [
        Self::AckBeforeSync,
        Self::HintCountsAsAck,
        Self::ReplicaStampsItsOwnTime,
        Self::NoWriteBack,
        Self::EmptyDiskVotes,
        Self::RebuildMarkForgotten,
        Self::LogCutAtFirstBadFrame,
        Self::DirectoryNotSynced,
        Self::RetryUnderNewTimestamp,
        Self::TimestampReusedAfterRestart,
        Self::ExpiredForgotten,
        Self::HintsNeverSent,
        Self::HintsNotStored,
        Self::NoHintForLateReplica,
        Self::NoHintForDeletion,
        Self::NewerHintDeletedWithOlder,
        Self::RefusedHintDropped,
        Self::HintWithoutExpiry,
        Self::NonVotingAckCounts,
        Self::NonVotingReadCounts,
        Self::WriteQuorumOfRequestIgnored,
        Self::ReadQuorumOfRequestIgnored,
        Self::UnmetQuorumAcknowledged,
        Self::TimedOutWriteToldNotSent,
        Self::HintsOnOneNodeCountTwice,
        Self::NoSettlingBeforeRebuild,
        Self::RebuildFromOnePeer,
        Self::RebuildCursorBeforePage,
        Self::RebuildWithoutTombstones,
        Self::RebuildTrustsRebuildingPeer,
        Self::NoSecondQuestionAfterWriteBack,
        Self::NoBackgroundComparison,
        Self::ScanBeyondShortestPage,
        Self::ScanCountsNonVotingPages,
        Self::ScanWithoutTombstones,
        Self::ScanSkipsKeyBetweenPages,
        Self::PeerSkewNotChecked,
        Self::SetBackDiskNotNoticed,
        Self::ForeignDiskNotNoticed,
        Self::EmptyVotesBeforeMajority,
        Self::VotesWithoutListening,
        Self::TombstonesDroppedWithReplicas,
        Self::TableNotSynced,
        Self::ManifestNotSynced,
        Self::BatchOfOneTimestamp,
        Self::StopForgetsStragglers,
        Self::InflightBytesLeaked,
        Self::RepairPermitLeaked,
        Self::ObsoleteTablesKept,
        Self::FallNotWrittenFirst,
        Self::RestoredDiskVotes,
    ];
}

/// Which mistake is planted, if any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    #[cfg(feature = "planted-mistakes")]
    mistake: Option<Mistake>,
}

impl Planted {
    /// Plants one.
    #[cfg(feature = "planted-mistakes")]
    pub fn mistake(mistake: Mistake) -> Self {
        Self { mistake: Some(mistake) }
    }

    /// Whether the code at hand should make this mistake.
    #[cfg(feature = "planted-mistakes")]
    pub fn has(self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Whether the code at hand should make this mistake: never, in a build without the feature.
    #[cfg(not(feature = "planted-mistakes"))]
    #[inline(always)]
    #[allow(clippy::inline_always, clippy::unused_self)] // the question must cost nothing in a release
    pub fn has(self, _mistake: Mistake) -> bool {
        false
    }
}
