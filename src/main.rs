//! The `kvstore` binary: hands the command line to the library.

use std::process::ExitCode;

/// A request makes some fifty small allocations; this allocator needs a fraction of the system's instructions for each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kvstore::cli::run(std::env::args_os().skip(1))
}
