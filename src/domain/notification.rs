//! Notifications: what users should know, told to each once. They come to be with the deed that they tell of, and so does its entry in the
//! audit log, by which subscriptions hear of them.

use std::collections::HashSet;

use chrono::TimeDelta;
use serde_json::json;

use super::context::{Cx, Record, Services};
use super::deed::audited;
use super::error::{Error, FieldError, Result};
use crate::audit::{Entry, Origin};
use crate::identity::Actor;
use crate::model::{
    AuditAction, Grant, ManageOneself, NotificationId, NotificationKind, OrganizationId, Page, PageSlice, Permission,
    Read, ResourceType, Role, UserId,
};
use crate::store::Tx;
use crate::store::notification::{self as notifications, ExpiringApiKey, Notification, NotificationFilter, Own};

/// How long before its end a key is told of: the first time, and once more. One that was made for no longer is not.
const BEFORE_END: [TimeDelta; 2] = [TimeDelta::days(1), TimeDelta::days(7)];
/// How far back refused sign-ins are looked for: longer than a job is ever away.
const REFUSED: TimeDelta = TimeDelta::minutes(15);
/// How many rows a job reads at once.
const BATCH: i64 = 500;
/// How many users a run looks at whose sign-ins were refused: however often those of one were, no other is passed over.
const MOST_REFUSED: i64 = 5_000;
/// How many may be marked at once.
const MOST_IDS: usize = 100;

/// Something to tell.
#[derive(Debug, Clone)]
pub struct Notice {
    /// What kind of thing it is.
    pub kind: NotificationKind,
    /// In a line.
    pub title: String,
    /// At length.
    pub body: String,
    /// The id of what it is about.
    pub resource: Option<String>,
    /// Who is told.
    pub to: Audience,
    /// Names what is told: nobody is told the same twice within 90 days.
    pub key: String,
}

/// Who is told: those who are active, each once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Audience {
    /// This user.
    pub user: Option<UserId>,
    /// All who have this permission; whoever loses it does not see the notification any more.
    pub all_with: Option<Permission>,
}

/// Tells something to users of an organization, in the transaction of the deed that it tells of: it is written with the deed's entry,
/// which has to be in that organization's log. Whoever was told the same before is not told again.
///
/// # Errors
/// Where the database fails.
pub async fn notify(cx: Cx<'_>, tx: &mut Tx, organization: OrganizationId, notice: &Notice) -> Result<()> {
    let Audience { user, all_with } = notice.to;
    let may = |role: &Role| all_with.is_some_and(|permission| role.may(permission));
    let roles: Vec<Role> = Role::ALL.iter().copied().filter(may).collect();
    let now = cx.services.clock.now();
    for recipient in notifications::recipients(tx, organization, user, &roles).await? {
        tx.notify(Notification {
            id: cx.services.new_id(),
            organization_id: organization,
            user_id: recipient,
            // Known when it is committed.
            sequence: 0,
            kind: notice.kind,
            title: notice.title.clone(),
            body: notice.body.clone(),
            resource_id: notice.resource.clone(),
            needs: all_with.filter(|_| user != Some(recipient)),
            said: notice.key.clone(),
            read_at: None,
            created_at: now,
        });
    }
    Ok(())
}

/// The caller's, as far as the caller may read them now.
fn own<G: Grant>(cx: Cx<'_>) -> Result<Own<G>> {
    let permit = cx.actor.require::<G>()?;
    let caller = cx.actor.signed_in().ok_or_else(Error::unauthenticated)?;
    let may = |permission: &Permission| caller.access.check(Some(*permission)).is_ok();
    let permissions = Permission::ALL.iter().copied().filter(may).collect();
    Ok(Own { permit, user: caller.user, permissions })
}

/// A page of the caller's notifications, newest first.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(cx: Cx<'_>, filter: NotificationFilter, page: &Page) -> Result<PageSlice<Notification>> {
    Ok(notifications::page(&mut cx.services.db.scan().await?, &own(cx)?, filter, page).await?)
}

/// How many of the caller's notifications pass the filter.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: NotificationFilter) -> Result<i64> {
    Ok(notifications::count(&mut cx.services.db.scan().await?, &own::<Read>(cx)?, filter).await?)
}

