//! serve: runs a node until it is told to stop.
//!
//! ```text
//! port ── log ── doors open (data: 503) ── node recovers ── data served ── banner
//! SIGTERM or SIGINT: /readyz 503, all is served for DRAIN_DELAY, then no new connections, requests in flight finish,
//! node stops, exit 0
//! the second signal: exit at once
//! SIGHUP: certificate, key, CA and the file of tokens are read again, what is broken stays as it was; node.log is reopened
//! ```
//!
//! One current-thread runtime a worker thread, each with a listener of its own; the first is the main thread's, and the
//! node's own loops run there.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the command line is where the real world begins

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::system::uname;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use super::descriptors::Descriptors;
use super::exit::{self, Error};
use super::log::Log;
use super::raw::RawArgs;
use super::{descriptors, help, log, reload};
use crate::cluster::assign;
use crate::config::{self, Config, Loaded, settings};
use crate::env::Env;
use crate::http::body::BodyLimits;
use crate::http::{Api, ApiLimits, ApiSettings, Body, ServerLimits, bind, serve_tls};
use crate::node::Node;
use crate::rpc::tcp::{Server, TcpSettings, TcpTransport, set_worker};
use crate::tls::Tls;
use crate::util::hosts::Hosts;
use crate::util::shutdown::{Shutdown, ShutdownListener};

/// How long a body may take before its rate counts, and the rate it must keep.
const BODY_GRACE: Duration = Duration::from_secs(10);
const BODY_RATE_MIN: usize = 16 << 10;

/// How long a node that was told to stop serves on, at least. The signal and a request that was sent before it, or a
/// health check that comes right behind it, race; neither is refused for that.
const DRAIN_DELAY_MIN: Duration = Duration::from_millis(100);

/// How long the node's tasks may take to end once it has stopped.
const TASKS_PATIENCE: Duration = Duration::from_secs(1);

/// Runs a node
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    raw: RawArgs,
}

/// Runs the command. Exit codes: 0 stopped as it was told, 1 the world refused (port taken, directory locked, damaged),
/// 2 bad flag or setting.
pub fn run(args: &Args) -> ExitCode {
    match config::load(args.raw.args.iter().cloned(), std::env::vars_os(), Path::new("")) {
        Ok(Loaded::Serve { config, warnings }) => run_with(&config, &warnings),
        Ok(Loaded::Help) => help::say(|out| out.bytes(usage().as_bytes())),
        Ok(Loaded::Version) => help::say(|out| out.line(concat!("kvstore ", env!("CARGO_PKG_VERSION")))),
        Err(error) => exit::end(false, Err(Error::Usage(error.to_string()))),
    }
}

/// What `kvstore serve --help` prints.
fn usage() -> String {
    format!(
        "Runs a node until SIGTERM or SIGINT\n\n\
         Usage: kvstore [serve] [-name value …]\n\n\
         A setting is looked for among the flags, then in the environment, then in `.env` in the working directory (or\n\
         the file named by `-config FILE`). `-x v`, `-x=v`, `--x v` and `--x=v` all work. Sizes: 67108864, 64MB, 64MiB.\n\
         Times: 5ms, 2s, 1m, 3h. `kvstore config` says which are in force, and why.\n\n\
         Settings:\n{}\n\
         Others:\n  -config <FILE>\n      read settings from this file instead of `.env`\n  \
           -help, -h\n      print this\n  -version, -V\n      print the version\n",
        settings::help_table(),
    )
}

