//! What the relay reads of a request: enough to judge it, and no more. The body travels on as it came.

use std::borrow::Cow;
use std::hash::BuildHasher;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::caller::Admitted;
use super::error::{Refusal, Result};
use crate::crypto::SecretText;

/// A model's id is no longer, as a rule.
const MAX_MODEL: usize = 200;

const SESSION: HeaderName = HeaderName::from_static("x-claude-code-session-id");
const AGENT: HeaderName = HeaderName::from_static("x-claude-code-agent-id");

/// Headers that travel to the upstream, beside those that begin as [`FORWARDED_PREFIXES`].
const FORWARDED: [&str; 5] = ["accept", "content-type", "user-agent", "idempotency-key", "x-app"];
const FORWARDED_PREFIXES: [&str; 3] = ["anthropic-", "x-stainless-", "x-claude-code-"];

/// What a body says of its request.
#[derive(Debug, Deserialize)]
pub(super) struct Head<'a> {
    #[serde(borrow)]
    pub(super) model: Cow<'a, str>,
    #[serde(default)]
    pub(super) max_tokens: Option<u64>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default, borrow)]
    metadata: Option<Metadata<'a>>,
}

#[derive(Debug, Deserialize)]
struct Metadata<'a> {
    #[serde(default, borrow)]
    user_id: Option<Cow<'a, str>>,
}

impl<'a> Head<'a> {
    /// Reads it. A name that stands there twice is refused: the upstream might take the other.
    pub(super) fn read(body: &'a [u8]) -> Result<Self> {
        let head: Self = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad_request(format!("The body cannot be read: {error}.")))?;
        let is_id =
            !head.model.is_empty() && head.model.len() <= MAX_MODEL && !head.model.chars().any(char::is_control);
        if is_id { Ok(head) } else { Err(Refusal::parameter("model", "model: is not the id of a model.")) }
    }

    /// Refuses a model that the key may not use.
    pub(super) fn check_model(&self, admitted: &Admitted) -> Result<()> {
        if admitted.key.key.allowed_models.allow(&self.model) {
            return Ok(());
        }
        Err(Refusal::forbidden(format!("This API key may not use the model {}.", self.model)).for_good())
    }

    /// To what conversation the request belongs: of a session each agent by itself.
    pub(super) fn session(&self, headers: &HeaderMap, admitted: &Admitted, hasher: &impl BuildHasher) -> Option<u64> {
        let organization = admitted.organization();
        if let Some(session) = headers.get(SESSION) {
            let agent = headers.get(AGENT).map(HeaderValue::as_bytes);
            return Some(hasher.hash_one((organization, session.as_bytes(), agent)));
        }
        let user = self.metadata.as_ref().and_then(|metadata| metadata.user_id.as_deref())?;
        Some(hasher.hash_one((organization, user)))
    }
}

/// The session that a caller names, for the usage record, unless that holds the caller's key.
pub(super) fn session_id(headers: &HeaderMap, raw: &SecretText) -> Option<String> {
    const MAX: usize = 100;
    let id = headers.get(SESSION)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= MAX && !holds(id.as_bytes(), raw)).then(|| id.to_owned())
}

/// The caller's headers that travel on. Whatever holds the caller's key does not.
pub(super) fn forwarded(headers: &HeaderMap, raw: &SecretText) -> HeaderMap {
    let mut forwarded = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let text = name.as_str();
        let is_meant = FORWARDED.contains(&text) || FORWARDED_PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        if is_meant && !holds(value.as_bytes(), raw) {
            forwarded.append(name.clone(), value.clone());
        }
    }
    forwarded
}

/// The path with the caller's query, unless that holds the caller's key.
pub(super) fn path_and_query(path: &'static str, query: Option<&str>, raw: &SecretText) -> Cow<'static, str> {
    match query {
        Some(query) if !query.is_empty() && !holds(query.as_bytes(), raw) => format!("{path}?{query}").into(),
        _ => path.into(),
    }
}

fn holds(bytes: &[u8], raw: &SecretText) -> bool {
    memchr::memmem::find(bytes, raw.expose().as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_read_and_no_more() {
        let body = br#"{"messages":[{"role":"user","content":"model"}],"model":"claude-x","max_tokens":9,"metadata":{"user_id":"u"},"x":1}"#;
        let head = Head::read(body).unwrap();
        assert_eq!((&*head.model, head.max_tokens, head.stream), ("claude-x", Some(9), None));
        for wrong in [
            &br#"{"model":"a","model":"b"}"#[..],
            br#"{"model":"a","mod\u0065l":"b"}"#,
            br#"{"model":""}"#,
            br#"{"model":1}"#,
            br#"{"messages":[]}"#,
            b"",
            b"[]",
        ] {
            assert!(Head::read(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn what_is_the_callers_alone_stays_here() {
        let raw = SecretText::from("clv_secret".to_owned());
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "a,b"),
            ("content-type", "application/json"),
            ("user-agent", "claude-cli/2 clv_secret"),
            ("x-stainless-lang", "js"),
            ("x-app", "cli"),
            ("x-app-token", "token"),
            ("x-appengine-user-ip", "192.0.2.1"),
            ("x-api-key", "clv_secret"),
            ("authorization", "Bearer clv_secret"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "192.0.2.1"),
            ("host", "claviger"),
            ("accept-encoding", "gzip"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let forwarded = forwarded(&headers, &raw);
        let mut names: Vec<_> = forwarded.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-beta", "anthropic-version", "content-type", "x-app", "x-stainless-lang"]);
        assert_eq!(path_and_query("/v1/messages", Some("beta=true"), &raw), "/v1/messages?beta=true");
        assert_eq!(path_and_query("/v1/messages", Some("key=clv_secret"), &raw), "/v1/messages");
    }
}
