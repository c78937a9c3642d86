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

use super::{BATCHES_AT, Frame, HEADER_LEN, LogKey, OPENING_LEN, Opening, Payload, UNSALTED_OPENING_LEN};

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
    /// What its opening frames say, if one of them is readable.
    pub opening: Option<Opening>,
    /// Its encoded batches, in order, each with its offset.
    pub batches: Vec<(u64, Bytes)>,
    /// Where what counts of it ends.
    pub end: u64,
    /// The furthest place up to which one of its frames knows it to be synced.
    pub synced_through: u64,
    /// Whether a frame of this log begins at its end and is not whole.
    pub is_torn: bool,
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

/// What the beginning of a log says about the rest.
struct Head {
    opening: Opening,
    key: LogKey,
    /// Where the first batch begins.
    batches_at: usize,
    /// What is wrong with one of two opening frames.
    damage: Option<Damage>,
}

impl Head {
    /// Reads the opening frames of log `number`, the second where the first is damaged.
    fn read(number: u64, file: &Bytes) -> Option<Self> {
        let at = |offset: usize| {
            let frame = Frame::decode(LogKey::plain(number), file, offset)?;
            match frame.payload() {
                Payload::Opening(opening, salt) => Some((opening, salt, frame.end as usize)),
                Payload::Batch(_) | Payload::Unknown => None,
            }
        };
        let (first, second) = (at(0), at(OPENING_LEN));
        if let Some((opening, None, batches_at)) = first {
            return Some(Self { opening, key: LogKey::plain(number), batches_at, damage: None });
        }
        let damage = |offset: usize, which: &str| Damage {
            offset: offset as u64,
            detail: format!("the {which} opening frame is damaged; the other one is whole"),
        };
        let damage = match (first, second) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(damage(OPENING_LEN, "second")),
            (None, _) => Some(damage(0, "first")),
        };
        let (opening, Some(salt), _) = first.or(second)? else { return None };
        let batches_at = BATCHES_AT.min(file.len()); // it may have been cut short
        Some(Self { opening, key: LogKey::salted(number, salt), batches_at, damage })
    }
}

impl ReadLog {
    /// Reads the log `number` from its file's bytes.
    pub fn read(self, number: u64, file: &Bytes) -> LogContent {
        let Some(head) = Head::read(number, file) else { return self.without_opening(file) };
        let mut content = LogContent { opening: Some(head.opening), ..LogContent::default() };
        if let Some(damage) = head.damage {
            if self.cut_at_first_bad {
                return LogContent::default();
            }
            content.damage.push(damage);
        }
        self.read_frames(head.key, file, head.batches_at, &mut content);
        let at = content.end as usize;
        content.is_torn = file.get(at + 8..at + 24).is_some_and(|bound| {
            bound[..8] == head.key.tag.to_le_bytes() && bound[8..] == content.end.to_le_bytes()
        });
        content
    }

    fn read_frames(self, key: LogKey, file: &Bytes, mut at: usize, content: &mut LogContent) {
        content.end = at as u64;
        loop {
            // Even before the first frame: a full disk may have refused all that was to follow the opening.
            if self.synced_end.is_some_and(|end| at as u64 >= end) && !self.cut_at_first_bad {
                content.end = at as u64;
                return; // what lies behind was cut off by an earlier recovery, or refused
            }
            if let Some(frame) = Frame::decode(key, file, at) {
                at = frame.end as usize;
                content.take(&frame);
            } else {
                content.end = at as u64;
                match self.judge(key, file, at) {
                    Tail::Torn => return,
                    Tail::Damaged { detail, next } => {
                        content.damage.push(Damage { offset: at as u64, detail });
                        let Some(next) = next else { return };
                        at = next;
                    }
                }
            }
        }
    }

    /// What is known of a file without an opening frame that is whole. Its frames cannot be told from bytes that a
    /// client chose, so none is taken.
    fn without_opening(self, file: &Bytes) -> LogContent {
        // Version 1 named its files before anything in them was synced; such a file holds nothing but zeros.
        let was_never_begun = file.iter().skip(UNSALTED_OPENING_LEN).all(|byte| *byte == 0);
        let mut content = LogContent::default();
        let detail = match self.synced_end {
            _ if self.cut_at_first_bad => return content,
            Some(end) => {
                format!("no opening frame is whole, and the next log says that this one ended at byte {end}")
            }
            None if was_never_begun => return content,
            None => "no opening frame is whole, so that nothing of the log can be read".to_owned(),
        };
        content.damage.push(Damage { offset: 0, detail });
        content
    }

    /// Says what the bad bytes at `at` are.
    fn judge(self, key: LogKey, file: &Bytes, at: usize) -> Tail {
        if self.cut_at_first_bad {
            return Tail::Torn;
        }
        let mut later = LaterFrames { key, file, at: at + 1 };
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
        self.synced_through = self.synced_through.max(frame.synced_through);
        match frame.payload() {
            Payload::Batch(batch) => self.batches.push((frame.offset, batch)),
            Payload::Opening(..) | Payload::Unknown => self.damage.push(Damage {
                offset: frame.offset,
                detail: "a frame of a kind that this version does not know".to_owned(),
            }),
        }
    }
}

/// The valid frames that begin at a byte or later, wherever that is.
struct LaterFrames<'a> {
    key: LogKey,
    file: &'a Bytes,
    at: usize,
}

