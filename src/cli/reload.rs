//! reload: reads again, on SIGHUP, what a node takes from files while it runs.
//!
//! Each of the two, certificates and tokens, is checked first and then swapped in whole; one that is broken is logged as an
//! error and stays as it was, whatever becomes of the other. `node.log` is opened again, for those who rotate it
//! themselves.
#![allow(clippy::disallowed_methods)] // the command line is where the real world begins

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};

use super::log::Log;
use crate::config::Config;
use crate::http::Api;
use crate::tls::Tls;

/// How often it is looked whether the certificate expires soon.
const LOOK_INTERVAL: Duration = Duration::from_secs(86_400);

/// Reloads on every one of `hangups`, and warns once a day of a certificate that expires soon.
pub async fn run(mut hangups: Signal, config: Config, tls: Option<Arc<Tls>>, api: Api, log: Log) {
    let mut days = interval(LOOK_INTERVAL);
    days.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let config = Arc::new(config);
    loop {
        tokio::select! { biased;
            hangup = hangups.recv() => {
                if hangup.is_none() {
                    return; // no further one can come
                }
                log.reopen();
                // Files may lie on a disk that hangs.
                let (config, tls, api) = (config.clone(), tls.clone(), api.clone());
                if let Err(error) =
                    tokio::task::spawn_blocking(move || reload(&config, tls.as_deref(), &api)).await
                {
                    tracing::error!(%error, "cannot reload");
                }
            }
            _ = days.tick() => {
                if let Some(tls) = &tls {
                    warn_of_expiry(tls);
                }
            }
        }
    }
}

fn reload(config: &Config, tls: Option<&Tls>, api: &Api) {
    if let Some(tls) = tls {
        match tls.reload() {
            Ok(()) => {
                tracing::info!("reloaded TLS: {}", tls.material());
                warn_of_expiry(tls);
            }
            Err(error) => {
                let kept = tls.material();
                tracing::error!("TLS not reloaded, {kept} stays in force: {error}");
            }
        }
    }
    match config.read_tokens_again() {
        Ok(None) if tls.is_none() => {
            tracing::info!("SIGHUP: node.log is reopened; there is nothing to reload");
        }
        Ok(None) => {}
        Ok(Some(tokens)) => {
            api.set_tokens(tokens);
            tracing::info!("reloaded API_TOKEN_FILE");
        }
        Err(problem) => tracing::error!("API_TOKEN_FILE not reloaded, its tokens stay in force: {problem}"),
    }
}

fn warn_of_expiry(tls: &Tls) {
    if let Some(warning) = tls.material().warning() {
        tracing::warn!("{warning}");
    }
}
