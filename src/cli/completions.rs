//! completions: a script by which a shell completes commands and options.

use std::process::ExitCode;

use clap_complete::Shell;

use super::help;

/// Prints a script for a shell's completion
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  kvstore completions bash > /etc/bash_completion.d/kvstore
  kvstore completions zsh > ~/.zfunc/_kvstore
  kvstore completions fish > ~/.config/fish/completions/kvstore.fish")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::documented(), "kvstore", &mut script);
    help::say(|out| out.bytes(&script))
}
