//! What tells of API keys' limits of tokens and costs that are mostly used, or all of it: once for each day or month, beside the requests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::budget::Limits;
use super::context::{Cx, Record, Services};
use super::error::Result;
use super::notification::{self, Audience, Notice};
use crate::audit::Origin;
use crate::identity::Actor;
use crate::model::{
    ApiKeyId, LimitLevel, NanoUsd, NotificationKind, OrganizationId, Permission, Timestamp, UsageInterval,
};
use crate::store::api_key::ApiKey;
use crate::store::budget::Ledger;

/// How soon it is tried again to tell what could not be told.
const RETRY: Duration = Duration::from_secs(1);

/// Which of a key's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limited {
    /// Tokens of a day.
    Tokens,
    /// Costs of a month.
    Cost,
}

/// How far a key has used one of its limits up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    limited: Limited,
    level: LimitLevel,
    /// In the limit's own measure: tokens, or billionths of a dollar.
    limit: i64,
    used: i64,
    /// The beginning of the day or the month.
    since: Timestamp,
}

impl Standing {
    /// Whether nothing new is said by telling this after `told`.
    fn is_said_by(&self, told: &Self) -> bool {
        (told.limited, told.limit, told.since) == (self.limited, self.limit, self.since) && told.level >= self.level
    }
}

/// What is to be told.
#[derive(Debug, Clone, Copy)]
struct Alert {
    organization: OrganizationId,
    key: ApiKeyId,
    standing: Standing,
}

/// What is to be told of keys' limits, and what was.
#[derive(Debug, Default)]
pub(super) struct BudgetNotices {
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The last of each key's two limits: whoever is at a limit asks again and again.
    told: HashMap<ApiKeyId, [Option<Standing>; 2]>,
    due: VecDeque<Alert>,
}

impl BudgetNotices {
    /// Looks how far a key is, after a request was settled; or after one was refused since it does not fit under one of the limits by
    /// itself: where most of that is used, it is reached.
    pub(super) fn look(&self, limits: &Limits, ledger: &Ledger, refused: Option<Limited>) {
        let tokens = (Limited::Tokens, limits.tokens, ledger.tokens, ledger.day);
        let cost = limits.cost.map(|cost| NanoUsd::from(cost).nanos());
        for (limited, limit, used, since) in [tokens, (Limited::Cost, cost, ledger.cost_nano_usd, ledger.month)] {
            let Some(limit) = limit else { continue };
            let level = match LimitLevel::of(used, Some(limit)) {
                LimitLevel::Below => continue,
                LimitLevel::Near if refused == Some(limited) => LimitLevel::Reached,
                level => level,
            };
            self.raise(ledger, Standing { limited, level, limit, used, since });
        }
    }

    /// Forgets what was told of the months before: it is not told again, since it is over.
    pub(super) fn forget_before(&self, month: Timestamp) {
        self.state().told.retain(|_, told| told.iter().flatten().any(|standing| standing.since >= month));
    }

    fn raise(&self, ledger: &Ledger, standing: Standing) {
        let mut state = self.state();
        let told = &mut state.told.entry(ledger.api_key_id).or_default()[standing.limited as usize];
        if told.is_some_and(|told| standing.is_said_by(&told)) {
            return;
        }
        *told = Some(standing);
        state.due.push_back(Alert { organization: ledger.organization_id, key: ledger.api_key_id, standing });
        self.woken.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever is done to it cannot panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells what is to be told, until it is told to stop. What is lost by a stop is found again with the key's next request.
pub async fn tell(services: Arc<Services>, stop: CancellationToken) {
    let notices = services.budgets.notices();
    loop {
        let is_last = stop.run_until_cancelled(notices.woken.notified()).await.is_none();
        loop {
            let Some(alert) = notices.state().due.pop_front() else { break };
            if let Err(error) = tell_of(&services, &alert).await {
                // Behind the others: it may be this one alone that cannot be told.
                notices.state().due.push_back(alert);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "it was not told how far a limit is used up; it is tried again"
                );
                if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                    return;
                }
            }
        }
        if is_last {
            return;
        }
    }
}

async fn tell_of(services: &Services, alert: &Alert) -> Result<()> {
    let actor = Actor::system(alert.organization);
    let (origin, record) = (Origin::default(), Record::default());
    let cx = Cx { services, actor: &actor, origin: &origin, operation: "usage", record: &record, deadline: None };
    let found = super::api_key::find_many(cx, &[alert.key]).await?;
    let notices = found.first().map(|key| (alert.organization, notice(key, &alert.standing)));
    notification::tell(services, notices.into_iter().collect()).await.map(drop)
}

fn notice(key: &ApiKey, standing: &Standing) -> Notice {
    let Standing { limited, level, limit, used, since } = *standing;
    let usd = |nanos| NanoUsd::from_nanos(nanos).to_string();
    let (what, used_of_limit, end) = match limited {
        Limited::Tokens => ("tokens a day", format!("{used} of {limit} tokens"), UsageInterval::Day.end(since)),
        Limited::Cost => {
            let used_of_limit = format!("{} of {} USD", usd(used), usd(limit));
            ("costs a month", used_of_limit, UsageInterval::Month.end(since))
        }
    };
    let ApiKey { id, name, key_prefix, .. } = key;
    let end = end.to_utc().format("%Y-%m-%d %H:%M UTC");
    let (kind, title, then) = if level == LimitLevel::Reached {
        let then = format!("Requests that may need more than is left are refused until {end}.");
        (NotificationKind::UsageLimitReached, format!("The API key {name} has reached its limit of {what}"), then)
    } else {
        let then = format!("What is left is for the time until {end}.");
        (NotificationKind::UsageLimitNear, format!("The API key {name} has used 80 % of its limit of {what}"), then)
    };
    Notice {
        kind,
        title,
        body: format!("{name} ({key_prefix}…) has used {used_of_limit}. {then}"),
        resource: Some(id.to_string()),
        to: Audience { user: Some(key.owner_id), all_with: Some(Permission::ManageApiKeys) },
        // Another limit is reached anew.
        key: format!("api-key-limit/{id}/{}/{limit}/{}/{}", limited as u8, level as u8, since.micros()),
    }
}