/// How many the caller has not read.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count_unread(cx: Cx<'_>) -> Result<i64> {
    count(cx, NotificationFilter { unread_only: true }).await
}

/// The caller's notifications among `ids`, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[NotificationId]) -> Result<Vec<Notification>> {
    Ok(notifications::find_many(&mut cx.services.db.read().await?, &own::<Read>(cx)?, ids).await?)
}

/// The caller's next notification that was committed in a span of the log, beyond `passed` at its first place; and whether another follows
/// at the same place.
///
/// # Errors
/// Where nobody is signed in.
pub async fn next(
    cx: Cx<'_>,
    span: (i64, i64),
    passed: Option<NotificationId>,
) -> Result<Option<(Notification, bool)>> {
    let found = notifications::next(&mut cx.services.db.read().await?, &own(cx)?, span, passed).await?;
    let mut found = found.into_iter();
    let Some(first) = found.next() else { return Ok(None) };
    let has_more = found.next().is_some_and(|second| second.sequence == first.sequence);
    Ok(Some((first, has_more)))
}

/// Notes that the caller has read some notifications, or all. Returns how many are left.
///
/// # Errors
/// Where nobody has signed in, or one of them is not the caller's.
pub async fn mark_read(cx: Cx<'_>, ids: Option<Vec<String>>) -> Result<i64> {
    let own = own::<ManageOneself>(cx)?;
    let ids = match ids {
        Some(ids) if ids.len() > MOST_IDS => {
            let message = "must not have more than 100 members".into();
            return Err(Error::bad_input(vec![FieldError { path: vec!["input", "ids"], message }]));
        }
        Some(ids) => Some(ids.iter().map(|id| id.parse().map_err(|_| no_such())).collect::<Result<HashSet<_>>>()?),
        None => None,
    };
    let ids: Option<Vec<NotificationId>> = ids.map(|ids| ids.into_iter().collect());
    audited(cx, async |tx| {
        if let Some(ids) = &ids
            && notifications::find_many(tx.conn().await?, &own, ids).await?.len() < ids.len()
        {
            return Err(no_such());
        }
        let read = notifications::mark_read(tx, &own, ids.as_deref(), cx.services.clock.now()).await?;
        let left = notifications::count(tx.conn().await?, &own, NotificationFilter { unread_only: true }).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::Notification).noting(json!({ "read": read }));
        Ok((left, entry))
    })
    .await
}

fn no_such() -> Error {
    Error::not_found("notification")
}

/// What tells a user of a sign-in from a device that is not known.
pub(super) fn of_new_device(cx: Cx<'_>, user: UserId, session: &impl ToString) -> Notice {
    let from = cx.origin.ip_address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
    let program: String = cx.origin.user_agent.as_deref().unwrap_or("an unknown program").chars().take(200).collect();
    Notice {
        kind: NotificationKind::Security,
        title: "You signed in from a new device".to_owned(),
        body: format!("From {from}, with {program}. If that was not you, end the session and change your password."),
        resource: Some(session.to_string()),
        to: Audience { user: Some(user), all_with: None },
        key: format!("new-device/{}", session.to_string()),
    }
}

/// Tells of API keys that end soon: a week before, and a day before, by the database's clock too: what is told too early is not told
/// again when it is time. Returns how many it told of.
///
/// # Errors
/// Where the database fails; what was told so far stays so.
pub async fn tell_of_expiring_api_keys(services: &Services) -> Result<usize> {
    let now = services.cautious_now().await?;
    let (mut told, mut after) = (0, None);
    loop {
        let span = (now, now + BEFORE_END[1]);
        let mut conn = services.db.read().await?;
        let keys = notifications::expiring_api_keys(&mut conn, span, after.as_ref(), BATCH).await?;
        let notices: Vec<_> = keys
            .iter()
            .filter_map(|key| {
                let before = *BEFORE_END.iter().find(|before| key.expires_at - now <= **before)?;
                let is_long = key.expires_at - key.created_at > before;
                is_long.then(|| (key.organization_id, of_expiring(key, before)))
            })
            .collect();
        drop(conn);
        told += tell(services, notices).await?;
        let is_all = i64::try_from(keys.len()).is_ok_and(|count| count < BATCH);
        after = keys.into_iter().next_back();
        if is_all {
            return Ok(told);
        }
    }
}

