// Subscriptions of the playground: server-sent events, as whoever is signed in.
import { createClient } from 'graphql-sse';

/** Whether headers say by themselves who asks: a session's token beside them would name another caller. */
export function namesCaller(headers) {
  return Object.keys(headers).some((name) => ['authorization', 'x-api-key'].includes(name.toLowerCase()));
}

/** Gives the events of a subscription, one after the other, until GraphiQL stops it. */
export async function* subscribe(session, request, typed) {
  // Asked for anew with each connection: a token may have been renewed since.
  const headers = async () => ({ ...(namesCaller(typed) ? {} : await session.authorization()), ...typed });
  const client = createClient({ url: '/graphql', headers });
  try {
    yield* client.iterate(request);
  } catch (error) {
    // GraphiQL would show a thrown error with its stack.
    yield { errors: [{ message: error.message }] };
  } finally {
    client.dispose();
  }
}
