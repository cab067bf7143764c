// Says TEXT in the conversation CONVERSATION with the client of graphql-ws, at URL as the user of TOKEN: it is answered with ANSWER.
import assert from 'node:assert/strict';
import { createClient } from 'graphql-ws';
// Node.js has one of its own only from version 22 on.
import WebSocket from 'ws';

const { URL: url, TOKEN, CONVERSATION, TEXT, ANSWER } = process.env;
const client = createClient({
  webSocketImpl: WebSocket,
  url: `${url.replace('http', 'ws')}/graphql`,
  connectionParams: { Authorization: `Bearer ${TOKEN}` },
  retryAttempts: 0,
});
const query = `subscription ($input: SendMessageInput!) {
  messageStream(input: $input) { ... on MessageDelta { text } ... on MessageCompleted { message { text } } }
}`;
let pieces = '';
let whole;
for await (const { data, errors } of client.iterate({
  query,
  variables: { input: { conversationId: CONVERSATION, text: TEXT } },
})) {
  assert.equal(errors, undefined);
  // Nothing follows the whole answer.
  assert.equal(whole, undefined);
  pieces += data.messageStream.text ?? '';
  whole = data.messageStream.message?.text;
}
assert.deepEqual([pieces, whole], [ANSWER, ANSWER]);
await client.dispose();
