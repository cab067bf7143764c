// Subscribes with the clients of graphql-ws and graphql-sse to the server at URL, as the user of TOKEN.
import assert from 'node:assert/strict';
import { createClient as createSseClient } from 'graphql-sse';
import { createClient as createSocketClient } from 'graphql-ws';
// Node.js has one of its own only from version 22 on.
import WebSocket from 'ws';

const { URL: url, TOKEN } = process.env;
const authorization = `Bearer ${TOKEN}`;
const subscription = { query: 'subscription { auditLogAdded { operation outcome } }' };
const deed = { query: 'mutation { createClient(input: { name: "By a client" }) { client { name } } }' };
const added = { data: { auditLogAdded: { operation: 'createClient', outcome: 'SUCCESS' } } };

/** Waits until so many subscriptions run: nothing is missed from then on. */
async function running(count) {
  for (;;) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    if (metrics.includes(`claviger_subscriptions_active ${count}\n`)) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const socket = createSocketClient({
  webSocketImpl: WebSocket,
  url: `${url.replace('http', 'ws')}/graphql`,
  connectionParams: { Authorization: authorization },
  retryAttempts: 0,
});
const stream = createSseClient({ url: `${url}/graphql`, headers: { authorization }, retryAttempts: 0 });

for (const client of [socket, stream]) {
  const events = client.iterate(subscription);
  const first = events.next();
  await running(1);
  const done = await client.iterate(deed).next();
  assert.deepEqual(done.value, { data: { createClient: { client: { name: 'By a client' } } } });
  assert.deepEqual((await first).value, added);
  await events.return();
  await running(0);
}

// What is refused is told, and not tried again.
await assert.rejects(socket.iterate({ query: 'subscription { nothing }' }).next(), (errors) => {
  assert.equal(errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
  return true;
});
const refused = await stream.iterate({ query: 'subscription { nothing }' }).next();
assert.equal(refused.value.errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
const stranger = createSocketClient({
  webSocketImpl: WebSocket,
  url: `${url.replace('http', 'ws')}/graphql`,
  connectionParams: { Authorization: 'Bearer wrong' },
  retryAttempts: 0,
});
await assert.rejects(stranger.iterate(subscription).next(), (event) => event.code === 4403);

await socket.dispose();
stream.dispose();
