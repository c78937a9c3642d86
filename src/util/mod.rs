//! Small things without an opinion: byte coding, signals to many listeners, a handful of futures, tokens, host names, guesses at names, secret files, request ids, units.

pub mod coding;
pub mod few;
pub mod guess;
pub mod hosts;
pub mod patience;
pub mod request_id;
pub mod secret_file;
pub mod shutdown;
pub mod ticker;
pub mod tokens;
pub mod units;
