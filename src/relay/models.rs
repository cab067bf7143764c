//! `GET /v1/models`: what an upstream lists, as far as the key may use it. Where none answers soon, what the table of prices has:
//! programs ask as they start, and do not wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Relay;
use super::attempts::MAX_ACCOUNTS;
use super::caller::{Admitted, Caller, admit};
use super::error::{Refusal, Result, Shape};
use super::model_list;
use super::pool::{Choice, Lane, Lease, Wanted, tried};
use super::recovery::Trouble;
use super::upstream::{API_VERSION, Answer, Errand, Failure, ask, collect};
use crate::domain::relay_account::RelayAccounts;
use crate::model::{OrganizationId, Timestamp};
use crate::upstream::Progress;

/// How long an upstream is waited for: the Claude CLI waits for 3 seconds.
const SOON: Duration = Duration::from_secs(2);
/// How long a list is good for.
const LIFETIME: TimeDelta = TimeDelta::minutes(5);
/// How long nobody asks again after no upstream has listed any.
const FAILED: TimeDelta = TimeDelta::seconds(15);
/// Of how many organizations lists are kept.
const ORGANIZATIONS: usize = 1_000;
const MAX_LIST: usize = 1024 * 1024;
const MAX_PAGE: usize = 1_000;
const PAGE: usize = 20;
const MAX_ID: usize = 200;

type Models = Arc<[Value]>;

/// The lists of organizations, as upstreams gave them.
#[derive(Default)]
pub(super) struct KnownModels(Mutex<HashMap<OrganizationId, Arc<Slot>>>);

/// Who has it locked asks for all.
type Slot = tokio::sync::Mutex<Option<Known>>;

struct Known {
    at: Timestamp,
    /// None: no upstream has listed any.
    models: Option<Models>,
}

impl KnownModels {
    fn of(&self, organization: OrganizationId) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= ORGANIZATIONS && !slots.contains_key(&organization) {
            slots.clear();
        }
        slots.entry(organization).or_default().clone()
    }
}

impl Known {
    fn holds(&self, now: Timestamp) -> bool {
        (now - self.at).abs() < if self.models.is_some() { LIFETIME } else { FAILED }
    }
}

/// Which page.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PageQuery {
    limit: Option<usize>,
    before_id: Option<String>,
    after_id: Option<String>,
}

/// `GET /v1/models`.
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<PageQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let listed = async {
        let admitted = admit(&relay, &caller, &headers).await?;
        let Query(query) = query.map_err(|error| Refusal::bad_request(error.body_text()))?;
        let page = page(&allowed(&relay, &admitted).await, &query)?;
        Ok::<_, Refusal>(answer(&page, admitted.limits))
    };
    listed.await.unwrap_or_else(|refusal| refusal.into_response(Shape::Anthropic, &caller.request_id))
}

/// `GET /v1/models/{id}`.
pub(super) async fn show(
    State(relay): State<Arc<Relay>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let found = async {
        let admitted = admit(&relay, &caller, &headers).await?;
        let Path(id) = id.map_err(|error| Refusal::bad_request(error.body_text()))?;
        let models = allowed(&relay, &admitted).await;
        let model = match models.into_iter().find(|model| model["id"] == id.as_str()) {
            Some(model) => Some(model),
            None => by_other_name(&relay, &admitted, &id).await,
        };
        let model = model.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "There is no such model.").for_good())?;
        Ok::<_, Refusal>(answer(&model, admitted.limits))
    };
    found.await.unwrap_or_else(|refusal| refusal.into_response(Shape::Anthropic, &caller.request_id))
}

fn answer(body: &Value, limits: HeaderMap) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (content_type, limits, body.to_string()).into_response()
}

/// The models that the key may use.
async fn allowed(relay: &Relay, admitted: &Admitted) -> Vec<Value> {
    let models = known(relay, admitted).await;
    let allowed = &admitted.key.key.allowed_models;
    let is_allowed = |model: &&Value| model["id"].as_str().is_some_and(|id| allowed.allow(id));
    models.iter().filter(is_allowed).cloned().collect()
}

async fn known(relay: &Relay, admitted: &Admitted) -> Models {
    let (slot, now) = (relay.models.of(admitted.organization()), relay.services.clock.now());
    // Many programs start together. Whoever waits longer than the upstream is waited for goes by the prices.
    let Ok(mut slot) = timeout(SOON, slot.lock()).await else { return priced(relay) };
    if let Some(known) = slot.as_ref().filter(|known| known.holds(now)) {
        return known.models.clone().unwrap_or_else(|| priced(relay));
    }
    let models = fetch(relay, admitted, "/v1/models?limit=1000", model_list::list).await.map(Models::from);
    *slot = Some(Known { at: now, models: models.clone() });
    models.unwrap_or_else(|| priced(relay))
}

