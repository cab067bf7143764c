//! What tokens cost: by the table, exactly.

use claviger::domain::prices::Prices;
use claviger::model::{NanoUsd, Timestamp, Tokens};
use proptest::prelude::*;
use serde_json::json;

use crate::command_line::{Place, on_both};
use crate::support::{Client, PASSWORD, TestDatabase, both_databases};

fn at(text: &str) -> Timestamp {
    Timestamp::from(chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc())
}

fn now() -> Timestamp {
    at("2026-11-21T12:00:00Z")
}

fn built_in() -> Prices {
    Prices::load(None).unwrap()
}

/// The table as it is documented, in thousandths of a dollar for a million tokens: input, 5 min write, 1 h write, read, output.
const TABLE: [(&str, [u64; 5]); 8] = [
    ("claude-fable-5-2", [8_000, 10_000, 16_000, 200, 40_000]),
    ("claude-fable-5-1", [10_000, 12_500, 20_000, 250, 50_000]),
    ("claude-opus-5-5", [4_000, 5_000, 8_000, 200, 20_000]),
    ("claude-opus-5", [5_000, 6_250, 10_000, 500, 25_000]),
    ("claude-sonnet-5-5", [2_000, 2_500, 4_000, 100, 10_000]),
    ("claude-sonnet-5", [2_000, 2_500, 4_000, 200, 10_000]),
    ("claude-haiku-5-5", [100, 125, 200, 10, 500]),
    ("claude-haiku-4-5", [1_000, 1_250, 2_000, 100, 5_000]),
];
/// Of the model that has two tiers, for prompts of more than 100,000 tokens. All but input and output follow from the other.
const LONG_HAIKU: [u64; 5] = [500, 625, 1_000, 50, 2_500];

/// What it costs by the table, computed in another way: in billionths.
fn expected(model: usize, tokens: &Tokens) -> u64 {
    let prompt = tokens.input + tokens.cache_write_5m + tokens.cache_write_1h + tokens.cache_read;
    let (name, mut row) = TABLE[model];
    if name == "claude-haiku-5-5" && prompt > 100_000 {
        row = LONG_HAIKU;
    }
    let counts = [tokens.input, tokens.cache_write_5m, tokens.cache_write_1h, tokens.cache_read, tokens.output];
    counts.iter().zip(row).map(|(count, price)| count * price).sum::<u64>() + tokens.web_searches * 10_000_000
}

fn nanos(cost: NanoUsd) -> u64 {
    cost.nanos().try_into().unwrap()
}

fn tokens() -> impl Strategy<Value = Tokens> {
    let count = 0_u64..300_000;
    (count.clone(), count.clone(), count.clone(), count.clone(), count, 0_u64..5).prop_map(
        |(input, output, cache_write_5m, cache_write_1h, cache_read, web_searches)| Tokens {
            input,
            output,
            cache_write_5m,
            cache_write_1h,
            cache_read,
            web_searches,
        },
    )
}

fn sum(one: &Tokens, two: &Tokens) -> Tokens {
    Tokens {
        input: one.input + two.input,
        output: one.output + two.output,
        cache_write_5m: one.cache_write_5m + two.cache_write_5m,
        cache_write_1h: one.cache_write_1h + two.cache_write_1h,
        cache_read: one.cache_read + two.cache_read,
        web_searches: one.web_searches + two.web_searches,
    }
}

