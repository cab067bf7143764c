// Sends GraphiQL's requests as whoever is signed in.
import { getOperationAST } from 'graphql';
import { post } from './graphql_http.js';
import { namesCaller, subscribe } from './subscriptions.js';

/** A GraphiQL fetcher. A token or an API key typed in the Headers editor goes in the place of the session's token. */
export function createFetcher(session) {
  return async function fetcher({ query, variables, operationName }, { headers, documentAST } = {}) {
    const request = { query, variables, operationName: operationName ?? undefined };
    if (documentAST && getOperationAST(documentAST, operationName)?.operation === 'subscription') {
      return subscribe(session, request, headers ?? {});
    }
    try {
      return await send(session, request, headers ?? {});
    } catch (error) {
      // GraphiQL would show a thrown error with its stack.
      return { errors: [{ message: error.message }] };
    }
  };
}

async function send(session, request, typed) {
  if (namesCaller(typed)) {
    return (await post(request, typed)).body;
  }
  const authorization = await session.authorization();
  const answer = await post(request, { ...authorization, ...typed });
  if (!authorization || !isUnauthenticated(answer)) return answer.body;
  const renewed = await session.renewAfterRefusal(authorization);
  // With 401 the whole request was refused before anything ran, so a repeat can't do a mutation twice.
  if (renewed && answer.status === 401) return (await post(request, { ...renewed, ...typed })).body;
  return answer.body;
}

function isUnauthenticated({ status, body }) {
  return status === 401 || Boolean(body.errors?.some((error) => error.extensions?.code === 'UNAUTHENTICATED'));
}
