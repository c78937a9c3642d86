//! The request path on three real nodes (and more), in one process, under paused time.

mod batches;
mod harness;
mod reads;
mod writes;
