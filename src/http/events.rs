//! Events: the ring's state for the status page, once a second, as server-sent events.
//!
//! ```text
//! viewer ─┐                      due, nobody at it ──> one of them asks every node, publishes
//! viewer ─┼── Feed: last event ──┤
//! viewer ─┘                      fresh and not seen ──> each sends the same bytes
//! ```
//!
//! No task of its own: the viewers take turns, so a page that nobody looks at costs nothing, and one that many look at
//! costs each node one sample a second. A viewer that is slow misses events; none are kept for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::unfold;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::admin::NodeView;
use super::api::{Api, Door};
use super::body::{Body, CutShort};
use super::status::Fault;
use crate::replication::Coordinator;
use crate::util::shutdown::ShutdownListener;
use crate::util::ticker::{Ticker, Ticks};

/// Time between two events.
const PERIOD: Duration = Duration::from_secs(1);
/// An event older than this is not what is.
const FRESH: Duration = Duration::from_millis(1_900);
/// How long a peer may take to say how busy it is.
const PEER_PATIENCE: Duration = Duration::from_millis(700);
/// Viewers of one node at a time: each holds a connection for as long as it looks.
const VIEWERS_MAX: usize = 100;
/// Tells a proxy not to gather what is sent.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What the viewers of one node share.
#[derive(Debug, Default)]
pub struct Feed {
    last: Mutex<Last>,
    published: Ticker,
    /// Relaxed: a bound, not a lock.
    viewers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Last {
    event: Bytes,
    /// How many events there have been.
    number: u64,
    made_at: Option<Instant>,
    /// A viewer is making the next one.
    in_the_making: bool,
}

/// What a viewer does next.
enum Turn<'a> {
    Send(u64, Bytes),
    Make(Making<'a>),
    WaitUntil(Instant),
}

/// The right to make the next event; given on when dropped, so that a viewer may leave in the middle.
struct Making<'a> {
    feed: &'a Feed,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.feed.last.lock().in_the_making = false;
        self.feed.published.tick();
    }
}

impl Making<'_> {
    fn publish(self, event: Bytes) {
        let mut last = self.feed.last.lock();
        last.event = event;
        last.number += 1;
        last.made_at = Some(Instant::now());
    }
}

impl Feed {
    fn turn(&self, seen: u64) -> Turn<'_> {
        let now = Instant::now();
        let mut last = self.last.lock();
        let age = last.made_at.map(|at| now - at);
        if last.number > seen && age.is_some_and(|age| age < FRESH) {
            return Turn::Send(last.number, last.event.clone());
        }
        if last.in_the_making {
            return Turn::WaitUntil(now + PERIOD); // its end, good or bad, is told before
        }
        if let Some(due) = last.made_at.map(|at| at + PERIOD).filter(|due| *due > now) {
            return Turn::WaitUntil(due);
        }
        last.in_the_making = true;
        Turn::Make(Making { feed: self })
    }
}

/// One who looks.
struct Viewer {
    api: Api,
    seen: u64,
    ticks: Ticks,
    stop: ShutdownListener,
}

impl Viewer {
    fn enter(api: &Api) -> Result<Self, Fault> {
        let feed = &api.shared.feed;
        let viewer = Self {
            api: api.clone(),
            seen: 0,
            ticks: feed.published.listener(),
            stop: api.shared.draining.listener(),
        };
        // Counted after it was made: dropping it counts back.
        if feed.viewers.fetch_add(1, Ordering::Relaxed) >= VIEWERS_MAX {
            return Err(Fault::Overloaded);
        }
        Ok(viewer)
    }

    /// The next event; `None` when the node stops.
    async fn next(&mut self) -> Option<Bytes> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.signalled() => None,
            event = self.next_event() => event,
        }
    }

    async fn next_event(&mut self) -> Option<Bytes> {
        loop {
            match self.api.shared.feed.turn(self.seen) {
                Turn::Send(number, event) => {
                    self.seen = number;
                    return Some(event);
                }
                Turn::Make(making) => making.publish(make(&self.api, self.api.opened()?).await),
                Turn::WaitUntil(until) => tokio::select! {
                    biased;
                    () = self.ticks.changed() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.api.shared.feed.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Serialize)]
struct Event<'a> {
    node_id: &'a str,
    replication_factor: usize,
    write_quorum: usize,
    read_quorum: usize,
    ranges: u32,
    viewers: usize,
    nodes: Vec<Node<'a>>,
}

#[derive(Serialize)]
struct Node<'a> {
    #[serde(flatten)]
    status: NodeView<'a>,
    /// What it says of itself; absent when it says nothing.
    load: Option<serde_json::Value>,
}

/// Asks every node, and words the event.
async fn make(api: &Api, coordinator: &Coordinator) -> Bytes {
    let nodes = coordinator.nodes();
    let loads = join_all(nodes.iter().map(|node| coordinator.load_of(&node.node, PEER_PATIENCE))).await;
    let (write_quorum, read_quorum) = coordinator.quorums();
    let event = Event {
        node_id: coordinator.own().as_str(),
        replication_factor: coordinator.ring().replication_factor(),
        write_quorum,
        read_quorum,
        ranges: coordinator.ring().range_count(),
        viewers: api.shared.feed.viewers.load(Ordering::Relaxed),
        nodes: nodes
            .iter()
            .zip(loads)
            .map(|(node, load)| Node {
                status: NodeView::of(node),
                // Read and written anew: a peer's bytes must not end the line that an event is.
                load: load.and_then(|load| serde_json::from_slice(&load).ok()),
            })
            .collect(),
    };
    let mut bytes = b"data: ".to_vec();
    serde_json::to_writer(&mut bytes, &event).expect("string keys, finite numbers, and memory does not fail");
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

/// `GET /events`: an event a second until the viewer goes or the node stops.
pub fn events(door: &Door, request: &Request<Incoming>) -> Result<Response<Body>, Fault> {
    door.api.coordinator()?;
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        let viewer = Viewer::enter(&door.api)?;
        let events = unfold(viewer, |mut viewer| async move {
            let event = viewer.next().await?;
            Some((Ok::<_, CutShort>(Frame::data(event)), viewer))
        });
        Body::Streamed(Box::pin(StreamBody::new(events)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(feed: &Feed, event: &'static str) {
        match feed.turn(u64::MAX) {
            Turn::Make(making) => making.publish(Bytes::from(event)),
            _ => panic!("an event is due"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_viewer_makes_an_event_and_all_send_it() {
        let feed = Feed::default();
        let Turn::Make(making) = feed.turn(0) else { panic!("the first is due at once") };
        assert!(matches!(feed.turn(0), Turn::WaitUntil(_)), "the second waits for the first");
        making.publish(Bytes::from("one"));
        for _ in 0..10 {
            assert!(matches!(feed.turn(0), Turn::Send(1, event) if event == "one"));
        }
        assert!(matches!(feed.turn(1), Turn::WaitUntil(due) if due == Instant::now() + PERIOD));
        tokio::time::advance(PERIOD).await;
        assert!(matches!(feed.turn(1), Turn::Make(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_viewer_who_leaves_in_the_middle_leaves_the_event_to_the_next() {
        let feed = Feed::default();
        let mut ticks = feed.published.listener();
        let Turn::Make(making) = feed.turn(0) else { panic!("the first is due at once") };
        drop(making);
        ticks.changed().await;
        assert!(matches!(feed.turn(0), Turn::Make(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_made_for_earlier_viewers_is_not_sent_to_a_later_one() {
        let feed = Feed::default();
        made(&feed, "one");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(matches!(feed.turn(0), Turn::Make(_)));
    }
}
