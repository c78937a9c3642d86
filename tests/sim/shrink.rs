//! Makes a run that is wrong smaller: switches off whatever it is wrong without.

use kvstore::env::Planted;

use super::member::Starter;
use super::run::{Mix, Options, Report, run};
use super::shape::Shape;

/// How many runs a shrink may take.
const RUNS_MAX: usize = 60;

/// Returns a run that is wrong too, with as few classes of faults and kinds of requests as were found.
pub fn shrink(report: Report, planted: Planted, starter: &Starter) -> Report {
    let mut shrinking = Shrinking { best: report, planted, starter, runs: 0 };
    shrinking.try_one(|options| options.shape = Shape::plain(3, options.shape.timeout_max()));
    let names: Vec<&str> =
        shrinking.best.options.clone().faults.switches().into_iter().map(|(name, _)| name).collect();
    for name in names {
        shrinking.try_one(|options| {
            for (_, on) in options.faults.switches().into_iter().filter(|(other, _)| *other == name) {
                *on = false;
            }
        });
    }
    shrinking.try_one(|options| (options.faults.weather.lost, options.faults.weather.slow) = (0.0, 0.0));
    shrinking.try_one(|options| options.faults.weather.repeated = 0.0);
    for simpler in [
        |mix: &mut Mix| mix.expiring = 0.0,
        |mix: &mut Mix| mix.batches = 0,
        |mix: &mut Mix| mix.scans = 0,
        |mix: &mut Mix| mix.delete_ranges = 0,
        |mix: &mut Mix| mix.deletes = 0,
        |mix: &mut Mix| mix.sloppy = 0.0,
        |mix: &mut Mix| mix.own_quorums = 0.0,
    ] {
        shrinking.try_one(|options| simpler(&mut options.mix));
    }
    shrinking.try_one(|options| options.keys = options.keys.min(2));
    shrinking.try_one(|options| options.clients = 1);
    for _ in 0..3 {
        shrinking.try_one(|options| options.storm /= 2);
    }
    shrinking.best
}

struct Shrinking<'a> {
    best: Report,
    planted: Planted,
    starter: &'a Starter,
    runs: usize,
}

impl Shrinking<'_> {
    /// Takes over a change of the options if the run is wrong with it, too.
    fn try_one(&mut self, change: impl FnOnce(&mut Options)) {
        let mut options = self.best.options.clone();
        change(&mut options);
        if options == self.best.options || self.runs == RUNS_MAX {
            return;
        }
        self.runs += 1;
        let report = run(&options, self.planted, self.starter);
        if !report.wrong.is_empty() {
            self.best = report;
        }
    }
}