proptest! {
    #[test]
    fn a_cost_is_the_exact_sum_by_the_table(model in 0..TABLE.len(), tokens in tokens()) {
        let priced = built_in().cost(TABLE[model].0, &tokens, now());
        prop_assert!(priced.is_known);
        prop_assert_eq!(nanos(priced.cost), expected(model, &tokens));
    }

    #[test]
    fn the_parts_cost_what_the_whole_costs(model in 0..TABLE.len(), one in tokens(), two in tokens()) {
        // Of the model with tiers the parts are not what the whole is: its prices go by the whole's length.
        prop_assume!(TABLE[model].0 != "claude-haiku-5-5");
        let prices = built_in();
        for model in [TABLE[model].0, "some-other-model"] {
            let cost = |tokens: &Tokens| nanos(prices.cost(model, tokens, now()).cost);
            prop_assert_eq!(cost(&one) + cost(&two), cost(&sum(&one, &two)));
        }
    }

    #[test]
    fn how_the_cache_writes_are_reported_changes_no_cost(total in 0_u64..1_000_000, for_1h in 0_u64..1_000_000) {
        let for_1h = for_1h.min(total);
        let prices = built_in();
        let split = Tokens::default().with_cache_writes(total, for_1h);
        let cost = nanos(prices.cost("claude-opus-5", &split, now()).cost);
        prop_assert_eq!(cost, (total - for_1h) * 6_250 + for_1h * 10_000);
    }

    #[test]
    fn an_estimate_is_never_less_than_the_cost(model in 0..=TABLE.len(), tokens in tokens()) {
        let prices = built_in();
        let model = TABLE.get(model).map_or("some-other-model", |(name, _)| name);
        let tokens = Tokens { web_searches: 0, ..tokens };
        let estimate = prices.estimate(model, tokens.prompt(), tokens.output, now());
        prop_assert!(NanoUsd::from(estimate) >= prices.cost(model, &tokens, now()).cost);
    }
}

#[test]
fn a_longer_prompt_has_the_prices_of_its_tier_for_every_token() {
    let prices = built_in();
    let short = Tokens { input: 50_000, cache_read: 30_000, cache_write_1h: 20_000, output: 10, ..Tokens::default() };
    let long = Tokens { cache_read: 30_001, ..short };
    let cost = |tokens: &Tokens| nanos(prices.cost("claude-haiku-5-5", tokens, now()).cost);
    assert_eq!(cost(&short), 50_000 * 100 + 30_000 * 10 + 20_000 * 200 + 10 * 500);
    // The row has but input and output: the others are five times those of the lower tier, as its input is.
    assert_eq!(cost(&long), 50_000 * 500 + 30_001 * 50 + 20_000 * 1_000 + 10 * 2_500);
}

#[test]
fn an_unknown_model_costs_as_much_as_the_dearest_and_is_flagged() {
    let prices = built_in();
    let tokens = Tokens { input: 1_000, output: 1_000, cache_read: 1_000, ..Tokens::default() };
    let dearest = prices.cost("claude-fable-5-1", &tokens, now());
    for unknown in ["claude-next-9", "", "claude-fable-5-1-preview", "claude-fable-5-1-2026112"] {
        let found = prices.cost(unknown, &tokens, now());
        assert_eq!((found.cost, found.is_known), (dearest.cost, false), "{unknown}");
    }
    for known in ["claude-fable-5-1-20261001", "claude-fable-5-1-latest"] {
        assert_eq!(prices.cost(known, &tokens, now()), dearest, "{known}");
    }
}

const DATED: &str = r#"{ "webSearch": "0.02", "models": [{ "id": "m", "contextWindow": 200000, "prices": [
    { "tiers": [{ "input": "3", "cacheWrite5m": "3.75", "cacheWrite1h": "6", "cacheRead": "0.3", "output": "15" }] },
    { "from": "2026-12-01T00:00:00Z", "tiers": [
        { "input": "1", "cacheWrite5m": "1.25", "cacheWrite1h": "2", "cacheRead": "0.001", "output": "5" },
        { "abovePromptTokens": 10, "input": "1.333", "output": "7" }] }] }] }"#;

#[test]
fn a_price_holds_from_its_date_on() {
    let prices = Prices::parse(DATED).unwrap();
    let model = &prices.models()[0];
    let input = |time: &str| model.row(0, at(time)).input.to_string();
    assert_eq!((input("2020-01-01T00:00:00Z"), input("2026-11-30T23:59:59.999999Z")), ("3".to_owned(), "3".to_owned()));
    assert_eq!((input("2026-12-01T00:00:00Z"), input("2030-01-01T00:00:00Z")), ("1".to_owned(), "1".to_owned()));
    // What the tier leaves out is as much dearer as its input is, to the last place of a price.
    let long = model.row(11, at("2027-01-01T00:00:00Z"));
    assert_eq!(
        (long.cache_read.micros(), long.cache_write_5m.micros(), long.output.micros()),
        (1_333, 1_666_250, 7_000_000)
    );
    let searched = Tokens { web_searches: 3, ..Tokens::default() };
    assert_eq!(prices.cost("m", &searched, now()).cost.to_string(), "0.06");
}

