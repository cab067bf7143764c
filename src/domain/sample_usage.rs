//! Usage that was never made, to look at: of a client, so many requests in the days before a time. They follow from a number alone.

use std::time::Duration;

use chrono::TimeDelta;

use super::context::Services;
use super::usage::NewUsageRecord;
use crate::crypto::sha256;
use crate::model::{ClientId, OrganizationId, Timestamp, Tokens, UserId};

const MODELS: [&str; 4] = ["claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5", "claude-haiku-5-5"];

/// Whose they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose {
    pub(super) organization: OrganizationId,
    pub(super) user: Option<UserId>,
    pub(super) client: ClientId,
}

/// Records `count` requests, one in each of as many equal parts of the time before `until`. They wait to be written.
pub(super) fn record(services: &Services, whose: Whose, number: u64, until: Timestamp, (days, count): (i32, i32)) {
    for nth in 1..=count {
        let draw = sha256(format!("claviger sample usage {number} {nth}").as_bytes());
        let [model, input, output, cached, latency, end, ..] = draw;
        let model = MODELS[usize::from(model) % MODELS.len()];
        let at = until + -(TimeDelta::days(days.into()) / count * nth);
        let tokens = Tokens {
            input: 40 + u64::from(input) * 30,
            output: 20 + u64::from(output) * 12,
            cache_write_5m: if cached < 64 { 6_000 } else { 0 },
            cache_read: if cached < 64 { 0 } else { 6_000 },
            ..Tokens::default()
        };
        // One in some thirty is refused for being too many.
        let is_refused = end < 8;
        let tokens = if is_refused { Tokens::default() } else { tokens };
        let latency = Duration::from_millis(400 + u64::from(latency) * 40);
        services.usage.record(NewUsageRecord {
            organization_id: whose.organization,
            api_key_id: None,
            user_id: whose.user,
            client_id: Some(whose.client),
            claude_account_id: None,
            occurred_at: at,
            model: model.to_owned(),
            endpoint: "/v1/messages".to_owned(),
            streamed: end % 2 == 0,
            status_code: if is_refused { 429 } else { 200 },
            error_type: is_refused.then(|| "rate_limit_error".to_owned()),
            interrupted: false,
            attempts: 1,
            tokens,
            priced: services.prices.cost(model, &tokens, at),
            is_estimated: false,
            latency,
            time_to_first_token: (!is_refused).then(|| latency / 4),
            request_id: format!("sample-{number}-{nth}"),
            upstream_request_id: None,
            session_id: None,
        });
    }
}
