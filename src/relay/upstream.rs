//! One request to one account, and what its answer means: for the caller, and for the account.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use chrono::{DateTime, TimeDelta};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::beginning::{Begun, Refused, begin};
use super::error::{REQUEST_ID, Refusal, Result, anthropic_error, kind};
use super::pool::Lease;
use super::recovery::Trouble;
use super::{Relay, RelayLimits};
use crate::crypto::SecretText;
use crate::domain;
use crate::logs::TRACES;
use crate::model::Timestamp;
use crate::upstream::{API_KEY, NotSent, Progress, told};

/// An error's body is read no further.
const MAX_ERROR: usize = 64 * 1024;
/// However long an upstream says that nobody should ask it, it is no longer: beyond some length there are no times any more.
const LONGEST_TOLD: Duration = Duration::from_secs(24 * 60 * 60);
/// How an upstream begins to say what is wrong with the account, for which it has no error of its own. Further on in a message a
/// caller's own words may stand.
const OF_THE_ACCOUNT: [(&str, Trouble); 4] = [
    ("Your credit balance is too low", Trouble::Unpaid),
    ("You have reached your specified API usage limits", Trouble::Unpaid),
    ("You have reached your specified workspace API usage limits", Trouble::Unpaid),
    ("This organization has been disabled", Trouble::Unauthorized),
];

/// The version of the API that the relay itself speaks.
pub(super) const API_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The headers of an upstream's answer that a caller gets. The rest speaks of the account.
static KEPT: [HeaderName; 6] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::RETRY_AFTER, REQUEST_ID, RETRY_AFTER_MS, SHOULD_RETRY];

/// What is sent, whichever account takes it.
pub(super) struct Errand<'a> {
    pub(super) method: Method,
    pub(super) path_and_query: &'a str,
    /// Without any key.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer that is no success, whole.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) status: StatusCode,
    /// Those that the caller gets.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// How an account has answered.
pub(super) enum Answer {
    Success(Response<Begun>),
    /// It is the caller's fault, or nobody can help it.
    Final(Whole),
    /// It is the account's doing, and another might do better.
    Elsewhere(Failure),
    /// It may be over in a moment.
    Again(Failure, Option<Duration>),
    /// It took so long that the upstream may have done it, and charge for it: it is not tried again.
    GivenUp(Failure),
}

pub(super) struct Failure {
    /// What it says of the account, and in which words.
    pub(super) trouble: Option<(Trouble, String)>,
    /// What the caller gets, unless another account does better.
    pub(super) answer: Result<Whole>,
}

/// Asks the account.
pub(super) async fn ask(relay: &Relay, lease: &Lease, errand: &Errand<'_>, progress: &mut Progress) -> Answer {
    let services = &*relay.services;
    let opened = lease.account.open_key(&services.keys).and_then(|key| Ok((header_of(&key)?, key)));
    let (header, api_key) = match opened {
        Ok(opened) => opened,
        Err(error) => return not_opened(lease, &error),
    };
    let mut headers = errand.headers.clone();
    headers.insert(API_KEY, header);
    // What is packed can be neither counted nor cut between its events.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let trace = tracing::info_span!(target: TRACES, "upstream", otel.kind = "client");
    let sending = services
        .upstream
        .send(
            lease.account.base(),
            (errand.method.clone(), errand.path_and_query),
            headers,
            errand.body.clone(),
            relay.limits.connecting,
            progress,
        )
        .instrument(trace);
    let started = Instant::now();
    let sent = tokio::time::timeout(relay.limits.silence, sending).await;
    let mut is_late = started.elapsed() >= relay.limits.soon;
    let response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return not_sent(lease, &error, is_late),
        Err(elapsed) if !progress.has_connection() => {
            return not_sent(lease, &NotSent::Unreachable(elapsed.into()), true);
        }
        Err(_) => return Answer::GivenUp(silent()),
    };
    let (mut head, body) = response.into_parts();
    let body = if head.status.is_success() {
        match begin(&head.headers, body, &relay.limits).await {
            Ok(begun) => return Answer::Success(Response::from_parts(head, begun)),
            Err(Refused { status, body }) => {
                head.status = status;
                make_plain_json(&mut head.headers);
                is_late = started.elapsed() >= relay.limits.soon;
                body
            }
        }
    } else {
        collect(body, MAX_ERROR, &relay.limits).await.unwrap_or_else(|_| {
            make_plain_json(&mut head.headers);
            unread(head.status, request_id(&head.headers))
        })
    };
    let body = without_key(body, &api_key);
    let message = told(head.status.as_u16(), &body, &api_key);
    let retry = Retry {
        wait: wait_of(&head.headers, services.clock.now()),
        resets_at: reset_of(&head.headers, services.clock.now()),
        is_of_use: head.headers.get(SHOULD_RETRY).is_none_or(|value| value != "false"),
        is_late,
    };
    let whole = Whole { status: head.status, headers: kept(&head.headers), body };
    judge(whole, message, retry)
}

