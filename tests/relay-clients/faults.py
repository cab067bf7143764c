"""What the official SDKs for Python make of what goes wrong upstream, through the relay at URL with the key KEY. They do not try again by
themselves."""

import os

import anthropic
import openai

url, key, model = (os.environ[name] for name in ("URL", "KEY", "MODEL"))
messages = [{"role": "user", "content": "Hello?"}]
claude = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
chat = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def claude_whole(model=model):
    return claude.messages.create(model=model, max_tokens=100, messages=messages).content[0].text


def claude_streamed():
    with claude.messages.stream(model=model, max_tokens=100, messages=messages) as stream:
        return "".join(stream.text_stream)


def chat_whole(model=model):
    return chat.chat.completions.create(model=model, messages=messages).choices[0].message.content


def chat_streamed():
    chunks = chat.chat.completions.create(model=model, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def failing(call, kind):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"it is no {kind.__name__}")


for sdk, limited, whole, streamed in [
    (anthropic, "claude-haiku-4-5", claude_whole, claude_streamed),
    (openai, "claude-opus-5", chat_whole, chat_streamed),
]:
    # Overloaded for a moment.
    assert whole() == "Hello from Claude."
    # Slow.
    assert streamed() == "Hello from Claude."
    # Overloaded in the middle of a stream.
    assert "Overloaded" in str(failing(streamed, sdk.APIError))
    # Cut.
    failing(streamed, sdk.APIError)
    # Silent.
    assert failing(whole, sdk.APIStatusError).status_code == 504
    # Limited, until it says.
    assert failing(lambda: whole(limited), sdk.RateLimitError).response.headers["retry-after"] == "60"
# The upstream does not take the account's key: the caller's own is good.
for sdk, whole in [(anthropic, claude_whole), (openai, chat_whole)]:
    assert failing(whole, sdk.APIStatusError).status_code == 503
print("done")
