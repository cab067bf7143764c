//! What months have cost: in the API, and by `claviger billing`.

use claviger::domain::usage::flush;
use claviger::model::Timestamp;
use serde_json::json;

use crate::support::{TestApp, both_databases};
use crate::usage::{Whose, few, id, request};

fn at(text: &str) -> Timestamp {
    Timestamp::from(chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc())
}

/// Runs the program on the application's database.
fn command(app: &TestApp, arguments: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_claviger"));
    command.args(arguments).current_dir(folder.path()).env_clear();
    command.env("DATABASE_URL", &app.database.url).env("DATA_DIR", app.data_dir());
    command.output().unwrap()
}

both_databases! {
    async fn a_bill_is_what_the_month_has_cost(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let client = admin.run("mutation { createClient(input: { name: \"=Acme, Ltd\" }) { client { id } } }").await.data()["createClient"]["client"].clone();
        let (for_client, _) = crate::api_key::create(&admin, json!({ "name": "For Acme", "clientId": client["id"] })).await;
        let (other, _) = crate::api_key::create(&admin, json!({ "name": "Other" })).await;
        let admins = Whose::of(&admin).await;
        let acme = Whose { api_key: id(&for_client["id"]), client: id(&client["id"]), ..admins.clone() };
        let others = Whose { api_key: id(&other["id"]), ..admins };
        for (whose, time, model, input) in [
            (&acme, "2026-09-30T23:59:59.999999Z", "claude-opus-5", 5_000_000),
            (&acme, "2026-10-01T00:00:00Z", "claude-opus-5", 1_000_000),
            (&acme, "2026-10-15T12:30:00Z", "claude-opus-5", 3),
            (&acme, "2026-10-31T23:59:59.999999Z", "claude-sonnet-5", 1_000_000),
            (&others, "2026-10-02T00:00:00Z", "claude-sonnet-5", 500_000),
            (&others, "2026-11-01T00:00:00Z", "claude-sonnet-5", 7),
        ] {
            services.usage.record(request(&services, whose, at(time), model, few(input, 0)));
        }
        flush(&services).await.unwrap();
        let query = "{ billing(year: 2026, month: 10) { year month total { requests costUsd inputTokens }
            byModel { model apiKeyId totals { costUsd } } byClient { client { name } totals { costUsd } }
            byApiKey { apiKey { name } totals { requests costUsd } } } }";
        let answer = app.user("MANAGER").await.run(query).await;
        let cost = |usd: &str| json!({ "costUsd": usd });
        assert_eq!(answer.data()["billing"], json!({
            "year": 2026, "month": 10, "total": { "requests": 4, "costUsd": "8.000015", "inputTokens": 2_500_003 },
            "byModel": [
                { "model": "claude-opus-5", "apiKeyId": null, "totals": cost("5.000015") },
                { "model": "claude-sonnet-5", "apiKeyId": null, "totals": cost("3") }
            ],
            "byClient": [
                { "client": { "name": "=Acme, Ltd" }, "totals": cost("7.000015") },
                { "client": null, "totals": cost("1") }
            ],
            "byApiKey": [
                { "apiKey": { "name": "For Acme" }, "totals": { "requests": 3, "costUsd": "7.000015" } },
                { "apiKey": { "name": "Other" }, "totals": { "requests": 1, "costUsd": "1" } }
            ]
        }));
        for (year, month, field) in [(2026, 13, "month"), (2026, 0, "month"), (1999, 1, "year"), (9999, 1, "year")] {
            let answer = admin.run(&format!("{{ billing(year: {year}, month: {month}) {{ year }} }}")).await;
            assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec![field]));
        }

        let output = command(&app, &["billing", "--month", "2026-10", "--format", "csv"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut csv = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(csv.headers().unwrap().iter().next(), Some("month"));
        let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        let cells = |row: &csv::StringRecord| [0, 2, 4, 5, 6, 12].map(|place: usize| row[place].to_owned());
        assert_eq!(rows.iter().map(cells).collect::<Vec<_>>(), [
            ["2026-10", "'=Acme, Ltd", "For Acme", "claude-opus-5", "2", "5.000015"],
            ["2026-10", "'=Acme, Ltd", "For Acme", "claude-sonnet-5", "1", "2"],
            ["2026-10", "", "Other", "claude-sonnet-5", "1", "1"],
        ].map(|row| row.map(str::to_owned)));
        assert_eq!((json!(rows[0][1]), json!(rows[0][3])), (client["id"].clone(), for_client["id"].clone()));
        let text = String::from_utf8(command(&app, &["billing", "--month", "2026-10"]).stdout).unwrap();
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["client", "API", "key", "model", "requests", "USD"]);
        assert_eq!((lines.len(), &lines[3][..]), (5, &["-", "Other", "claude-sonnet-5", "1", "1"][..]));
        assert!(text.ends_with("2026-10: 4 requests, 2500003 tokens, 8.000015 USD\n"), "{text}");
        let nothing = String::from_utf8(command(&app, &["billing", "--month", "2020-01"]).stdout).unwrap();
        assert_eq!(nothing, "2020-01: 0 requests, 0 tokens, 0 USD\n");
        // However many lines: SQLite takes no statement with as many values.
        let organization = Whose::of(&admin).await.organization;
        let start = if app.database.url.starts_with("postgres") { "timestamptz '2021-01-03 00:00:00+00'" } else { "'2021-01-03T00:00:00.000000Z'" };
        let (key, client) = (other["id"].as_str().unwrap(), client["id"].as_str().unwrap());
        let insert = format!("INSERT INTO usage_rollups WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 33000)
            SELECT '{organization}', 'DAY', {start}, '{key}', '', '{client}', '', 'm' || i, 1, 0, 1, 1, 0, 0, 1, 1 FROM n");
        app.database.execute(&insert).await.unwrap();
        let many = command(&app, &["billing", "--month", "2021-01", "--format", "csv"]);
        assert!(many.status.success(), "{}", String::from_utf8_lossy(&many.stderr));
        assert_eq!(String::from_utf8(many.stdout).unwrap().lines().filter(|line| line.contains("Other")).count(), 33_000);
        for wrong in ["2026-13", "202610", "2026-1", "x"] {
            assert_eq!(command(&app, &["billing", "--month", wrong]).status.code(), Some(2), "{wrong}");
        }
    }
}
