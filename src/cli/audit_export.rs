//! `claviger audit export`: JSON lines or CSV.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Failure, as_operator_of};
use crate::app::App;
use crate::domain::audit_export::begin;
use crate::model::{OrganizationId, Timestamp};
use crate::store::audit_log::AuditLog;

/// How the entries are written.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Jsonl,
    Csv,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// An entry, by the names of the API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    id: String,
    organization_id: String,
    sequence: i64,
    occurred_at: String,
    action: &'a str,
    operation: &'a str,
    outcome: &'a str,
    error_code: Option<&'a str>,
    resource_type: &'a str,
    resource_id: Option<&'a str>,
    changes: Option<Json<'a>>,
    metadata: Option<Json<'a>>,
    user_id: Option<String>,
    api_key_id: Option<String>,
    ip_address: Option<&'a str>,
    user_agent: Option<&'a str>,
    request_id: &'a str,
    hash: String,
}

/// JSON to the byte as it is kept and hashed; what is none, or would be more than a line, as a text.
#[derive(Serialize)]
#[serde(untagged)]
enum Json<'a> {
    Kept(&'a RawValue),
    Text(&'a str),
}

impl<'a> Json<'a> {
    fn new(text: &'a str) -> Self {
        match serde_json::from_str(text) {
            Ok(kept) if !text.contains(['\n', '\r']) => Self::Kept(kept),
            _ => Self::Text(text),
        }
    }

    fn text(&self) -> &'a str {
        match self {
            Self::Kept(kept) => kept.get(),
            Self::Text(text) => text,
        }
    }
}

impl<'a> From<&'a AuditLog> for Line<'a> {
    fn from(entry: &'a AuditLog) -> Self {
        Self {
            id: entry.id.to_string(),
            organization_id: entry.organization_id.to_string(),
            sequence: entry.sequence,
            occurred_at: entry.occurred_at.to_text(),
            action: entry.action.as_str(),
            operation: &entry.operation,
            outcome: entry.outcome.as_str(),
            error_code: entry.error_code.as_deref(),
            resource_type: entry.resource_type.as_str(),
            resource_id: entry.resource_id.as_deref(),
            changes: entry.changes.as_deref().map(Json::new),
            metadata: entry.metadata.as_deref().map(Json::new),
            user_id: entry.user_id.map(|id| id.to_string()),
            api_key_id: entry.api_key_id.map(|id| id.to_string()),
            ip_address: entry.ip_address.as_deref(),
            user_agent: entry.user_agent.as_deref(),
            request_id: &entry.request_id,
            hash: hex::encode(&entry.hash),
        }
    }
}

const HEADING: [&str; 18] = [
    "id",
    "organizationId",
    "sequence",
    "occurredAt",
    "action",
    "operation",
    "outcome",
    "errorCode",
    "resourceType",
    "resourceId",
    "changes",
    "metadata",
    "userId",
    "apiKeyId",
    "ipAddress",
    "userAgent",
    "requestId",
    "hash",
];

impl Line<'_> {
    fn cells(&self) -> [String; HEADING.len()] {
        let json = |json: &Option<Json<'_>>| json.as_ref().map_or("", Json::text).to_owned();
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        [
            self.id.clone(),
            self.organization_id.clone(),
            self.sequence.to_string(),
            self.occurred_at.clone(),
            self.action.to_owned(),
            self.operation.to_owned(),
            self.outcome.to_owned(),
            text(self.error_code),
            self.resource_type.to_owned(),
            text(self.resource_id),
            json(&self.changes),
            json(&self.metadata),
            text(self.user_id.as_deref()),
            text(self.api_key_id.as_deref()),
            text(self.ip_address),
            text(self.user_agent),
            self.request_id.to_owned(),
            self.hash.clone(),
        ]
        .map(tame)
    }
}

/// Puts a quote before what a spreadsheet would take for a formula: callers choose what a program is called.
pub(super) fn tame(cell: String) -> String {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{cell}") } else { cell }
}

/// Prints the entries of an organization's log.
pub(super) async fn run(
    app: &App,
    organization: OrganizationId,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    format: Format,
) -> Result<(), Failure> {
    let printed = as_operator_of(&app.services, organization, "audit export", async |cx| {
        let mut export = begin(cx, from, to, format.name()).await?;
        let mut page = match format {
            Format::Jsonl => String::new(),
            Format::Csv => HEADING.join(",") + "\n",
        }
        .into_bytes();
        loop {
            if let Err(error) = print(&page) {
                return Ok(Err(error));
            }
            let entries = export.next(cx).await?;
            if entries.is_empty() {
                return Ok(Ok(()));
            }
            page.clear();
            if let Err(error) = write(&entries, format, &mut page) {
                return Ok(Err(error));
            }
        }
    })
    .await?;
    match printed {
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|error| Failure::Other(format!("the export broke off: {error}"))),
    }
}

fn write(entries: &[AuditLog], format: Format, page: &mut Vec<u8>) -> io::Result<()> {
    match format {
        Format::Jsonl => {
            for entry in entries {
                serde_json::to_writer(&mut *page, &Line::from(entry))?;
                page.push(b'\n');
            }
        }
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(page);
            for entry in entries {
                csv.write_record(Line::from(entry).cells())?;
            }
            csv.flush()?;
        }
    }
    Ok(())
}

fn print(page: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(page)?;
    out.flush()
}
