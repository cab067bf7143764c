//! A GraphQL client, as plain as can be.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) access_token: Option<String>,
    pub(crate) refresh_token: Option<String>,
    /// Where a proxy says that it comes from.
    pub(crate) address: Option<String>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Client {
    pub(crate) fn new(url: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: url.to_owned(), access_token: None, refresh_token: None, address: None }
    }

    pub(crate) async fn signed_in(mut self, email: &str, password: &str) -> Self {
        let answer = self
            .with(
                "mutation($email: String!, $password: String!) {
                   signIn(input: { email: $email, password: { plain: $password } }) { accessToken refreshToken }
                 }",
                json!({ "email": email, "password": password }),
            )
            .await;
        let payload = &answer.data()["signIn"];
        self.access_token = payload["accessToken"].as_str().map(str::to_owned);
        self.refresh_token = payload["refreshToken"].as_str().map(str::to_owned);
        self
    }

    pub(crate) async fn run(&self, query: &str) -> Answer {
        self.with(query, json!({})).await
    }

    pub(crate) async fn with(&self, query: &str, variables: Value) -> Answer {
        self.post(&json!({ "query": query, "variables": variables })).await
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        let mut request = self
            .http
            .post(format!("{}/graphql", self.url))
            .header("accept", "application/graphql-response+json")
            .json(body);
        if let Some(token) = &self.access_token {
            request = request.bearer_auth(token);
        }
        if let Some(address) = &self.address {
            request = request.header("x-forwarded-for", address);
        }
        Answer::read(request.send().await.unwrap()).await
    }

    /// The same client, but elsewhere: the server has to trust in what it hears from 127.0.0.1.
    pub(crate) fn from(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

impl Answer {
    pub(crate) async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, body }
    }

    /// The data of an answer without errors.
    #[track_caller]
    pub(crate) fn data(&self) -> &Value {
        assert!(self.body.get("errors").is_none(), "{:#}", self.body);
        &self.body["data"]
    }

    /// The first error's code.
    #[track_caller]
    pub(crate) fn code(&self) -> &str {
        self.body["errors"][0]["extensions"]["code"].as_str().unwrap_or_else(|| panic!("{:#}", self.body))
    }

    /// The names of the fields that the first error is about.
    pub(crate) fn fields(&self) -> Vec<&str> {
        let fields = self.body["errors"][0]["extensions"]["fields"].as_array();
        let last = |field: &'_ Value| field["path"].as_array().unwrap().len() - 1;
        fields.into_iter().flatten().map(|field| field["path"][last(field)].as_str().unwrap()).collect()
    }
}
