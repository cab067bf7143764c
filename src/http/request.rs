//! A GraphQL request as it comes in a body or a query string.

use async_graphql::Variables;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct GraphqlRequest {
    pub(super) query: Option<String>,
    pub(super) operation_name: Option<String>,
    pub(super) variables: Variables,
    /// The SHA-256 of a persisted query.
    pub(super) persisted_hash: Option<[u8; 32]>,
}

#[derive(Deserialize)]
struct QueryString {
    query: Option<String>,
    #[serde(rename = "operationName")]
    operation_name: Option<String>,
    variables: Option<String>,
    extensions: Option<String>,
}

impl GraphqlRequest {
    /// From a POST's body.
    ///
    /// # Errors
    /// What is wrong with it, for the caller.
    pub(super) fn from_body(body: &[u8]) -> Result<Self, &'static str> {
        match serde_json::from_slice(body).map_err(|_| "The body is not JSON.")? {
            Value::Object(parameters) => Self::from_object(parameters),
            Value::Array(_) => Err("Batches are not accepted: send one request at a time."),
            _ => Err("The body is not a JSON object."),
        }
    }

    /// From the parameters as an object.
    ///
    /// # Errors
    /// What is wrong with them, for the caller.
    pub(super) fn from_object(mut parameters: Map<String, Value>) -> Result<Self, &'static str> {
        let mut take = |name: &str| parameters.remove(name).filter(|value| !value.is_null());
        Self::new(take("query"), take("operationName"), take("variables"), take("extensions"))
    }

    /// From a GET's query string.
    ///
    /// # Errors
    /// What is wrong with it, for the caller.
    pub(super) fn from_query_string(uri: &axum::http::Uri) -> Result<Self, &'static str> {
        let axum::extract::Query(parameters) =
            axum::extract::Query::<QueryString>::try_from_uri(uri).map_err(|_| "The query string cannot be read.")?;
        let json = |text: Option<String>, wrong| match text.filter(|text| !text.is_empty()) {
            Some(text) => {
                serde_json::from_str::<Value>(&text).map(|v| Some(v).filter(|v| !v.is_null())).map_err(|_| wrong)
            }
            None => Ok(None),
        };
        Self::new(
            parameters.query.map(Value::String),
            parameters.operation_name.filter(|name| !name.is_empty()).map(Value::String),
            json(parameters.variables, "The parameter variables is not JSON.")?,
            json(parameters.extensions, "The parameter extensions is not JSON.")?,
        )
    }

    fn new(
        query: Option<Value>,
        operation_name: Option<Value>,
        variables: Option<Value>,
        extensions: Option<Value>,
    ) -> Result<Self, &'static str> {
        let persisted_hash = match object(extensions, "The parameter extensions is not an object.")? {
            Some(extensions) => persisted_hash(&extensions)?,
            None => None,
        };
        let variables = match object(variables, "The parameter variables is not an object.")? {
            Some(variables) => Variables::from_json(Value::Object(variables)),
            None => Variables::default(),
        };
        Ok(Self {
            query: text(query, "The parameter query is not a text.")?,
            operation_name: text(operation_name, "The parameter operationName is not a text.")?,
            variables,
            persisted_hash,
        })
    }
}

fn text(value: Option<Value>, wrong: &'static str) -> Result<Option<String>, &'static str> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong),
    }
}

fn object(value: Option<Value>, wrong: &'static str) -> Result<Option<Map<String, Value>>, &'static str> {
    match value {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(wrong),
    }
}

/// As Apollo's clients send it: `{"persistedQuery": {"version": 1, "sha256Hash": "…"}}`.
fn persisted_hash(extensions: &Map<String, Value>) -> Result<Option<[u8; 32]>, &'static str> {
    const WRONG: &str = "The extension persistedQuery is not of version 1 with a sha256Hash.";
    let Some(persisted) = extensions.get("persistedQuery") else { return Ok(None) };
    let hash = persisted.get("sha256Hash").and_then(Value::as_str).ok_or(WRONG)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(hash, &mut bytes).map_err(|_| WRONG)?;
    if persisted.get("version") == Some(&Value::from(1)) { Ok(Some(bytes)) } else { Err(WRONG) }
}
