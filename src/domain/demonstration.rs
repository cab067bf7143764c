//! Demonstration data: accounts to look at and a sign-in of each role. Making it twice makes it once.

use serde_json::json;

use super::claude_account::{self, Create};
use super::context::Cx;
use super::error::{Code, Result};
use super::user;
use crate::crypto::SecretText;
use crate::model::{ClaudeAccountStatus, ClaudeTier, Email, Role};

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
    Ok(made)
}
