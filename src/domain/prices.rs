//! What tokens cost: a table of data, with dates from which a price holds and tiers by the length of the prompt. It comes with the
//! program, and an admin can put a file in its place.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::model::{MicroUsd, NanoUsd, Timestamp, Tokens};

/// The table that comes with the program.
const BUILT_IN: &str = include_str!("prices.json");

/// The prices of models.
#[derive(Debug)]
pub struct Prices {
    web_search: MicroUsd,
    models: Vec<Model>,
}

/// A model, as it is listed.
#[derive(Debug)]
pub struct Model {
    /// What the upstream calls it.
    pub id: Arc<str>,
    /// What people call it.
    pub display_name: String,
    /// How many tokens it can look at, where that is known.
    pub context_window: Option<i32>,
    /// The newest first; the last holds for all time before.
    periods: Vec<Period>,
}

#[derive(Debug)]
struct Period {
    from: Option<Timestamp>,
    /// The shortest prompts first.
    tiers: Vec<Tier>,
}

#[derive(Debug)]
struct Tier {
    above: u64,
    row: Row,
}

/// What a million tokens of each kind cost, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Of the prompt.
    pub input: MicroUsd,
    /// Of the prompt, written to the cache for five minutes.
    pub cache_write_5m: MicroUsd,
    /// Of the prompt, written to the cache for an hour.
    pub cache_write_1h: MicroUsd,
    /// Of the prompt, read from the cache.
    pub cache_read: MicroUsd,
    /// Of the answer.
    pub output: MicroUsd,
}

