//! A call of every field of the schema that the schema-wide tests make: those of mutations stand in `CALLS` of audit.rs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use async_graphql_parser::parse_query;
use async_graphql_parser::types::Selection;
use serde_json::{Map, Value, json};

use crate::audit::{CALLS, filled_in};
use crate::support::schema::{Schema, assert_lines, is_root};
use crate::support::{Answer, Client, TestApp};

/// Every query of the schema, with a call that finds something. The words are those of `CALLS` in audit.rs.
const READS: &[(&str, &str)] = &[
    ("viewer", "viewer { user { id } }"),
    ("passwordKey", "passwordKey { keyId nonce }"),
    ("node", r#"node(id: "CLIENT") { id }"#),
    ("nodes", r#"nodes(ids: ["CLIENT"]) { id }"#),
    ("organization", "organization { id }"),
    ("user", r#"user(id: "USER_ID") { id }"#),
    ("users", "users { totalCount nodes { id } }"),
    ("claudeAccount", r#"claudeAccount(id: "ID") { id auditLogs { totalCount } }"#),
    ("claudeAccounts", "claudeAccounts { totalCount nodes { id } }"),
    ("client", r#"client(id: "CLIENT") { id tasks { totalCount } credentials { totalCount } }"#),
    ("clients", "clients { totalCount nodes { id } }"),
    ("task", r#"task(id: "TASK") { id client { id } }"#),
    ("tasks", "tasks { totalCount nodes { id } }"),
    ("credential", r#"credential(id: "CREDENTIAL") { id client { id } }"#),
    ("credentials", "credentials { totalCount nodes { id } }"),
    ("apiKey", r#"apiKey(id: "API_KEY") { id owner { id } }"#),
    ("apiKeys", "apiKeys { totalCount nodes { id } }"),
    ("verifyApiKey", r#"verifyApiKey(key: "clv_00000000000000000000000000000000000000") { valid code }"#),
    ("conversation", r#"conversation(id: "CONVERSATION") { id messages { totalCount } }"#),
    ("conversations", "conversations { totalCount nodes { id } }"),
    ("tools", "tools { name }"),
    ("workers", "workers { id }"),
    ("auditLogs", "auditLogs { totalCount nodes { id } }"),
    ("auditLogIntegrity", "auditLogIntegrity { intact }"),
    ("notifications", "notifications { totalCount nodes { id } }"),
    (
        "usage",
        r#"usage(filter: { from: "2020-01-01T00:00:00Z", to: "2040-01-01T00:00:00Z" }, groupBy: [MODEL]) { total { requests } buckets { model } }"#,
    ),
    (
        "usageRecords",
        r#"usageRecords(filter: { from: "2020-01-01T00:00:00Z", to: "2040-01-01T00:00:00Z" }) { totalCount nodes { id } }"#,
    ),
    ("billing", "billing(year: 2026, month: 11) { total { costUsd } byModel { model } }"),
    ("models", "models { id }"),
    ("systemStats", "systemStats { version requestsToday }"),
];

/// The records that have lists in pages, and the word for the id of one.
const PARENTS: &[(&str, &str)] = &[
    ("ClaudeAccount", "\"ID\""),
    ("Client", "\"CLIENT\""),
    ("Conversation", "\"CONVERSATION\""),
    ("User", "\"USER_ID\""),
];

/// A call of one field, its arguments taken apart.
#[derive(Clone)]
pub(crate) struct Call {
    /// `Type.field`.
    name: String,
    /// How its record is read, where it is no root's.
    parent: String,
    pub(crate) arguments: Map<String, Value>,
    selection: String,
}

/// The call of a field, `Query.client`, `Mutation.createClient` or `Client.tasks`, with its words.
pub(crate) fn text(name: &str) -> String {
    let (of, field) = name.split_once('.').unwrap();
    let found = match of {
        "Mutation" => CALLS.iter().find(|(known, ..)| *known == field).map(|(_, succeeds, _)| (*succeeds).to_owned()),
        "Query" => READS.iter().find(|(known, _)| *known == field).map(|(_, call)| (*call).to_owned()),
        _ => PARENTS
            .iter()
            .find(|(known, _)| *known == of)
            .map(|(_, id)| within(of, id, &format!("{field} {{ totalCount nodes {{ id }} }}"))),
    };
    found.unwrap_or_else(|| panic!("{name}: no call; add one to READS or PARENTS of calls.rs, or CALLS of audit.rs"))
}

/// A selection of a record: it is read by `node`, which leaves no entry in the audit log.
fn within(of: &str, id: &str, selection: &str) -> String {
    format!("node(id: {id}) {{ ... on {of} {{ {selection} }} }}")
}

/// What reads some fields of the root or record that a list belongs to.
pub(crate) fn query_within(of: &str, selection: &str) -> String {
    match PARENTS.iter().find(|(known, _)| *known == of) {
        Some((_, id)) => format!("{{ {} }}", within(of, id, selection)),
        None => format!("{{ {selection} }}"),
    }
}

impl Call {
    /// A fresh call of a field: its words are replaced by records of the administrator's organization.
    pub(crate) async fn fresh(app: &TestApp, admin: &Client, name: &str, key: &str) -> Self {
        Self::parse(name, &filled_in(app, admin, &text(name), key).await)
    }

    /// Takes a call apart whose words are replaced.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let (of, _) = name.split_once('.').unwrap();
        let (parent, text) = match text.split_once(&format!(" {{ ... on {of} {{ ")) {
            Some((parent, rest)) => (parent.to_owned(), rest.strip_suffix(" } }").unwrap()),
            None => (String::new(), text),
        };
        let document = parse_query(format!("{{ {text} }}")).unwrap();
        let (_, operation) = document.operations.iter().next().unwrap();
        let Selection::Field(field) = &operation.node.selection_set.node.items[0].node else { panic!("{text}") };
        let json = |value: &async_graphql_parser::Positioned<async_graphql_value::Value>| {
            value.node.clone().into_const().unwrap().into_json().unwrap()
        };
        let arguments = field.node.arguments.iter().map(|(name, value)| (name.to_string(), json(value))).collect();
        // The calls end with their one selection, in which no arguments stand.
        let end = text.rfind(") {").map_or_else(|| text.find(" {").unwrap(), |end| end + 1);
        Self { name: name.to_owned(), parent, arguments, selection: text[end..].to_owned() }
    }

    /// The same call with another selection.
    pub(crate) fn selecting(mut self, selection: &str) -> Self {
        self.selection = format!(" {selection}");
        self
    }

    /// Puts a value at a place of the arguments; what stands on the way there is made.
    pub(crate) fn put(&mut self, path: &[String], value: Value) {
        let mut at = self.arguments.entry(path[0].clone()).or_insert(Value::Null);
        for step in &path[1..] {
            if !at.is_object() {
                *at = json!({});
            }
            at = at.as_object_mut().unwrap().entry(step.clone()).or_insert(Value::Null);
        }
        *at = value;
    }

    /// The document that makes the call, each argument in a variable.
    pub(crate) fn document(&self) -> String {
        let (of, field) = self.name.split_once('.').unwrap();
        let (mut variables, mut arguments) = (String::new(), String::new());
        for argument in &Schema::of_the_server().field(&self.name).arguments {
            let name = &argument.node.name.node;
            if self.arguments.contains_key(name.as_str()) {
                write!(variables, "${name}: {} ", argument.node.ty.node).unwrap();
                write!(arguments, "{name}: ${name} ").unwrap();
            }
        }
        let in_brackets = |text: String| if text.is_empty() { text } else { format!("({})", text.trim_end()) };
        let operation = if of == "Mutation" { "mutation" } else { "query" };
        let call = format!("{field}{}{}", in_brackets(arguments), self.selection);
        let call =
            if self.parent.is_empty() { call } else { format!("{} {{ ... on {of} {{ {call} }} }}", self.parent) };
        format!("{operation}{} {{ {call} }}", in_brackets(variables))
    }

    /// The document that makes the call, its arguments written out, in which `more` stands among those of the input.
    pub(crate) fn written_out(&self, more: &str) -> String {
        let (of, field) = self.name.split_once('.').unwrap();
        let arguments = literal(&Value::Object(self.arguments.clone()));
        let arguments = arguments.replacen("{ ", &format!("{{ {more} "), 2);
        let arguments = arguments.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
        format!("{} {{ {field}({arguments}){} }}", of.to_lowercase(), self.selection)
    }

    pub(crate) async fn send(&self, client: &Client) -> Answer {
        client.with(&self.document(), Value::Object(self.arguments.clone())).await
    }

    /// What the field itself returned.
    pub(crate) fn value(&self, answer: &Answer) -> Value {
        let (_, field) = self.name.split_once('.').unwrap();
        let data = answer.body.get("data").unwrap_or(&Value::Null);
        if is_root(&self.name) { data[field].clone() } else { data["node"][field].clone() }
    }
}

/// A value as it is written in a document.
fn literal(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {}", literal(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(literal).collect::<Vec<_>>().join(", ")),
        plain => plain.to_string(),
    }
}

#[test]
fn every_query_has_a_call() {
    let schema = Schema::of_the_server().fields("Query").into_iter().map(|field| field.name.to_string());
    assert_lines("READS of tests/it/calls.rs", READS.iter().map(|(name, _)| *name), schema);
}

#[test]
fn every_type_with_lists_can_be_reached() {
    let lists = Schema::of_the_server().lists().into_iter().filter(|(name, _)| !is_root(name));
    let parents: BTreeSet<String> = lists.map(|(name, _)| name.split_once('.').unwrap().0.to_owned()).collect();
    assert_lines("PARENTS of tests/it/calls.rs", PARENTS.iter().map(|(name, _)| *name), parents);
}
