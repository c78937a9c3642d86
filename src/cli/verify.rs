//! verify: every checksum of a stopped node's directory, or of a checkpoint. Changes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::transfer::meter::{self, Meter};
use super::transfer::{Ended, print_line};
use crate::engine::verify::Verified;
use crate::env::Env;
use crate::node;

/// Checks every checksum of a directory or a checkpoint
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The data directory, the checkpoint, or one engine's directory in it
    dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 all is as it was written, 1 damaged or not to be read, 2 bad arguments.
pub fn run(args: &VerifyArgs) -> ExitCode {
    match verify(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(ended) => ended.exit(),
    }
}

fn verify(args: &VerifyArgs) -> Result<bool, Ended> {
    let meter = Meter::of_bytes(0);
    let verified = check(args, &meter);
    let took = meter.end();
    let verified = verified?;
    if args.json {
        print_line(&view(&verified).to_string())?;
    } else {
        for finding in &verified.findings {
            print_line(&format!("damaged: {finding}"))?;
        }
        for note in &verified.notes {
            eprintln!("note: {note}");
        }
        let Verified { tables, logs, entries, bytes, findings, .. } = &verified;
        let outcome = match findings.len() {
            0 => "nothing is damaged".to_owned(),
            1 => "1 place is damaged".to_owned(),
            count => format!("{count} places are damaged"),
        };
        eprintln!(
            "{}: {outcome}; {tables} tables, {logs} logs, {entries} entries, {} in {took:.1?}",
            args.dir.display(),
            meter::bytes(*bytes)
        );
    }
    Ok(verified.is_clean())
}

fn check(args: &VerifyArgs, meter: &Meter) -> Result<Verified, Ended> {
    let mut done = 0;
    node::verify(&Env::real(), &args.dir, &mut |more, total| {
        done += more;
        meter.of(total);
        meter.at(done, "");
    })
    .map_err(|error| Ended::Failed(error.to_string()))
}

/// What is found, as JSON.
pub fn view(verified: &Verified) -> serde_json::Value {
    let Verified { tables, logs, batches, entries, bytes, findings, notes } = verified;
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            let path = finding.path.to_string_lossy();
            json!({"path": path, "offset": finding.offset, "detail": finding.detail})
        })
        .collect();
    json!({
        "clean": verified.is_clean(), "tables": tables, "logs": logs, "batches": batches, "entries": entries,
        "bytes": bytes, "damage": findings, "notes": notes,
    })
}
