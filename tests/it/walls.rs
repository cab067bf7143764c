//! The limits on one request.

use std::fmt::Write as _;

use claviger::graphql::collected::collect;
use claviger::graphql::schema_types::SchemaTypes;
use claviger::graphql::sdl;
use claviger::graphql::variables::complete_variables;
use claviger::graphql::walls::{Refusal, Walls};
use proptest::prelude::*;
use serde_json::{Value, json};

fn check(text: &str, variables: Value) -> Result<(), Refusal> {
    let (walls, types) = (Walls::default(), SchemaTypes::read(&sdl()));
    let document = walls.parse(text)?;
    let measured = walls.measure(&document, &types)?;
    let (place, _) = measured.operation(None)?;
    let (_, operation) = document.operations.iter().nth(place).unwrap();
    let mut variables = async_graphql::Variables::from_json(variables);
    complete_variables(&operation.node, &mut variables)?;
    walls.check(&measured, &document, &types, place, &variables)?;
    collect(&types, &document, &operation.node, Some(&variables)).map(|_| ())
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
fn an_error_of_syntax_says_where_and_what_and_not_what_stands_there() {
    let text = "{ a(b: \"canary\"\n ( }";
    let refusal = Walls::default().parse(text).unwrap_err();
    assert!(refusal.message.starts_with("The query is not GraphQL: line 2, column 2: expected"), "{}", refusal.message);
    assert!(!refusal.message.contains("canary"), "{}", refusal.message);
}

#[test]
fn an_open_string_hides_nothing_behind_it() {
    let brackets = "[".repeat(3_000) + &"]".repeat(3_000);
    for text in [
        format!("{{a(b:[\"\"\" \"{brackets}])}}"),
        format!("{{a(b:\"\"\"{brackets})}}"),
        format!("query($x:[String]=[\"\"\" \"]){{viewer{{{}}}}}", "role ".repeat(19_000)),
        "{a(b:\"\n\")}".to_owned(),
    ] {
        assert_eq!(code(&text), "GRAPHQL_PARSE_FAILED");
    }
}

#[test]
fn introspection_does_not_multiply() {
    let nested = |pairs: usize| {
        let open = "possibleTypes{interfaces{".repeat(pairs);
        format!("{{__type(name:\"Node\"){{{open}name{}}}}}", "}}".repeat(pairs))
    };
    assert_eq!((code(&nested(1)), code(&nested(2))), ("OK", "QUERY_TOO_COMPLEX"));
    assert_eq!(code("{__schema{types{fields{type{fields{name}}}}}}"), "OK");
}

#[test]
fn lists_that_are_no_pages_count_as_full_ones() {
    let records = |size| {
        format!(
            "{{ nodes(ids: []) {{ ... on ClaudeAccount {{ auditLogs(first: {size}) {{ nodes {{ id action }} }} }} }} }}"
        )
    };
    assert_eq!((code(&records(60)), code(&records(70))), ("OK", "QUERY_TOO_COMPLEX"));
    let page = "{ claudeAccounts(first: null, last: 100) { nodes { auditLogs(first: 1, last: 100) { nodes { id action } } } } }";
    assert_eq!(code(page), "QUERY_TOO_COMPLEX", "of two sizes the larger counts");
}

#[test]
fn what_nobody_counts_is_refused() {
    assert_eq!(code("{ viewer { role } } fragment F on Viewer { role }"), "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(code(&format!("{{ {} }}", "a".repeat(129))), "QUERY_TOO_COMPLEX");
}

#[test]
fn a_variable_that_must_be_given_is_asked_for_before_anything_is_done() {
    let text = "mutation($id: ID!) { signOut { signedOut } deleteClaudeAccount(input: {id: $id}) { deletedId } }";
    assert_eq!(code(text), "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(check(text, json!({ "id": null })).unwrap_err().code, "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(check(text, json!({ "id": "acct_x" })), Ok(()));
}

#[test]
fn fields_of_one_key_must_be_the_same() {
    assert_eq!(code("{ a: node(id: 1) { id } a: node(id: 1) { __typename } }"), "OK");
    assert_eq!(code("{ a: node(id: 1) { id } a: node(id: 2) { id } }"), "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(code("{ a: viewer { role } a: organization { id } }"), "GRAPHQL_VALIDATION_FAILED");
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
