// Lists clients page by page, and changes the state of one: the list shows that without being asked for again.
import { explain, fromEnvironment } from './claviger.js';
import { graphql } from './gql/gql.js';
import type { ClientStatus } from './gql/graphql.js';

const clientsPage = graphql(`
  query Clients($search: String, $after: String) {
    clients(first: 20, after: $after, search: $search, orderBy: { field: NAME, direction: ASC }) {
      edges {
        node {
          id
          name
          status
          version
        }
      }
      pageInfo {
        hasNextPage
        endCursor
      }
    }
  }
`);
// A mutation answers with what it changed: the cache finds it by its id.
const setStatus = graphql(`
  mutation SetStatus($id: ID!, $status: ClientStatus!, $expectedVersion: Int!) {
    updateClient(input: { id: $id, status: $status, expectedVersion: $expectedVersion }) {
      client {
        id
        status
        version
      }
    }
  }
`);
const oneClient = graphql(`
  query Client($id: ID!) {
    client(id: $id) {
      id
      name
      status
      version
    }
  }
`);

const usage = 'usage: clients [SEARCH], or clients set ID LEAD|ACTIVE|PAUSED';
const isStatus = (word: string | undefined): word is ClientStatus => ['LEAD', 'ACTIVE', 'PAUSED'].includes(word ?? '');

async function main([word, id, status]: string[]): Promise<void> {
  if (word === 'set' && !(id && isStatus(status))) throw new Error(usage);
  const asked: (string | undefined)[] = [];
  const apollo = await fromEnvironment((operation) => asked.push(operation));

  const variables = { search: word === 'set' ? null : (word ?? null) };
  // The cache has one list for all pages and would answer with that: each page is asked for.
  const read = (after: string | null) =>
    apollo.query({ query: clientsPage, variables: { ...variables, after }, fetchPolicy: 'network-only' });
  let { data } = await read(null);
  while (data?.clients?.pageInfo.hasNextPage) ({ data } = await read(data.clients.pageInfo.endCursor));
  // From now on the list is shown again whenever anything of it changes in the cache.
  apollo.watchQuery({ query: clientsPage, variables, fetchPolicy: 'cache-only' }).subscribe(({ data, dataState }) => {
    if (dataState !== 'complete') return;
    for (const { node } of data.clients?.edges ?? []) {
      console.log([node.id, node.name, node.status, node.version].join('\t'));
    }
    console.log(`# after ${asked.join(', ')}`);
  });

  if (id && isStatus(status)) {
    const { data } = await apollo.query({ query: oneClient, variables: { id } });
    if (!data?.client) throw new Error(`there is no client ${id}`);
    const expectedVersion = data.client.version;
    await apollo.mutate({ mutation: setStatus, variables: { id, status, expectedVersion } });
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(explain(error));
  process.exitCode = 1;
}
