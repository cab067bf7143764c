// Subscriptions of the playground: server-sent events, as whoever is signed in.
import { createClient } from 'graphql-sse';

/** Gives the events of a subscription, one after the other, until GraphiQL stops it. */
export async function* subscribe(session, request, typed) {
  const isTyped = Object.keys(typed).some((name) => name.toLowerCase() === 'authorization');
  // Asked for anew with each connection: a token may have been renewed since.
  const headers = async () => ({ ...(isTyped ? {} : await session.authorization()), ...typed });
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
