//! Every list of the schema, in every order: who walks through it sees each row once, while rows come and go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::audit::filled_in;
use crate::calls::query_within;
use crate::support::schema::{Schema, assert_lines, base, is_root};
use crate::support::{Client, TestApp, both_databases};

/// A list of the schema, and how its rows come and go.
struct List {
    /// `Type.field`.
    name: &'static str,
    /// The call that makes its nth row, or an INSERT where none does; the words are those of `CALLS` in audit.rs, one record each for
    /// all rows.
    make: fn(usize) -> String,
    /// The table that rows can be deleted from; `None`: they stay for ever.
    table: Option<&'static str>,
    /// Columns that the list is sorted by and `make` cannot make equal: some rows get the same value.
    ties: &'static [&'static str],
}

/// A name that comes again, in another case too.
fn name(n: usize) -> &'static str {
    ["beta", "Alpha", "alpha", "beta", "Émile", "10%"][n % 6]
}

fn task(n: usize) -> String {
    let due = ["null", "\"2030-01-01T00:00:00Z\"", "\"2030-01-01T00:00:00Z\"", "\"2029-01-01T00:00:00Z\""][n % 4];
    let priority = ["LOW", "HIGH", "HIGH"][n % 3];
    let title = name(n);
    format!(
        r#"createTask(input: {{ clientId: "CLIENT", title: "{title}", dueAt: {due}, priority: {priority} }}) {{ task {{ id }} }}"#
    )
}

fn credential(n: usize) -> String {
    let label = name(n);
    format!(
        r#"createCredential(input: {{ clientId: "CLIENT", label: "{label}", secret: "s" }}) {{ credential {{ id }} }}"#
    )
}

/// A key that expires, so that two have the same time; of the user and the client that the list may be of.
fn api_key(n: usize) -> String {
    let (name, days) = (name(n), ["null", "10", "10", "30"][n % 4]);
    format!(
        r#"createApiKey(input: {{ name: "{name}", expiresInDays: {days}, clientId: "CLIENT" }}) {{ apiKey {{ id }} }}"#
    )
}

/// The columns of keys that `api_key` cannot make equal.
const API_KEY_TIES: &[&str] = &["created_at"];