/// Of a body that is not as it came.
fn make_plain_json(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_ENCODING);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

/// What is told in place of an error that is too long, or did not come whole: its status says enough.
fn unread(status: StatusCode, request_id: Option<&str>) -> Bytes {
    anthropic_error(kind(status), "The upstream's error could not be read.", request_id).into()
}

/// What is known of another try.
struct Retry {
    /// After how long the upstream says that it may be tried again.
    wait: Option<Duration>,
    resets_at: Option<Timestamp>,
    /// Unless the upstream says otherwise.
    is_of_use: bool,
    /// Whether the upstream may have been at work until now.
    is_late: bool,
}

/// What an answer means that is no success.
fn judge(whole: Whole, message: String, Retry { wait, resets_at, is_of_use, is_late }: Retry) -> Answer {
    let status = whole.status.as_u16();
    let failure = |trouble: Trouble, answer| Failure { trouble: Some((trouble, message)), answer };
    let again = |failure| if is_of_use { Answer::Again(failure, wait) } else { Answer::Elsewhere(failure) };
    if let Some(trouble) = of_the_account(&whole) {
        return Answer::Elsewhere(failure(trouble, Ok(whole)));
    }
    match status {
        // The account's key is meant, of which the caller knows nothing: told as it is, it would be taken for the caller's own.
        401 => Answer::Elsewhere(failure(Trouble::Unauthorized, Err(nobody()))),
        402 => Answer::Elsewhere(failure(Trouble::Unpaid, Ok(whole))),
        // Another account may have what this one lacks; by itself it says little of other requests.
        403 => Answer::Elsewhere(failure(Trouble::Forbidden, Ok(whole))),
        429 => again(failure(Trouble::RateLimited(resets_at), Ok(whole))),
        529 => again(failure(Trouble::Overloaded(resets_at), Ok(whole))),
        // A gateway's word, which has lost sight of the upstream, and not the upstream's that it has not done it.
        408 | 502 | 504 | 520 | 524 if is_late => Answer::GivenUp(failure(Trouble::Failing, Ok(whole))),
        // One that has not come so far as to send it, and was at it for long.
        521..=523 | 525 | 526 if is_late => Answer::Elsewhere(failure(Trouble::Failing, Ok(whole))),
        408 | 500..=599 => again(failure(Trouble::Failing, Ok(whole))),
        // A redirect would carry the key to wherever it says.
        300..=399 => {
            let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "The upstream answered with a redirect.");
            Answer::Elsewhere(failure(Trouble::Failing, Err(refusal)))
        }
        _ => Answer::Final(whole),
    }
}

/// What an upstream says of the account in an error that is as a rule about the request.
fn of_the_account(whole: &Whole) -> Option<Trouble> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Detail<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Detail<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        message: Cow<'a, str>,
    }
    if !matches!(whole.status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) {
        return None;
    }
    let Body { error } = serde_json::from_slice(&whole.body).ok()?;
    let known = OF_THE_ACCOUNT.iter().find(|(words, _)| error.message.starts_with(words));
    known.filter(|_| error.kind == kind(whole.status)).map(|(_, trouble)| *trouble)
}

fn not_sent(lease: &Lease, error: &NotSent, is_late: bool) -> Answer {
    let account = lease.account.id();
    tracing::warn!(%account, error = error as &dyn std::error::Error, "an upstream could not be asked");
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "The upstream could not be reached.");
    let failure = Failure { trouble: Some((Trouble::Failing, format!("{error}."))), answer: Err(refusal) };
    match error {
        NotSent::BrokenOff(_) if is_late => Answer::GivenUp(failure),
        NotSent::Unreachable(_) if is_late => Answer::Elsewhere(failure),
        _ => Answer::Again(failure, None),
    }
}