impl Iterator for LaterFrames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let tag = self.key.tag.to_le_bytes();
        while self.at + HEADER_LEN <= self.file.len() {
            let at = self.at;
            // The eight bytes of the salt rule out nearly every place before a checksum is computed.
            if self.file[at + 8..at + 16] == tag
                && let Some(frame) = Frame::decode(self.key, self.file, at)
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
    use super::super::{KIND_BATCH, encode_frame, encode_openings};
    use super::*;
    use proptest::prelude::*;

    const NUMBER: u64 = 9;
    const SALT: u64 = 0x5a17_0000_1234_5678;

    /// A log of `groups`, each synced before the next is written; returns it with the offsets of its frames.
    fn log_of(groups: &[&[&[u8]]]) -> (Vec<u8>, Vec<u64>) {
        let (mut file, mut offsets, mut synced) = (Vec::new(), Vec::new(), BATCHES_AT as u64);
        encode_openings(&mut file, NUMBER, Opening { previous: 7, previous_end: 99 }, SALT);
        for group in groups {
            for batch in *group {
                let offset = file.len() as u64;
                offsets.push(offset);
                encode_frame(&mut file, LogKey::salted(NUMBER, SALT), offset, synced, |out| {
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
        // A log whose every append a full disk refused ends where its opening does, whatever lies behind.
        let (mut file, offsets) = log_of(&[&[b"refused"]]);
        let how = ReadLog { synced_end: Some(offsets[0]), ..ReadLog::default() };
        let nothing = how.read(NUMBER, &Bytes::from(file.clone()));
        assert_eq!((nothing.batches, nothing.end, nothing.damage), (vec![], offsets[0], vec![]));
        file.truncate(offsets[0] as usize);
        assert_eq!(how.read(NUMBER, &Bytes::from(file)).damage, []);
    }

    #[test]
    fn frames_of_another_log_or_another_place_never_parse() {
        let (file, _) = log_of(&[&[b"one"], &[b"two"]]);
        let file = Bytes::from(file);
        let of_another = ReadLog::default().read(NUMBER + 1, &file);
        assert_eq!((batches(&of_another).len(), of_another.damage.len()), (0, 1));
        let elsewhere = read(&[&[0; 8][..], &file[..]].concat());
        assert_eq!((batches(&elsewhere).len(), elsewhere.damage.len()), (0, 1));
    }

    #[test]
    fn the_planted_mistake_cuts_where_damage_should_be_found() {
        let (mut file, offsets) = log_of(&[&[b"one"], &[b"two"]]);
        file[offsets[0] as usize] ^= 1;
        let how = ReadLog { cut_at_first_bad: true, ..ReadLog::default() };
        let content = how.read(NUMBER, &Bytes::from(file));
        assert_eq!((batches(&content).len(), content.damage.len()), (0, 0));
    }

    #[test]
    fn one_bad_opening_frame_is_damage_and_hides_nothing() {
        let (whole, _) = log_of(&[&[b"one"], &[b"two"]]);
        let opening = read(&whole).opening;
        assert_eq!(opening, Some(Opening { previous: 7, previous_end: 99 }));
        for (at, offset) in [(0, 0), (40, 0), (4095, 0), (4096, 4096), (8191, 4096)] {
            let mut file = whole.clone();
            file[at] ^= 1;
            let content = read(&file);
            assert_eq!((batches(&content), content.opening), (vec![&b"one"[..], b"two"], opening), "{at}");
            assert_eq!((content.damage.len(), content.damage[0].offset), (1, offset), "{at}");
        }
    }

    #[test]
    fn without_an_opening_frame_nothing_is_taken_and_only_a_file_of_zeros_was_never_begun() {
        let (mut file, _) = log_of(&[&[b"one"], &[b"two"]]);
        file[1] ^= 1;
        file[OPENING_LEN + 1] ^= 1;
        let content = read(&file);
        assert_eq!((content.opening, content.batches.len(), content.damage.len()), (None, 0, 1));
        assert_eq!(read(&vec![0; 20_000]), LogContent::default());
        assert_eq!(read(&[]), LogContent::default());
        let how = ReadLog { synced_end: Some(9000), ..ReadLog::default() };
        assert_eq!(how.read(NUMBER, &Bytes::from(vec![0; 20_000])).damage.len(), 1);
    }

    /// Frames as somebody would forge them who knows all but the salt: for this log and this place, in either format.
    fn forge(number: u64, salt: u64, offset: u64) -> Vec<u8> {
        let mut forged = Vec::new();
        for key in [LogKey::plain(number), LogKey::salted(number, salt)] {
            let at = offset + forged.len() as u64;
            encode_frame(&mut forged, key, at, u64::MAX, |out| {
                out.push(KIND_BATCH);
                out.extend_from_slice(b"ghost");
            });
        }
        forged
    }

    #[test]
    fn frames_in_a_value_are_not_found_where_a_search_passes_them() {
        let forged_at = BATCHES_AT as u64 + HEADER_LEN as u64 + 1;
        let forged = forge(NUMBER, !SALT, forged_at);
        let (whole, offsets) = log_of(&[&[&forged], &[b"two"], &[b"three"]]);
        for bad in [0, 1] {
            let mut file = whole.clone();
            file[offsets[bad] as usize + 6] ^= 1;
            let content = read(&file);
            assert!(!batches(&content).contains(&&b"ghost"[..]), "{content:?}");
            assert_eq!((content.batches.len(), content.damage.len()), (2, 1));
        }
        // In the last group of a log, or behind it: a torn tail, whatever the value says.
        let (mut file, offsets) = log_of(&[&[b"one"], &[&forged]]);
        file[offsets[1] as usize + 6] ^= 1;
        let at = file.len() as u64;
        file.extend_from_slice(&forge(NUMBER, !SALT, at));
        let content = read(&file);
        assert_eq!((batches(&content), &content.damage), (vec![&b"one"[..]], &vec![]));
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
            let at = BATCHES_AT + at.index(*offsets.last().unwrap() as usize - BATCHES_AT);
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
