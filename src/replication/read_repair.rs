//! `ReadRepair`: what the replicas of a key said, who wins, and which of them are behind. Pure.
//!
//! ```text
//!  said          A: v9     B: v7     C: version of v9      (N = 3, R = 2)
//!  winner        v9, whole (from A)                         by Record::supersedes
//!  holders       A, C                                       they answered with exactly the winner: it is on their disks
//!  settled?      all voting answers agree, or at least N − R + 1 = 2 hold it: any later R answers then hold one of them
//!  behind        B                                          to be sent the winner
//! ```
//!
//! Only voting answers count, as records or as versions alike. A version that beats the best whole record makes
//! that record be fetched ([`ReadRepair::to_fetch`]); two versions of one timestamp cannot be compared without
//! their records, so that counts as beating too. "Nothing" is older than any record.
//!
//! Source: Dynamo, section 5 (read repair); writing back before the answer is the second phase of a read in
//! Attiya, Bar-Noy and Dolev, "Sharing memory robustly in message-passing systems" (1995).

use crate::types::{Record, Version};

/// What one replica said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet.
    Unheard,
    /// The version of what it holds, if it holds anything. Its disk counts.
    Tells(Option<Version>),
    /// The same, and the record itself was seen.
    Holds(Option<Version>),
    /// It answered, but its disk does not count.
    NotVoting,
    /// Its copy is damaged.
    Damaged,
    /// It did not answer, or refused.
    Failed,
}

/// What the replicas of one key said.
///
/// Invariant: `winner` is the best of the whole records heard, and was heard from a voting replica.
#[derive(Debug, Clone)]
pub struct ReadRepair {
    said: Vec<Said>,
    needed: usize,
    winner: Option<Record>,
    /// `winner`'s version, made once.
    version: Option<Version>,
}

impl ReadRepair {
    /// Nobody has said anything. `needed` is R.
    pub fn new(replica_count: usize, needed: usize) -> Self {
        Self { said: vec![Said::Unheard; replica_count], needed, winner: None, version: None }
    }

    /// A voting replica sent what it holds, whole.
    pub fn on_record(&mut self, replica: usize, record: Option<Record>) {
        let version = record.as_ref().map(Record::version);
        if !self.is_old_news(replica, version) {
            self.said[replica] = Said::Holds(version);
        }
        if let Some(record) = record
            && self.winner.as_ref().is_none_or(|winner| record.supersedes(winner))
        {
            self.winner = Some(record);
            self.version = version;
        }
    }

    /// A replica said something that is no record: a version, or why it has none to offer.
    pub fn on_said(&mut self, replica: usize, said: Said) {
        let old_news = matches!(said, Said::Tells(version) if self.is_old_news(replica, version))
            || matches!((said, self.said[replica]), (Said::Tells(told), Said::Holds(held)) if told == held);
        if !old_news {
            self.said[replica] = said;
        }
    }

    /// Whether a replica has told of something newer already: answers may overtake each other.
    fn is_old_news(&self, replica: usize, version: Option<Version>) -> bool {
        let timestamp = |version: Option<Version>| version.map(|version| version.timestamp);
        match self.said[replica] {
            Said::Tells(held) | Said::Holds(held) => timestamp(held) > timestamp(version),
            Said::Unheard | Said::NotVoting | Said::Damaged | Said::Failed => false,
        }
    }

    /// What a replica said last.
    pub fn said(&self, replica: usize) -> Said {
        self.said[replica]
    }

    /// The best whole record.
    pub fn winner(&self) -> Option<&Record> {
        self.winner.as_ref()
    }

    /// The winner's version.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// How many answers count.
    pub fn answers(&self) -> usize {
        self.said.iter().filter(|said| matches!(said, Said::Tells(_) | Said::Holds(_))).count()
    }

    /// R.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// Whether enough answers count.
    pub fn is_answered(&self) -> bool {
        self.answers() >= self.needed
    }

