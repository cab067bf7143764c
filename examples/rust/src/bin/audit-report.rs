//! Writes a span of the audit log, newest first, as a line of JSON for each entry.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use audit_page::AuditOutcome;
use chrono::Utc;
use claviger_example::Claviger;
use graphql_client::GraphQLQuery;

type DateTime = chrono::DateTime<Utc>;

#[derive(GraphQLQuery)]
#[graphql(
    schema_path = "../../schema.graphql",
    query_path = "src/audit_report.graphql",
    response_derives = "Serialize",
    variables_derives = "Clone"
)]
struct AuditPage;

const USAGE: &str = "usage: audit-report FROM TO [SUCCESS|DENIED|FAILED…], with times as 2026-01-31T00:00:00Z";

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut time = || words.next().context(USAGE)?.parse::<DateTime>().context(USAGE);
    let (from, to) = (time()?, time()?);
    let outcomes: Vec<AuditOutcome> = words.map(outcome).collect::<Result<_>>()?;
    let mut variables =
        audit_page::Variables { from, to, outcomes: (!outcomes.is_empty()).then_some(outcomes), after: None };

    let claviger = Claviger::from_env()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    loop {
        let page = claviger.ask::<AuditPage>(variables.clone())?.audit_logs.context("no audit log was answered")?;
        for entry in &page.nodes {
            serde_json::to_writer(&mut out, entry)?;
            writeln!(out)?;
        }
        if !page.page_info.has_next_page {
            return Ok(out.flush()?);
        }
        variables.after = page.page_info.end_cursor;
    }
}

fn outcome(word: String) -> Result<AuditOutcome> {
    match word.as_str() {
        "SUCCESS" => Ok(AuditOutcome::SUCCESS),
        "DENIED" => Ok(AuditOutcome::DENIED),
        "FAILED" => Ok(AuditOutcome::FAILED),
        _ => anyhow::bail!("{word} is no outcome\n{USAGE}"),
    }
}
