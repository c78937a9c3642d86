//! Reads a log back, and tells a torn tail from damage.
//!
//! ```text
//! frame │ frame │ bad │ …nothing valid          torn tail: cut here; nothing beyond was acknowledged
//! frame │ frame │ bad │ frame, synced ≤ here    torn tail too: a later group reached the disk before an earlier
//! frame │ frame │ bad │ frame, synced > here    damage: the bad bytes were synced, so they were right once
//! frame │ frame │ bad │ … the next log says that this one ended further on: damage
//! ```
//!
//! Pure: bytes in, frames and findings out.

use bytes::Bytes;

use super::{Frame, HEADER_LEN, Opening, Payload};

/// Bytes of a log that were synced and are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin.
    pub offset: u64,
    /// What is known about them.
    pub detail: String,
}

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogContent {
    /// What its first frame says, if that is readable.
    pub opening: Option<Opening>,
    /// Its encoded batches, in order, each with its offset.
    pub batches: Vec<(u64, Bytes)>,
    /// Where what counts of it ends.
    pub end: u64,
    /// What is missing from it. The batches behind damage are there all the same.
    pub damage: Vec<Damage>,
}

/// How a log is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadLog {
    /// Where the next log says that this one ended, synced.
    pub synced_end: Option<u64>,
    /// Takes every bad frame for a torn tail: a planted mistake.
    pub cut_at_first_bad: bool,
}

impl ReadLog {
    /// Reads the log `number` from its file's bytes.
    pub fn read(self, number: u64, file: &Bytes) -> LogContent {
        let mut content = LogContent::default();
        let mut at = 0;
        loop {
            if let Some(frame) = Frame::decode(number, file, at) {
                at = frame.end as usize;
                content.take(&frame);
            } else {
                content.end = at as u64;
                match self.judge(number, file, at) {
                    Tail::Torn => return content,
                    Tail::Damaged { detail, next } => {
                        content.damage.push(Damage { offset: at as u64, detail });
                        let Some(next) = next else { return content };
                        at = next;
                    }
                }
            }
            if self.synced_end.is_some_and(|end| at as u64 >= end) && !self.cut_at_first_bad {
                content.end = at as u64;
                return content; // what lies behind was cut off by an earlier recovery
            }
        }
    }

    /// Says what the bad bytes at `at` are.
    fn judge(self, number: u64, file: &Bytes, at: usize) -> Tail {
        if self.cut_at_first_bad {
            return Tail::Torn;
        }
        let mut later = LaterFrames { number, file, at: at + 1 };
        let Some(first) = later.next() else {
            return match self.synced_end {
                Some(end) => Tail::Damaged {
                    detail: format!("the next log says that this one ended at byte {end}"),
                    next: None,
                },
                None => Tail::Torn,
            };
        };
        let next = Some(first.offset as usize);
        let witness = std::iter::once(first).chain(later).find(|frame| frame.synced_through > at as u64);
        if let Some(frame) = witness {
            let (offset, synced) = (frame.offset, frame.synced_through);
            let detail = format!("the frame at byte {offset} knows that all up to byte {synced} was synced");
            return Tail::Damaged { detail, next };
        }
        match self.synced_end {
            Some(end) => {
                Tail::Damaged { detail: format!("the next log says that this one ended at byte {end}"), next }
            }
            None => Tail::Torn,
        }
    }
}

enum Tail {
    Torn,
    Damaged { detail: String, next: Option<usize> },
}

impl LogContent {
    fn take(&mut self, frame: &Frame) {
        self.end = frame.end;
        match frame.payload() {
            Payload::Batch(batch) => self.batches.push((frame.offset, batch)),
            Payload::Opening(opening) if frame.offset == 0 => self.opening = Some(opening),
            Payload::Opening(_) | Payload::Unknown => self.damage.push(Damage {
                offset: frame.offset,
                detail: "a frame of a kind that this version does not know".to_owned(),
            }),
        }
    }
}

/// The valid frames that begin at a byte or later, wherever that is.
struct LaterFrames<'a> {
    number: u64,
    file: &'a Bytes,
    at: usize,
}