    /// A replica that holds a record which may beat the winner and must be seen whole.
    pub fn to_fetch(&self) -> Option<usize> {
        let may_beat = |held: &Version| {
            self.version.is_none_or(|best| *held != best && held.timestamp >= best.timestamp)
        };
        let beats = |said: &Said| matches!(said, Said::Tells(Some(held)) if may_beat(held));
        self.said.iter().position(beats)
    }

    /// How many replicas hold exactly the winner on disks that count.
    pub fn holders(&self) -> usize {
        let holds = |said: &&Said| match said {
            Said::Tells(held) | Said::Holds(held) => *held == self.version,
            Said::Unheard | Said::NotVoting | Said::Damaged | Said::Failed => false,
        };
        self.said.iter().filter(holds).count()
    }

    /// How many must hold the winner before a read that saw disagreement may answer: N − R + 1, where an R above
    /// the majority counts as the majority, since the next quorum read may ask for no more than that.
    pub fn holders_needed(&self) -> usize {
        let majority = self.said.len() / 2 + 1;
        self.said.len() - self.needed.min(majority) + 1
    }

    /// Whether a read may answer with the winner: all answers agree, or enough replicas hold it.
    pub fn is_settled(&self) -> bool {
        let holders = self.holders();
        holders == self.answers() || holders >= self.holders_needed()
    }

    /// Whether a replica answered, or would have, with something older than the winner.
    pub fn is_behind(&self, replica: usize) -> bool {
        match self.said[replica] {
            Said::Tells(held) | Said::Holds(held) => self.version.is_some() && held != self.version,
            Said::Damaged => self.version.is_some(),
            Said::Unheard | Said::NotVoting | Said::Failed => false,
        }
    }