/// What a request costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced {
    /// The sum by the table: exact, but that a part of a billionth of a dollar is rounded at the end.
    pub cost: NanoUsd,
    /// The table's own name of the model, where it has it.
    pub model: Option<Arc<str>>,
    /// Whether the table has the model. One that it has not costs as much as the dearest.
    pub is_known: bool,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// The file cannot be read.
    #[error("PRICES_FILE cannot be read")]
    Read(#[source] std::io::Error),
    /// It is not JSON of this form.
    #[error("PRICES_FILE is not a table of prices: {0}")]
    Form(#[source] serde_json::Error),
    /// It says what cannot be.
    #[error("PRICES_FILE: {0}")]
    Content(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TableFile {
    web_search: String,
    models: Vec<ModelFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ModelFile {
    id: String,
    display_name: Option<String>,
    context_window: Option<i32>,
    prices: Vec<PeriodFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeriodFile {
    from: Option<DateTime<Utc>>,
    tiers: Vec<TierFile>,
}

/// In US dollars for a million tokens.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TierFile {
    #[serde(default)]
    above_prompt_tokens: u64,
    input: String,
    #[serde(rename = "cacheWrite5m")]
    cache_write_5m: Option<String>,
    #[serde(rename = "cacheWrite1h")]
    cache_write_1h: Option<String>,
    cache_read: Option<String>,
    output: Option<String>,
}

impl Prices {
    /// The table of a file, or the one that comes with the program.
    ///
    /// # Errors
    /// Where the file cannot be read, or is not a table.
    pub fn load(file: Option<&Path>) -> Result<Self, PricesError> {
        match file {
            Some(path) => Self::parse(&std::fs::read_to_string(path).map_err(PricesError::Read)?),
            None => Self::parse(BUILT_IN),
        }
    }

    /// Reads a table.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PricesError> {
        let file: TableFile = serde_json::from_str(text).map_err(PricesError::Form)?;
        let web_search = amount(&file.web_search).map_err(|wrong| content("webSearch", wrong))?;
        let mut models: Vec<Model> = Vec::new();
        for model in file.models {
            if models.iter().any(|known| *known.id == *model.id) {
                return Err(content(&model.id, "stands there twice"));
            }
            models.push(Model::read(model)?);
        }
        if models.is_empty() {
            return Err(PricesError::Content("there are no models".to_owned()));
        }
        Ok(Self { web_search, models })
    }

    /// What tokens of a model cost at a time.
    #[must_use]
    pub fn cost(&self, model: &str, tokens: &Tokens, at: Timestamp) -> Priced {
        let (tokens, model) = (tokens.bounded(), self.find(model));
        let row = self.row(model, tokens.prompt(), at);
        let of_tokens = sum(&[
            (tokens.input, row.input),
            (tokens.output, row.output),
            (tokens.cache_write_5m, row.cache_write_5m),
            (tokens.cache_write_1h, row.cache_write_1h),
            (tokens.cache_read, row.cache_read),
        ]);
        // A search is one, and no millionth of what the table has a price for.
        let picos = of_tokens + sum(&[(tokens.web_searches, self.web_search)]) * 1_000_000;
        let cost = NanoUsd::from_nanos(bounded((picos + PER_NANO / 2) / PER_NANO));
        Priced { cost, model: model.map(|model| model.id.clone()), is_known: model.is_some() }
    }

    /// What a request costs at most, web searches aside: as though its prompt were written to the cache at the dearest, and its answer
    /// as long as it may be.
    #[must_use]
    pub fn estimate(&self, model: &str, input_tokens: u64, max_output: u64, at: Timestamp) -> MicroUsd {
        let row = self.row(self.find(model), input_tokens, at);
        let input = row.input.max(row.cache_write_5m).max(row.cache_write_1h).max(row.cache_read);
        let picos = sum(&[(input_tokens, input), (max_output, row.output)]);
        NanoUsd::from_nanos(bounded((picos + PER_NANO - 1) / PER_NANO)).rounded_up()
    }

    /// The table's own name of a model that may be named otherwise.
    #[must_use]
    pub fn known(&self, model: &str) -> Option<&Arc<str>> {
        self.find(model).map(|model| &model.id)
    }

    /// The models that the table has.
    #[must_use]
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    fn row(&self, model: Option<&Model>, prompt: u64, at: Timestamp) -> Row {
        model.map_or_else(|| self.dearest(prompt, at), |model| model.row(prompt, at))
    }

    /// The row whose answers cost the most; of several the one whose prompts do.
    fn dearest(&self, prompt: u64, at: Timestamp) -> Row {
        let rows = self.models.iter().map(|model| model.row(prompt, at));
        rows.max_by_key(|row| (row.output, row.input)).unwrap_or(Row::FREE)
    }

    /// The model of an id, which may end with the date of the model's version or `-latest`.
    fn find(&self, id: &str) -> Option<&Model> {
        let by = |id: &str| self.models.iter().find(|model| *model.id == *id);
        by(id).or_else(|| {
            let (model, version) = id.rsplit_once('-')?;
            let is_version = version == "latest" || version.len() == 8 && version.bytes().all(|b| b.is_ascii_digit());
            is_version.then(|| by(model)).flatten()
        })
    }
}

impl Model {
    /// What its tokens cost at a time, for a prompt of so many.
    #[must_use]
    pub fn row(&self, prompt: u64, at: Timestamp) -> Row {
        let period = self.periods.iter().find(|period| period.from.is_none_or(|from| from <= at));
        let tier = period.and_then(|period| period.tiers.iter().rfind(|tier| tier.above < prompt || tier.above == 0));
        tier.map_or(Row::FREE, |tier| tier.row)
    }

    fn read(file: ModelFile) -> Result<Self, PricesError> {
        let id = file.id;
        let mut periods = Vec::new();
        for period in file.prices {
            periods.push(Period::read(period).map_err(|wrong| content(&id, wrong))?);
        }
        periods.sort_by_key(|period| std::cmp::Reverse(period.from));
        if periods.last().is_none_or(|first| first.from.is_some()) {
            return Err(content(&id, "needs a price without a date, for all time before"));
        }
        if periods.windows(2).any(|pair| pair[0].from == pair[1].from) {
            return Err(content(&id, "has two prices from one date on"));
        }
        Ok(Self {
            display_name: file.display_name.unwrap_or_else(|| id.clone()),
            context_window: file.context_window,
            id: id.into(),
            periods,
        })
    }
}

impl Period {
    fn read(file: PeriodFile) -> Result<Self, String> {
        let mut tiers: Vec<Tier> = Vec::new();
        for tier in file.tiers {
            let row = match tiers.last() {
                None if tier.above_prompt_tokens > 0 => return Err("needs a tier for every prompt first".to_owned()),
                None => tier.whole()?,
                Some(lower) if lower.above >= tier.above_prompt_tokens => {
                    return Err("has tiers that do not begin with the shorter prompts".to_owned());
                }
                Some(lower) => tier.over(lower.row)?,
            };
            tiers.push(Tier { above: tier.above_prompt_tokens, row });
        }
        if tiers.is_empty() {
            return Err("has a price without tiers".to_owned());
        }
        Ok(Self { from: file.from.map(Timestamp::from), tiers })
    }
}

impl TierFile {
    /// The first tier has every price.
    fn whole(&self) -> Result<Row, String> {
        let needed = |name: &str, price: &Option<String>| match price {
            Some(price) => amount(price),
            None => Err(format!("needs {name} in its first tier")),
        };
        Ok(Row {
            input: amount(&self.input)?,
            cache_write_5m: needed("cacheWrite5m", &self.cache_write_5m)?,
            cache_write_1h: needed("cacheWrite1h", &self.cache_write_1h)?,
            cache_read: needed("cacheRead", &self.cache_read)?,
            output: needed("output", &self.output)?,
        })
    }

    /// What another tier leaves out is as much dearer than in the tier below as its prompts are.
    fn over(&self, lower: Row) -> Result<Row, String> {
        let input = amount(&self.input)?;
        let scaled = |price: &Option<String>, below: MicroUsd| match price {
            Some(price) => amount(price),
            None => Ok(scale(below, input, lower.input)),
        };
        Ok(Row {
            input,
            cache_write_5m: scaled(&self.cache_write_5m, lower.cache_write_5m)?,
            cache_write_1h: scaled(&self.cache_write_1h, lower.cache_write_1h)?,
            cache_read: scaled(&self.cache_read, lower.cache_read)?,
            output: scaled(&self.output, lower.output)?,
        })
    }
}

impl Row {
    const FREE: Self = {
        let free = MicroUsd::from_micros(0);
        Self { input: free, cache_write_5m: free, cache_write_1h: free, cache_read: free, output: free }
    };
}

/// A part of a millionth of a dollar counts as a whole one.
fn scale(price: MicroUsd, by: MicroUsd, over: MicroUsd) -> MicroUsd {
    if over.micros() == 0 {
        return price;
    }
    let product = i128::from(price.micros()) * i128::from(by.micros());
    let over = i128::from(over.micros());
    MicroUsd::from_micros(i64::try_from((product + over - 1) / over).unwrap_or(i64::MAX))
}

/// How many millionths of a millionth of a dollar there are in a billionth.
const PER_NANO: i128 = 1_000;

/// What so many cost that are a millionth each of what has a price: in millionths of a millionth of a dollar.
fn sum(parts: &[(u64, MicroUsd)]) -> i128 {
    parts.iter().map(|(count, price)| i128::from(*count) * i128::from(price.micros())).sum()
}

/// Ten thousand dollars at most: more than any request costs, and less than what sums of costs cannot hold.
fn bounded(nanos: i128) -> i64 {
    const MOST: i64 = 10_000_000_000_000;
    i64::try_from(nanos).map_or(MOST, |nanos| nanos.min(MOST))
}

/// The most that a price may be: what a request costs then still is a number.
const MOST: MicroUsd = MicroUsd::from_usd(10_000);

fn amount(text: &str) -> Result<MicroUsd, String> {
    let amount: MicroUsd = text.parse().map_err(|_| {
        format!("has the price {text:?}, which is no amount like 12.50, with at most 6 places after the point")
    })?;
    if amount > MOST { Err(format!("has the price {text:?}, which is more than {MOST}")) } else { Ok(amount) }
}

fn content(of: &str, wrong: impl std::fmt::Display) -> PricesError {
    PricesError::Content(format!("{of} {wrong}"))
}
