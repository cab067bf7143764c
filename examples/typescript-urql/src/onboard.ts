// Onboards a client: makes it with its credentials and a key, but for what exists already, and prints what there is now.
import { createInterface } from 'node:readline/promises';
import { fromEnvironment, graphql, must } from './claviger.js';

const findClient = graphql(`
  query FindClient($name: String!) {
    clients(first: 100, search: $name) {
      nodes {
        id
        name
      }
      pageInfo {
        hasNextPage
      }
    }
  }
`);
const holdings = graphql(`
  query Holdings($id: ID!) {
    client(id: $id) {
      credentials(first: 100) {
        nodes {
          id
          label
        }
      }
      apiKeys(first: 100) {
        nodes {
          id
          name
          status
        }
      }
    }
  }
`);
const createClient = graphql(`
  mutation CreateClient($name: String!) {
    createClient(input: { name: $name }) {
      client {
        id
      }
    }
  }
`);
const createCredential = graphql(`
  mutation CreateCredential($clientId: ID!, $label: String!, $secret: String!) {
    createCredential(input: { clientId: $clientId, label: $label, secret: $secret }) {
      credential {
        id
      }
    }
  }
`);

const createApiKey = graphql(`
  mutation CreateApiKey($clientId: ID!, $name: String!) {
    createApiKey(input: { clientId: $clientId, name: $name, scopes: [RELAY] }) {
      apiKey {
        id
      }
      rawKey
    }
  }
`);

async function onboard(name: string, labels: string[]): Promise<void> {
  const claviger = fromEnvironment();

  // The server's search finds all clients whose name or company contains the name.
  const { clients } = must(await claviger.query(findClient, { name }));
  const found = clients?.nodes.find((client) => client.name === name);
  if (!found && clients?.pageInfo.hasNextPage) throw new Error(`more than 100 clients are like ${name}`);
  const clientId = found?.id ?? must(await claviger.mutation(createClient, { name })).createClient?.client.id;
  if (!clientId) throw new Error('no client was answered');
  print('client', clientId, name, found);
  const { client } = must(await claviger.query(holdings, { id: clientId }));

  const secrets = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  for (const label of labels) {
    const { value: secret, done } = await secrets.next();
    if (done) throw new Error(`no secret for ${label}`);
    const known = client?.credentials.nodes.find((credential) => credential.label === label);
    const id =
      known?.id ??
      must(await claviger.mutation(createCredential, { clientId, label, secret })).createCredential?.credential.id;
    print('credential', id, label, known);
  }

  // Last, since it is shown this once: whatever fails before it loses no key.
  const key = client?.apiKeys.nodes.find((key) => key.name === name && key.status === 'ACTIVE');
  if (key) return print('key', key.id, name, key);
  const made = must(await claviger.mutation(createApiKey, { clientId, name })).createApiKey;
  print('key', made?.apiKey.id, name, undefined, made?.rawKey);
}

function print(kind: string, id: string | undefined, name: string, known: object | undefined, ...more: unknown[]): void {
  console.log([kind, id, name, known ? 'exists' : 'created', ...more].join('\t'));
}

const [name, ...labels] = process.argv.slice(2);
try {
  if (!name) throw new Error('usage: onboard NAME [LABEL…], with a line of standard input for each secret');
  await onboard(name, labels);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
process.stdin.destroy();