/// The table of the documentation, whose prices have more places than a billionth for a token.
#[test]
fn the_documented_table_is_taken_and_a_cost_is_rounded_once() {
    let text = include_str!("../../docs/usage.md");
    let (_, table) = text.split_once("```json\n").unwrap();
    let prices = Prices::parse(table.split_once("```").unwrap().0).unwrap();
    let later = at("2027-01-01T00:00:00Z");
    let cost = |tokens: Tokens| nanos(prices.cost("claude-haiku-5-5", &tokens, later).cost);
    // 112.5 billionths each.
    let written = |cache_write_5m| Tokens { cache_write_5m, ..Tokens::default() };
    assert_eq!((cost(written(2)), cost(written(1_000_000))), (225, 112_500_000));
    assert_eq!(cost(Tokens { cache_write_5m: 1, input: 1, ..Tokens::default() }), 203);
    assert_eq!(cost(Tokens { cache_write_5m: 3, input: 1, ..Tokens::default() }), 428);
}

#[test]
fn a_table_that_cannot_be_meant_is_refused() {
    for (wrong, says) in [
        (DATED.replace("\"0.001\"", "\"0.0000001\""), "6 places"),
        (DATED.replace("\"15\"", "\"-15\""), "no amount"),
        (DATED.replace("\"15\"", "\"10001\""), "more than 10000"),
        (DATED.replace("\"output\": \"15\"", "\"outptu\": \"15\""), "unknown field"),
        (DATED.replace(", \"output\": \"15\"", ""), "needs output in its first tier"),
        (DATED.replace("{ \"tiers\"", "{ \"from\": \"2026-01-01T00:00:00Z\", \"tiers\""), "without a date"),
        (DATED.replace("\"from\": \"2026-12-01T00:00:00Z\", ", ""), "two prices from one date"),
        (DATED.replace("\"abovePromptTokens\": 10,", ""), "shorter prompts"),
        ("{ \"webSearch\": \"0\", \"models\": [] }".to_owned(), "no models"),
        ("{".to_owned(), "not a table"),
    ] {
        let error = Prices::parse(&wrong).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

both_databases! {
    async fn the_models_are_listed_with_their_prices(app: TestApp) {
        let query = "{ models { id displayName inputUsdPerMillion outputUsdPerMillion cacheWriteUsdPerMillion
            cacheWriteOneHourUsdPerMillion cacheReadUsdPerMillion contextWindow } }";
        let answer = app.user("READ_ONLY").await.run(query).await;
        let models = answer.data()["models"].as_array().unwrap();
        assert_eq!(models.len(), TABLE.len());
        assert!(models.contains(&json!({
            "id": "claude-opus-5", "displayName": "Claude Opus 5", "inputUsdPerMillion": "5", "outputUsdPerMillion": "25",
            "cacheWriteUsdPerMillion": "6.25", "cacheWriteOneHourUsdPerMillion": "10", "cacheReadUsdPerMillion": "0.5",
            "contextWindow": null
        })));
    }
}

on_both! {
    async fn a_file_takes_the_place_of_the_table(place: Place) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prices.json");
        std::fs::write(&file, DATED).unwrap();
        let serve = |file: &std::path::Path| {
            let mut command = place.command(&["serve"]);
            command.env("PRICES_FILE", file);
            command
        };
        let server = Place::started(serve(&file));
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        let listed = admin.run("{ models { id displayName contextWindow } }").await;
        assert_eq!(listed.data()["models"], json!([{ "id": "m", "displayName": "m", "contextWindow": 200_000 }]));
        assert!(server.stop().success());
        std::fs::write(&file, "{").unwrap();
        for wrong in [file, folder.path().join("none.json")] {
            let output = serve(&wrong).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(2) && told.contains("PRICES_FILE"), "{told}");
        }
    }
}