/// The model that the upstream knows by an id that it does not list.
async fn by_other_name(relay: &Relay, admitted: &Admitted, id: &str) -> Option<Value> {
    let is_id = id.len() <= MAX_ID
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte));
    if !is_id || !admitted.key.key.allowed_models.allow(id) {
        return None;
    }
    let read = |body: &[u8]| model_list::model(body).filter(|model| model["id"].is_string());
    fetch(relay, admitted, &format!("/v1/models/{id}"), read).await
}

/// What the first upstream says that has an answer, if one does soon.
async fn fetch<T>(relay: &Relay, admitted: &Admitted, path: &str, read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    timeout(SOON, fetch_at_leisure(relay, admitted, path, read)).await.ok().flatten()
}

async fn fetch_at_leisure<T>(
    relay: &Relay,
    admitted: &Admitted,
    path: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    // Other keys get the same list: nothing in it is by what its first caller sends.
    let headers = HeaderMap::from_iter([(HeaderName::from_static("anthropic-version"), API_VERSION)]);
    let errand = Errand { method: Method::GET, path_and_query: path, headers, body: Bytes::new() };
    let lane = Lane::of_lists();
    let mut done = Vec::new();
    while done.len() < MAX_ACCOUNTS {
        let accounts = RelayAccounts::of(&relay.services, &admitted.permit).await.ok()?;
        let wanted = Wanted { accounts: &accounts, lane: &lane, session: None, tried: &done, again: None };
        let Choice::Take(lease) = relay.pool.choose(&wanted, TimeDelta::zero(), &mut None) else { return None };
        done.push(tried(&lease.account));
        if let Some(found) = fetch_of(relay, &lease, &errand).await.and_then(|body| read(&body)) {
            return Some(found);
        }
    }
    None
}

/// What the upstream of an account says.
async fn fetch_of(relay: &Relay, lease: &Lease, errand: &Errand<'_>) -> Option<Bytes> {
    match ask(relay, lease, errand, &mut Progress::default()).await {
        Answer::Success(response) => collect(response.into_body().rest, MAX_LIST, &relay.limits).await.ok(),
        // What is wrong with the account is wrong whatever it is asked for.
        Answer::Elsewhere(Failure {
            trouble: Some((trouble @ (Trouble::Unauthorized | Trouble::Unpaid), message)),
            ..
        }) => {
            relay.note(lease, trouble, message);
            None
        }
        _ => None,
    }
}

fn priced(relay: &Relay) -> Models {
    let models = relay.services.prices.models().iter();
    let made = models.map(|model| {
        json!({
            "type": "model", "id": &*model.id, "display_name": model.display_name, "created_at": "1970-01-01T00:00:00Z",
        })
    });
    made.collect()
}

/// A page of the list, by the API's rules.
fn page(models: &[Value], query: &PageQuery) -> Result<Value> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Refusal::parameter("limit", "limit: must be from 1 to 1000."));
    }
    let place = |id: &str, name: &'static str| {
        let found = models.iter().position(|model| model["id"] == id);
        found.ok_or_else(|| Refusal::parameter(name, format!("{name}: there is no such model.")))
    };
    let (start, end) = match (&query.after_id, &query.before_id) {
        (Some(_), Some(_)) => {
            return Err(Refusal::parameter("before_id", "before_id: cannot be sent together with after_id."));
        }
        (Some(after), None) => (place(after, "after_id")? + 1, models.len()),
        (None, Some(before)) => {
            let end = place(before, "before_id")?;
            (end.saturating_sub(limit), end)
        }
        (None, None) => (0, models.len()),
    };
    let shown = &models[start..end.min(start + limit)];
    let has_more = if query.before_id.is_some() { start > 0 } else { start + shown.len() < models.len() };
    let id = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
    Ok(json!({ "data": shown, "has_more": has_more, "first_id": id(shown.first()), "last_id": id(shown.last()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_in_both_directions() {
        let models: Vec<_> = ["a", "b", "c", "d", "e"].map(|id| json!({ "id": id })).into();
        let ids = |limit, before: Option<&str>, after: Option<&str>| {
            let query = PageQuery {
                limit: Some(limit),
                before_id: before.map(str::to_owned),
                after_id: after.map(str::to_owned),
            };
            let page = page(&models, &query).unwrap();
            let ids: String =
                page["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
            (ids, page["has_more"] == true)
        };
        assert_eq!(ids(2, None, None), ("ab".to_owned(), true));
        assert_eq!(ids(2, None, Some("b")), ("cd".to_owned(), true));
        assert_eq!(ids(2, None, Some("d")), ("e".to_owned(), false));
        assert_eq!(ids(2, Some("c"), None), ("ab".to_owned(), false));
        assert_eq!(ids(2, Some("e"), None), ("cd".to_owned(), true));
        assert_eq!(ids(2, None, Some("e")), (String::new(), false));
        assert!(page(&models, &PageQuery { limit: Some(0), ..PageQuery::default() }).is_err());
        assert!(page(&models, &PageQuery { after_id: Some("x".to_owned()), ..PageQuery::default() }).is_err());
    }
}
