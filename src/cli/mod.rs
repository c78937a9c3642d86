//! The command line: one file a command.
//!
//! ```text
//! kvstore [serve] -port 8081 -dir ./data    a node; the settings' flags, read by `config`
//! kvstore bench --connections 50            any other command; its options, read by clap
//! ```
//!
//! The flags of `serve` go by `config`'s own small reader, because people write them with one dash (`-port`), which to
//! clap is five short flags in a row.

pub mod bench;
pub mod health;
pub mod log;
pub mod recover;
pub mod serve;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Loaded, settings};

/// Every command but `serve`.
#[derive(Debug, Parser)]
#[command(name = "kvstore", disable_help_subcommand = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts load on a node or a ring, and measures
    Bench(bench::BenchArgs),
}

impl Command {
    /// Whether `name` is one of these commands.
    fn is_named(name: &OsStr) -> bool {
        let cli = <Cli as clap::CommandFactory>::command();
        name.to_str().is_some_and(|name| cli.get_subcommands().any(|command| command.get_name() == name))
    }
}

/// Does what the arguments (without the program's name) ask for.
///
/// Exit codes: 0 done, 1 the world refused (port taken, directory locked, damaged), 2 bad flag or setting.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.peekable();
    match args.peek() {
        Some(name) if Command::is_named(name) => run_command(args),
        Some(name) if name == "health" => health::run(args.skip(1)),
        Some(name) if name == "recover" => recover::run(args.skip(1)),
        Some(name) if name == "serve" => run_serve(args.skip(1)),
        Some(name) if name == "help" => say(&help()),
        _ => run_serve(args),
    }
}

fn run_command(args: impl Iterator<Item = OsString>) -> ExitCode {
    let program = OsString::from("kvstore");
    match Cli::try_parse_from(std::iter::once(program).chain(args)) {
        Ok(cli) => match cli.command {
            Command::Bench(args) => bench::run(&args),
        },
        Err(error) => {
            let _ = error.print(); // nobody is left to tell if stderr is closed
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(config::Error::EXIT_CODE))
        }
    }
}

fn run_serve(args: impl Iterator<Item = OsString>) -> ExitCode {
    match config::load(args, std::env::vars_os(), Path::new("")) {
        Ok(Loaded::Serve { config, warnings }) => serve::run(&config, &warnings),
        Ok(Loaded::Help) => say(&help()),
        Ok(Loaded::Version) => say(concat!("kvstore ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(config::Error::EXIT_CODE)
        }
    }
}

/// Prints `text`; a reader that has gone (`kvstore --help | head`) is no failure.
fn say(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// What `--help` prints.
fn help() -> String {
    let cli = <Cli as clap::CommandFactory>::command();
    let commands: Vec<String> = cli
        .get_subcommands()
        .map(|command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            format!("  kvstore {:<27} {about}", format!("{} [--help]", command.get_name()))
        })
        .collect();
    format!(
        "kvstore: a leaderless, durable key-value store\n\n\
         Usage:\n  \
           kvstore [serve] [-name value …]     Runs a node\n  \
           kvstore health [-name value …]      Asks it whether it is ready\n  \
           kvstore recover --drop-damaged DIR  Gives up what is damaged in a data directory\n\
         {}\n\n\
         A setting is looked for among the flags, then in the environment, then in `.env` in the working directory (or\n\
         the file named by `-config FILE`). `-x v`, `-x=v`, `--x v` and `--x=v` all work. Sizes: 67108864, 64MB, 64MiB.\n\
         Times: 5ms, 2s, 1m, 3h.\n\n\
         Settings:\n{}\n\
         Others:\n  -config <FILE>\n      read settings from this file instead of `.env`\n  \
           -help, -h\n      print this\n  -version, -V\n      print the version\n",
        commands.join("\n"),
        settings::help_table(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_known_by_its_name_and_is_in_the_help() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        assert!(Command::is_named(OsStr::new("bench")));
        assert!(!Command::is_named(OsStr::new("-port")));
        assert!(help().contains("\n  kvstore bench "));
    }

    #[test]
    fn the_help_names_every_setting_with_its_flag() {
        let help = help();
        for setting in settings::SETTINGS {
            assert!(
                help.contains(&format!("-{} <{}>\n", setting.flag(), setting.name())),
                "{}",
                setting.name()
            );
        }
    }
}
