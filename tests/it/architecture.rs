//! The layers: who may use whom, which one crate gets from no compiler.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::TestApp;

/// The layers from the outermost to the innermost: a module may use those of later lines, not of its own or an earlier one.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["app"],
    &["http"],
    &["graphql", "relay"],
    &["jobs"],
    &["domain"],
    &["identity", "audit"],
    &["store", "limits"],
    &["upstream", "mail", "workers"],
    &["redis"],
    &["events"],
    &["crypto"],
    &["logs"],
    &["settings"],
    &["model"],
];

/// Crates that stand only in some modules.
const CONFINED: &[(&str, &[&str])] = &[
    ("diesel", &["store/"]),
    ("diesel_async", &["store/"]),
    ("async_graphql", &["graphql/", "http/graphql.rs", "http/request.rs", "http/documents.rs", "http/subscription.rs"]),
    ("axum", &["http/", "relay/", "app.rs"]),
    ("redis", &["redis.rs", "limits/"]),
    ("lettre", &["mail/"]),
    ("aws_lc_rs", &["crypto/"]),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// What a line of a file breaks, if anything.
fn violation(file: &str, line: &str) -> Option<String> {
    let own = file.split(['/', '.']).next().unwrap_or_default();
    let Some(from) = layer(own) else {
        return Some(format!("{own} has no place among the layers"));
    };
    // A path that this function cannot follow would be a way around it.
    if ["crate::{", "crate::*", "super::super::"].iter().any(|unclear| line.contains(unclear)) {
        return Some("a module is named by one whole path from crate::".to_owned());
    }
    let is_at_the_top = !file.contains('/') || file == format!("{own}/mod.rs");
    if is_at_the_top && (line.starts_with("use super::") || line.starts_with("pub(crate) use super::")) {
        return Some("super:: is the crate here: say crate::".to_owned());
    }
    for (start, _) in line.match_indices("crate::") {
        if line[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let used: String = line[start + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(to) = layer(&used) else {
            return Some(format!("{used} has no place among the layers"));
        };
        if own != used && to <= from {
            return Some(format!("{own} may not use {used}"));
        }
    }
    CONFINED.iter().find_map(|(name, places)| {
        let mentions = line
            .match_indices(&format!("{name}::"))
            .any(|(start, _)| !line[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
        (mentions && !places.iter().any(|place| file.starts_with(place)))
            .then(|| format!("{name} does not belong here"))
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_layers_hold() {
    let mut broken = Vec::new();
    for path in sources(Path::new("src")) {
        let file = path.strip_prefix("src").unwrap().display().to_string();
        if matches!(file.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.starts_with("//! ") {
            broken.push(format!("{file}: does not begin by saying what it is for"));
        }
        if text.lines().count() > 600 {
            broken.push(format!("{file}: is longer than 600 lines"));
        }
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            if let Some(rule) = violation(&file, line) {
                broken.push(format!("{file}:{}: {rule}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_broken_rule_is_noticed() {
    assert!(violation("store/user.rs", "use crate::domain::Error;").is_some());
    assert!(violation("identity/actor.rs", "use crate::audit::Entry;").is_some());
    assert!(violation("domain/user.rs", "use diesel::prelude::*;").is_some());
    assert!(violation("store/user.rs", "use crate::{domain::Error, model::Id};").is_some());
    assert!(violation("store/user.rs", "use super::super::domain::Error;").is_some());
    assert!(violation("store/mod.rs", "use super::domain::Error;").is_some());
    assert!(violation("relay/mod.rs", "use crate::graphql::Api;").is_some());
    assert!(violation("unknown/mod.rs", "use crate::model::Id;").is_some());
    assert!(violation("domain/user.rs", "use crate::relay::Pool;").is_some());
    assert!(violation("domain/user.rs", "use crate::store::Tx;").is_none());
    assert!(violation("graphql/user.rs", "use async_graphql::Object;").is_none());
}

#[test]
fn what_is_committed_without_an_audit_entry_is_listed() {
    let commits = |text: &str, call: &str| {
        text.lines().filter(|line| !line.trim_start().starts_with("//") && line.contains(call)).count()
    };
    let mut found = BTreeSet::new();
    for path in sources(Path::new("src")) {
        let file = path.strip_prefix("src").unwrap().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        for call in [".commit()", ".commit_bookkeeping()", "Tx::bookkeeping("] {
            found.extend((0..commits(&text, call)).map(|nth| format!("{file} {call} {nth}")));
        }
    }
    // The two of a transaction itself, the migrations, and bookkeeping: when API keys were last used, what has ended long ago,
    // which server does a job or answers a conversation, what became of mails, what passwords are encrypted with, whether a disk that was full still is, and what
    // requests of the relay use.
    let known = [
        "store/api_key.rs .commit_bookkeeping() 0",
        "store/backend.rs .commit() 0",
        "store/backend.rs .commit_bookkeeping() 0",
        "store/budget.rs Tx::bookkeeping( 0",
        "store/budget.rs Tx::bookkeeping( 1",
        "store/conversation_lease.rs Tx::bookkeeping( 0",
        "store/expired.rs Tx::bookkeeping( 0",
        "store/job_lease.rs Tx::bookkeeping( 0",
        "store/migrations.rs .commit() 0",
        "store/outbox.rs Tx::bookkeeping( 0",
        "store/password_key.rs Tx::bookkeeping( 0",
        "store/tx.rs .commit() 0",
        "store/tx.rs .commit_bookkeeping() 0",
        "store/usage.rs Tx::bookkeeping( 0",
        "store/usage.rs Tx::bookkeeping( 1",
        "store/usage.rs Tx::bookkeeping( 2",
    ];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

/// It takes no permit: the organization is the caller's to name.
#[test]
fn who_appends_entries_past_the_commit_is_listed() {
    let mut found = BTreeSet::new();
    for path in sources(Path::new("src")) {
        let file = path.strip_prefix("src").unwrap().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        if text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("append_all")) {
            found.insert(file);
        }
    }
    // Where it is, and `claviger seed --scale`.
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["domain/scale.rs", "store/audit_log.rs"]);
}

/// Whose conversations somebody reads is nobody's to name.
#[test]
fn own_conversations_are_an_actors() {
    let mut found = Vec::new();
    for path in sources(Path::new("src")) {
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains("Own::of") {
            found.push(path.strip_prefix("src").unwrap().display().to_string());
        }
        assert!(!text.contains("Own as"), "{}: another name would hide who makes it", path.display());
    }
    assert_eq!(found, ["identity/actor.rs"]);
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |database: &str| -> BTreeSet<String> {
        let folder = Path::new("migrations").join(database);
        std::fs::read_dir(folder)
            .unwrap()
            .flatten()
            .map(|entry| {
                assert!(entry.path().join("up.sql").exists() && entry.path().join("down.sql").exists());
                entry.file_name().into_string().unwrap()
            })
            .collect()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_databases_have_the_same_tables_columns_and_nulls() {
    let (sqlite, postgres) = (TestApp::sqlite().await, TestApp::postgres().await);
    let columns = sqlite.database.columns().await;
    assert!(columns.contains(&("claude_accounts.email".to_owned(), true)));
    assert_eq!(columns, postgres.database.columns().await);
}
