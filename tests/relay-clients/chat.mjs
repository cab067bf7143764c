// What OpenAI's own SDK makes of the relay at URL with the key KEY.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const { URL: url, KEY, MODEL } = process.env;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY });
const asking = {
  model: MODEL,
  messages: [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Hello?' }],
};

const look = { name: 'look', description: 'Looks.', parameters: { type: 'object', properties: { x: { type: 'number' } } } };
const called = await client.chat.completions.create({
  model: MODEL,
  messages: [{ role: 'user', content: [
    { type: 'text', text: 'Look.' },
    { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } },
  ] }],
  tools: [{ type: 'function', function: look }],
});
assert.equal(called.choices[0].finish_reason, 'tool_calls');
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { x: 1 });

const completion = await client.chat.completions.create(asking);
assert.equal(completion.choices[0].message.content, 'Hello from Claude.');
assert.equal(completion.usage.prompt_tokens, 155);

let text = '';
let usage;
const stream = await client.chat.completions.create({
  ...asking, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, 'Hello from Claude.');
assert.equal(usage.total_tokens, 167);

await assert.rejects(client.chat.completions.create({ ...asking, seed: 1 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  return error.param === 'seed';
});
const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.ok(models.includes(MODEL));
console.log('done');
