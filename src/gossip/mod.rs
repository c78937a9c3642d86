//! What nodes tell each other in passing: today that they live, and facts about themselves.
//!
//! ```text
//! ping ──Facts──> peer          every 200 ms, each way of its own
//!      <──Facts── pong          its arrival is what counts: FailureDetector
//! ```
//!
//! Liveness is belief, membership is decision: nothing here changes who owns what.

pub mod detector;
pub mod ping;

pub use detector::{ClockOffset, FailureDetector, Liveness};
pub use ping::{PingLoop, Pings};
