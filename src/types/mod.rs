//! What every layer talks about: keys, values, records and their timestamps.

pub mod key;
pub mod record;
pub mod timestamp;

pub use key::{ContentType, Key, KeyRange, Value};
pub use record::{Record, Version};
pub use timestamp::{Expiry, NodeId, Timestamp, Ttl};
