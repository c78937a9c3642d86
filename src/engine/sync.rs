//! The atomics and the lock of what several threads use at once: those of the standard library and of `parking_lot`. In unit tests
//! each operation on them is also a point at which [`super::interleave`] may let another thread go on.

#[cfg(not(test))]
pub use parking_lot::Mutex;
#[cfg(not(test))]
pub use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize};

#[cfg(test)]
pub use tested::{AtomicPtr, AtomicU64, AtomicUsize, Mutex};

#[cfg(test)]
mod tested {
    use std::sync::atomic::{self, Ordering};

    use parking_lot::MutexGuard;

    use crate::engine::interleave::{blocked, point};

    macro_rules! atomics {
        ($($name:ident $(<$t:ident>)? of $value:ty),*) => { $(
            /// The atomic of the same name, with a point before each operation; of the same layout.
            #[derive(Debug)]
            #[repr(transparent)]
            pub struct $name $(<$t>)? (atomic::$name $(<$t>)?);

            impl $(<$t>)? $name $(<$t>)? {
                pub const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    point();
                    self.0.load(order)
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    point();
                    self.0.store(value, order);
                }
            }
        )* };
    }

    atomics!(AtomicPtr<T> of *mut T, AtomicU64 of u64, AtomicUsize of usize);

    impl<T> AtomicPtr<T> {
        pub fn swap(&self, value: *mut T, order: Ordering) -> *mut T {
            point();
            self.0.swap(value, order)
        }
    }

    impl AtomicUsize {
        pub fn fetch_add(&self, value: usize, order: Ordering) -> usize {
            point();
            self.0.fetch_add(value, order)
        }
    }

    /// A lock whose waiters let others go on.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(parking_lot::Mutex<T>);

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self(parking_lot::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            point();
            loop {
                if let Some(guard) = self.0.try_lock() {
                    return guard;
                }
                if !blocked() {
                    return self.0.lock();
                }
            }
        }
    }
}
