// What Anthropic's own SDK makes of the relay at URL with the key KEY.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';

const { URL: baseURL, KEY, MODEL } = process.env;
const client = new Anthropic({ baseURL, apiKey: KEY });
const asking = { model: MODEL, max_tokens: 100, messages: [{ role: 'user', content: 'Hello?' }] };

const message = await client.messages.create(asking);
assert.equal(message.content[0].text, 'Hello from Claude.');
assert.equal(message.usage.cache_read_input_tokens, 100);

const events = [];
for await (const event of await client.messages.create({ ...asking, stream: true })) events.push(event.type);
assert.equal(events[0], 'message_start');
assert.equal(events.at(-1), 'message_stop');

const final = await client.messages.stream(asking).finalMessage();
assert.equal(final.content[0].text, 'Hello from Claude.');
assert.equal(final.usage.output_tokens, 12);

assert.equal((await client.messages.countTokens({ model: MODEL, messages: asking.messages })).input_tokens, 55);

const models = [];
for await (const model of client.models.list({ limit: 1 })) models.push(model.id);
assert.deepEqual(models, ['claude-opus-5-5', 'claude-sonnet-5-5', 'claude-haiku-4-5']);
assert.equal((await client.models.retrieve(MODEL)).id, MODEL);

const other = new Anthropic({ baseURL, apiKey: 'clv_0000000000000000000000000000000000000', maxRetries: 0 });
await assert.rejects(other.messages.create(asking), Anthropic.AuthenticationError);
// By the other header, as the CLI sends it.
const bearer = new Anthropic({ baseURL, apiKey: null, authToken: KEY });
assert.equal((await bearer.messages.create(asking)).stop_reason, 'end_turn');

// It leaves in the middle of the last.
const left = client.messages.stream({ ...asking, metadata: { user_id: 'leaves' } });
for await (const event of left) if (event.type === 'content_block_delta') break;
console.log('done');
