//! Demonstration data: accounts, clients with their tasks and credentials to look at, and a sign-in of each role. Making it
//! twice makes it once: each thing is looked for before it is made.

use serde_json::json;

use super::claude_account::{self, Create};
use super::context::Cx;
use super::error::{Code, Result};
use super::validation::Patch;
use super::{client, credential, sample_usage, task, usage, user};
use crate::crypto::SecretText;
use crate::model::{
    ClaudeAccountStatus, ClaudeTier, ClientId, ClientStatus, Direction, Email, Page, Role, TaskPriority, Window,
};
use crate::store::client::{ClientFilter, ClientOrder};
use crate::store::credential::CredentialFilter;
use crate::store::task::TaskFilter;
use crate::store::usage::UsageFilter;

/// A sign-in that was made; none of those that existed are named: their passwords are not known.
pub struct SignIn {
    /// The address.
    pub email: String,
    /// The role.
    pub role: Role,
    /// The password, generated.
    pub password: SecretText,
}

const USERS: [(&str, &str, Role); 4] = [
    ("admin@demo.example", "Ada Admin", Role::Admin),
    ("manager@demo.example", "Max Manager", Role::Manager),
    ("member@demo.example", "Mia Member", Role::Member),
    ("reader@demo.example", "Rhea Reader", Role::ReadOnly),
];

const ACCOUNTS: [(&str, ClaudeTier, ClaudeAccountStatus, Option<i64>, i32); 6] = [
    ("Production", ClaudeTier::Enterprise, ClaudeAccountStatus::Active, None, 0),
    ("Production, second region", ClaudeTier::Enterprise, ClaudeAccountStatus::Active, Some(50_000_000), 10),
    ("Research", ClaudeTier::Pro, ClaudeAccountStatus::Active, Some(10_000_000), 20),
    ("Support desk", ClaudeTier::Pro, ClaudeAccountStatus::Suspended, Some(2_000_000), 50),
    ("Trial", ClaudeTier::Free, ClaudeAccountStatus::Pending, Some(100_000), 90),
    ("Last year's contract", ClaudeTier::Pro, ClaudeAccountStatus::Expired, None, 99),
];

/// A client: its name, company and state, its tasks, and its credentials with their user names.
type DemonstrationClient = (
    &'static str,
    &'static str,
    ClientStatus,
    &'static [(&'static str, TaskPriority)],
    &'static [(&'static str, &'static str)],
);

const CLIENTS: [DemonstrationClient; 4] = [
    (
        "Élodie Châtelain",
        "Atelier Lumière S.A.",
        ClientStatus::Active,
        &[("Renew the contract", TaskPriority::High), ("Send the quarterly report", TaskPriority::Normal)],
        &[("Web shop, administrator", "elodie"), ("Mail relay", "relay@atelier.example")],
    ),
    (
        "Jürgen Größmann",
        "Nordwind Logistik GmbH",
        ClientStatus::Active,
        &[("Set up single sign-on", TaskPriority::Urgent), ("Train the new colleagues", TaskPriority::Low)],
        &[("Tracking API", "nordwind-prod")],
    ),
    ("佐藤 美咲", "さくら印刷株式会社", ClientStatus::Lead, &[("Prepare an offer", TaskPriority::Normal)], &[]),
    ("Tomasz Wiśniewski", "Vistula Foods", ClientStatus::Paused, &[("Ask again in spring", TaskPriority::Low)], &[]),
];

/// How much usage an active client has, and over how long.
const DAYS_OF_USAGE: i32 = 45;
const REQUESTS: i32 = 300;

/// Makes what is missing. Returns the sign-ins that were made.
///
/// # Errors
/// Where the database fails.
pub async fn make(cx: Cx<'_>) -> Result<Vec<SignIn>> {
    let mut made = Vec::new();
    for (email, full_name, role) in USERS {
        let Ok(address) = email.parse::<Email>() else { continue };
        let password = cx.services.random.password();
        match user::create(cx, &address, full_name, role, &password).await {
            Ok(_) => made.push(SignIn { email: email.to_owned(), role, password }),
            Err(error) if error.code() == Code::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    for (place, (name, tier, status, usage_limit, priority)) in ACCOUNTS.into_iter().enumerate() {
        let input = Create {
            api_key: SecretText::from(format!("sk-ant-demonstration-{place:04}")),
            account_name: name.to_owned(),
            email: Some("claude@demo.example".to_owned()),
            organization: Some("Demonstration Ltd".to_owned()),
            status: Some(status),
            tier: Some(tier),
            usage_limit,
            base_url: None,
            priority: Some(priority),
            features: Some(json!({ "vision": true })),
            metadata: Some(json!({ "demonstration": true })),
        };
        match claude_account::create(cx, input).await {
            Ok(_) => {}
            Err(error) if error.code() == Code::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    let has_usage = usage::count(cx, &UsageFilter::default()).await? > 0;
    for (number, (name, company, status, its_tasks, its_credentials)) in (0..).zip(CLIENTS) {
        let client = ensure_client(cx, name, company, status).await?;
        if !has_usage && status == ClientStatus::Active {
            let whose = sample_usage::Whose { organization: cx.services.home, user: None, client };
            sample_usage::record(cx.services, whose, number, cx.services.clock.now(), (DAYS_OF_USAGE, REQUESTS));
        }
        for (title, priority) in its_tasks {
            ensure_task(cx, client, title, *priority).await?;
        }
        for (label, username) in its_credentials {
            ensure_credential(cx, client, label, username).await?;
        }
    }
    usage::flush(cx.services).await?;
    Ok(made)
}

async fn ensure_client(cx: Cx<'_>, name: &str, company: &str, status: ClientStatus) -> Result<ClientId> {
    let named = ClientFilter { search: Some(name.to_owned()), include_archived: true, ..ClientFilter::default() };
    let order = (ClientOrder::CreatedAt, Direction::Ascending);
    let page = Page { size: 1, window: Window::After(None) };
    if let Some(there) = client::page(cx, &named, order, &page).await?.rows.first() {
        return Ok(there.id);
    }
    let input = client::Create {
        name: name.to_owned(),
        company: Some(company.to_owned()),
        email: None,
        phone: None,
        notes: None,
        status: Some(status),
        owner_id: Patch::Keep,
        metadata: Some(json!({ "demonstration": true })),
    };
    Ok(client::create(cx, input).await?.id)
}

async fn ensure_task(cx: Cx<'_>, client: ClientId, title: &str, priority: TaskPriority) -> Result<()> {
    let titled = TaskFilter { client_id: Some(client), search: Some(title.to_owned()), ..TaskFilter::default() };
    if task::count(cx, &titled).await? == 0 {
        let input = task::Create {
            client_id: client.to_string(),
            title: title.to_owned(),
            description: None,
            status: None,
            priority: Some(priority),
            assignee_id: None,
            due_at: None,
        };
        task::create(cx, input).await?;
    }
    Ok(())
}

async fn ensure_credential(cx: Cx<'_>, client: ClientId, label: &str, username: &str) -> Result<()> {
    let labelled =
        CredentialFilter { client_id: Some(client), search: Some(label.to_owned()), ..CredentialFilter::default() };
    if credential::count(cx, &labelled).await? == 0 {
        let input = credential::Create {
            client_id: client.to_string(),
            label: label.to_owned(),
            username: Some(username.to_owned()),
            url: None,
            secret: cx.services.random.password(),
        };
        credential::create(cx, input).await?;
    }
    Ok(())
}
