//! The short form of fuzzing: every property of `src/fuzz.rs` on seeded mutations of the corpus.
//!
//! ```bash
//! FUZZ_RUNS=1000000 FUZZ_TARGET=log cargo test --all-features --test fuzz_short    # more of one
//! FUZZ_SEED=7 cargo test --all-features --test fuzz_short                          # others
//! ```
#![cfg(feature = "fuzzing")]
#![allow(clippy::disallowed_methods)] // reads the corpus

use std::alloc::System;
use std::path::Path;

use kvstore::env::Rng;
use kvstore::fuzz::{TARGETS, Target};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What an input may make a property allocate in all: far less than any length that an input can claim.
fn bytes_allowed(len: usize) -> usize {
    (64 << 20) + 4096 * len
}
/// An input grows to this length, at most.
const LEN_MAX: usize = 12 << 10;
/// Numbers at which arithmetic goes wrong.
const NUMBERS: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has seeds", folder.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

struct Mutator {
    rng: Rng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    fn below(&self, end: usize) -> usize {
        self.rng.below(0..end.max(1) as u64) as usize
    }

    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill(&mut bytes);
        bytes
    }

    fn seed(&self) -> &[u8] {
        &self.seeds[self.below(self.seeds.len())]
    }

    fn input(&self) -> Vec<u8> {
        let mut input = if self.below(8) == 0 { self.bytes(self.below(300)) } else { self.seed().to_vec() };
        for _ in 0..self.below(6) {
            self.mutate(&mut input);
        }
        input.truncate(LEN_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.below(256) as u8,
            2 => {
                let word = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                for (place, byte) in input.iter_mut().skip(at).zip(&word[..1 << self.below(4)]) {
                    *place = *byte;
                }
            }
            3 => input.truncate(at),
            4 => {
                let end = (at + self.below(40)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let inserted = self.bytes(self.below(20));
                input.splice(at..at, inserted);
            }
            6 => {
                let other = self.seed();
                let from = self.below(other.len());
                let to = (from + self.below(64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let end = (at + self.below(40)).min(input.len());
                let copied = input[at..end].to_vec();
                input.extend_from_slice(&copied);
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

fn run((name, property): Target, runs: u64, seed: u64) {
    let mutator = Mutator { rng: Rng::from_seed(seed), seeds: corpus(name) };
    for input in mutator.seeds.iter().cloned().chain((0..runs).map(|_| mutator.input())) {
        let region = Region::new(ALLOCATOR);
        let outcome = std::panic::catch_unwind(|| property(&input));
        let allocated = region.change().bytes_allocated;
        let allowed = bytes_allowed(input.len());
        if outcome.is_err() || allocated > allowed {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            std::fs::write(&kept, &input).unwrap();
            panic!(
                "{name}: broken, or {allocated} bytes allocated, by {} bytes in {}",
                input.len(),
                kept.display()
            );
        }
    }
}

/// One test for all of them: what the process allocates is counted.
#[test]
fn no_input_breaks_a_property() {
    let (runs, seed) = (number("FUZZ_RUNS", 500), number("FUZZ_SEED", 1));
    let wanted = std::env::var("FUZZ_TARGET").ok();
    for target in TARGETS.into_iter().filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name))
    {
        run(target, runs, seed);
    }
}

/// Each target of libFuzzer calls the property of its name.
#[test]
fn every_property_has_a_target_of_its_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for (name, _) in TARGETS {
        let text = std::fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
        assert!(text.contains(&format!("kvstore::fuzz::{name}(")), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), TARGETS.len());
}
