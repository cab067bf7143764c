//! The limits on one request.

use std::fmt::Write as _;

use claviger::graphql::response::SchemaTypes;
use claviger::graphql::sdl;
use claviger::graphql::walls::{Refusal, Walls};
use proptest::prelude::*;
use serde_json::{Value, json};

fn check(text: &str, variables: Value) -> Result<(), Refusal> {
    let (walls, types) = (Walls::default(), SchemaTypes::read(&sdl()));
    let document = walls.parse(text)?;
    let measured = walls.measure(&document, &types)?;
    let (operation, _) = measured.operation(None)?;
    walls.check(&measured, &document, &types, operation, &async_graphql::Variables::from_json(variables))
}

fn code(text: &str) -> &'static str {
    check(text, json!({})).map_or_else(|refusal| refusal.code, |()| "OK")
}

#[test]
fn a_fragment_bomb_is_refused_without_being_expanded() {
    let mut bomb = String::from("{ viewer { ...F0 } }");
    for n in 0..30 {
        write!(bomb, " fragment F{n} on Viewer {{ ...F{} ...F{} }}", n + 1, n + 1).unwrap();
    }
    bomb += " fragment F30 on Viewer { role }";
    assert_eq!(code(&bomb), "QUERY_TOO_COMPLEX");
}

#[test]
fn a_fragment_that_contains_itself_is_refused() {
    assert_eq!(
        code("{ viewer { ...A } } fragment A on Viewer { ...B } fragment B on Viewer { ...A }"),
        "GRAPHQL_VALIDATION_FAILED"
    );
    assert_eq!(code("{ viewer { ...Missing } }"), "GRAPHQL_VALIDATION_FAILED");
}

#[test]
fn each_limit_holds_at_its_edge_and_through_fragments() {
    let fields = |count: usize, field: &str| {
        (0..count).fold(String::new(), |text, n| text + &field.replace('#', &n.to_string()))
    };
    let aliases = |count| format!("{{ viewer {{ {} }} }}", fields(count, "a#: role "));
    assert_eq!((code(&aliases(30)), code(&aliases(31))), ("OK", "QUERY_TOO_COMPLEX"));
    let roots = |count| format!("{{ {} }}", fields(count, "a#: viewer { role } "));
    assert_eq!((code(&roots(20)), code(&roots(21))), ("OK", "QUERY_TOO_COMPLEX"));
    let spread =
        |count| format!("{{ viewer {{ {} }} }} fragment F on Viewer {{ a: role b: role }}", "...F ".repeat(count));
    assert_eq!((code(&spread(15)), code(&spread(16))), ("OK", "QUERY_TOO_COMPLEX"));
    let directives = |count| format!("{{ viewer {{ role {} }} }}", "@skip(if: false) ".repeat(count));
    assert_eq!((code(&directives(50)), code(&directives(51))), ("OK", "QUERY_TOO_COMPLEX"));
    let deep = |levels: usize| format!("{}x{}", "{ a ".repeat(levels - 1) + "{", "}".repeat(levels));
    assert_eq!((code(&deep(15)), code(&deep(16))), ("OK", "QUERY_TOO_COMPLEX"));
    let tokens = |count: usize| format!("{{ viewer {{ {} }} }}", "role ".repeat(count - 5));
    assert_eq!((code(&tokens(2_000)), code(&tokens(2_001))), ("OK", "QUERY_TOO_COMPLEX"));
}

#[test]
fn a_page_costs_by_its_size_and_a_variable_by_its_value() {
    let nested = "query($outer: Int, $inner: Int = 100) { claudeAccounts(first: $outer) { nodes {
        auditLogs(first: $inner) { nodes { id action outcome operation } } } } }";
    let with = |variables| check(nested, variables).map_or_else(|refusal| refusal.code, |()| "OK");
    assert_eq!(with(json!({ "outer": 20, "inner": 20 })), "OK");
    assert_eq!(with(json!({ "outer": 100, "inner": 100 })), "QUERY_TOO_COMPLEX");
    assert_eq!(with(json!({ "outer": 100 })), "QUERY_TOO_COMPLEX", "the default counts");
    assert_eq!(
        with(json!({ "outer": -1, "inner": "x" })),
        "QUERY_TOO_COMPLEX",
        "what is no size counts as the largest"
    );
    assert_eq!(with(json!({ "outer": 1e300, "inner": 9_223_372_036_854_775_807_i64 })), "QUERY_TOO_COMPLEX");
    assert_eq!(with(json!({ "outer": null, "inner": null })), "OK");
    assert_eq!(
        code("{ claudeAccounts(first: 99999999999999999999) { nodes { id } } }"),
        "OK",
        "refused by the field itself"
    );
}

#[test]
fn deep_nesting_of_any_bracket_never_overflows_the_stack() {
    for (open, close) in [("{a", "}"), ("{a(b:[", "])}"), ("{a(b:{c:", "1})}")] {
        let text = open.repeat(100_000) + &close.repeat(100_000);
        assert_eq!(code(&text), "QUERY_TOO_COMPLEX");
    }
    assert_eq!(code(&"[".repeat(60)), "GRAPHQL_PARSE_FAILED");
}

#[test]
fn a_mutation_with_one_key_twice_is_refused() {
    let deed = "signOut { signedOut }";
    assert_eq!(code(&format!("mutation {{ {deed} {deed} }}")), "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(
        code(&format!("mutation {{ {deed} ...F }} fragment F on Mutation {{ {deed} }}")),
        "GRAPHQL_VALIDATION_FAILED"
    );
    assert_eq!(code(&format!("mutation {{ {deed} again: {deed} }}")), "OK");
}

#[test]
fn the_tools_introspection_query_passes() {
    assert_eq!(code(include_str!("fixtures/introspection.graphql")), "OK");
}

#[test]
fn brackets_and_quotes_in_strings_and_comments_are_no_tokens() {
    let text = format!("{{ viewer {{ role }} }} # {}\n", "{ ".repeat(5_000));
    assert_eq!(code(&text), "OK");
    let text = format!("{{ user(id: \"{}\") {{ id }} }}", "{ \\\" [".repeat(3_000));
    assert_eq!(code(&text), "OK");
    let text = format!("{{ user(id: \"\"\"{}\"\"\") {{ id }} }}", "{ \" \\\"\"\" [".repeat(3_000));
    assert_eq!(code(&text), "OK");
}

proptest! {
    #[test]
    fn no_text_makes_the_walls_panic(text in "[{}()\\[\\]\"#\\\\a-z:$@!.,0-9 \n\u{e9}-]{0,200}") {
        let _ = check(&text, json!({}));
    }
}
