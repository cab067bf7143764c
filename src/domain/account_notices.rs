//! What tells of Claude accounts: that one has turned unhealthy, that most of its tokens of the month are used, or all of them. Told with
//! the deed that notes it.

use super::context::Cx;
use super::error::Result;
use super::notification::{Audience, Notice, notify};
use crate::model::{ClaudeAccountHealthState, NotificationKind, OrganizationId, Permission, Timestamp, UsageInterval};
use crate::store::Tx;
use crate::store::claude_account::ClaudeAccount;

/// The longest part of an upstream's message that is told.
const MOST_TEXT: usize = 300;

/// Tells what has changed of an account, if anybody should know of it.
///
/// # Errors
/// Where the database fails.
pub(super) async fn tell(
    cx: Cx<'_>,
    tx: &mut Tx,
    organization: OrganizationId,
    (before, after): (&ClaudeAccount, &ClaudeAccount),
) -> Result<()> {
    if let Some(notice) = notice_of(before, after) {
        notify(cx, tx, organization, &notice).await?;
    }
    Ok(())
}

fn notice_of(before: &ClaudeAccount, after: &ClaudeAccount) -> Option<Notice> {
    let name = &after.account_name;
    let notice = |kind, title, body, key| Notice {
        kind,
        title,
        body,
        resource: Some(after.id.to_string()),
        to: Audience { user: None, all_with: Some(Permission::ManageClaudeAccounts) },
        key: format!("claude-account-{key}"),
    };
    let used = || {
        let limit = after.usage_limit.unwrap_or_default();
        format!("{} of {limit} tokens of the month are used.", after.current_usage)
    };
    // No version of an account comes twice, so that each crossing is told of.
    let crossing = |level| format!("{level}/{}/{}", after.id, after.version);
    let has_turned = before.health_state != after.health_state;
    if has_turned && after.health_state == ClaudeAccountHealthState::Exhausted {
        let until = after.usage_resets_at.to_utc().format("%Y-%m-%d %H:%M UTC");
        let body = format!(
            "{} The relay does not use the account before {until}, unless its limit is raised or its usage is set to nothing.",
            used()
        );
        let title = format!("The Claude account {name} has reached its limit");
        return Some(notice(NotificationKind::UsageLimitReached, title, body, crossing("reached")));
    }
    if has_turned && let Some(how) = unhealthy(after.health_state) {
        let error = after.health_last_error.as_deref().unwrap_or_default();
        let body = format!("{how} {}", error.chars().take(MOST_TEXT).collect::<String>()).trim_end().to_owned();
        let title = format!("The Claude account {name} is {}", word(after.health_state));
        return Some(notice(NotificationKind::ClaudeAccountUnhealthy, title, body, turn(after)));
    }
    (!before.is_near_limit && after.is_near_limit).then(|| {
        let title = format!("The Claude account {name} has used 80 % of its limit");
        notice(NotificationKind::UsageLimitNear, title, used(), crossing("near"))
    })
}

/// Names a turn of an account's health. One that goes up and down is told of once an hour for each state, and anew with another key.
fn turn(account: &ClaudeAccount) -> String {
    let ClaudeAccount { id, api_key_version, health_state, updated_at, .. } = account;
    let hour: Timestamp = UsageInterval::Hour.start(*updated_at);
    format!("unhealthy/{id}/{api_key_version}/{}/{}", health_state.as_str(), hour.micros())
}

/// What is the matter, in a sentence; none: nothing is.
fn unhealthy(state: ClaudeAccountHealthState) -> Option<&'static str> {
    match state {
        ClaudeAccountHealthState::Unauthorized => Some("The upstream does not take its key."),
        ClaudeAccountHealthState::Failing => {
            Some("The upstream fails, cannot be reached, or does not serve the account.")
        }
        ClaudeAccountHealthState::RateLimited => Some("The upstream has refused requests for being too many."),
        ClaudeAccountHealthState::Overloaded => Some("The upstream is overloaded."),
        ClaudeAccountHealthState::Unknown | ClaudeAccountHealthState::Healthy | ClaudeAccountHealthState::Exhausted => {
            None
        }
    }
}

fn word(state: ClaudeAccountHealthState) -> String {
    state.as_str().to_lowercase().replace('_', " ")
}