fn silent() -> Failure {
    let message = "The upstream did not answer in time.";
    let refusal = Refusal::new(StatusCode::GATEWAY_TIMEOUT, message);
    Failure { trouble: Some((Trouble::Failing, message.to_owned())), answer: Err(refusal) }
}

/// The key ring is another, or the row was tampered with: other accounts may be well.
fn not_opened(lease: &Lease, error: &domain::Error) -> Answer {
    tracing::error!(account = %lease.account.id(), error = std::error::Error::source(error), "an account's key does not open");
    let message = "The account's key does not open.".to_owned();
    Answer::Elsewhere(Failure { trouble: Some((Trouble::Unauthorized, message)), answer: Err(nobody()) })
}

fn nobody() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "No Claude account can take this request at the moment.")
}

fn header_of(api_key: &SecretText) -> domain::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(api_key.expose())
        .map_err(|_| domain::Error::internal("an account's key is no header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// An answer that is not there to its end.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's answer {how}, after {received} bytes")]
pub(super) struct Incomplete {
    pub(super) how: Ending,
    /// How much of it came.
    pub(super) received: usize,
}

/// How an answer ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ending {
    #[error("stopped")]
    Silent,
    #[error("went on for too long")]
    TooSlow,
    /// It is the relay that does not take more of it, and nothing is wrong with the account.
    #[error("is too long")]
    TooLong,
    #[error("broke off")]
    Broken,
}

/// The next piece of an answer that ends by then; none: it has ended. Otherwise what is wrong with it.
pub(super) async fn piece(
    body: &mut Limited<Incoming>,
    limits: &RelayLimits,
    end: Instant,
) -> Result<Option<Bytes>, Ending> {
    let silent_at = Instant::now() + limits.silence;
    let Ok(frame) = timeout_at(silent_at.min(end), body.frame()).await else {
        return Err(if silent_at < end { Ending::Silent } else { Ending::TooSlow });
    };
    match frame {
        None => Ok(None),
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        Some(Err(error)) if error.is::<LengthLimitError>() => Err(Ending::TooLong),
        Some(Err(_)) => Err(Ending::Broken),
    }
}

/// Reads a short answer to its end, an error or a list: one that may be large is gathered by `whole.rs`.
pub(super) async fn collect(body: Incoming, most: usize, limits: &RelayLimits) -> Result<Bytes, Incomplete> {
    let mut body = Limited::new(body, most);
    let (mut all, end) = (Vec::new(), Instant::now() + limits.longest);
    loop {
        match piece(&mut body, limits, end).await {
            Ok(Some(data)) => all.extend_from_slice(&data),
            Ok(None) => return Ok(all.into()),
            Err(how) => return Err(Incomplete { how, received: all.len() }),
        }
    }
}

/// How the upstream names the request.
pub(super) fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(REQUEST_ID)?.to_str().ok()
}

/// The headers that the caller gets.
pub(super) fn kept(headers: &HeaderMap) -> HeaderMap {
    let values = KEPT.iter().filter_map(|name| headers.get(name).map(|value| (name.clone(), value.clone())));
    values.collect()
}

/// An upstream may repeat the key that it refuses.
pub(super) fn without_key(body: Bytes, api_key: &SecretText) -> Bytes {
    if memchr::memmem::find(&body, api_key.expose().as_bytes()).is_none() {
        return body;
    }
    String::from_utf8_lossy(&body).replace(api_key.expose(), "[redacted]").into()
}

/// After how long the upstream says that it may be tried again.
fn wait_of(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // The SDKs read fractions, too.
    let number = |text: &str, unit: f64| {
        let seconds = text.trim().parse::<f64>().ok().filter(|number| number.is_finite())? * unit;
        Duration::try_from_secs_f64(seconds.min(LONGEST_TOLD.as_secs_f64())).ok()
    };
    if let Some(wait) = text(&RETRY_AFTER_MS).and_then(|text| number(text, 0.001)) {
        return Some(wait);
    }
    let after = text(&header::RETRY_AFTER)?.trim();
    if let Some(wait) = number(after, 1.0) {
        return Some(wait);
    }
    let at = DateTime::parse_from_rfc2822(after).ok()?.to_utc();
    Some((Timestamp::from(at) - now).to_std().unwrap_or_default().min(LONGEST_TOLD))
}

