//! How often a caller may ask: counted once for each operation, before it is executed, and told in the headers of its answer by the
//! IETF's draft (draft-ietf-httpapi-ratelimit-headers-10).

use std::fmt::Write as _;
use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::graphql::{Prepared, Unexecuted};
use super::router::Server;
use crate::domain::{quota, whole_seconds};
use crate::identity::Actor;
use crate::limits::{Answer, Standing};

/// What is left of which limits.
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Which limits there are.
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Counts an operation of the caller's. Returns the headers that its answer is to have.
///
/// # Errors
/// Where the caller has asked too often, or that cannot be told and nothing is to be done without.
pub(super) async fn take(
    server: &Server,
    actor: &Actor,
    address: IpAddr,
    prepared: &Prepared,
) -> Result<HeaderMap, Unexecuted> {
    let answer = quota::take(&server.services, actor, address, cost(actor, prepared)).await.map_err(|error| {
        // That Redis is away was logged when it went.
        Unexecuted::new(StatusCode::SERVICE_UNAVAILABLE, error.code().as_str(), error.message())
    })?;
    let headers = headers(&answer);
    match answer.retry_after {
        None => Ok(headers),
        Some(wait) => {
            let message = "You have sent too many requests. Try again later.";
            let mut refused = Unexecuted::rate_limited(message, whole_seconds(wait));
            refused.headers.extend(headers);
            Err(refused)
        }
    }
}

/// Each mutation of somebody unknown counts, since each leaves an entry in the audit log.
fn cost(actor: &Actor, prepared: &Prepared) -> u32 {
    match actor {
        Actor::Anonymous => prepared.mutations().try_into().unwrap_or(u32::MAX).max(1),
        Actor::User(_) | Actor::System(_) => 1,
    }
}

fn headers(answer: &Answer) -> HeaderMap {
    let lists = [
        (
            RATE_LIMIT_POLICY,
            list(answer, |item, Standing { policy, .. }| {
                write!(item, ";q={};w={}", policy.limit, policy.window.as_secs())
            }),
        ),
        (
            RATE_LIMIT,
            list(answer, |item, standing| {
                let remaining = standing.remaining();
                // Where nothing is left, it is told when one is there again: whoever waits that long is let through.
                let wait = if remaining == 0 { standing.next() } else { standing.empty() };
                write!(item, ";r={remaining};t={}", whole_seconds(wait))
            }),
        ),
    ];
    let header = |(name, list): (HeaderName, String)| {
        HeaderValue::try_from(list).ok().filter(|list| !list.is_empty()).map(|list| (name, list))
    };
    lists.into_iter().filter_map(header).collect()
}

/// A list of structured fields (RFC 9651): each limit's name, and what `about` says of it.
fn list(answer: &Answer, about: impl Fn(&mut String, &Standing) -> std::fmt::Result) -> String {
    let item = |standing: &Standing| {
        let mut item = format!("\"{}\"", standing.policy.name);
        // Writing to a text does not fail.
        let _ = about(&mut item, standing);
        item
    };
    answer.standings.iter().map(item).collect::<Vec<_>>().join(", ")
}
