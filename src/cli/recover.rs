//! recover: gives up what is damaged in a data directory that no node is using.
//!
//! Only a node that is alone needs it: one with replicas rebuilds what is damaged from them by itself. Takes the flags
//! of `serve` too, so that the directory and its cluster can be named as they are for the node.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::raw::RawArgs;
use crate::config::{self, Loaded};
use crate::env::Env;
use crate::node;

const CONSENT: &str = "--drop-damaged";
const USAGE: &str = "usage: kvstore recover --drop-damaged DIR [-name value …]
  Gives up what is damaged in DIR, keeps the rest, and says what that was. What is given up is lost; a copy of
  DIR made before keeps a way back. The other flags are those of `kvstore serve`.
";

/// Gives up what is damaged in a data directory
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    raw: RawArgs,
}

/// Runs the command. Exit codes: 0 done, 1 the directory is in use or unusable, 2 bad arguments.
pub fn run(args: &Args) -> ExitCode {
    let args: Vec<OsString> = args.raw.args.clone();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        let _ = std::io::stdout().write_all(USAGE.as_bytes());
        return ExitCode::SUCCESS;
    }
    let consents = args.iter().any(|arg| arg == CONSENT);
    let mut rest: Vec<OsString> = args.into_iter().filter(|arg| arg != CONSENT).collect();
    if rest.first().is_some_and(|first| !first.to_string_lossy().starts_with('-')) {
        rest.insert(0, "-dir".into());
    }
    if !consents || rest.is_empty() {
        let _ = std::io::stderr().write_all(USAGE.as_bytes());
        return ExitCode::from(config::Error::EXIT_CODE);
    }
    match config::load(rest.into_iter(), std::env::vars_os(), Path::new("")) {
        Ok(Loaded::Serve { config, .. }) => give_up(&config),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(config::Error::EXIT_CODE)
        }
    }
}

fn give_up(config: &config::Config) -> ExitCode {
    match node::recover_drop_damaged(config, &Env::real()) {
        Ok(damage) if damage.is_empty() => {
            println!("{}: nothing is damaged", config.dir.display());
            ExitCode::SUCCESS
        }
        Ok(damage) => {
            for line in damage {
                println!("given up: {line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