impl Iterator for LaterFrames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let number = self.number.to_le_bytes();
        while self.at + HEADER_LEN <= self.file.len() {
            let at = self.at;
            // The eight bytes of the log number rule out nearly every place before a checksum is computed.
            if self.file[at + 8..at + 16] == number
                && let Some(frame) = Frame::decode(self.number, self.file, at)
            {
                self.at = frame.end as usize;
                return Some(frame);
            }
            self.at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KIND_BATCH, encode_frame};
    use super::*;
    use proptest::prelude::*;

    const NUMBER: u64 = 9;

    /// A log of `groups`, each synced before the next is written; returns it with the offsets of its frames.
    fn log_of(groups: &[&[&[u8]]]) -> (Vec<u8>, Vec<u64>) {
        let (mut file, mut offsets, mut synced) = (Vec::new(), Vec::new(), 0);
        for group in groups {
            for batch in *group {
                let offset = file.len() as u64;
                offsets.push(offset);
                encode_frame(&mut file, NUMBER, offset, synced, |out| {
                    out.push(KIND_BATCH);
                    out.extend_from_slice(batch);
                });
            }
            synced = file.len() as u64;
        }
        offsets.push(synced);
        file.resize(file.len() + 200, 0);
        (file, offsets)
    }

    fn batches(content: &LogContent) -> Vec<&[u8]> {
        content.batches.iter().map(|(_, batch)| &batch[..]).collect()
    }

    fn read(file: &[u8]) -> LogContent {
        ReadLog::default().read(NUMBER, &Bytes::copy_from_slice(file))
    }

    #[test]
    fn a_log_reads_back_up_to_its_zeros() {
        let (file, offsets) = log_of(&[&[b"one", b"two"], &[b"three"]]);
        let content = read(&file);
        assert_eq!(batches(&content), [&b"one"[..], b"two", b"three"]);
        assert_eq!((content.end, content.damage), (offsets[3], vec![]));
    }

    #[test]
    fn a_bad_frame_that_a_later_one_knows_synced_is_damage_and_what_follows_is_kept() {
        let (mut file, offsets) = log_of(&[&[b"one", b"two"], &[b"three"]]);
        file[offsets[1] as usize + HEADER_LEN + 1] ^= 1;
        let content = read(&file);
        assert_eq!(batches(&content), [&b"one"[..], b"three"]);
        assert_eq!(content.damage.len(), 1);
        assert_eq!(content.damage[0].offset, offsets[1]);
    }

    #[test]
    fn a_bad_frame_within_the_last_group_is_a_torn_tail_even_if_a_later_one_is_whole() {
        let (mut file, offsets) = log_of(&[&[b"one"], &[b"two", b"three"]]);
        file[offsets[1] as usize + 5] ^= 1;
        let content = read(&file);
        assert_eq!(batches(&content), [&b"one"[..]]);
        assert_eq!((content.end, content.damage), (offsets[1], vec![]));
    }

    #[test]
    fn a_log_that_ends_before_the_next_log_says_is_damaged() {
        let (mut file, offsets) = log_of(&[&[b"one"], &[b"two"]]);
        let end = offsets[2];
        let how = ReadLog { synced_end: Some(end), ..ReadLog::default() };
        assert_eq!(how.read(NUMBER, &Bytes::from(file.clone())).damage, []);
        file[offsets[1] as usize] ^= 1;
        let content = how.read(NUMBER, &Bytes::from(file));
        assert_eq!((content.damage.len(), content.damage[0].offset), (1, offsets[1]));
    }

    #[test]
    fn frames_behind_the_end_that_the_next_log_tells_are_not_read() {
        let (file, offsets) = log_of(&[&[b"one"], &[b"two"]]);
        let how = ReadLog { synced_end: Some(offsets[1]), ..ReadLog::default() };
        let content = how.read(NUMBER, &Bytes::from(file));
        assert_eq!((batches(&content), content.end), (vec![&b"one"[..]], offsets[1]));
    }

    #[test]
    fn frames_of_another_log_or_another_place_never_parse() {
        let (file, _) = log_of(&[&[b"one"], &[b"two"]]);
        let file = Bytes::from(file);
        assert_eq!(ReadLog::default().read(NUMBER + 1, &file), LogContent::default());
        assert_eq!(read(&[&[0; 8][..], &file[..]].concat()), LogContent::default());
    }

    #[test]
    fn the_planted_mistake_cuts_where_damage_should_be_found() {
        let (mut file, offsets) = log_of(&[&[b"one"], &[b"two"]]);
        file[offsets[0] as usize] ^= 1;
        let how = ReadLog { cut_at_first_bad: true, ..ReadLog::default() };
        assert_eq!(how.read(NUMBER, &Bytes::from(file)), LogContent::default());
    }

    proptest! {
        /// Whatever single byte changes, what is read is what was written, or its loss is told, or it was last.
        #[test]
        fn a_flipped_byte_is_never_read_and_its_loss_is_told_unless_it_hit_the_last_group(
            sizes in proptest::collection::vec(proptest::collection::vec(0usize..40, 1..4), 1..5),
            at: prop::sample::Index, bit in 0u8..8,
        ) {
            let groups: Vec<Vec<Vec<u8>>> = sizes.iter().enumerate()
                .map(|(g, sizes)| sizes.iter().map(|len| vec![g as u8; *len]).collect()).collect();
            let groups: Vec<Vec<&[u8]>> = groups.iter().map(|g| g.iter().map(|b| &b[..]).collect()).collect();
            let groups: Vec<&[&[u8]]> = groups.iter().map(|g| &g[..]).collect();
            let (mut file, offsets) = log_of(&groups);
            let whole = read(&file);
            let at = at.index(*offsets.last().unwrap() as usize);
            file[at] ^= 1 << bit;
            let content = read(&file);
            prop_assert!(content.batches.iter().all(|batch| whole.batches.contains(batch)));
            let last_group_at = offsets[offsets.len() - 1 - groups.last().unwrap().len()];
            if (at as u64) < last_group_at {
                prop_assert_eq!(content.damage.len(), 1);
                prop_assert_eq!(content.batches.len(), whole.batches.len() - 1);
            } else {
                prop_assert_eq!(&content.damage, &vec![]);
                prop_assert!(content.batches.len() < whole.batches.len());
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(file: Vec<u8>, number in 0u64..3, synced_end: Option<u64>) {
            ReadLog { synced_end, cut_at_first_bad: false }.read(number, &Bytes::from(file));
        }
    }
}
