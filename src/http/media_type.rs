//! Media types of GraphQL over HTTP: what the caller sends, and what it wants to be answered with.

use axum::http::{HeaderMap, header};

/// The media types that answers can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerType {
    /// `application/graphql-response+json`: the status tells whether the request was good.
    GraphqlResponse,
    /// `application/json`: a request that is well formed is answered with 200.
    Json,
}

impl AnswerType {
    /// The value of the Content-Type header.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
            Self::Json => "application/json; charset=utf-8",
        }
    }

    /// What the caller prefers by its Accept header; JSON where it says nothing; `None` where it takes neither.
    pub(super) fn negotiate(headers: &HeaderMap) -> Option<Self> {
        let mut accepted: Vec<(u16, usize, Self)> = Vec::new();
        let mut says_anything = false;
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for (place, range) in values.flat_map(|value| value.split(',')).enumerate() {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            if name.is_empty() {
                continue;
            }
            says_anything = true;
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1000), thousandths);
            let kind = match name.as_str() {
                "application/graphql-response+json" => Self::GraphqlResponse,
                "application/json" | "application/*" | "*/*" => Self::Json,
                _ => continue,
            };
            if let Some(quality) = quality.filter(|quality| *quality > 0) {
                accepted.push((quality, usize::MAX - place, kind));
            }
        }
        if !says_anything {
            return Some(Self::Json);
        }
        accepted.into_iter().max_by_key(|(quality, place, _)| (*quality, *place)).map(|(_, _, kind)| kind)
    }
}

/// A quality value, 0 to 1 with three digits, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: u16 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    Some((whole * 1000 + digits.parse::<u16>().ok()?).min(1000))
}

/// Whether a body is JSON in UTF-8: anything else could come from a form on another site.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let mut parts = value.split(';').map(str::trim);
    parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/json"))
        && parts.all(|part| match part.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
                value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

/// Whether the caller is a browser that wants a page.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.trim().starts_with("text/html"))
}
