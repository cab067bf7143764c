"""What the official SDKs for Python make of the relay at URL with the key KEY."""

import os

import anthropic
import openai

url, key, model = (os.environ[name] for name in ("URL", "KEY", "MODEL"))
messages = [{"role": "user", "content": "Hello?"}]

client = anthropic.Anthropic(base_url=url, api_key=key)
message = client.messages.create(model=model, max_tokens=100, messages=messages)
assert message.content[0].text == "Hello from Claude."
assert message.usage.cache_creation.ephemeral_1h_input_tokens == 10

with client.messages.stream(model=model, max_tokens=100, messages=messages) as stream:
    assert "".join(stream.text_stream) == "Hello from Claude."
    assert stream.get_final_message().usage.output_tokens == 12

assert client.messages.count_tokens(model=model, messages=messages).input_tokens == 55
assert [found.id for found in client.models.list(limit=2)][-1] == "claude-haiku-4-5"
wrong = anthropic.Anthropic(base_url=url, api_key="clv_" + "0" * 37, max_retries=0)
try:
    wrong.messages.create(model=model, max_tokens=100, messages=messages)
    raise AssertionError("a wrong key was let in")
except anthropic.AuthenticationError as error:
    assert error.body["error"]["type"] == "authentication_error"

chat = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
completion = chat.chat.completions.create(model=model, messages=messages)
assert completion.choices[0].message.content == "Hello from Claude."
chunks = list(chat.chat.completions.create(model=model, messages=messages, stream=True))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello from Claude."
assert chunks[-1].choices[0].finish_reason == "stop"
try:
    chat.chat.completions.create(model=model, messages=messages, logprobs=True)
    raise AssertionError("what cannot be translated was taken")
except openai.BadRequestError as error:
    assert error.param == "logprobs"
print("done")
