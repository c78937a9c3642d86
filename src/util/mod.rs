//! Small things without an opinion: byte coding, signals to many listeners, a handful of futures, tokens, secret files, request ids, units.

pub mod coding;
pub mod few;
pub mod patience;
pub mod request_id;
pub mod secret_file;
pub mod shutdown;
pub mod ticker;
pub mod tokens;
pub mod units;
