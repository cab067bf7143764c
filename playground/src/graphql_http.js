// One GraphQL request over HTTP.
const ENDPOINT = '/graphql';

/**
 * Sends `request` ({ query, variables, operationName }) and gives { status, date, body }: the server's clock in
 * milliseconds (or this machine's, where the answer does not tell) and the GraphQL response.
 * Throws an Error whose message a person can read where there is no GraphQL response.
 */
export async function post(request, headers = {}) {
  let response;
  try {
    response = await fetch(ENDPOINT, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        accept: 'application/graphql-response+json, application/json',
        ...headers,
      },
      body: JSON.stringify(request),
    });
  } catch {
    throw new Error('The server could not be reached.');
  }
  const date = Date.parse(response.headers.get('date') ?? '') || Date.now();
  const text = await response.text();
  try {
    return { status: response.status, date, body: JSON.parse(text) };
  } catch {
    throw new Error(`The server answered ${response.status} without a GraphQL response: ${text.slice(0, 200)}`);
  }
}
