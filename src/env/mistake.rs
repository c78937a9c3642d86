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
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 11] = [
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