fn of_expiring(key: &ExpiringApiKey, before: TimeDelta) -> Notice {
    let ExpiringApiKey { name, key_prefix, expires_at, .. } = key;
    let when = if before == BEFORE_END[0] { "within a day" } else { "within a week" };
    Notice {
        kind: NotificationKind::ApiKeyExpiring,
        title: format!("The API key {name} expires {when}"),
        body: format!(
            "{name} ({key_prefix}…) expires at {}. What uses it is refused from then on: make another, or give it a later end.",
            expires_at.to_utc().format("%Y-%m-%d %H:%M UTC")
        ),
        resource: Some(key.id.to_string()),
        to: Audience { user: Some(key.owner_id), all_with: Some(Permission::ManageApiKeys) },
        // A key that was given another end is told of anew.
        key: format!("api-key-expiring/{}/{}/{}", key.id, expires_at.micros(), before.num_days()),
    }
}

/// Tells of sign-ins that were refused since there had been too many attempts: each user once a day, and those who manage users once a
/// day for all of an organization, since whoever tries one password on everybody would bury whatever else they are told. They are found
/// in the audit log, after the answer: an answer that did it would take longer for an address that somebody has. Returns how many
/// notices it were.
///
/// # Errors
/// Where the database fails; what was told so far stays so.
pub async fn tell_of_lockouts(services: &Services) -> Result<usize> {
    let since = services.clock.now() + -REFUSED;
    let refused = notifications::refused_sign_ins(&mut services.db.read().await?, since, MOST_REFUSED).await?;
    let mut seen = HashSet::new();
    let mut notices = Vec::new();
    for (organization, user, at) in refused {
        let (Some(user), Some(at)) = (user.and_then(|id| id.parse::<UserId>().ok()), at) else { continue };
        let day = at.to_utc().format("%Y-%m-%d").to_string();
        if seen.insert((organization, day.clone())) {
            notices.push((organization, of_lockouts(organization, &day)));
        }
        notices.push((organization, of_lockout(user, &day)));
    }
    tell(services, notices).await
}

/// For whoever manages users. It says no number: told with the first of a day, it would be that of the first minute.
fn of_lockouts(organization: OrganizationId, day: &str) -> Notice {
    Notice {
        kind: NotificationKind::Security,
        title: "Sign-ins of users were refused after too many attempts".to_owned(),
        body: "Somebody tries passwords, or has forgotten one. This is told once a day, of however many users: the audit log says \
               of whom, when and from where. Further attempts from there are refused for a while."
            .to_owned(),
        resource: None,
        to: Audience { user: None, all_with: Some(Permission::ManageUsers) },
        key: format!("lockouts/{organization}/{day}"),
    }
}

fn of_lockout(user: UserId, day: &str) -> Notice {
    Notice {
        kind: NotificationKind::Security,
        title: "Sign-ins were refused after too many attempts".to_owned(),
        body: "Somebody tries passwords, with your address or others', or has forgotten one. The audit log says when and from where; \
               further attempts from there are refused for a while."
            .to_owned(),
        resource: Some(user.to_string()),
        to: Audience { user: Some(user), all_with: None },
        key: format!("lockout/{user}/{day}"),
    }
}

/// Tells what was not told yet, each in a transaction of its own. Returns how much that was.
pub(super) async fn tell(services: &Services, mut notices: Vec<(OrganizationId, Notice)>) -> Result<usize> {
    let keys: Vec<_> = notices.iter().map(|(_, notice)| notice.key.clone()).collect();
    let said = notifications::said(&mut services.db.read().await?, &keys).await?;
    notices.retain(|(_, notice)| !said.contains(&notice.key));
    for (organization, notice) in &notices {
        let actor = Actor::system(*organization);
        let request_id = format!("notification-{}", hex::encode(services.random.bytes::<8>()));
        let (origin, record) = (Origin { request_id, ..Origin::default() }, Record::default());
        let operation = "notification";
        let cx = Cx { services, actor: &actor, origin: &origin, operation, record: &record, deadline: None };
        audited(cx, async |tx| {
            notify(cx, tx, *organization, notice).await?;
            let noted = json!({ "kind": notice.kind.as_str(), "about": notice.resource });
            Ok(((), Entry::new(AuditAction::Create, ResourceType::Notification).noting(noted)))
        })
        .await?;
    }
    Ok(notices.len())
}
