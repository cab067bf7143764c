//! What is delivered beside the program speaks of what there is.

use std::collections::BTreeSet;

use crate::support::{TestApp, TestDatabase, TestRedis};

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("claviger_")).collect()
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
