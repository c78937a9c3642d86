//! config: which settings a node would run with, and where each comes from. Asks nobody.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::exit::{self, Error};
use super::help;
use super::output::{CARE, FAINT, Out, STRONG};
use super::raw::RawArgs;
use super::table::{Align, Cell, Table};
use crate::config::{self, InForce, Origin};

const USAGE: &str = "Shows the settings that a node would run with, and where each comes from: flag, environment, file, default

Usage: kvstore config [--changed] [--json] [-name value …]

  --changed   only settings that are not the default
  --json      as JSON

The other flags are those of `kvstore serve` (`kvstore help serve`), and the environment and `.env` are heard as there.
Secrets are not shown. Exit code 2, and what is wrong, if a node would not start with these settings.
";

/// Shows the settings in force, and where each comes from
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    raw: RawArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let is = |arg: &OsString, names: &[&str]| names.iter().any(|name| arg == name);
    let all = &args.raw.args;
    if all.iter().any(|arg| is(arg, &["-h", "-help", "--help"])) {
        return help::say(|out| out.bytes(USAGE.as_bytes()));
    }
    let has = |names: &[&str]| all.iter().any(|arg| is(arg, names));
    let (json, changed) = (has(&["-json", "--json"]), has(&["-changed", "--changed"]));
    let flags = all.iter().filter(|arg| !is(arg, &["-json", "--json", "-changed", "--changed"])).cloned();
    let mut out = Out::stdout();
    let outcome = config::survey(flags, std::env::vars_os(), Path::new(""))
        .map_err(|error| Error::Usage(error.to_string()))
        .and_then(|(settings, warnings)| {
            let shown = settings.into_iter().filter(|setting| !changed || setting.origin != Origin::Default);
            let shown: Vec<_> = shown.collect();
            if json { print_json(&shown, &warnings, &mut out) } else { print(&shown, &warnings, &mut out) }
        })
        .and_then(|()| out.flush());
    exit::end(json, outcome)
}

fn print(settings: &[InForce], warnings: &[String], out: &mut Out) -> Result<(), Error> {
    let mut table = Table::new([("SETTING", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)]);
    for setting in settings {
        let is_default = setting.origin == Origin::Default;
        let style = if is_default { anstyle::Style::new() } else { STRONG };
        let value = match &setting.value {
            Some(value) => Cell::styled(value.as_str(), style),
            None => Cell::styled("-", FAINT),
        };
        let from = Cell::styled(setting.origin.to_string(), if is_default { FAINT } else { style });
        table.row([Cell::styled(setting.name.as_str(), style), value, from]);
    }
    table.print(out)?;
    for warning in warnings {
        let label = out.paint(CARE, "warning:").into_owned();
        out.line(&format!("{label} {warning}"))?;
    }
    Ok(())
}

fn print_json(settings: &[InForce], warnings: &[String], out: &mut Out) -> Result<(), Error> {
    let settings: Vec<_> = settings
        .iter()
        .map(|setting| {
            let (kind, place) = match &setting.origin {
                Origin::Flag(flag) => ("flag", Some(flag.clone())),
                Origin::Environment => ("environment", None),
                Origin::Foreign(name) => ("other_name", Some(name.clone())),
                Origin::File(path, line) => ("file", Some(format!("{}:{line}", path.display()))),
                Origin::Default => ("default", None),
            };
            let value = setting.value.as_ref().filter(|_| !setting.is_secret);
            let is_set = setting.value.is_some();
            json!({"name": setting.name, "value": value, "set": is_set, "secret": setting.is_secret,
                   "origin": kind, "place": place})
        })
        .collect();
    out.json(&json!({"settings": settings, "warnings": warnings}))
}
