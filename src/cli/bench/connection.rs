//! One keep-alive connection of a load generator.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, StatusCode};

use crate::cli::dial::{Dialler, Target};

/// How long a request may take before it counts as failed.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// A connection to one node.
pub(super) struct Connection {
    authority: String,
    authorization: Option<HeaderValue>,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects; every request will show the token, if there is one.
    pub(super) async fn open(
        dialler: &Dialler,
        target: &Target,
        authorization: Option<&HeaderValue>,
    ) -> Result<Self, String> {
        let (sender, _driver) = dialler.dial(target).await?; // its end shows in the next request
        Ok(Self { authority: target.authority().to_owned(), authorization: authorization.cloned(), sender })
    }

    /// Whether the next request can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .header(hyper::header::HOST, &self.authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        match tokio::time::timeout(REQUEST_PATIENCE, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {} s", REQUEST_PATIENCE.as_secs())),
        }
    }
}
