// A client of urql that signs in when it is first asked, and renews its access token when that has expired.
import { Client, fetchExchange, type CombinedError, type OperationResult } from '@urql/core';
import { authExchange } from '@urql/exchange-auth';
import { initGraphQLTada, type ResultOf } from 'gql.tada';
import type { introspection } from './graphql-env.js';

export const graphql = initGraphQLTada<{
  introspection: introspection;
  scalars: { DateTime: string; JSON: unknown; BigInt: number; Decimal: string };
}>();

const tokensFragment = graphql(`
  fragment Tokens on AuthPayload @_unmask {
    accessToken
    accessTokenExpiresAt
    refreshToken
  }
`);
const signIn = graphql(
  `
    mutation SignIn($email: String!, $password: String!) {
      signIn(input: { email: $email, password: { plain: $password } }) {
        ...Tokens
      }
    }
  `,
  [tokensFragment],
);
const refreshSession = graphql(
  `
    mutation RefreshSession($refreshToken: String!) {
      refreshSession(input: { refreshToken: $refreshToken }) {
        ...Tokens
      }
    }
  `,
  [tokensFragment],
);
type ErrorCode = ReturnType<typeof graphql.scalar<'ErrorCode'>>;

/** A client as the environment says: CLAVIGER_URL, CLAVIGER_EMAIL, CLAVIGER_PASSWORD. */
export function fromEnvironment(): Client {
  const { CLAVIGER_URL: url = 'http://127.0.0.1:3001', CLAVIGER_EMAIL: email, CLAVIGER_PASSWORD: password } = process.env;
  if (!email || !password) throw new Error('CLAVIGER_EMAIL and CLAVIGER_PASSWORD are not set');
  return new Client({
    url: `${url}/graphql`,
    preferGetMethod: false,
    exchanges: [
      authExchange(async (utils) => {
        let tokens: ResultOf<typeof tokensFragment> | null | undefined;
        tokens = must(await utils.mutate(signIn, { email, password })).signIn;
        return {
          addAuthToOperation: (operation) =>
            tokens ? utils.appendHeaders(operation, { authorization: `Bearer ${tokens.accessToken}` }) : operation,
          // Before a request by the clock, and after an answer that says so: the clocks need not agree.
          willAuthError: () => !tokens || Date.parse(tokens.accessTokenExpiresAt) < Date.now() + 10_000,
          didAuthError: (error) => has(error, 'UNAUTHENTICATED'),
          refreshAuth: async () => {
            const refreshToken = tokens?.refreshToken;
            const refreshed = refreshToken && (await utils.mutate(refreshSession, { refreshToken })).data?.refreshSession;
            // The session may have ended meanwhile.
            tokens = refreshed || must(await utils.mutate(signIn, { email, password })).signIn;
          },
        };
      }),
      fetchExchange,
    ],
  });
}

/** Whether an answer has an error of this code. */
export function has(error: CombinedError, code: ErrorCode): boolean {
  return error.graphQLErrors.some(({ extensions }) => extensions['code'] === code);
}

/** The data of an answer without errors; else an error as a person reads it. */
export function must<Data>({ data, error }: OperationResult<Data>): Data {
  if (!error && data) return data;
  const lines = error?.graphQLErrors.flatMap(({ message, extensions }) => [
    `${extensions['code']}: ${message}`,
    // BAD_USER_INPUT names each field that is wrong.
    ...((extensions['fields'] ?? []) as { path: string[]; message: string }[]).map(
      (field) => `  ${field.path.join('.')}: ${field.message}`,
    ),
    `  request ${extensions['requestId']}`,
  ]);
  throw new Error(lines?.join('\n') || error?.message || 'neither data nor errors were answered');
}
