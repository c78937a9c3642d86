//! What lies in `deploy/` speaks of metrics that are there.

mod http_support;
mod tls_support;

use std::collections::BTreeSet;

use http_support::Server;
use kvstore::http::ApiSettings;
use tls_support::{Authority, Issue, ask};

/// Every name of ours, or of the process, in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("kvstore_") || word.starts_with("process_")).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let ca = Authority::new("the ring's");
    let tls = Some(ca.tls(&Issue::default()));
    let server = Server::start_with_settings(ApiSettings { tls, ..ApiSettings::default() });
    ask(server.addr, &ca, "GET", "/get?key=k");
    let (_, text) = ask(server.addr, &ca, "GET", "/metrics?format=prometheus");
    let known = metrics_in(&text);
    let dashboard = include_str!("../deploy/grafana/kvstore.json");
    let alerts = include_str!("../deploy/prometheus/alerts.yml");
    for (file, text, least) in [("kvstore.json", dashboard, 25), ("alerts.yml", alerts, 8)] {
        let named = metrics_in(text);
        assert!(named.len() >= least, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names what /metrics does not: {unknown:?}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 20);
}

#[test]
fn every_metric_is_described_once_and_named_by_the_conventions() {
    let ca = Authority::new("the ring's");
    let tls = Some(ca.tls(&Issue::default()));
    let server = Server::start_with_settings(ApiSettings { tls, ..ApiSettings::default() });
    ask(server.addr, &ca, "GET", "/get?key=k");
    let (_, text) = ask(server.addr, &ca, "GET", "/metrics?format=prometheus");
    let mut described = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(described.insert(name), "{name} twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(name.starts_with("kvstore_") || name.starts_with("process_"), "{name}");
    }
    assert!(described.len() > 40);
}
