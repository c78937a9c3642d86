//! del: deletes a key.

use std::ffi::OsString;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;

use super::client::{self, Client, path_of};
use super::exit::Error;
use super::options::{self, Connect, WriteQuorum};
use super::output::{Out, about_key, shown};
use super::put;

/// Deletes a key
///
/// A key that has no value is deleted all the same: a delete is a record with a time, which hides what is older.
#[derive(Debug, Clone, clap::Args)]
#[command(visible_alias = "delete")]
pub struct Args {
    /// The key
    key: OsString,
    #[command(flatten)]
    write: WriteQuorum,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| del(args, client, out).await)
}

async fn del(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let key = options::key(&args.key)?;
    let path = path_of(key, &args.write.query());
    let answer = client.send(Method::DELETE, &path, None, Bytes::new()).await?.good().await?;
    if args.connect.json {
        let mut object = about_key(key);
        object.append(&mut put::receipt(&answer));
        return out.json(&object);
    }
    out.line(&format!("{} deleted{}", shown(key), put::standing(&answer)))
}
