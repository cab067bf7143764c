//! What is delivered beside the program speaks of what there is.

use std::collections::BTreeSet;

use crate::support::{TestApp, TestDatabase, TestRedis};

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("claviger_")).collect()
}

/// The values that labels are compared with, each with its metric and label: those of patterns that name values one by one.
fn selected(text: &str) -> Vec<(&str, &str, &str)> {
    let mut found = Vec::new();
    for (metric, rest) in text.split("claviger_").skip(1).filter_map(|rest| rest.split_once('{')) {
        if !metric.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        for (label, values) in labels.split("\",").filter_map(|label| label.split_once('=')) {
            let values = values.trim_start_matches('~').trim_matches('"');
            found.extend(values.split('|').filter(|value| !value.contains('.')).map(|value| (metric, label, value)));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_are_about_metrics_that_there_are() {
    let redis = TestRedis::start().await;
    let app = TestApp::start(TestDatabase::sqlite(), [("REDIS_URL", redis.url())]).await;
    let admin = app.admin().await;
    let alerts = std::fs::read_to_string("deploy/alerts.yaml").unwrap();
    let wanted = named(&alerts);
    assert!(wanted.len() > 10);
    let mut missing = Vec::new();
    // Jobs are counted once they were done.
    for _ in 0..600 {
        let answer = admin.http().get(format!("{}/metrics", app.url)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let there = named(&text);
        missing = wanted.difference(&there).map(|name| (*name).to_owned()).collect();
        if missing.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// Where a proxy gives up first, callers of the relay get its error for an answer that is paid for.
#[test]
fn proxies_wait_for_longer_than_the_relay_does() {
    let table = std::fs::read_to_string("README.md").unwrap();
    let row = table.lines().find(|line| line.starts_with("| `UPSTREAM_TIMEOUT` |")).unwrap();
    let upstream: u64 = row.split('`').nth(3).unwrap().parse().unwrap();
    for (file, name) in [("deploy/nginx.conf", "proxy_read_timeout "), ("deploy/Caddyfile", "read_timeout ")] {
        let text = std::fs::read_to_string(file).unwrap();
        let waits: Vec<u64> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix(name)?.trim_end_matches(';').strip_suffix('s')?.parse().ok())
            .collect();
        assert!(waits.len() == 1 && waits[0] >= upstream + 150, "{file}: {waits:?}");
    }
}

/// An alert on a value that no metric has would never be heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_ask_for_values_that_there_are() {
    let app = TestApp::start(TestDatabase::sqlite(), []).await;
    let admin = app.admin().await;
    // Jobs are counted from the start, a request once it has come.
    let text = admin.http().get(format!("{}/metrics", app.url)).send().await.unwrap().text().await.unwrap();
    let schema = include_str!("../../schema.graphql");
    let alerts = std::fs::read_to_string("deploy/alerts.yaml").unwrap();
    let selected = selected(&alerts);
    assert!(selected.len() > 8, "{selected:?}");
    for (metric, label, value) in selected {
        let is_known = match (metric, label) {
            ("graphql_requests_total", "outcome") => schema.contains(&format!("\n\t{value}\n")),
            ("graphql_requests_total", "field") => schema.contains(&format!("\n\t{value}(")),
            _ => text.lines().any(|line| {
                line.starts_with(&format!("claviger_{metric}")) && line.contains(&format!("{label}=\"{value}\""))
            }),
        };
        assert!(is_known, "{metric} has no {label} {value}");
    }
}
