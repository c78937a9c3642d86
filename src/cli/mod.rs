//! The command line: one file a command.
//!
//! ```text
//! kvstore [serve] -port 8081 -dir ./data     a node; the settings' flags, read by `config`
//! kvstore get user:1 --connect node1:8081    any other command; its options, read by clap
//! ```
//!
//! A new command is its file, with `Args` and `run`, and one line in the table below: help, completions and manual pages
//! follow. The flags of `serve` go by `config`'s own small reader, because people write them with one dash (`-port`),
//! which to clap is five short flags in a row: to it they are arguments that it hands on ([`raw`]).
//!
//! What they share: [`options`] (which node, which token), [`dial`] (TCP and TLS), [`client`] (HTTP), [`output`] and [`table`] (data on stdout,
//! as lines or JSON; talk on stderr), [`exit`] (what went wrong, and the exit codes).

pub mod answers;
pub mod bench;
pub mod checkpoint;
pub mod client;
pub mod completions;
pub mod config;
pub mod del;
mod descriptors;
pub mod dial;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod get;
pub mod health;
pub mod help;
pub mod inspect;
pub mod log;
pub mod man;
pub mod options;
pub mod output;
pub mod put;
pub mod raw;
pub mod recover;
mod reload;
pub mod repl;
pub mod restore;
pub mod ring;
pub mod scan;
pub mod serve;
pub mod status;
pub mod table;
pub mod transfer;
pub mod verify;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every command.
#[derive(Debug, Parser)]
#[command(
    name = "kvstore",
    version,
    about = "A leaderless, durable key-value store",
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One line of the table below, as the help shows it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// What it is a part of.
    group: &'static str,
    /// The variant's name; in lower case the command's.
    variant: &'static str,
    /// How it is used.
    example: &'static str,
}

macro_rules! commands {
    ($($group:literal: $($name:ident($args:ty) => $run:path, $example:literal;)*)*) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($($name($args),)*)*
        }

        impl Command {
            fn run(&self) -> ExitCode {
                match self {
                    $($(Self::$name(args) => $run(args),)*)*
                }
            }
        }

        /// Every command, in the order of the help.
        const ENTRIES: &[Entry] = &[
            $($(Entry { group: $group, variant: stringify!($name), example: $example },)*)*
        ];
    };
}

commands! {
    "A node":
        Serve(serve::Args) => serve::run, "kvstore -port 8082 -peers node1:8081 -dir ./data";
        Config(config::Args) => config::run, "kvstore config --changed";
        Health(health::Args) => health::run, "kvstore health -port 8082";
        Recover(recover::Args) => recover::run, "kvstore recover --drop-damaged ./data";

    "Data":
        Get(get::Args) => get::run, "kvstore get user:1";
        Put(put::Args) => put::run, "kvstore put user:1 'Alice Smith'";
        Del(del::Args) => del::run, "kvstore del user:1";
        Scan(scan::Args) => scan::run, "kvstore scan --prefix user: --limit 10";
        Repl(repl::Args) => repl::run, "kvstore repl ./data";

    "Data in and out":
        Export(transfer::export::ExportArgs) => transfer::export::run, "kvstore export --output all.jsonl";
        Import(transfer::import::ImportArgs) => transfer::import::run, "kvstore import all.jsonl";
        Checkpoint(checkpoint::CheckpointArgs) => checkpoint::run, "kvstore checkpoint /backup/monday";
        Restore(restore::RestoreArgs) => restore::run, "kvstore restore /backup/monday ./data";
        Verify(verify::VerifyArgs) => verify::run, "kvstore verify ./data";
        Inspect(inspect::InspectArgs) => inspect::run, "kvstore inspect ./data/data/000007.log";

    "The ring":
        Status(status::Args) => status::run, "kvstore status --connect node1:8081";
        Doctor(doctor::Args) => doctor::run, "kvstore doctor --connect node1:8081";
        Ring(ring::Args) => ring::run, "kvstore ring user:1";
        Explain(explain::Args) => explain::run, "kvstore explain user:1";

    "Tools":
        Bench(bench::BenchArgs) => bench::run, "kvstore bench --connections 50 --duration 10s";
        Completions(completions::Args) => completions::run, "kvstore completions bash";
        Man(man::Args) => man::run, "kvstore man | man -l -";
}

/// Does what the arguments (without the program's name) ask for. Exit codes: see [`exit`].
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.collect();
    match args.first().map(OsString::as_os_str) {
        Some(first) if ["help", "-h", "-help", "--help"].iter().any(|help| first == *help) => {
            return help::run(&args[1..]);
        }
        Some(first) if !is_flag(first) => {}
        _ => args.insert(0, "serve".into()),
    }
    parse_and_run(args)
}

fn parse_and_run(args: Vec<OsString>) -> ExitCode {
    match Cli::try_parse_from(std::iter::once("kvstore".into()).chain(args)) {
        Ok(cli) => cli.command.run(),
        Err(error) => {
            let _ = error.print(); // nobody is left to tell if it is closed
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn is_flag(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}
