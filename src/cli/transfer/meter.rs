//! Meter: a progress bar on a terminal, and what is said at the end.
#![allow(clippy::disallowed_methods)] // the command line lives in the real world

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a command has come.
#[derive(Debug)]
pub struct Meter {
    bar: ProgressBar,
    begun: Instant,
}

impl Meter {
    /// Of so many bytes.
    pub fn of_bytes(total: u64) -> Self {
        Self::new(Some(total), "{elapsed_precise} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {msg}")
    }

    /// Of something that says only at its end how much it was.
    pub fn endless() -> Self {
        Self::new(None, "{elapsed_precise} {spinner} {msg}")
    }

    fn new(total: Option<u64>, template: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(template).expect("a constant template");
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            bar.with_style(style.progress_chars("=> "))
        } else {
            ProgressBar::hidden()
        };
        Self { bar, begun: Instant::now() }
    }

    /// Goes to a place, and says something about it.
    pub fn at(&self, position: u64, message: impl Into<std::borrow::Cow<'static, str>>) {
        if !self.bar.is_hidden() {
            self.bar.set_position(position);
            self.bar.set_message(message);
        }
    }

    /// Says how much there is in all.
    pub fn of(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Takes the bar away, and says how long it took.
    pub fn end(&self) -> Duration {
        self.bar.finish_and_clear();
        self.begun.elapsed()
    }
}

/// So many a second.
pub fn rate(count: u64, took: Duration) -> u64 {
    (count as f64 / took.as_secs_f64().max(0.001)) as u64
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
