//! Compaction: keeps few tables in the way of a read, and few dead records on the disk.
//!
//! [`picker`] decides which tables to rewrite, and is pure; [`run`] rewrites them. `version::set` installs what
//! comes out. Of each key only the newest record goes on: the others are hidden by it, now and always.

pub mod picker;
pub mod run;
pub mod steps;
