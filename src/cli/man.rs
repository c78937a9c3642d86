//! man: manual pages: kvstore(1), with every command and setting, and one a command.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, italic, roman};

use super::exit::{self, Error};
use super::output::Out;
use super::{ENTRIES, help};
use crate::config::SETTINGS;

/// Prints the manual page, or writes those of all commands
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to write kvstore.1, kvstore-get.1 and so on; it is made if missing
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut out = Out::stdout();
    let outcome = match &args.dir {
        None => main_page(&built()).map_err(Error::from).and_then(|page| out.bytes(&page)),
        Some(dir) => write_all(dir)
            .map_err(|error| Error::Failed(format!("{}: {error}", dir.display())))
            .and_then(|pages| pages.iter().try_for_each(|page| out.line(&page.display().to_string()))),
    };
    exit::end(false, outcome.and_then(|()| out.flush()))
}

/// All commands, with the names that their pages have.
fn built() -> Command {
    let mut command = help::documented();
    command.build();
    command
}

/// Writes every page; returns which.
#[allow(clippy::disallowed_methods)] // files of whoever calls
fn write_all(dir: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    let command = built();
    let main = dir.join("kvstore.1");
    std::fs::write(&main, main_page(&command)?)?;
    let mut pages = vec![main];
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let page = Man::new(command.clone()).source(source());
        let path = dir.join(page.get_filename());
        let mut text = Vec::new();
        page.render(&mut text)?;
        std::fs::write(&path, text)?;
        pages.push(path);
    }
    Ok(pages)
}

fn source() -> String {
    concat!("kvstore ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// kvstore(1): what clap knows, and what it does not.
fn main_page(command: &Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone()).source(source()).manual("kvstore");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut own = Roff::new();
    own.control("SH", ["SYNOPSIS"]);
    own.text([bold("kvstore"), roman(" [serve] [-"), italic("name value"), roman(" ...]")]);
    own.control("br", []);
    own.text([bold("kvstore"), roman(" "), italic("COMMAND"), roman(" ...")]);
    own.control("SH", ["DESCRIPTION"]);
    own.text([roman(
        "A key-value store without a leader. Without a command, or with flags only, it runs a node: started alone a durable \
         server, started with peers a ring of equal nodes. The other commands talk to a node.",
    )]);
    own.control("SH", ["COMMANDS"]);
    for entry in ENTRIES {
        let name = entry.variant.to_ascii_lowercase();
        let about = command.find_subcommand(&name).and_then(Command::get_about);
        own.control("TP", []);
        own.text([bold(format!("kvstore {name}"))]);
        own.text([roman(format!(
            "{}. See kvstore-{name}(1).",
            about.map(ToString::to_string).unwrap_or_default()
        ))]);
    }
    own.control("SH", ["SETTINGS"]);
    own.text([roman(
        "Looked for among the flags (-name value, one dash or two), in the environment, in .env in the working directory \
         or the file named by -config; then the default holds.",
    )]);
    for setting in SETTINGS {
        let alias = setting.alias().map_or(String::new(), |alias| format!("-{alias}, "));
        own.control("TP", []);
        own.text([bold(setting.name()), roman(format!(" ({alias}-{})", setting.flag()))]);
        own.text([roman(format!(
            "{}. Default: {}; allowed: {}.",
            setting.meaning, setting.unset, setting.kind
        ))]);
    }
    own.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in [
        ("KVSTORE_CONNECT", "Nodes that the other commands talk to, as host:port, separated by commas."),
        ("KVSTORE_TOKEN", "The bearer token that they show."),
        ("KVSTORE_TOKEN_FILE", "A file that holds it."),
        ("NO_COLOR", "No colours, also on a terminal."),
    ] {
        own.control("TP", []);
        own.text([bold(name)]);
        own.text([roman(meaning)]);
    }
    own.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        ("0", "Done. For a node: stopped as it was told."),
        ("1", "Failed: the world refused, or something was found to be wrong."),
        ("2", "A bad argument, flag or setting."),
        ("3", "The key has no value."),
        ("5", "No node could be reached, or it answered 503 or 504."),
    ] {
        own.control("TP", []);
        own.text([bold(code)]);
        own.text([roman(meaning)]);
    }
    own.control("SH", ["EXAMPLES"]);
    for entry in ENTRIES {
        own.text([roman(entry.example)]);
        own.control("br", []);
    }
    own.to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_command_and_setting() {
        let page = String::from_utf8(main_page(&built()).unwrap()).unwrap();
        for setting in SETTINGS {
            assert!(page.contains(&format!("\\fB{}\\fR", setting.name())), "{}", setting.name());
        }
        for entry in ENTRIES {
            assert!(
                page.contains(&format!("kvstore {}", entry.variant.to_ascii_lowercase())),
                "{}",
                entry.variant
            );
        }
    }

    #[test]
    fn every_command_has_a_page_of_its_own_with_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write_all(dir.path()).unwrap();
        assert_eq!(pages.len(), ENTRIES.len() + 1);
        let serve = std::fs::read_to_string(dir.path().join("kvstore-serve.1")).unwrap();
        assert!(serve.contains("KVSTORE_PEERS") && serve.contains("wal\\-commit\\-interval"));
        assert!(std::fs::read_to_string(dir.path().join("kvstore-scan.1")).unwrap().contains("reverse"));
    }
}
