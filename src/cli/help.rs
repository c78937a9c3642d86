//! help: every command in its group; and what is known of all of them, for completions and manual pages.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, Command, CommandFactory as _};
use unicode_width::UnicodeWidthStr as _;

use super::exit::{self, Error};
use super::output::{FAINT, Out, STRONG, columns};
use super::{Cli, ENTRIES, Entry, parse_and_run};
use crate::config::SETTINGS;

/// Prints the commands, or with a command's name what that one takes.
pub fn run(args: &[OsString]) -> ExitCode {
    match args.first() {
        Some(command) => parse_and_run(vec![command.clone(), "--help".into()]),
        None => say(commands),
    }
}

/// Prints something; a reader that has gone (`kvstore help | head`) is no failure.
pub fn say(print: impl FnOnce(&mut Out) -> Result<(), Error>) -> ExitCode {
    let mut out = Out::stdout();
    let outcome = print(&mut out).and_then(|()| out.flush());
    exit::end(false, outcome)
}

/// A command's name.
fn name(entry: &Entry) -> String {
    entry.variant.to_ascii_lowercase()
}

fn commands(out: &mut Out) -> Result<(), Error> {
    let cli = Cli::command();
    let about = |entry: &Entry| {
        let command = cli.find_subcommand(name(entry));
        command.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default()
    };
    let widest = |text: &dyn Fn(&Entry) -> String| ENTRIES.iter().map(|entry| text(entry).width()).max();
    let (names, abouts) = (widest(&name).unwrap_or_default(), widest(&about).unwrap_or_default());
    let examples = widest(&|entry| entry.example.to_owned()).unwrap_or_default();
    let is_wide = columns() > names + abouts + examples + 6;

    out.line(concat!("kvstore ", env!("CARGO_PKG_VERSION"), ": a leaderless, durable key-value store"))?;
    let mut group = "";
    for entry in ENTRIES {
        if entry.group != group {
            group = entry.group;
            let heading = out.paint(STRONG, group).into_owned();
            out.line(&format!("\n{heading}"))?;
        }
        let (name, about) = (name(entry), about(entry));
        let example = out.paint(FAINT, entry.example).into_owned();
        if is_wide {
            out.line(&format!("  {name:<names$}  {about:<abouts$}  {example}"))?;
        } else {
            out.line(&format!("  {name:<names$}  {about}\n  {:names$}    {example}", ""))?;
        }
    }
    out.line(
        "\n`kvstore` alone, or with flags only, is `kvstore serve`. `kvstore help serve` lists its settings, and\n\
         `kvstore help COMMAND` what any other takes.\n\n\
         Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 5 unavailable.",
    )
}

/// Every command with everything that it takes, the settings' flags too, which clap itself does not read.
pub fn documented() -> Command {
    let settings = |command: Command| {
        let name = command.get_name().to_owned();
        let about = command.get_about().cloned().unwrap_or_default();
        let long = command.get_long_about().cloned();
        let fresh = Command::new(name.clone()).about(about).disable_help_flag(true);
        let fresh = match long {
            Some(long) => fresh.long_about(long),
            None => fresh,
        };
        fresh.args(own_arguments(&name)).args(setting_arguments())
    };
    ["serve", "health", "recover", "config"].into_iter().fold(Cli::command(), |cli, name| {
        if cli.find_subcommand(name).is_some() { cli.mut_subcommand(name, settings) } else { cli }
    })
}

/// What commands that take settings take besides.
fn own_arguments(command: &str) -> Vec<Arg> {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(clap::ArgAction::SetTrue)
    };
    let help = flag("help", "Print help");
    match command {
        "recover" => vec![
            flag("drop-damaged", "Consent to the loss of what is damaged"),
            Arg::new("DIR").help("The data directory").value_hint(clap::ValueHint::DirPath),
            help,
        ],
        "config" => {
            vec![flag("json", "Print JSON"), flag("changed", "Only settings that are not the default"), help]
        }
        _ => vec![help],
    }
}

fn setting_arguments() -> impl Iterator<Item = Arg> {
    let settings = SETTINGS.iter().map(|setting| {
        let help = format!("{}. Default: {}; allowed: {}", setting.meaning, setting.unset, setting.kind);
        let arg = Arg::new(setting.field)
            .long(setting.flag())
            .value_name(setting.name())
            .help(help)
            .help_heading("Settings");
        match setting.alias() {
            Some(alias) => arg.visible_alias(alias),
            None => arg,
        }
    });
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("Read settings from this file instead of .env")
        .help_heading("Settings")
        .value_hint(clap::ValueHint::FilePath);
    settings.chain([file])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_help_with_what_it_does() {
        Cli::command().debug_assert();
        documented().debug_assert();
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            assert!(ENTRIES.iter().any(|entry| name(entry) == command.get_name()), "{}", command.get_name());
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(
                !about.is_empty() && about.len() < 70 && !about.ends_with('.'),
                "{}: {about}",
                command.get_name()
            );
        }
        for entry in ENTRIES {
            assert!(entry.example.starts_with("kvstore "), "{}", entry.variant);
        }
    }

    #[test]
    fn every_example_is_one_that_is_understood() {
        use clap::Parser as _;
        for entry in ENTRIES.iter().filter(|entry| entry.variant != "Serve") {
            let command = entry.example.split(" | ").next().unwrap_or_default();
            let words = command.split('\'').enumerate().flat_map(|(at, piece)| match at % 2 {
                0 => piece.split_whitespace().collect(),
                _ => vec![piece], // in quotes
            });
            assert!(Cli::try_parse_from(words).is_ok(), "{}", entry.example);
        }
    }

    #[test]
    fn settings_are_documented_where_they_are_taken() {
        let documented = documented();
        for command in ["serve", "health", "recover"] {
            let command = documented.find_subcommand(command).unwrap();
            for setting in SETTINGS {
                let is_there = |arg: &Arg| arg.get_long() == Some(&setting.flag());
                assert!(command.get_arguments().any(is_there), "{}", setting.name());
            }
        }
    }
}
