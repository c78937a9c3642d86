//! The `kvstore` binary: hands the command line to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvstore::cli::run(std::env::args_os().skip(1))
}