    /// Whether all that was heard is damage.
    pub fn is_all_damage(&self) -> bool {
        let heard = |said: &Said| !matches!(said, Said::Unheard | Said::Failed);
        let damaged = |said: &Said| *said == Said::Damaged;
        self.said.iter().any(damaged) && self.said.iter().filter(|said| heard(said)).all(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Timestamp, Value};
    use proptest::prelude::*;

    fn value(micros: u64, text: &'static str) -> Record {
        Record::value(Timestamp::from_micros(micros), Value::new(text))
    }

    fn tells(record: &Record) -> Said {
        Said::Tells(Some(record.version()))
    }

    #[test]
    fn replicas_that_agree_settle_a_read() {
        let mut repair = ReadRepair::new(3, 2);
        repair.on_record(0, Some(value(9, "new")));
        assert!(!repair.is_answered());
        repair.on_said(2, tells(&value(9, "new")));
        assert!(repair.is_answered() && repair.is_settled());
        assert_eq!(repair.to_fetch(), None);
    }

    #[test]
    fn nothing_is_an_answer_and_older_than_any_record() {
        let mut repair = ReadRepair::new(3, 2);
        repair.on_record(0, None);
        repair.on_record(1, None);
        assert!(repair.is_answered() && repair.is_settled() && repair.winner().is_none());
        repair.on_record(2, Some(value(1, "late")));
        assert!(!repair.is_settled());
        assert!(repair.is_behind(0) && repair.is_behind(1) && !repair.is_behind(2));
    }

    #[test]
    fn a_read_of_all_replicas_leaves_its_winner_on_a_majority() {
        // With R = 3 of 3, one holder was once taken for enough; a later read with R = 2 then missed it.
        let mut repair = ReadRepair::new(3, 3);
        repair.on_record(0, Some(value(9, "new")));
        repair.on_record(1, Some(value(7, "old")));
        repair.on_record(2, Some(value(7, "old")));
        assert!(repair.is_answered() && !repair.is_settled());
        repair.on_record(2, Some(value(9, "new")));
        assert!(repair.is_settled());
    }

    #[test]
    fn a_read_that_saw_disagreement_is_settled_once_enough_replicas_hold_the_winner() {
        let mut repair = ReadRepair::new(3, 2);
        let new = value(9, "new");
        repair.on_record(0, Some(new.clone()));
        repair.on_record(1, Some(value(7, "old")));
        assert!(repair.is_answered() && !repair.is_settled());
        repair.on_record(1, Some(new));
        assert!(repair.is_settled());
    }

    #[test]
    fn an_older_answer_that_comes_later_changes_nothing() {
        let mut repair = ReadRepair::new(3, 2);
        let (old, new) = (value(7, "old"), value(9, "new"));
        repair.on_record(0, Some(new.clone()));
        repair.on_record(1, Some(new.clone()));
        repair.on_said(1, tells(&old));
        repair.on_record(0, Some(old));
        assert!(repair.is_settled() && repair.holders() == 2 && repair.winner() == Some(&new));
    }

    #[test]
    fn a_version_that_wins_makes_its_record_be_fetched() {
        let mut repair = ReadRepair::new(3, 2);
        let new = value(9, "new");
        repair.on_record(0, Some(value(7, "old")));
        repair.on_said(1, tells(&new));
        assert_eq!(repair.to_fetch(), Some(1));
        repair.on_record(1, Some(new.clone()));
        assert_eq!((repair.to_fetch(), repair.winner()), (None, Some(&new)));
    }

    #[test]
    fn two_values_of_one_timestamp_are_compared_once_by_their_bytes() {
        let mut repair = ReadRepair::new(2, 2);
        let (less, greater) = (value(9, "a"), value(9, "b"));
        repair.on_record(0, Some(greater.clone()));
        repair.on_said(1, tells(&less));
        assert_eq!(repair.to_fetch(), Some(1));
        repair.on_record(1, Some(less));
        assert_eq!((repair.to_fetch(), repair.winner()), (None, Some(&greater)));
        assert!(repair.is_behind(1));
    }

    #[test]
    fn only_damage_from_everybody_who_answered_is_damage() {
        let mut repair = ReadRepair::new(3, 2);
        repair.on_said(0, Said::Damaged);
        repair.on_said(1, Said::Failed);
        assert!(repair.is_all_damage());
        repair.on_record(2, None);
        assert!(!repair.is_all_damage());
    }

    #[test]
    fn a_damaged_replica_is_behind_whatever_wins() {
        let mut repair = ReadRepair::new(3, 2);
        repair.on_said(0, Said::Damaged);
        assert!(!repair.is_behind(0));
        repair.on_record(1, Some(value(1, "v")));
        assert!(repair.is_behind(0));
        repair.on_said(2, Said::NotVoting);
        assert!(!repair.is_behind(2));
    }

    proptest! {
        /// Of what any later R replicas hold once a read has settled, something is at least the winner.
        #[test]
        fn a_settled_read_leaves_no_r_replicas_without_its_winner(
            held in proptest::collection::vec(0u64..3, 5),
            order in Just([0usize, 1, 2, 3, 4]).prop_shuffle(),
            needed in 3usize..=5,
        ) {
            let record = |held: u64| (held > 0).then(|| value(held, "v"));
            let mut disks = held.clone();
            let mut repair = ReadRepair::new(5, needed);
            for replica in order {
                repair.on_record(replica, record(disks[replica]));
                if repair.is_answered() {
                    break;
                }
            }
            let winner = repair.winner().map_or(0, |winner| winner.timestamp().micros());
            for replica in order {
                if repair.is_settled() {
                    break;
                }
                disks[replica] = disks[replica].max(winner);
                repair.on_record(replica, repair.winner().cloned());
            }
            prop_assert!(repair.is_settled());
            let older = disks.iter().filter(|held| **held < winner).count();
            prop_assert!(older < needed, "{disks:?} lets a read of {needed} miss {winner}");
        }
    }
}
