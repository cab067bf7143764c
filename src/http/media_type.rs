//! Media types of GraphQL over HTTP: what the caller sends, and what it wants to be answered with.

use std::cmp::Reverse;

use axum::http::{HeaderMap, HeaderName, header};

/// The media types that answers can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerType {
    /// `application/graphql-response+json`: the status tells whether the request was good.
    GraphqlResponse,
    /// `application/json`: a request that is well formed is answered with 200.
    Json,
    /// `text/event-stream`: the answer is an event. Only for who names it.
    EventStream,
}

impl AnswerType {
    /// The value of the Content-Type header.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
            Self::Json => "application/json; charset=utf-8",
            Self::EventStream => "text/event-stream",
        }
    }

    /// How closely a media range names this type: not at all, as anything, as an application's, or by name.
    fn closeness(self, range: &str) -> Option<u8> {
        let name = self.content_type().split(';').next().unwrap_or_default();
        ["*/*", "application/*", name]
            .iter()
            .zip(0..)
            .skip(if self == Self::EventStream { 2 } else { 0 })
            .find_map(|(known, closeness)| (*known == range).then_some(closeness))
    }

    /// What the caller prefers by its Accept header; JSON where it says nothing; `None` where it takes none of them.
    ///
    /// By RFC 9110, 12.5.1, the range that names a type most closely says how much it is wanted. Of two that are wanted as
    /// much it is the one that is named more closely, then earlier.
    pub(super) fn negotiate(headers: &HeaderMap) -> Option<Self> {
        let ranges = listed(headers, header::ACCEPT);
        if ranges.is_empty() {
            return Some(Self::Json);
        }
        let wanted = |answer_type: Self| {
            let named = ranges.iter().enumerate().filter_map(|(place, range)| {
                Some((answer_type.closeness(&range.name)?, Reverse(place), range.weight?))
            });
            let (closeness, place, weight) = named.max()?;
            (weight > 0).then_some((weight, closeness, place, answer_type))
        };
        let types = [Self::EventStream, Self::GraphqlResponse, Self::Json].into_iter().filter_map(wanted);
        types.max_by_key(|(weight, closeness, place, _)| (*weight, *closeness, *place)).map(|(.., wanted)| wanted)
    }
}

/// One of the things that an Accept header lists.
pub(super) struct Listed {
    /// In lower case, without its parameters.
    pub(super) name: String,
    /// How much it is wanted, in thousandths; `None` where that is not a weight.
    weight: Option<u16>,
}

impl Listed {
    /// Whether it is wanted at all.
    pub(super) fn is_wanted(&self) -> bool {
        self.weight.is_some_and(|weight| weight > 0)
    }
}

/// What the lines of an Accept header list, in their order.
pub(super) fn listed(headers: &HeaderMap, header: HeaderName) -> Vec<Listed> {
    let mut listed = Vec::new();
    for value in headers.get_all(header) {
        for element in String::from_utf8_lossy(value.as_bytes()).split(',') {
            let mut parts = element.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters = parts.filter_map(|part| part.split_once('='));
            let weight = parameters.filter(|(name, _)| name.eq_ignore_ascii_case("q")).map(|(_, weight)| weight).next();
            if !name.is_empty() {
                listed.push(Listed { name, weight: weight.map_or(Some(1000), thousandths) });
            }
        }
    }
    listed
}

/// A weight, 0 to 1 with three digits, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match whole {
        "0" => format!("{fraction:0<3}").parse().ok(),
        "1" if fraction.bytes().all(|digit| digit == b'0') => Some(1000),
        _ => None,
    }
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

/// Whether the caller takes server-sent events, by whatever preference: a subscription has no other answer.
pub(super) fn wants_event_stream(headers: &HeaderMap) -> bool {
    listed(headers, header::ACCEPT).iter().any(|range| range.name == "text/event-stream" && range.is_wanted())
}

/// Whether the caller is a browser that wants a page.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    listed(headers, header::ACCEPT).iter().any(|range| range.name == "text/html" && range.is_wanted())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn accepting(lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::ACCEPT, HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    #[test]
    fn the_answer_has_the_type_that_is_wanted_most() {
        const GRAPHQL: Option<AnswerType> = Some(AnswerType::GraphqlResponse);
        const JSON: Option<AnswerType> = Some(AnswerType::Json);
        const EVENTS: Option<AnswerType> = Some(AnswerType::EventStream);
        for (accept, answer_type) in [
            ("", JSON),
            ("*/*", JSON),
            ("application/*", JSON),
            ("application/json", JSON),
            ("Application/JSON; charset=utf-8", JSON),
            ("application/graphql-response+json", GRAPHQL),
            ("application/graphql-response+json, application/json", GRAPHQL),
            ("application/json, application/graphql-response+json", JSON),
            ("application/graphql-response+json; charset=utf-8, application/json; charset=utf-8", GRAPHQL),
            ("application/graphql-response+json;q=0.5, application/json;q=0.9", JSON),
            ("application/graphql-response+json;q=0.901, application/json;q=0.9", GRAPHQL),
            ("application/json;q=0, */*", GRAPHQL),
            ("*/*, application/json;q=0", GRAPHQL),
            ("application/json;Q=0, */*", GRAPHQL),
            ("application/*;q=0, */*", None),
            ("application/graphql-response+json;q=0, */*", JSON),
            ("application/json;q=0.1, application/*;q=0.2, */*;q=0.3", GRAPHQL),
            ("*/*, application/graphql-response+json", GRAPHQL),
            ("text/html, */*;q=0.1", JSON),
            ("application/json;q=0", None),
            ("text/css", None),
            ("text/event-stream", EVENTS),
            ("text/event-stream, application/json", EVENTS),
            ("application/graphql-response+json, application/json, text/event-stream", GRAPHQL),
            ("text/event-stream, */*", EVENTS),
            ("text/event-stream;q=0, */*", JSON),
            ("text/*", None),
            ("application/json;q=1.000", JSON),
            ("application/json;q=0.", None),
            ("application/json;q=66", None),
            ("application/json;q=99999999", None),
            ("application/json;q=1.001", None),
            ("application/json;q=0.1234", None),
            ("application/json;q=-1", None),
            ("application/json;q=", None),
            ("application/json;q=all, application/graphql-response+json;q=0.1", GRAPHQL),
        ] {
            assert_eq!(AnswerType::negotiate(&accepting(&[accept.as_bytes()])), answer_type, "{accept}");
        }
        assert_eq!(AnswerType::negotiate(&accepting(&[b"text/css", b"\xff, application/json"])), JSON);
        assert_eq!(AnswerType::negotiate(&HeaderMap::new()), JSON);
    }

    #[test]
    fn a_page_is_for_who_asks_for_one() {
        for (lines, is_page) in [
            (&[&b"text/html,application/xhtml+xml,*/*;q=0.8"[..]][..], true),
            (&[b"application/json", b"Text/HTML; q=0.1"], true),
            (&[b"text/html;q=0, */*"], false),
            (&[b"text/htmlx"], false),
            (&[b"*/*"], false),
            (&[], false),
        ] {
            assert_eq!(wants_page(&accepting(lines)), is_page, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_can_be_read(line in "[ -~\u{80}-\u{ff}]{0,60}", weight in "[0-9.+-]{0,8}") {
            let weighted = format!("application/json;q={weight}");
            for line in [line.as_str(), &weighted] {
                let headers = accepting(&[line.as_bytes()]);
                AnswerType::negotiate(&headers);
                wants_page(&headers);
            }
        }
    }
}
