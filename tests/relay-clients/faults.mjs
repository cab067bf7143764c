// What the official SDKs make of what goes wrong upstream, through the relay at URL with the key KEY. They do not try again by themselves.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';

const { URL: url, KEY, MODEL } = process.env;
const anthropic = new Anthropic({ baseURL: url, apiKey: KEY, maxRetries: 0 });
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: 'user', content: 'Hello?' }];
const asking = { model: MODEL, max_tokens: 100, messages };

const sdks = [
  {
    sdk: Anthropic,
    limited: 'claude-haiku-4-5',
    whole: async (model = MODEL) => (await anthropic.messages.create({ ...asking, model })).content[0].text,
    streamed: async () => {
      let text = '';
      for await (const event of await anthropic.messages.create({ ...asking, stream: true })) text += event.delta?.text ?? '';
      return text;
    },
  },
  {
    sdk: OpenAI,
    limited: 'claude-opus-5',
    whole: async (model = MODEL) => (await openai.chat.completions.create({ ...asking, model })).choices[0].message.content,
    streamed: async () => {
      let text = '';
      for await (const chunk of await openai.chat.completions.create({ ...asking, stream: true })) text += chunk.choices[0]?.delta.content ?? '';
      return text;
    },
  },
];

for (const { sdk, limited, whole, streamed } of sdks) {
  // Overloaded for a moment.
  assert.equal(await whole(), 'Hello from Claude.');
  // Slow.
  assert.equal(await streamed(), 'Hello from Claude.');
  // Overloaded in the middle of a stream.
  await assert.rejects(streamed(), (error) => error instanceof sdk.APIError && error.message.includes('Overloaded'));
  // Cut.
  await assert.rejects(streamed(), sdk.APIError);
  // Silent.
  await assert.rejects(whole(), (error) => error instanceof sdk.InternalServerError && error.status === 504);
  // Limited, until it says.
  await assert.rejects(
    whole(limited),
    (error) => error instanceof sdk.RateLimitError && new Headers(error.headers).get('retry-after') === '60',
  );
}
// The upstream does not take the account's key: the caller's own is good.
for (const { sdk, whole } of sdks) {
  await assert.rejects(whole(), (error) => error instanceof sdk.InternalServerError && error.status === 503);
}
console.log('done');