const LISTS: &[List] = &[
    // First, while there is but a page of it.
    List {
        name: "Query.auditLogs",
        make: |n| format!(r#"updateOrganization(input: {{ name: "{n}" }}) {{ organization {{ id }} }}"#),
        table: None,
        ties: &[],
    },
    List {
        name: "Query.users",
        make: |n| {
            let full_name = name(n);
            format!(
                r#"inviteUser(input: {{ email: "{n}@example.com", fullName: "{full_name}", role: MEMBER }}) {{ user {{ id }} }}"#
            )
        },
        table: Some("users"),
        ties: &["created_at"],
    },
    List {
        name: "Query.claudeAccounts",
        make: |n| {
            let (account_name, priority) = (name(n), n % 3);
            let (status, tier) = (["ACTIVE", "PENDING"][n % 2], ["PRO", "FREE", "FREE"][n % 3]);
            format!(
                r#"createClaudeAccount(input: {{ apiKey: "sk-ant-row-{n}", accountName: "{account_name}", priority: {priority},
                     status: {status}, tier: {tier} }}) {{ claudeAccount {{ id }} }}"#
            )
        },
        table: Some("claude_accounts"),
        ties: &["created_at", "updated_at", "current_usage"],
    },
    List {
        name: "Query.clients",
        make: |n| {
            let (name, company) = (name(n), ["null", "\"Acme\"", "\"acme\"", "null", "\"Zeta\""][n % 5]);
            format!(r#"createClient(input: {{ name: "{name}", company: {company} }}) {{ client {{ id }} }}"#)
        },
        table: Some("clients"),
        ties: &["created_at", "updated_at"],
    },
    List { name: "Query.tasks", make: task, table: Some("tasks"), ties: &["created_at", "updated_at"] },
    List { name: "Client.tasks", make: task, table: Some("tasks"), ties: &["created_at", "updated_at"] },
    List {
        name: "Query.credentials",
        make: credential,
        table: Some("credentials"),
        ties: &["created_at", "updated_at"],
    },
    List {
        name: "Client.credentials",
        make: credential,
        table: Some("credentials"),
        ties: &["created_at", "updated_at"],
    },
    List { name: "Query.apiKeys", make: api_key, table: Some("api_keys"), ties: API_KEY_TIES },
    List { name: "Client.apiKeys", make: api_key, table: Some("api_keys"), ties: API_KEY_TIES },
    List {
        name: "User.apiKeys",
        make: |n| api_key(n).replace("clientId: \"CLIENT\"", "ownerId: \"USER_ID\""),
        table: Some("api_keys"),
        ties: API_KEY_TIES,
    },
    List {
        name: "Query.usageRecords",
        make: |_| USAGE.to_owned(),
        table: Some("usage_records"),
        ties: &["occurred_at"],
    },
    List {
        name: "Query.notifications",
        make: |n| {
            format!(
                "INSERT INTO notifications (id, organization_id, user_id, sequence, kind, title, body, said, created_at) \
                 SELECT 'ntf_000000000000000000000000' || '{n:02}', organization_id, id, 0, 'SYSTEM', 'T', 'B', 'walk/{n}', created_at \
                 FROM users WHERE email = 'admin@localhost'"
            )
        },
        table: Some("notifications"),
        ties: &[],
    },
    List {
        name: "Query.conversations",
        make: |n| format!(r#"createConversation(input: {{ title: "{}" }}) {{ conversation {{ id }} }}"#, name(n)),
        table: Some("conversations"),
        ties: &["created_at", "updated_at"],
    },
    List {
        name: "Conversation.messages",
        // Of the conversation that was made last, which is the one that is walked through. Nothing is opened.
        make: |n| {
            format!(
                "INSERT INTO messages (id, organization_id, owner_id, conversation_id, ordinal, role, sealed, key_version, created_at) \
                 SELECT 'msg_000000000000000000000000' || '{n:02}', organization_id, owner_id, id, {n} + 1, 'USER', \
                     (SELECT digest FROM encryption_keys ORDER BY version LIMIT 1), 'v1', created_at \
                 FROM conversations ORDER BY created_at DESC, id DESC LIMIT 1"
            )
        },
        table: Some("messages"),
        ties: &[],
    },
    List {
        name: "ClaudeAccount.auditLogs",
        make: |n| format!(r#"updateClaudeAccount(input: {{ id: "ID", priority: {n} }}) {{ claudeAccount {{ id }} }}"#),
        table: None,
        ties: &[],
    },
];

/// What makes a row that no mutation makes.
const USAGE: &str = "usage";

/// How many rows there are before a walk begins, how often some come and go, and how large the pages are.
const ROWS: usize = 12;
const CHANGES: usize = 4;
const SIZES: [usize; 3] = [1, 3, 7];
/// How many walks one request takes a step of.
const TOGETHER: usize = 12;

/// A walk through a list.
struct Walk {
    /// The argument `orderBy`, or nothing.
    order: String,
    is_backward: bool,
    size: usize,
    cursor: Option<String>,
    is_done: bool,
    /// In the order of the list.
    seen: Vec<String>,
}

impl Walk {
    fn arguments(&self) -> String {
        let (count, from) = if self.is_backward { ("last", "before") } else { ("first", "after") };
        let cursor = self.cursor.as_ref().map(|cursor| format!(", {from}: \"{cursor}\"")).unwrap_or_default();
        format!("{count}: {}{cursor}{}", self.size, self.order)
    }

    fn take(&mut self, page: &Value) {
        let ids = ids(page);
        let info = &page["pageInfo"];
        let (cursor, has_more) = if self.is_backward {
            self.seen.splice(0..0, ids);
            (&info["startCursor"], &info["hasPreviousPage"])
        } else {
            self.seen.extend(ids);
            (&info["endCursor"], &info["hasNextPage"])
        };
        self.is_done = has_more == false;
        // The page may have been emptied meanwhile; there is nowhere to go on from then.
        assert!(self.is_done || cursor.is_string(), "{page}");
        self.cursor = cursor.as_str().map(str::to_owned);
    }
}

fn ids(page: &Value) -> Vec<String> {
    page["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap().to_owned()).collect()
}

/// The orderings of a list, each as its argument: nothing where it has but one.
fn orders(name: &str) -> Vec<String> {
    let schema = Schema::of_the_server();
    let arguments = &schema.field(name).arguments;
    let Some(order) = arguments.iter().find(|argument| argument.node.name.node == "orderBy") else {
        return vec![String::new()];
    };
    let inputs = schema.inputs(base(&order.node.ty.node));
    let field = inputs.iter().find(|input| input.name.node == "field").unwrap();
    let fields = schema.values(base(&field.ty.node));
    let both = |field: String| {
        ["ASC", "DESC"].map(|direction| format!(", orderBy: {{ field: {field}, direction: {direction} }}"))
    };
    fields.into_iter().flat_map(both).collect()
}

/// A list in a database, with the records that it belongs to.
struct Place<'a> {
    app: &'a TestApp,
    admin: &'a Client,
    list: &'a List,
    /// The records that the words of `make` and of the list's parent stand for.
    words: BTreeMap<&'static str, String>,
}

impl<'a> Place<'a> {
    async fn new(app: &'a TestApp, admin: &'a Client, list: &'a List) -> Self {
        let mut words = BTreeMap::new();
        for word in ["\"CLIENT\"", "\"ID\"", "\"USER_ID\"", "\"CONVERSATION\""] {
            words.insert(word, filled_in(app, admin, word, &format!("sk-ant-of-{}", list.name)).await);
        }
        Self { app, admin, list, words }
    }

    fn filled_in(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, id)| text.replace(word, id))
    }

    /// Several pages of the list at once.
    async fn pages(&self, arguments: &[String]) -> Vec<Value> {
        let (of, field) = self.list.name.split_once('.').unwrap();
        let mut pages = Vec::new();
        for some in arguments.chunks(TOGETHER) {
            let page = |(n, arguments): (usize, &String)| {
                format!(
                    "p{n}: {field}({arguments}) {{ nodes {{ id }} pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }}"
                )
            };
            let fields = some.iter().enumerate().map(page).collect::<Vec<_>>().join(" ");
            let answer = self.admin.run(&self.filled_in(&query_within(of, &fields))).await;
            let data = if is_root(self.list.name) { answer.data() } else { &answer.data()["node"] };
            pages.extend((0..some.len()).map(|n| data[format!("p{n}")].clone()));
        }
        pages
    }

    /// The whole list in each of some orders.
    async fn whole(&self, orders: &[String]) -> Vec<Vec<String>> {
        let arguments: Vec<_> = orders.iter().map(|order| format!("first: 100{order}")).collect();
        let pages = self.pages(&arguments).await;
        assert!(
            pages.iter().all(|page| page["pageInfo"]["hasNextPage"] == false),
            "{}: more than a page",
            self.list.name
        );
        pages.iter().map(ids).collect()
    }

    async fn make(&self, n: usize) {
        let deed = self.filled_in(&(self.list.make)(n));
        if deed == USAGE {
            crate::usage::specimen(self.app, self.admin).await;
        } else if deed.starts_with("INSERT") {
            self.app.database.execute(&deed).await.unwrap();
        } else {
            self.admin.run(&format!("mutation {{ {deed} }}")).await.data();
        }
    }
}

