//! checkpoint: a copy of a running node, made while it serves.
//!
//! The node makes it inside its own data directory, under a name that says nothing about paths; if that directory is on
//! this machine and file system, the copy is moved to where the user wants it.
#![allow(clippy::disallowed_methods)] // the command line lives in the real world

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde::Deserialize;

use super::transfer::client::{Client, NodeArgs};
use super::transfer::{Ended, meter, print_line, runtime};
use crate::env::{Clock as _, Env, SystemClock};
use crate::replication::CheckpointInfo;
use crate::replication::identity::Identity;

/// Copies a running node while it serves
#[derive(Debug, Clone, Args)]
pub struct CheckpointArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Where the copy goes, if the node's directory is on this machine and file system; must not exist
    #[arg(required_unless_present_any = ["list", "remove"])]
    dir: Option<PathBuf>,
    /// What the node calls it: letters, digits, `.`, `_` and `-` [default: at- and the milliseconds since 1970]
    #[arg(long)]
    name: Option<String>,
    /// List the copies that lie at the node in place of making one
    #[arg(long, conflicts_with_all = ["dir", "name", "remove"])]
    list: bool,
    /// Remove the copy of this name that lies at the node
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dir", "name"])]
    remove: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Exit codes: 0 done, 1 failed, 2 bad arguments, 5 the node did not answer.
pub fn run(args: &CheckpointArgs) -> ExitCode {
    match runtime().block_on(checkpoint(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => ended.exit(),
    }
}

async fn checkpoint(args: &CheckpointArgs) -> Result<(), Ended> {
    let client = Client::new(&args.node)?;
    if args.list {
        return list(args, &client).await;
    }
    if let Some(name) = &args.remove {
        let answer = client.ask(&Method::DELETE, &target(name), Bytes::new()).await?;
        if answer.status != 204 {
            return Err(answer.refused(name));
        }
        return if args.json {
            print_line(&serde_json::json!({"removed": name}).to_string())
        } else {
            Ok(())
        };
    }
    let dir = args.dir.as_deref().expect("it is required where nothing else is asked for");
    if dir.exists() {
        return Err(Ended::Failed(format!("{} exists", dir.display())));
    }
    let name = args.name.clone().unwrap_or_else(name_of_now);
    let mut info = make(args, &client, &name).await?;
    let moved = take(&info, dir);
    if moved.is_ok() {
        info.path = dir.to_string_lossy().into_owned();
    }
    if args.json {
        let mut said = serde_json::to_value(&info).expect("it came as JSON");
        said["moved"] = moved.is_ok().into();
        print_line(&said.to_string())?;
    } else {
        print_line(&info.path)?;
    }
    let CheckpointInfo { node, tables, bytes, .. } = &info;
    eprintln!(
        "{node}: {tables} tables, {}, copied while it serves; hints for others are not part of it",
        meter::bytes(*bytes)
    );
    if let Err(why) = moved {
        eprintln!("not moved to {}: {why}; it lies at the node, as {}", dir.display(), info.path);
    }
    Ok(())
}

/// Has the node make one. An answer that was lost is made up for: under a name of our own making nobody else has one.
async fn make(args: &CheckpointArgs, client: &Client, name: &str) -> Result<CheckpointInfo, Ended> {
    let not_understood = |error| Ended::Failed(format!("the node's answer is not understood: {error}"));
    let answer = client.ask(&Method::POST, &target(name), Bytes::new()).await?;
    if answer.status == 409 && args.name.is_none() {
        let listed = client.ask(&Method::GET, "/checkpoint", Bytes::new()).await?;
        let listed: Listed = serde_json::from_slice(&listed.body).map_err(not_understood)?;
        if let Some(info) = listed.checkpoints.into_iter().find(|info| info.name == name) {
            return Ok(info);
        }
    }
    if answer.status != 201 {
        return Err(answer.refused("no checkpoint was made"));
    }
    serde_json::from_slice(&answer.body).map_err(not_understood)
}

/// What a node says of its checkpoints.
#[derive(Deserialize)]
struct Listed {
    checkpoints: Vec<CheckpointInfo>,
}

fn target(name: &str) -> String {
    let name = percent_encoding::percent_encode(name.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    format!("/checkpoint?name={name}")
}

async fn list(args: &CheckpointArgs, client: &Client) -> Result<(), Ended> {
    let answer = client.ask(&Method::GET, "/checkpoint", Bytes::new()).await?;
    if answer.status != 200 {
        return Err(answer.refused("cannot list the checkpoints"));
    }
    if args.json {
        return print_line(&String::from_utf8_lossy(&answer.body));
    }
    let listed: Listed = serde_json::from_slice(&answer.body)
        .map_err(|error| Ended::Failed(format!("the node's answer is not understood: {error}")))?;
    for CheckpointInfo { name, path, bytes, .. } in &listed.checkpoints {
        print_line(&format!("{name}\t{}\t{path}", meter::bytes(*bytes)))?;
    }
    Ok(())
}

/// Moves a copy to where it is wanted.
///
/// # Errors
/// In words: it lies on another machine or file system, or this user may not.
fn take(info: &CheckpointInfo, dir: &Path) -> Result<(), String> {
    let env = Env::real();
    let from = Path::new(&info.path);
    // A directory of that name may be here by chance: only the node's own says the same of itself.
    let is_here = Identity::read(&env, &from.join("IDENTITY"))
        .is_ok_and(|identity| uuid::Uuid::from_u128(identity.uuid).to_string() == info.uuid);
    if !is_here {
        return Err("the node is on another machine, or its directory cannot be read from here".to_owned());
    }
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let moved = std::fs::create_dir_all(parent(dir)).and_then(|()| env.fs.rename(from, dir));
    moved.map_err(|error| match error.kind() {
        io::ErrorKind::CrossesDevices => "it would have to go to another file system".to_owned(),
        _ => error.to_string(),
    })?;
    let synced = env.fs.sync_dir(&parent(dir)).and_then(|()| env.fs.sync_dir(&parent(from)));
    synced.map_err(|error| format!("moved, but not synced: {error}"))
}

/// The time, as a name that sorts: milliseconds since 1970.
fn name_of_now() -> String {
    format!("at-{}", SystemClock.wall_micros() / 1_000)
}