/// Runs a node, and logs `warnings` about its settings. Whatever keeps it from starting is said in one line on stderr.
fn run_with(config: &Config, warnings: &[String]) -> ExitCode {
    match start(config, warnings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::tell_stderr(problem);
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config, warnings: &[String]) -> Result<(), String> {
    let peers = config.members.len().saturating_sub(1);
    let descriptors = descriptors::raise_and_divide(config.worker_threads, peers);
    let config = &Config { open_tables_max: descriptors.tables, ..config.clone() };
    let listeners = listen(config)?;
    let log = log::init(config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if descriptors.missing > 0 {
        let missing = descriptors.missing;
        tracing::warn!(
            missing,
            "too few file descriptors for all that a node does: raise the limit (ulimit -n)"
        );
    }
    let result = serve_on(listeners, config, descriptors, &log);
    log.flush();
    result
}

fn serve_on(
    mut listeners: Vec<TcpListener>,
    config: &Config,
    descriptors: Descriptors,
    log: &Log,
) -> Result<(), String> {
    let runtime = runtime()?;
    let first = listeners.remove(0);
    let mut limits = ServerLimits {
        connections_max: (descriptors.clients / config.worker_threads.max(1)).max(1),
        ..ServerLimits::default()
    };
    limits.timeouts.idle = config.idle_timeout;
    let parts = Parts::new(config, descriptors.from_peers, log)?;
    let stop = Arc::new(Shutdown::default());
    let stopped = Shutdown::default();
    let workers: Vec<_> = listeners
        .into_iter()
        .zip(1..)
        .map(|(listener, number)| {
            let (stop, stopped) = (stop.listener(), stopped.listener());
            worker(number, listener, limits, stop, stopped, parts.clone())
        })
        .collect::<Result<_, _>>()?;
    let result = runtime.block_on(live(config, first, limits, &stop, &parts));
    stop.signal();
    stopped.signal();
    for worker in workers {
        let _ = worker.join(); // a worker that panicked has said so
    }
    result
}

/// What all workers share.
#[derive(Clone)]
struct Parts {
    api: Api,
    env: Env,
    transport: Arc<TcpTransport>,
    tls: Option<Arc<Tls>>,
    log: Log,
    /// Connections from peers.
    from_peers_max: usize,
}

impl Parts {
    fn new(config: &Config, from_peers_max: usize, log: &Log) -> Result<Self, String> {
        let env = Env::real();
        let tls = config.tls.clone().map(Tls::load).transpose().map_err(|error| error.to_string())?;
        let tls = tls.map(Arc::new);
        if let Some(tls) = &tls {
            tracing::info!("TLS: {}", tls.material());
        }
        let settings = TcpSettings {
            own: config.own_id(),
            cluster_name: config.cluster_name.clone(),
            ring: Arc::new(assign(None, &config.membership(), config.ring_settings())),
            secret: config.secret.clone(),
            tls: tls.clone().filter(|tls| tls.knows_peers()),
        };
        let transport = Arc::new(TcpTransport::new(settings, env.clone()));
        let settings = ApiSettings {
            volume_id: config.volume_id.clone(),
            tokens: config.api_tokens.clone(),
            hosts: known_hosts(config),
            beyond_loopback: !config.bind_addr.is_loopback(),
            slow_request_time: config.slow_request_time,
            tls: tls.clone(),
            log_lines_dropped: log.dropped(),
        };
        let api = Api::with(api_limits(config), settings);
        Ok(Self { api, env, transport, tls, log: log.clone(), from_peers_max })
    }

    /// Recovers the node. On a thread of its own, so that the doors answer meanwhile; its loops run on this runtime.
    async fn start_node(&self, config: &Config) -> Result<Node, String> {
        let (config, env, transport) = (config.clone(), self.env.clone(), self.transport.clone());
        let starting = tokio::task::spawn_blocking(move || Node::start(config, env, transport));
        match starting.await {
            Ok(started) => started.map_err(|error| error.to_string()),
            Err(error) => Err(format!("cannot start: {error}")),
        }
    }

    /// Lets clients and peers in.
    fn open(&self, node: &Node) {
        let server = Server::new(&self.transport, node.handler()).with_connections_max(self.from_peers_max);
        self.api.open_to_peers(Box::new(move |mut request, peer| {
            server.accept_upgrade(&mut request, peer).map(Body::whole)
        }));
        self.api.open(node.coordinator());
    }
}

/// Sockets that one turn of the runtime serves, at most. What a turn has for the peers leaves at its end: with all
/// sockets in one turn the peers, and with them the other cores, would wait until the last client's request is read;
/// with few the peers' frames would go out one by one.
const SOCKETS_A_TURN: usize = 16;

fn runtime() -> Result<Runtime, String> {
    let mut builder = Builder::new_current_thread();
    builder
        .enable_all()
        .max_io_events_per_tick(SOCKETS_A_TURN)
        .build()
        .map_err(|error| format!("cannot start: {error}"))
}

fn worker(
    number: u16,
    listener: TcpListener,
    limits: ServerLimits,
    stop: ShutdownListener,
    mut stopped: ShutdownListener,
    parts: Parts,
) -> Result<JoinHandle<()>, String> {
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name(format!("kv-worker-{number}"))
        .spawn(move || {
            set_worker(number);
            let door = parts.api.door();
            let ended = runtime.block_on(async {
                parts.transport.connect();
                let ended = serve_tls(listener, parts.tls, limits, stop, door).await;
                stopped.signalled().await; // writes that were answered may still be on their way to a third replica
                ended
            });
            if let Err(error) = ended {
                tracing::error!(%error, number, "worker ended");
            }
        })
        .map_err(|error| format!("cannot start worker {number}: {error}"))
}

/// Opens the port once for each worker.
fn listen(config: &Config) -> Result<Vec<TcpListener>, String> {
    let addr = SocketAddr::new(config.bind_addr, config.port);
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => format!("port {} is taken", config.port),
        _ => format!("cannot listen on {addr}: {error}"),
    };
    let alone = bind(addr, false).map_err(refused)?;
    if config.worker_threads <= 1 {
        return Ok(vec![alone]);
    }
    // Listeners that share a port would also share it with another node: only the one that has it alone can tell.
    let addr = alone.local_addr().map_err(refused)?;
    drop(alone);
    (0..config.worker_threads).map(|_| bind(addr, true).map_err(refused)).collect()
}

async fn live(
    config: &Config,
    listener: TcpListener,
    limits: ServerLimits,
    stop: &Arc<Shutdown>,
    parts: &Parts,
) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let addr = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?;
    let hangups =
        signal(SignalKind::hangup()).map_err(|error| format!("cannot listen for signals: {error}"))?;
    let _reloading = AbortOnDropHandle::new(tokio::spawn(reload::run(
        hangups,
        config.clone(),
        parts.tls.clone(),
        parts.api.clone(),
        parts.log.clone(),
    )));
    let (tls, door) = (parts.tls.clone(), parts.api.door());
    let serving = tokio::spawn(serve_tls(listener, tls, limits, stop.listener(), door));
    parts.transport.connect();
    let node = tokio::select! {
        biased;
        () = signals.next() => return Ok(()), // nothing was promised to anybody yet
        node = parts.start_node(config) => node?,
    };
    parts.open(&node);
    parts.log.say(&banner(config, addr));
    signals.next().await;
    tracing::info!(drain_delay = ?config.drain_delay, "stopping");
    let log = parts.log.clone();
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("stopped at once by a second signal");
        log.flush();
        std::process::exit(1);
    });
    parts.api.leave();
    tokio::time::sleep(config.drain_delay.max(DRAIN_DELAY_MIN)).await;
    parts.api.drain();
    stop.signal();
    match serving.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "listener ended"),
        Err(error) => tracing::error!(%error, "listener ended"),
    }
    node.stop().await;
    parts.transport.close();
    if !parts.env.tasks.wait(TASKS_PATIENCE).await {
        tracing::warn!(tasks = parts.env.tasks.len(), "tasks cut short");
    }
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The names by which this node may be asked for: those that are listed, its members' and this machine's.
fn known_hosts(config: &Config) -> Hosts {
    let mut hosts = config.allowed_hosts.clone();
    for member in &config.members {
        hosts.know(member.id.as_str());
    }
    if let Ok(name) = uname().nodename().to_str() {
        hosts.know(name);
        hosts.know(&format!("{name}.local")); // as its neighbours find it by multicast DNS
    }
    hosts
}

fn api_limits(config: &Config) -> ApiLimits {
    ApiLimits {
        value_size_max: config.value_size_max,
        body: BodyLimits { size_max: config.body_size_max, grace: BODY_GRACE, rate_min: BODY_RATE_MIN },
        inflight_bytes_max: config.inflight_bytes_max,
    }
}

fn banner(config: &Config, addr: SocketAddr) -> String {
    let (banner, rule) = (config.banner(), "=".repeat(47));
    format!("{banner}\n kv-store Node running on port {}\n{rule}", addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_setting_with_its_flag() {
        let usage = usage();
        for setting in settings::SETTINGS {
            let line = format!("-{} <{}>\n", setting.flag(), setting.name());
            assert!(usage.contains(&line), "{}", setting.name());
        }
    }
}