async fn walk(app: &TestApp, admin: &Client, list: &List) {
    let place = Place::new(app, admin, list).await;
    for n in 0..ROWS {
        place.make(n).await;
    }
    let orders = orders(list.name);
    let mut existing = place.whole(&orders[..1]).await.remove(0);
    existing.sort();
    if let (Some(table), [_, ..]) = (list.table, list.ties) {
        let some = existing.iter().step_by(2).map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
        let equal = |column: &&str| format!("{column} = (SELECT min({column}) FROM {table})");
        let equal = list.ties.iter().map(equal).collect::<Vec<_>>().join(", ");
        app.database.execute(&format!("UPDATE {table} SET {equal} WHERE id IN ({some})")).await.unwrap();
    }
    // What is made last may go: nothing else depends on it.
    let mut doomed: Vec<String> = match list.table {
        Some(_) => existing.iter().rev().step_by(2).take(CHANGES).cloned().collect(),
        None => Vec::new(),
    };
    let staying: BTreeSet<String> = existing.iter().filter(|id| !doomed.contains(id)).cloned().collect();
    assert!(staying.len() >= ROWS - CHANGES, "{}: {staying:?}", list.name);
    let before = place.whole(&orders).await;
    for (there, back) in before.chunks(2).filter(|both| both.len() == 2).map(|both| (&both[0], &both[1])) {
        assert!(there.iter().eq(back.iter().rev()), "{}: one direction is the other reversed", list.name);
    }

    let mut walks = Vec::new();
    for order in &orders {
        for (is_backward, size) in [false, true].into_iter().flat_map(|way| SIZES.map(|size| (way, size))) {
            walks.push(Walk {
                order: order.clone(),
                is_backward,
                size,
                cursor: None,
                is_done: false,
                seen: Vec::new(),
            });
        }
    }
    for round in 0.. {
        let mut open: Vec<&mut Walk> = walks.iter_mut().filter(|walk| !walk.is_done).collect();
        if open.is_empty() {
            break;
        }
        let arguments: Vec<_> = open.iter().map(|walk| walk.arguments()).collect();
        for (walk, page) in open.iter_mut().zip(place.pages(&arguments).await) {
            walk.take(&page);
        }
        if round < CHANGES {
            place.make(ROWS + round).await;
            // Best the one that a walk stands at.
            let is_stood_at =
                |id: &String| open.iter().any(|walk| [walk.seen.first(), walk.seen.last()].contains(&Some(id)));
            let at = doomed.iter().position(is_stood_at).unwrap_or_default();
            if let (Some(table), false) = (list.table, doomed.is_empty()) {
                let id = doomed.remove(at);
                app.database.execute(&format!("DELETE FROM {table} WHERE id = '{id}'")).await.unwrap();
            }
        }
    }
    for walk in &walks {
        let case = format!("{}{} by {}, backwards: {}", list.name, walk.order, walk.size, walk.is_backward);
        let once: BTreeSet<&String> = walk.seen.iter().collect();
        assert_eq!(once.len(), walk.seen.len(), "{case}: a row is seen twice: {:?}", walk.seen);
        let place = orders.iter().position(|order| *order == walk.order).unwrap();
        let expected: Vec<_> = before[place].iter().filter(|id| staying.contains(*id)).collect();
        let seen: Vec<_> = walk.seen.iter().filter(|id| staying.contains(*id)).collect();
        assert_eq!(seen, expected, "{case}");
    }
    offsets_agree(&place, &orders).await;
}

