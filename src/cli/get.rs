//! get: the value of a key, byte for byte.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use super::client::{self, Answer, Client, path_of};
use super::exit::Error;
use super::options::{self, Connect, ReadQuorum};
use super::output::{Out, about_key, put_bytes, quoted, shown, size};

/// Prints the value of a key
///
/// Byte for byte, but that a terminal is shown what is no text as "\xff".
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Exit code 3 when the key has no value.")]
pub struct Args {
    /// The key
    key: OsString,
    #[command(flatten)]
    read: ReadQuorum,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| get(args, client, out).await)
}

async fn get(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let key = options::key(&args.key)?;
    let answer = match client.get(&path_of(key, &args.read.query())).await?.good().await {
        Err(Error::NotFound(_)) if args.connect.json => {
            let mut object = about_key(key);
            object.insert("found".to_owned(), false.into());
            out.json(&object)?;
            return Err(Error::Told(3));
        }
        Err(Error::NotFound(_)) => return Err(Error::NotFound(format!("{} has no value", shown(key)))),
        answer => answer?,
    };
    if args.connect.json {
        return out.json(&found(key, answer).await?);
    }
    if out.is_terminal() { look(answer, out).await } else { copy(answer, out).await }
}

/// What is known of a value, as JSON.
async fn found(key: &[u8], answer: Answer) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    let mut object = about_key(key);
    let text = |name| answer.header(name).map(str::to_owned);
    object.insert("found".to_owned(), true.into());
    object.insert("content_type".to_owned(), text("content-type").into());
    object.insert("etag".to_owned(), text("etag").into());
    object.insert("timestamp".to_owned(), answer.number("x-kv-timestamp").into());
    let value = answer.bytes().await?;
    object.insert("size".to_owned(), value.len().into());
    put_bytes(&mut object, "value", &value);
    Ok(object)
}

/// The bytes, as they come.
async fn copy(mut answer: Answer, out: &mut Out) -> Result<(), Error> {
    while let Some(bytes) = answer.chunk().await? {
        out.bytes(&bytes)?;
    }
    Ok(())
}

/// For somebody who looks: text with an end of line; other bytes so that the terminal survives them.
async fn look(answer: Answer, out: &mut Out) -> Result<(), Error> {
    let value = answer.bytes().await?;
    let is_text = |text: &str| !text.contains(|c: char| c.is_control() && !"\n\t\r".contains(c));
    match std::str::from_utf8(&value) {
        Ok(text) if is_text(text) => out.line(text.strip_suffix('\n').unwrap_or(text)),
        _ => {
            out.line(&quoted(&value))?;
            out.flush()?;
            let size = size(value.len() as u64);
            let _ = writeln!(
                io::stderr(),
                "({size} that are no text, shown with \\x; redirect the output to get them)"
            );
            Ok(())
        }
    }
}
