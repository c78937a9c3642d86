//! A bare server on the set-up that kvstore's doors use, answering `OK` to everything: what HTTP alone costs here.
//!
//! `cargo run --release --example bare_http -- 9000`, then the same load as against a node, in the same run.

use std::net::{Ipv4Addr, SocketAddr};

use hyper::body::Incoming;
use hyper::{Request, Response};
use kvstore::http::body::{self, BodyLimits, Budget};
use kvstore::http::{Body, ServerLimits, Service, bind, serve};
use kvstore::util::shutdown::Shutdown;

/// Reads the body and says OK.
#[derive(Clone)]
struct Bare {
    limits: BodyLimits,
    budget: Budget,
}

impl Service for Bare {
    async fn answer(&self, request: Request<Incoming>, _: SocketAddr) -> Response<Body> {
        let text = match body::read(request.into_body(), self.limits, &self.budget).await {
            Ok(_) => "OK",
            Err(_) => "bad body",
        };
        Response::new(Body::whole(text))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(9000), |port| port.parse())?;
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), false)?;
    println!("answering OK on {}", listener.local_addr()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = Shutdown::default();
    let limits =
        BodyLimits { size_max: 64 << 20, grace: std::time::Duration::from_secs(10), rate_min: 16 << 10 };
    let bare = Bare { limits, budget: Budget::new(64 << 20) };
    runtime.block_on(serve(listener, ServerLimits::default(), stop.listener(), bare))?;
    Ok(())
}