/// On a still table, pages by offset are the same as the list.
async fn offsets_agree(place: &Place<'_>, orders: &[String]) {
    let whole = place.whole(orders).await;
    for (order, whole) in orders.iter().zip(whole) {
        let size = 5;
        let starts = (0..=whole.len()).step_by(size);
        let arguments: Vec<_> = starts.map(|offset| format!("first: {size}, offset: {offset}{order}")).collect();
        let pages = place.pages(&arguments).await;
        let (last, full) = (pages.last().unwrap(), pages.iter().flat_map(ids).collect::<Vec<_>>());
        assert_eq!(full, whole, "{}{order} by offset", place.list.name);
        assert_eq!(last["pageInfo"]["hasNextPage"], json!(false), "{}{order} by offset", place.list.name);
    }
}

#[test]
fn every_list_has_its_line() {
    let lists = Schema::of_the_server().lists().into_iter().map(|(name, _)| name);
    assert_lines("LISTS of tests/it/page_walks.rs", LISTS.iter().map(|list| list.name), lists);
}

both_databases! {
    async fn every_walk_sees_each_row_once_and_in_order_while_rows_come_and_go(app: TestApp) {
        let admin = app.admin().await;
        for list in LISTS {
            walk(&app, &admin, list).await;
        }
    }
}
