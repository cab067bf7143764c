//! How often a caller may ask: counted for each operation, before it is read and before it is executed, and told in the headers of
//! its answer by the IETF's draft (draft-ietf-httpapi-ratelimit-headers-10).

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

/// Counts a request, before it is even read. Returns the headers that its answer is to have.
///
/// # Errors
/// Where the caller has asked too often, or that cannot be told and nothing is to be done without.
pub(super) async fn admit(server: &Server, actor: &Actor, address: IpAddr) -> Result<HeaderMap, Unexecuted> {
    take(server, actor, address, 1, 0).await
}

/// Counts what an operation costs beside what [`admit`] has counted, whose headers are given: each mutation counts, since each leaves
/// an entry in the audit log. Those that need no sign-in count for the address, too: to have one is no way around that.
///
/// # Errors
/// As for [`admit`]. What that has counted stays counted where this is too much: it was read all the same, and would be for nothing. It
/// is given back where the server could not tell.
pub(super) async fn charge(
    server: &Server,
    actor: &Actor,
    address: IpAddr,
    prepared: &Prepared,
    headers: HeaderMap,
) -> Result<HeaderMap, Unexecuted> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (mutations, public) = (number(prepared.mutations()), number(server.api.public_mutations(&prepared.operation)));
    let charged = async {
        // The caller's own first: who has none left uses up nothing of those who share the address.
        let headers = if mutations > 1 { take(server, actor, address, mutations, 1).await? } else { headers };
        if public > 0 && actor.signed_in().is_some() {
            take(server, &Actor::Anonymous, address, public, 0).await?;
        }
        Ok(headers)
    };
    let charged: Result<_, Unexecuted> = charged.await;
    if charged.as_ref().is_err_and(|refused| refused.status == StatusCode::SERVICE_UNAVAILABLE) {
        quota::give_back(&server.services, actor, address).await;
    }
    charged
}

async fn take(server: &Server, actor: &Actor, address: IpAddr, cost: u32, taken: u32) -> Result<HeaderMap, Unexecuted> {
    let answer = quota::take(&server.services, actor, address, cost, taken).await.map_err(|error| {
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
    // Of an address of IPv6 there are two for one limit: what is told is the one that has less left.
    let is_told = |standing: &&Standing| {
        let of_one_limit = answer.standings.iter().filter(|other| other.policy.name == standing.policy.name);
        of_one_limit.min_by_key(|other| other.remaining()) == Some(standing)
    };
    answer.standings.iter().filter(is_told).map(item).collect::<Vec<_>>().join(", ")
}
