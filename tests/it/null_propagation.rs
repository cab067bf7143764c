//! Answers follow the specification: null propagation, the order of fields, merging, skipping.

use async_graphql::{EmptyMutation, EmptySubscription, Interface, Object, Request, Schema, Variables};
use claviger::graphql::collected::collect;
use claviger::graphql::response::complete;
use claviger::graphql::schema_types::SchemaTypes;
use claviger::graphql::variables::complete_variables;
use serde_json::{Value, json};

struct Thing(i32);

type Failing<T> = Result<T, async_graphql::Error>;

fn fail<T>() -> Failing<T> {
    Err(async_graphql::Error::new("failed"))
}

#[Object]
impl Thing {
    async fn id(&self) -> i32 {
        self.0
    }
    async fn late(&self) -> i32 {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        self.0
    }
    async fn nullable_fails(&self) -> Failing<Option<i32>> {
        fail()
    }
    async fn strict_fails(&self) -> Failing<i32> {
        fail()
    }
    async fn fails_if_two(&self) -> Failing<i32> {
        if self.0 == 2 { fail() } else { Ok(self.0) }
    }
    async fn nothing(&self) -> Option<i32> {
        None
    }
    async fn strict(&self) -> Thing {
        Thing(self.0 + 1)
    }
    async fn nullable(&self) -> Option<Thing> {
        Some(Thing(self.0 + 1))
    }
    async fn strict_list(&self) -> Vec<Thing> {
        vec![Thing(1), Thing(2), Thing(3)]
    }
    async fn nullable_items(&self) -> Vec<Option<Thing>> {
        vec![Some(Thing(1)), Some(Thing(2)), None]
    }
    async fn nullable_list(&self) -> Option<Vec<Thing>> {
        Some(vec![Thing(1), Thing(2)])
    }
}

#[derive(Interface)]
#[graphql(field(name = "id", ty = "i32"))]
enum Any {
    Thing(Thing),
    Other(Other),
}

struct Other;

#[Object]
impl Other {
    async fn id(&self) -> i32 {
        0
    }
    async fn email(&self) -> Option<&str> {
        None
    }
}

struct Query;

#[Object]
impl Query {
    async fn thing(&self) -> Option<Thing> {
        Some(Thing(1))
    }
    async fn strict_thing(&self) -> Thing {
        Thing(1)
    }
    async fn any(&self) -> Option<Any> {
        Some(Any::Thing(Thing(1)))
    }
    async fn other(&self) -> Option<Any> {
        Some(Any::Other(Other))
    }
    async fn fails(&self) -> Failing<Option<i32>> {
        fail()
    }
    async fn one(&self) -> i32 {
        1
    }
}

