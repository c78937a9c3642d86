//! restore: makes a data directory from a checkpoint.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::transfer::meter::{self, Meter};
use super::transfer::{Ended, print_line};
use crate::env::Env;
use crate::node::{self, RestoreError, Restored};
use crate::replication::Standing;

/// Makes a data directory from a checkpoint
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The checkpoint: it is checked first, and stays as it is
    checkpoint: PathBuf,
    /// The data directory: empty, or not there yet
    dir: PathBuf,
    /// Every node of the ring is set back to its checkpoint: each counts at once, and what was written since is gone.
    /// Without it the node reads what it lacks from its peers before it counts
    #[arg(long)]
    whole_ring: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 done, 1 failed, 2 bad arguments.
pub fn run(args: &RestoreArgs) -> ExitCode {
    match restore(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => ended.exit(),
    }
}

fn restore(args: &RestoreArgs) -> Result<(), Ended> {
    let meter = Meter::of_bytes(0);
    let mut done = 0;
    let restored =
        node::restore(&Env::real(), &args.checkpoint, &args.dir, args.whole_ring, &mut |more, total| {
            done += more;
            meter.of(total);
            meter.at(done, "checked");
        });
    let took = meter.end();
    let Restored { held, standing, members } = match restored {
        Ok(restored) => restored,
        Err(error @ RestoreError::NotEmpty(_)) => return Err(Ended::Failed(error.to_string())),
        Err(RestoreError::Damaged(verified)) => {
            for finding in &verified.findings {
                eprintln!("damaged: {finding}");
            }
            return Err(Ended::Failed(format!(
                "{} is damaged; nothing was restored",
                args.checkpoint.display()
            )));
        }
        Err(RestoreError::Directory(error)) => return Err(Ended::Failed(error.to_string())),
    };
    // A node that is alone has nobody to read from: it counts whatever the file says.
    let counts = standing == Standing::Voting || members == 1;
    if args.json {
        let said = json!({
            "dir": args.dir.to_string_lossy(), "tables": held.tables, "bytes": held.bytes, "records": held.records,
            "members": members, "rebuilds": !counts,
        });
        return print_line(&said.to_string());
    }
    let next = if counts {
        "the node counts as soon as it starts"
    } else {
        "the node reads what it lacks from its peers when it starts, and counts after that"
    };
    let (dir, bytes) = (args.dir.display(), meter::bytes(held.bytes));
    eprintln!("{dir}: {} tables, {bytes}, restored in {took:.1?}; {next}", held.tables);
    Ok(())
}
