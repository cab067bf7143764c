//! Who asks: the API key of a request, what it may do, and how often.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use chrono::TimeDelta;

use super::Relay;
use super::bodies::Owner;
use super::error::{Refusal, Result};
use crate::crypto::{RawApiKey, SecretText};
use crate::domain::{Code, quota};
use crate::identity::Actor;
use crate::limits::{Answer, Standing};
use crate::model::{ApiKeyVerificationCode, OrganizationId, Permit, UseRelay};
use crate::store::api_key::FoundApiKey;
use crate::upstream::API_KEY;
use crate::workers::Spending;

const LIMIT: HeaderName = HeaderName::from_static("anthropic-ratelimit-requests-limit");
const REMAINING: HeaderName = HeaderName::from_static("anthropic-ratelimit-requests-remaining");
const RESET: HeaderName = HeaderName::from_static("anthropic-ratelimit-requests-reset");

/// What is known of a request from the start. Whoever routes it here puts it among its extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Names the request in the log, and to the caller.
    pub request_id: String,
    /// The caller's address.
    pub address: IpAddr,
}

/// A caller who may use the relay now.
pub(super) struct Admitted {
    pub(super) key: Arc<FoundApiKey>,
    pub(super) permit: Permit<UseRelay>,
    /// The raw key: it must not travel on.
    pub(super) raw: SecretText,
    /// What a turn uses that it answers.
    pub(super) spending: Option<Arc<Spending>>,
    /// What is left of the limits, for the answer.
    pub(super) limits: HeaderMap,
}

impl Admitted {
    pub(super) fn organization(&self) -> OrganizationId {
        self.permit.organization()
    }

    /// Whose bodies its are.
    pub(super) fn owner(&self) -> Owner {
        (self.organization(), self.key.key.id)
    }
}

/// Lets a caller in whose key is good, has the scope, and has not asked too often. Counts the request.
///
/// # Errors
/// Says what is against it.
pub(super) async fn admit(relay: &Relay, caller: &Caller, headers: &HeaderMap) -> Result<Admitted> {
    let services = &*relay.services;
    let sent = match sent_key(headers) {
        Ok(key) => {
            let look_ups = quota::look_ups(services, caller.address);
            let judged = services.authenticator.judge_api_key(key.clone(), look_ups).await;
            judged
                .map_err(|error| Refusal::from(crate::domain::Error::from(error)))?
                .map(|sent| (key, sent))
                .map_err(refused)
        }
        Err(message) => Err(Refusal::unauthenticated(message)),
    };
    let (raw, sent) = match sent {
        Ok(sent) => sent,
        Err(refusal) => return Err(turned_away(relay, caller, refusal).await),
    };
    let actor = sent.actor();
    services.authenticator.note_use(&sent);
    // Before anything is judged: what is refused counts too.
    let answer = quota::take_on_relay(services, &actor).await?;
    let limits = headers_of(&answer, relay);
    if let Some(wait) = answer.retry_after {
        let message = if quota::is_shared_on_relay(&answer) {
            "The API keys of this owner that have no limit of their own have sent too many requests together. Try again later."
        } else {
            "This API key has sent too many requests. Try again later."
        };
        return Err(Refusal::rate_limited(message, wait).with_headers(limits));
    }
    let access = actor.access().ok_or_else(|| Refusal::unauthenticated(NO_KEY))?;
    let permit = access.relay().map_err(|denied| Refusal::from(crate::domain::Error::from(denied)))?;
    Ok(Admitted { key: sent.found().clone(), permit, raw, spending: sent.spending().cloned(), limits })
}

const NO_KEY: &str = "Send an API key of Claviger's as x-api-key, or as Authorization: Bearer.";
const UNKNOWN_KEY: &str = "This API key is not known here: send one of Claviger's.";
const TWO_KEYS: &str = "Two API keys were sent, and they differ: send one.";
const ACCESS_TOKEN: &str = "An access token is no key for the relay: make an API key with the scope RELAY.";