/// The data as its text shows it, in order, and how many errors there are.
async fn answer(query: &str, variables: Value) -> (String, usize) {
    let schema = Schema::new(Query, EmptyMutation, EmptySubscription);
    let types = SchemaTypes::read(&schema.sdl());
    let document = async_graphql::parser::parse_query(query).unwrap();
    let (_, operation) = document.operations.iter().next().unwrap();
    let mut variables = Variables::from_json(variables);
    complete_variables(&operation.node, &mut variables).unwrap();
    let collected = collect(&types, &document, &operation.node, Some(&variables)).unwrap().unwrap();
    let mut request = Request::new("").variables(variables);
    request.set_parsed_query(collected.to_document());
    let mut answer = schema.execute(request).await;
    complete(&types, &collected, &mut answer);
    (serde_json::to_string(&answer.data).unwrap(), answer.errors.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_follow_the_specification() {
    for (query, data, errors) in [
        // Order: a field that takes longer keeps its place.
        ("{ thing { late id } one }", r#"{"thing":{"late":1,"id":1},"one":1}"#, 0),
        ("{ thing { ...F id } } fragment F on Thing { late }", r#"{"thing":{"late":1,"id":1}}"#, 0),
        (
            "{ thing { strictList { late id } } }",
            r#"{"thing":{"strictList":[{"late":1,"id":1},{"late":2,"id":2},{"late":3,"id":3}]}}"#,
            0,
        ),
        ("{ thing { a: strict { late } b: id a: strict { id } } }", r#"{"thing":{"a":{"late":2,"id":2},"b":1}}"#, 0),
        // A nullable field that failed is null in its place.
        ("{ thing { id nullableFails nothing } }", r#"{"thing":{"id":1,"nullableFails":null,"nothing":null}}"#, 1),
        ("{ thing { nullableFails } one }", r#"{"thing":{"nullableFails":null},"one":1}"#, 1),
        ("{ fails one }", r#"{"fails":null,"one":1}"#, 1),
        ("{ fails }", r#"{"fails":null}"#, 1),
        // One that may not be null takes the nearest parent that may be.
        ("{ thing { id strictFails } one }", r#"{"thing":null,"one":1}"#, 1),
        ("{ thing { strictFails } }", r#"{"thing":null}"#, 1),
        ("{ thing { id strict { id strict { strictFails } } } one }", r#"{"thing":null,"one":1}"#, 1),
        ("{ thing { id nullable { strict { strictFails } } } }", r#"{"thing":{"id":1,"nullable":null}}"#, 1),
        ("{ strictThing { strictFails } one }", "null", 1),
        // Through lists.
        ("{ thing { id strictList { failsIfTwo } } }", r#"{"thing":null}"#, 1),
        ("{ thing { id nullableList { failsIfTwo } } }", r#"{"thing":{"id":1,"nullableList":null}}"#, 1),
        (
            "{ thing { nullableItems { failsIfTwo } } }",
            r#"{"thing":{"nullableItems":[{"failsIfTwo":1},null,null]}}"#,
            1,
        ),
        (
            "{ thing { nullableItems { id nullableFails } } }",
            r#"{"thing":{"nullableItems":[{"id":1,"nullableFails":null},{"id":2,"nullableFails":null},null]}}"#,
            2,
        ),
        // Aliases, fragments, interfaces, directives.
        ("{ a: thing { x: strictFails } b: thing { id } }", r#"{"a":null,"b":{"id":1}}"#, 1),
        ("{ any { id ... on Thing { nullableFails } } }", r#"{"any":{"id":1,"nullableFails":null}}"#, 1),
        ("{ any { id ... on Thing { strictFails } } }", r#"{"any":null}"#, 1),
        ("{ any { __typename ... { id } } fails }", r#"{"any":{"__typename":"Thing","id":1},"fails":null}"#, 1),
        ("{ thing { id @skip(if: true) nothing } fails }", r#"{"thing":{"nothing":null},"fails":null}"#, 1),
        (
            "query($no: Boolean = false) { thing { nullableFails id @include(if: $no) } }",
            r#"{"thing":{"nullableFails":null}}"#,
            1,
        ),
        // What failed behind a null that propagated.
        ("{ a: thing { strictFails } fails c: one }", r#"{"a":null,"fails":null,"c":1}"#, 2),
        ("{ a: thing { strictFails } strictThing { strictFails } }", "null", 2),
        // Objects without fields are objects still, and those of another type as well.
        ("{ thing { strict { id @include(if: false) } id } }", r#"{"thing":{"strict":{},"id":1}}"#, 0),
        ("{ thing @skip(if: true) { id } }", "{}", 0),
        ("{ other { ... on Thing { id } } }", r#"{"other":{}}"#, 0),
        ("{ __schema { queryType { name @skip(if: true) } } }", r#"{"__schema":{"queryType":{}}}"#, 0),
        (
            "{ __schema { queryType { b: name a: kind } } }",
            r#"{"__schema":{"queryType":{"b":"Query","a":"OBJECT"}}}"#,
            0,
        ),
        // Each type has its own fields.
        (
            "{ any { ...T ... on Other { id: email } } other { ...T ... on Other { id: email } } } fragment T on Thing { id late }",
            r#"{"any":{"id":1,"late":1},"other":{"id":null}}"#,
            0,
        ),
        (
            "{ any { ... on Any { id } ... on Thing { late } __typename } }",
            r#"{"any":{"id":1,"late":1,"__typename":"Thing"}}"#,
            0,
        ),
        // Fields of one key are one field.
        (
            "{ thing { ...A ...B } thing { nothing } } fragment A on Thing { strict { id } } fragment B on Thing { strict { late } }",
            r#"{"thing":{"strict":{"id":2,"late":2},"nothing":null}}"#,
            0,
        ),
        // A default decides too.
        ("query($yes: Boolean = true) { one @include(if: $yes) thing @skip(if: $yes) { id } }", r#"{"one":1}"#, 0),
    ] {
        assert_eq!(answer(query, json!({})).await, (data.to_owned(), errors), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_stays_without_data() {
    assert_eq!(answer("{ unknown }", json!({})).await, ("null".to_owned(), 1));
}
