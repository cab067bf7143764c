//! Onboards a client: makes it with its credentials and a key, but for what exists already, and prints what there is now.

use std::io;

use anyhow::{Context as _, Result, ensure};
use claviger_example::Claviger;
use graphql_client::GraphQLQuery;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/onboard.graphql")]
struct FindClient;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/onboard.graphql")]
struct Holdings;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/onboard.graphql")]
struct CreateClient;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/onboard.graphql")]
struct CreateCredential;

#[derive(GraphQLQuery)]
#[graphql(schema_path = "../../schema.graphql", query_path = "src/onboard.graphql")]
struct CreateApiKey;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let name = words.next().context("usage: onboard NAME [LABEL…], with a line of standard input for each secret")?;
    let claviger = Claviger::from_env()?;

    let (client_id, state) = match find(&claviger, &name)? {
        Some(id) => (id, "exists"),
        None => {
            let answer = claviger.ask::<CreateClient>(create_client::Variables { name: name.clone() })?;
            (answer.create_client.context("no client was answered")?.client.id, "created")
        }
    };
    println!("client\t{client_id}\t{name}\t{state}");
    let holdings = claviger.ask::<Holdings>(holdings::Variables { id: client_id.clone() })?;
    let holdings = holdings.client.context("the client is gone")?;

    let mut secrets = io::stdin().lines();
    for label in words {
        let secret = secrets.next().transpose()?.with_context(|| format!("no secret for {label}"))?;
        if let Some(known) = holdings.credentials.nodes.iter().find(|known| known.label == label) {
            println!("credential\t{}\t{label}\texists", known.id);
            continue;
        }
        let variables = create_credential::Variables { client_id: client_id.clone(), label: label.clone(), secret };
        let answer = claviger.ask::<CreateCredential>(variables)?;
        let id = answer.create_credential.context("no credential was answered")?.credential.id;
        println!("credential\t{id}\t{label}\tcreated");
    }

    // Last, since it is shown this once: whatever fails before it loses no key.
    let is_current = |key: &&holdings::HoldingsClientApiKeysNodes| {
        key.name == name && matches!(key.status, holdings::ApiKeyStatus::ACTIVE)
    };
    if let Some(known) = holdings.api_keys.nodes.iter().find(is_current) {
        println!("key\t{}\t{name}\texists", known.id);
        return Ok(());
    }
    let answer = claviger.ask::<CreateApiKey>(create_api_key::Variables { client_id, name: name.clone() })?;
    let made = answer.create_api_key.context("no key was answered")?;
    println!("key\t{}\t{name}\tcreated\t{}", made.api_key.id, made.raw_key);
    Ok(())
}

/// The id of the client of exactly this name: the server's search finds all whose name or company contains it.
fn find(claviger: &Claviger, name: &str) -> Result<Option<String>> {
    let answer = claviger.ask::<FindClient>(find_client::Variables { name: name.to_owned() })?;
    let clients = answer.clients.context("no clients were answered")?;
    let found = clients.nodes.into_iter().find(|client| client.name == name);
    ensure!(found.is_some() || !clients.page_info.has_next_page, "more than 100 clients are like {name}");
    Ok(found.map(|client| client.id))
}
