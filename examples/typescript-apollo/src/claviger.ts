// A client of Apollo that signs in once, with a cache where each thing stands once, by its id.
import {
  ApolloClient,
  ApolloLink,
  CombinedGraphQLErrors,
  defaultDataIdFromObject,
  HttpLink,
  InMemoryCache,
} from '@apollo/client';
import { SetContextLink } from '@apollo/client/link/context';
import { relayStylePagination } from '@apollo/client/utilities';
import { graphql } from './gql/gql.js';
import possible from './gql/possible-types.js';

const signIn = graphql(`
  mutation SignIn($email: String!, $password: String!) {
    signIn(input: { email: $email, password: { plain: $password } }) {
      accessToken
    }
  }
`);

/**
 * A client as the environment says: CLAVIGER_URL, CLAVIGER_EMAIL, CLAVIGER_PASSWORD. What is sent is told to `asked`.
 */
export async function fromEnvironment(asked: (operation: string | undefined) => void): Promise<ApolloClient> {
  const { CLAVIGER_URL: url = 'http://127.0.0.1:3001', CLAVIGER_EMAIL: email, CLAVIGER_PASSWORD: password } = process.env;
  if (!email || !password) throw new Error('CLAVIGER_EMAIL and CLAVIGER_PASSWORD are not set');
  let token: string | undefined;
  const client = new ApolloClient({
    link: ApolloLink.from([
      new SetContextLink(({ headers }) => ({
        headers: { ...headers, ...(token && { authorization: `Bearer ${token}` }) },
      })),
      new ApolloLink((operation, forward) => {
        asked(operation.operationName);
        return forward(operation);
      }),
      new HttpLink({ uri: `${url}/graphql` }),
    ]),
    cache: new InMemoryCache({
      possibleTypes: possible.possibleTypes,
      // An id says what it is of, and is nothing else's: it is the key without a type's name before it.
      dataIdFromObject: (object) => (typeof object.id === 'string' ? object.id : defaultDataIdFromObject(object)),
      typePolicies: {
        Query: {
          fields: {
            // The pages of one search and order are one list.
            clients: relayStylePagination(['search', 'filter', 'orderBy']),
            // What a list has read already is not asked for again.
            client: (_, { args, toReference }) => toReference({ __typename: 'Client', id: args?.['id'] }),
          },
        },
      },
    }),
  });
  const { data } = await client.mutate({ mutation: signIn, variables: { email, password }, fetchPolicy: 'no-cache' });
  token = data?.signIn?.accessToken;
  return client;
}

/** An error as a person reads it. */
export function explain(error: unknown): string {
  if (!CombinedGraphQLErrors.is(error)) return error instanceof Error ? error.message : String(error);
  const lines = error.errors.flatMap(({ message, extensions }) => [
    extensions?.['code'] === 'CONFLICT' ? 'Somebody else changed it meanwhile.' : `${extensions?.['code']}: ${message}`,
    `  request ${extensions?.['requestId']}`,
  ]);
  return lines.join('\n');
}
