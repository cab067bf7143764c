//! What the programs share: signing in, and asking, with errors as a person reads them.

use std::env;
use std::error::Error;
use std::fmt;

use anyhow::{Context as _, Result};
use graphql_client::{GraphQLQuery, Response};

/// A server, and who asks it.
pub struct Claviger {
    http: ureq::Agent,
    url: String,
    token: Option<String>,
}

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/sign_in.graphql")]
struct SignIn;

impl Claviger {
    /// Signs in as the environment says: `CLAVIGER_URL`, and `CLAVIGER_API_KEY` or `CLAVIGER_EMAIL` with `CLAVIGER_PASSWORD`.
    pub fn from_env() -> Result<Self> {
        let url = env::var("CLAVIGER_URL").unwrap_or_else(|_| "http://127.0.0.1:3001".to_owned());
        // An error of GraphQL may come with a status of 4xx, and says more than the status.
        let http = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut claviger = Self { http, url: format!("{url}/graphql"), token: env::var("CLAVIGER_API_KEY").ok() };
        if claviger.token.is_some() {
            return Ok(claviger);
        }
        let variable = |name| env::var(name).with_context(|| format!("{name} is not set"));
        let variables =
            sign_in::Variables { email: variable("CLAVIGER_EMAIL")?, password: variable("CLAVIGER_PASSWORD")? };
        let answer = claviger.ask::<SignIn>(variables)?;
        claviger.token = Some(answer.sign_in.context("no tokens were answered")?.access_token);
        Ok(claviger)
    }

    /// Asks for what a document says. The error is a [`Refused`] where the server answered with one.
    pub fn ask<Q: GraphQLQuery>(&self, variables: Q::Variables) -> Result<Q::ResponseData> {
        let mut request = self.http.post(&self.url).header("accept", "application/graphql-response+json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.send_json(Q::build_query(variables))?;
        let status = response.status();
        let answer: Response<Q::ResponseData> =
            response.body_mut().read_json().with_context(|| format!("{status}, and not what GraphQL answers"))?;
        // Fields are nullable so that one that fails leaves the others: here all must succeed.
        match answer.errors {
            Some(errors) if !errors.is_empty() => Err(Refused(errors).into()),
            _ => answer.data.context("neither data nor errors were answered"),
        }
    }
}

/// What the server would not do.
#[derive(Debug)]
pub struct Refused(pub Vec<graphql_client::Error>);

impl Refused {
    /// The first error's code: a value of the schema's `ErrorCode`.
    pub fn code(&self) -> Option<&str> {
        self.0.first()?.extensions.as_ref()?.get("code")?.as_str()
    }
}

impl Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code().unwrap_or("refused"))?;
        for error in &self.0 {
            write!(f, ": {}", error.message)?;
            let extension = |name| error.extensions.as_ref().and_then(|all| all.get(name));
            // BAD_USER_INPUT names each field that is wrong.
            for field in extension("fields").and_then(|fields| fields.as_array()).into_iter().flatten() {
                let path: Vec<_> =
                    field["path"].as_array().into_iter().flatten().filter_map(|part| part.as_str()).collect();
                write!(f, "\n  {}: {}", path.join("."), field["message"].as_str().unwrap_or_default())?;
            }
            if let Some(id) = extension("requestId").and_then(|id| id.as_str()) {
                write!(f, "\n  request {id}")?;
            }
        }
        Ok(())
    }
}
