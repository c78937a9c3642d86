//! `Pacer`: lets a long job use a share of a processor's time, in small pieces.
//!
//! ```text
//! share 1/4   ██░░░░░░██░░░░░░██░░░░░░   2 ms of work, 6 ms of rest
//! share 1     ████████████████████████
//! ```
//!
//! A flush or a compaction that takes a core for a tenth of a second is a tenth of a second that requests wait where
//! cores are few. Spread over a second it is not felt, and nobody waits for its end. In simulation nothing rests: a
//! job takes no time there.
//!
//! Source: SILK (USENIX ATC 2019), which shows what bursts of an LSM's own work do to its tail.
#![allow(clippy::disallowed_methods)] // real time, on threads that no simulation has

use std::time::{Duration, Instant};

/// How long a job works before it rests.
const WORK: Duration = Duration::from_millis(2);
/// The smallest share, so that a rest is 62 ms at most.
const SHARE_MIN: f64 = 1.0 / 32.0;

/// Has one job rest now and then.
#[derive(Debug)]
pub struct Pacer {
    /// Since when it works without a rest; `None` in simulation.
    since: Option<Instant>,
}

impl Pacer {
    /// For a job that begins now, on a thread of its own or, without `rests`, in simulation.
    pub(super) fn new(rests: bool) -> Self {
        Self { since: rests.then(Instant::now) }
    }

    /// To be called every so often, in steps of far less than a millisecond. `share` says how much of the time the job
    /// may work from now on, up to 1; it is asked only when a rest is due.
    pub fn step(&mut self, share: impl FnOnce() -> f64) {
        let Some(since) = &mut self.since else { return };
        let worked = since.elapsed();
        if worked >= WORK {
            std::thread::sleep(rest_after(worked, share()));
            *since = Instant::now();
        }
    }
}

/// The share of a job that somebody waits for.
pub fn at_full_speed() -> f64 {
    1.0
}

/// The rest that makes work `share` of the whole. Work that took long was waiting for the disk: it counts once.
fn rest_after(worked: Duration, share: f64) -> Duration {
    let share = share.clamp(SHARE_MIN, 1.0);
    worked.min(WORK).mul_f64((1.0 - share) / share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_its_share_of_the_whole() {
        let ms = |worked, share| rest_after(Duration::from_millis(worked), share).as_micros() as u64;
        assert_eq!((ms(2, 1.0), ms(2, 0.5), ms(2, 0.125)), (0, 2_000, 14_000));
        assert_eq!(ms(500, 0.5), 2_000, "a slow disk is no work");
        assert_eq!((ms(2, 0.0), ms(2, 7.0)), (62_000, 0));
    }

    #[test]
    fn nobody_is_asked_before_a_rest_is_due_nor_in_simulation() {
        let mut simulated = Pacer::new(false);
        simulated.step(|| unreachable!("no time passes in simulation"));
        let mut pacer = Pacer { since: Some(Instant::now() + Duration::from_secs(60)) };
        pacer.step(|| unreachable!("it has not worked yet"));
        let mut asked = false;
        let mut pacer = Pacer { since: Instant::now().checked_sub(WORK) };
        pacer.step(|| {
            asked = true;
            1.0
        });
        assert!(asked);
    }
}
