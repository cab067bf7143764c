//! Who is told that an account has turned unhealthy, and that most of a limit is used, or all of it: each time once.

use std::time::Duration;

use claviger::domain::budget_notices;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::budget::{DAY, key, reserve, servers, used};
use crate::notification::{list, titles};
use crate::relay::{FIRST, Relayed};
use crate::support::{Client, Reply, both_databases};
use crate::usage::{Whose, few, id, use_some};

/// Waits until somebody was told so much: the titles, the oldest first.
async fn until_told(client: &Client, count: usize) -> Vec<String> {
    loop {
        let mut found = titles(client).await;
        if found.len() >= count {
            found.reverse();
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

both_databases! {
    async fn an_account_is_told_of_at_four_fifths_of_its_limit_and_at_all_of_it(app: TestApp) {
        const NEAR: &str = "The Claude account A has used 80 % of its limit";
        const REACHED: &str = "The Claude account A has reached its limit";
        let (admin, manager, services) = (app.admin().await, app.user("MANAGER").await, app.services());
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A", "usageLimit": 100 })).await;
        let whose = Whose { account: id(&account["id"]), ..Whose::of(&admin).await };
        let change = async |mutation: &str| {
            let mutation = format!("mutation($id: ID!) {{ {mutation} {{ claudeAccount {{ id }} }} }}");
            admin.with(&mutation, json!({ "id": account["id"] })).await.data();
        };
        let mut told = Vec::new();
        for (input, more) in [(79, None), (1, Some(NEAR)), (19, None), (1, Some(REACHED)), (500, None)] {
            use_some(&services, &whose, few(input, 0)).await;
            told.splice(0..0, more.map(str::to_owned));
            assert_eq!(titles(&admin).await, told, "after {input} more");
        }
        let notices = list(&admin).await;
        assert_eq!((&notices[0]["kind"], &notices[1]["kind"]), (&json!("USAGE_LIMIT_REACHED"), &json!("USAGE_LIMIT_NEAR")));
        assert!(notices[0]["body"].as_str().unwrap().starts_with("100 of 100 tokens of the month are used. The relay"), "{notices:?}");
        assert_eq!(notices[1]["body"], "80 of 100 tokens of the month are used.");
        assert_eq!(notices[0]["resource"], json!({ "id": account["id"], "__typename": "ClaudeAccount" }));
        // What is crossed again is told again; both at once are one.
        change("resetClaudeAccountUsage(input: { id: $id })").await;
        use_some(&services, &whose, few(100, 0)).await;
        change("updateClaudeAccount(input: { id: $id, usageLimit: 1000 })").await;
        use_some(&services, &whose, few(700, 0)).await;
        told.splice(0..0, [NEAR, REACHED].map(str::to_owned));
        assert_eq!(titles(&admin).await, told);
        // Whoever may not see accounts is not told of them.
        assert_eq!(titles(&manager).await, [""; 0]);
    }

    async fn an_account_that_was_exhausted_is_not_for_a_month_that_has_begun(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A", "usageLimit": 100 })).await;
        let whose = Whose { account: id(&account["id"]), ..Whose::of(&admin).await };
        use_some(&services, &whose, few(100, 0)).await;
        app.advance(32 * DAY);
        // A request ends before anything else has noticed the new month.
        use_some(&services, &whose, few(5, 0)).await;
        let query = "query($id: ID!) { node(id: $id) { ... on ClaudeAccount { currentUsage health { state until } } } }";
        let turned = app.admin().await.with(query, json!({ "id": account["id"] })).await.data()["node"].clone();
        assert_eq!(turned, json!({ "currentUsage": 5, "health": { "state": "UNKNOWN", "until": null } }));
    }

    async fn a_key_is_told_of_at_four_fifths_of_its_limit_and_when_it_is_refused(app: TestApp) {
        let (admin, member, manager) = (app.admin().await, app.user("MEMBER").await, app.user("MANAGER").await);
        let owner = member.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        let mut servers = servers(&app).await;
        let stop = CancellationToken::new();
        // Each server tells what it has seen.
        let telling: Vec<_> = servers.iter().map(|services| tokio::spawn(budget_notices::tell(services.clone(), stop.clone()))).collect();
        servers.push(app.services());
        let limits = json!({ "ownerId": owner, "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" });
        let (key, key_id, raw) = key(&app, &admin, limits).await;
        let take = async |at: usize, tokens: u64, nanos: i64| {
            let reserved = reserve(&servers[at % servers.len()], &key, tokens, nanos / 1_000).await;
            match reserved {
                Ok(reservation) => {
                    reservation.settle(used(tokens, nanos)).await;
                    true
                }
                Err(_) => false,
            }
        };
        assert!(take(0, 79, 0).await);
        // A request that is too large for what is left says nothing of a limit that is mostly there.
        assert!(!take(1, 1, 900_000_000_000).await);
        assert!(take(0, 1, 0).await);
        let near = "The API key K has used 80 % of its limit of tokens a day".to_owned();
        assert_eq!(until_told(&member, 1).await, std::slice::from_ref(&near));
        let notice = list(&member).await.pop().unwrap();
        assert_eq!((&notice["kind"], &notice["resource"]["id"]), (&json!("USAGE_LIMIT_NEAR"), &key_id));
        let body = notice["body"].as_str().unwrap();
        assert!(body.contains("has used 80 of 100 tokens.") && !body.contains(&raw), "{body}");
        // Whichever server sees it, and however often.
        for at in 0..8 {
            assert!(take(at, 1, 0).await);
            assert!(!take(at, 100, 0).await);
        }
        let reached = "The API key K has reached its limit of tokens a day".to_owned();
        for client in [&member, &admin, &manager] {
            assert_eq!(until_told(client, 2).await, [near.clone(), reached.clone()]);
        }
        assert!(take(0, 0, 800_000_000).await);
        let costs = "The API key K has used 80 % of its limit of costs a month".to_owned();
        assert_eq!(until_told(&member, 3).await, [near.clone(), reached, costs.clone()]);
        assert!(list(&member).await[0]["body"].as_str().unwrap().contains("has used 0.8 of 1 USD."));
        stop.cancel();
        for one in telling {
            one.await.unwrap();
        }
        // The next day's tokens are told of again, the month's costs are not.
        app.advance(DAY);
        assert!(take(servers.len() - 1, 80, 0).await);
        let member = app.anonymous().signed_in("member@example.com", crate::support::PASSWORD).await;
        let told = until_told(&member, 4).await;
        assert_eq!(told.iter().filter(|title| **title == near).count(), 2, "{told:?}");
        assert_eq!(told.iter().filter(|title| **title == costs).count(), 1, "{told:?}");
    }

    async fn an_account_that_turns_unhealthy_is_told_of_once(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::error(401, "authentication_error")]);
        relayed.send().await;
        let health = relayed.until_health("UNAUTHORIZED").await;
        let notices = list(&relayed.admin).await;
        let name = relayed.account["accountName"].as_str().unwrap();
        assert_eq!(titles(&relayed.admin).await, [format!("The Claude account {name} is unauthorized")]);
        assert_eq!((&notices[0]["kind"], &notices[0]["resource"]["id"]), (&json!("CLAUDE_ACCOUNT_UNHEALTHY"), &relayed.account["id"]));
        let error = health["lastError"].as_str().unwrap();
        assert!(notices[0]["body"].as_str().unwrap().ends_with(error), "{notices:?}");
        // It is well again and is not again, which nobody wants to read every time.
        relayed.claude.will(FIRST, [Reply::error(401, "authentication_error")]);
        let test = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok claudeAccount { health { state } } } }";
        for expected in ["UNAUTHORIZED", "HEALTHY"] {
            let answer = relayed.admin.with(test, json!({ "id": relayed.account["id"] })).await;
            let state: Value = answer.data()["testClaudeAccount"]["claudeAccount"]["health"]["state"].clone();
            assert_eq!(state, expected);
        }
        assert_eq!(list(&relayed.admin).await.len(), 1);
    }
}