/// The key that a caller sends. A header that holds something else is left alone: the Claude CLI may send two.
///
/// # Errors
/// What to send instead.
fn sent_key(headers: &HeaderMap) -> Result<SecretText, &'static str> {
    let plain = headers.get_all(API_KEY).iter().filter_map(|value| value.to_str().ok());
    let bearer = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let sent: Vec<_> = plain.chain(bearer).map(str::trim).filter(|text| !text.is_empty()).collect();
    let mut keys = sent.iter().filter(|text| RawApiKey::is_meant_by(text));
    match keys.next() {
        Some(key) if keys.all(|other| other == key) => Ok(SecretText::from((*key).to_owned())),
        // They name two callers: neither is believed.
        Some(_) => Err(TWO_KEYS),
        None if sent.is_empty() => Err(NO_KEY),
        None if sent.iter().any(|text| is_like_a_token(text)) => Err(ACCESS_TOKEN),
        None => Err(UNKNOWN_KEY),
    }
}

/// Whether it looks like a JWT: three parts, of which the first is a JSON object in base64.
fn is_like_a_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3
}

/// Counts against the address what came without a key that is good: who guesses gets no further.
async fn turned_away(relay: &Relay, caller: &Caller, refusal: Refusal) -> Refusal {
    match quota::take(&relay.services, &Actor::Anonymous, caller.address, 1, 0).await {
        Ok(Answer { retry_after: Some(wait), .. }) => {
            Refusal::rate_limited("Too many requests from this address without an API key.", wait)
        }
        Err(error) if error.code() != Code::ServiceUnavailable => error.into(),
        Ok(_) | Err(_) => refusal,
    }
}

/// Why a key opens nothing.
fn refused(code: ApiKeyVerificationCode) -> Refusal {
    match code {
        ApiKeyVerificationCode::Expired => Refusal::unauthenticated("This API key has expired."),
        ApiKeyVerificationCode::Revoked => Refusal::unauthenticated("This API key was revoked."),
        ApiKeyVerificationCode::OwnerSuspended => {
            Refusal::unauthenticated("The owner of this API key may not sign in at the moment.")
        }
        ApiKeyVerificationCode::IpNotAllowed => Refusal::forbidden("This API key may not be used from your address."),
        ApiKeyVerificationCode::Valid
        | ApiKeyVerificationCode::Malformed
        | ApiKeyVerificationCode::NotFound
        | ApiKeyVerificationCode::RateLimited => Refusal::unauthenticated(UNKNOWN_KEY),
    }
}

/// The caller's own limits in the headers in which an upstream tells an account's: of several the one of which least is left.
fn headers_of(answer: &Answer, relay: &Relay) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(tightest) = answer.standings.iter().min_by_key(|standing| standing.remaining()) else { return headers };
    let resets_at = relay.services.clock.now() + TimeDelta::from_std(Standing::empty(tightest)).unwrap_or_default();
    headers.insert(LIMIT, tightest.policy.limit.into());
    headers.insert(REMAINING, tightest.remaining().into());
    let resets_at = resets_at.to_utc().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    if let Ok(value) = HeaderValue::try_from(resets_at) {
        headers.insert(RESET, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_stand_in_either_header() {
        let sent = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            sent_key(&headers).map(|key| key.expose().to_owned())
        };
        let a = Ok("clv_a".to_owned());
        assert_eq!(sent(&[("x-api-key", " clv_a ")]), a);
        assert_eq!(sent(&[("authorization", "bearer clv_a")]), a);
        assert_eq!(sent(&[("authorization", "Bearer clv_a"), ("x-api-key", "clv_a")]), a);
        assert_eq!(sent(&[("authorization", "Bearer other"), ("x-api-key", "clv_a")]), a);
        assert_eq!(sent(&[("authorization", "Bearer clv_b"), ("x-api-key", "clv_a")]), Err(TWO_KEYS));
        assert_eq!(sent(&[("authorization", "Basic clv_a"), ("x-api-key", " ")]), Err(NO_KEY));
        assert_eq!(sent(&[]), Err(NO_KEY));
        assert_eq!(sent(&[("x-api-key", "sk-ant-1.2.3")]), Err(UNKNOWN_KEY));
        assert_eq!(sent(&[("authorization", "Bearer eyJ0.eyJ1.c2ln")]), Err(ACCESS_TOKEN));
    }
}