/// When the upstream says that the account may be used again: after a wait, or when the limit that is used up begins anew.
fn reset_of(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    const LIMITS: [&str; 5] = ["requests", "tokens", "input-tokens", "output-tokens", "unified"];
    if let Some(wait) = wait_of(headers, now) {
        return Some(now + TimeDelta::from_std(wait).unwrap_or_default());
    }
    let text = |name: String| headers.get(name).and_then(|value| value.to_str().ok());
    let used_up = LIMITS.iter().filter(|limit| {
        text(format!("anthropic-ratelimit-{limit}-remaining")).is_none_or(|remaining| remaining.trim() == "0")
    });
    let resets = used_up.filter_map(|limit| {
        let text = text(format!("anthropic-ratelimit-{limit}-reset"))?.trim();
        let by_date = || DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
        text.parse().ok().and_then(DateTime::from_timestamp_secs).or_else(by_date)
    });
    resets.max().map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn when_to_try_again_is_read_in_every_form() {
        let now = Timestamp::from(DateTime::from_timestamp_secs(1_800_000_000).unwrap());
        let seconds = |pairs: &[(&'static str, &'static str)]| {
            reset_of(&headers(pairs), now).map(|at| (at - now).num_milliseconds())
        };
        assert_eq!(seconds(&[("retry-after", "7")]), Some(7_000));
        assert_eq!(seconds(&[("retry-after", "7"), ("retry-after-ms", "250")]), Some(250));
        assert_eq!(seconds(&[("retry-after", "Fri, 15 Jan 2027 08:00:05 GMT")]), Some(5_000));
        assert_eq!(seconds(&[("anthropic-ratelimit-requests-reset", "2027-01-15T08:00:09Z")]), Some(9_000));
        let both = [
            ("anthropic-ratelimit-requests-reset", "2027-01-15T08:00:09Z"),
            ("anthropic-ratelimit-requests-remaining", "4"),
            ("anthropic-ratelimit-tokens-reset", "2027-01-15T08:00:03Z"),
            ("anthropic-ratelimit-tokens-remaining", "0"),
        ];
        assert_eq!(seconds(&both), Some(3_000));
        assert_eq!(seconds(&[("retry-after-ms", "812.5")]), Some(812));
        assert_eq!(seconds(&[("retry-after", "0.5")]), Some(500));
        for long in ["99999999999999", "1e13", "1e18", "1e19", "1e300", "Fri, 15 Jan 9999 08:00:05 GMT"] {
            assert_eq!(seconds(&[("retry-after", long)]), Some(86_400_000), "{long}");
        }
        for wrong in ["soon", "-1", "inf", "NaN", ""] {
            assert_eq!(seconds(&[("retry-after", wrong)]), None, "{wrong}");
        }
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn only_the_upstream_says_what_is_wrong_with_the_account() {
        let body = |kind: &str, message: &str| {
            format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}"}},"request_id":"r"}}"#)
        };
        let of_the_account = |status: StatusCode, body: &str| {
            of_the_account(&Whole { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) })
        };
        let (bad, forbidden) = (StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN);
        let words = "Your credit balance is too low to access the Anthropic API.";
        assert_eq!(of_the_account(bad, &body("invalid_request_error", words)), Some(Trouble::Unpaid));
        let disabled = "This organization has been disabled.";
        assert_eq!(of_the_account(forbidden, &body("permission_error", disabled)), Some(Trouble::Unauthorized));
        for other in [
            body("invalid_request_error", &format!("Unexpected value(s) `{words}` for the `anthropic-beta` header")),
            body("not_found_error", words),
            words.to_owned(),
        ] {
            assert_eq!(of_the_account(bad, &other), None, "{other}");
        }
    }

    #[test]
    fn a_key_that_an_upstream_repeats_is_taken_out() {
        let key = SecretText::from("sk-ant-1".to_owned());
        let body = |text: &'static str| without_key(Bytes::from_static(text.as_bytes()), &key);
        assert_eq!(body("{\"m\":\"bad sk-ant-1!\"}"), "{\"m\":\"bad [redacted]!\"}");
        assert_eq!(body("{}"), "{}");
    }
}
