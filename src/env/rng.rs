//! One seeded generator, handed down, never global. It seeds everything, hash maps too.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use foldhash::quality::FixedState;
use parking_lot::Mutex;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A source of chance. A clone draws from the same source; [`Rng::fork`] makes one of its own.
#[derive(Clone)]
pub struct Rng {
    shared: Arc<Mutex<Xoshiro256PlusPlus>>,
    /// Whether secrets come from the machine instead of the seed.
    is_real: bool,
}

/// The hasher of every hash map whose keys come from outside: seeded, so that nobody can aim at one bucket.
pub type SeededHasher = FixedState;

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng")
    }
}

impl Rng {
    /// The same seed draws the same numbers.
    pub fn from_seed(seed: u64) -> Self {
        Self { shared: Arc::new(Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed))), is_real: false }
    }

    /// Seeded by the machine. Good enough for identities and jitter; secrets come from [`Rng::secret_u64`].
    pub fn from_entropy() -> Self {
        Self { is_real: true, ..Self::from_seed(rand::random()) }
    }

    /// A generator of its own, seeded from this one.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { is_real: self.is_real, ..Self::from_seed(self.u64()) }
    }

    /// 64 bits that cannot be computed from other numbers drawn here: from the operating system's generator, or, in a
    /// simulation, from the seed.
    pub fn secret_u64(&self) -> u64 {
        if self.is_real { rand::random() } else { self.u64() }
    }

    /// Any 64 bits.
    pub fn u64(&self) -> u64 {
        self.shared.lock().next_u64()
    }

    /// A number of `range`, which must not be empty.
    pub fn below(&self, range: Range<u64>) -> u64 {
        self.shared.lock().random_range(range)
    }

    /// True with `probability` (0 to 1).
    pub fn chance(&self, probability: f64) -> bool {
        if probability >= 1.0 {
            return true; // no draw: the hot path asks this for every read
        }
        self.shared.lock().random_bool(probability.clamp(0.0, 1.0))
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.shared.lock().fill_bytes(bytes);
    }

    /// A hasher for one map.
    pub fn hasher(&self) -> SeededHasher {
        FixedState::with_seed(self.u64())
    }
}
