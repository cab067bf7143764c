//! `claviger billing`.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write as _};

use clap::ValueEnum;

use super::audit_export::tame;
use super::{Failure, as_operator_of};
use crate::app::App;
use crate::domain::{self, Cx, api_key, billing, client};
use crate::model::{Clock, OrganizationId};
use crate::settings::Settings;
use crate::store::usage_rollup::{Dimension, UsageTotals};

/// What a month has cost, for each client, API key and model.
#[derive(clap::Args)]
pub(super) struct Billing {
    /// Which month, in UTC, like 2026-11.
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    month: (i32, i32),
    /// How: for people, or CSV with a heading, in which a quote stands before what a spreadsheet would compute.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Of this organization; the operator's own where it is left out.
    #[arg(long, value_name = "ID")]
    organization: Option<OrganizationId>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Csv,
}

fn month(text: &str) -> Result<(i32, i32), &'static str> {
    let parsed = text.split_once('-').and_then(|(year, month)| Some((year.parse().ok()?, month.parse().ok()?)));
    parsed.filter(|_| text.len() == 7).ok_or("is not a month like 2026-11")
}

const HEADING: [&str; 13] = [
    "month",
    "clientId",
    "client",
    "apiKeyId",
    "apiKey",
    "model",
    "requests",
    "failedRequests",
    "inputTokens",
    "outputTokens",
    "cacheCreationTokens",
    "cacheReadTokens",
    "costUsd",
];

/// How many are asked for at once: SQLite takes no statement with more than some 32,000 values.
const MOST_IDS: usize = 10_000;

/// A line of the bill: for which client, with which key, of which model, and what that comes to.
struct Line {
    client: (String, String),
    api_key: (String, String),
    model: String,
    totals: UsageTotals,
}

/// Prints the bill of a month.
pub(super) async fn run(settings: &Settings, asked: Billing) -> Result<(), Failure> {
    let app = App::of_begun(settings, Clock::system()).await?;
    let (year, month) = asked.month;
    let organization = asked.organization.unwrap_or(app.services.home);
    let deed = as_operator_of(&app.services, organization, "billing", async |cx| {
        let bill = billing::of_month(cx, year, month).await?;
        Ok((lines(cx, &bill).await?, bill.total))
    });
    let (lines, total) = deed.await?;
    let month = format!("{year:04}-{month:02}");
    let printed = match asked.format {
        Format::Csv => print_csv(&month, &lines),
        Format::Text => print_text(&month, &lines, &total),
    };
    match printed {
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|error| Failure::Other(format!("the bill was not printed: {error}"))),
    }
}

async fn lines(cx: Cx<'_>, bill: &billing::Billing) -> domain::Result<Vec<Line>> {
    let ids = |dimension: Dimension| -> BTreeSet<&str> {
        bill.lines.iter().map(|line| line.group[dimension as usize].as_str()).collect()
    };
    let mut names: HashMap<String, String> = HashMap::new();
    let key_ids: Vec<_> = ids(Dimension::ApiKey).into_iter().filter_map(|id| id.parse().ok()).collect();
    for ids in key_ids.chunks(MOST_IDS) {
        let found = api_key::find_many(cx, ids).await?;
        names.extend(found.into_iter().map(|key| (key.id.to_string(), key.name)));
    }
    let client_ids: Vec<_> = ids(Dimension::Client).into_iter().filter_map(|id| id.parse().ok()).collect();
    for ids in client_ids.chunks(MOST_IDS) {
        let found = client::find_many(cx, ids).await?;
        names.extend(found.into_iter().map(|client| (client.id.to_string(), client.name)));
    }
    let with_name = |id: &String| (id.clone(), names.get(id).cloned().unwrap_or_default());
    let line = |bucket: &domain::usage_report::Bucket| Line {
        client: with_name(&bucket.group[Dimension::Client as usize]),
        api_key: with_name(&bucket.group[Dimension::ApiKey as usize]),
        model: bucket.group[Dimension::Model as usize].clone(),
        totals: bucket.totals,
    };
    Ok(bill.lines.iter().map(line).collect())
}

fn print_csv(month: &str, lines: &[Line]) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(io::stdout().lock());
    csv.write_record(HEADING)?;
    for Line { client, api_key, model, totals } in lines {
        let cells = [
            month.to_owned(),
            client.0.clone(),
            client.1.clone(),
            api_key.0.clone(),
            api_key.1.clone(),
            model.clone(),
            totals.requests.to_string(),
            totals.failed_requests.to_string(),
            totals.input_tokens.to_string(),
            totals.output_tokens.to_string(),
            totals.cache_creation_tokens.to_string(),
            totals.cache_read_tokens.to_string(),
            totals.cost().to_string(),
        ];
        csv.write_record(cells.map(tame))?;
    }
    csv.flush()
}

fn print_text(month: &str, lines: &[Line], total: &UsageTotals) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let or_dash = |(id, name): &(String, String)| match (id.as_str(), name.as_str()) {
        ("", _) => "-".to_owned(),
        (id, "") => id.to_owned(),
        (_, name) => name.chars().filter(|character| !character.is_control()).collect(),
    };
    let mut print = |client: &str, api_key: &str, model: &str, requests: &str, cost: &str| {
        writeln!(out, "{client:<28} {api_key:<24} {model:<20} {requests:>9} {cost:>16}")
    };
    if !lines.is_empty() {
        print("client", "API key", "model", "requests", "USD")?;
    }
    for Line { client, api_key, model, totals } in lines {
        let (requests, cost) = (totals.requests.to_string(), totals.cost().to_string());
        print(&or_dash(client), &or_dash(api_key), model, &requests, &cost)?;
    }
    writeln!(out, "{month}: {} requests, {} tokens, {} USD", total.requests, total.tokens(), total.cost())
}
