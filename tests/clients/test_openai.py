"""The official Python SDK, unmodified: what programs written for the hosted provider do."""

import asyncio
import base64
import json
import math
import struct
import urllib.request

import jsonschema
import openai
import pytest
from pydantic import BaseModel

MESSAGES = [{"role": "user", "content": "What is Hearth?"}]


def test_chat(client):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer._request_id
    assert answer.timings["predicted_n"] == answer.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client):
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, temperature=0)
    with client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and all(reason is None for reason in reasons[:-1])


def test_the_async_client_runs_eight_at_once(async_client):
    async def one(seed):
        answer = await async_client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=24, temperature=1, seed=seed
        )
        return answer.choices[0].message.content

    async def together():
        return await asyncio.gather(*(one(seed) for seed in range(8)))

    async def in_turn():
        return [await one(seed) for seed in range(8)]

    # The same seed gives the same text, whatever else is in the batch.
    async def both():
        return await together(), await in_turn()

    concurrent, alone = asyncio.run(both())
    assert concurrent == alone
    assert len(set(alone)) > 1


def test_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert bytes(byte for token in content for byte in token.bytes).decode() == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob), "greedy takes the likeliest"
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-4


def test_stop_strings_and_n(client):
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=32, temperature=0)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=32, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"

    many = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, n=12, seed=7)
    assert sorted(choice.index for choice in many.choices) == list(range(12))
    assert len({choice.message.content for choice in many.choices}) > 1


def test_logit_bias_and_ignore_eos(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, temperature=0, logit_bias={"100": 100}, logprobs=True
    )
    tokens = [token.token for token in answer.choices[0].logprobs.content]
    assert len(tokens) == 5 and len(set(tokens)) == 1
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=64, temperature=1, seed=1, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 64 and answer.choices[0].finish_reason == "length"


def test_completions(client):
    answer = client.completions.create(model="tiny", prompt="Hearth is", max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].text
    several = client.completions.create(model="tiny", prompt=["Hearth is", "The server"], max_tokens=8, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == answer.choices[0].text
    echo = client.completions.create(model="tiny", prompt="Hearth is", max_tokens=0, echo=True, logprobs=2)
    assert echo.choices[0].text == "Hearth is"
    logprobs = echo.choices[0].logprobs
    assert "".join(logprobs.tokens) == "Hearth is" and logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:]) and logprobs.text_offset[0] == 0


def test_embeddings(client):
    texts = ["A cat sat on the mat.", "A kitten rested on the rug.", "The stock market fell."]
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2] and len(vectors[0]) == 384

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b))

    assert cosine(vectors[0], vectors[0]) == pytest.approx(1, abs=1e-4)
    assert cosine(vectors[0], vectors[1]) > 0.4 > cosine(vectors[0], vectors[2])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
    floats = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts[0], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    raw = client.embeddings.with_raw_response.create(model="all-MiniLM-L6-v2", input=texts[0], encoding_format="base64")
    data = json.loads(raw.text)["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(data)) == pytest.approx(vectors[0], abs=1e-6)
    short = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts[0], dimensions=64)
    assert len(short.data[0].embedding) == 64


def test_models(client):
    listed = {model.id: model for model in client.models.list()}
    assert "tiny" in listed or any("tiny" in name for name in listed)
    model = client.models.retrieve("tiny")
    assert model.object == "model" and model.context_length == 2048
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_a_json_schema_is_enforced(client, seed):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=300, seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_json_object_and_pydantic(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=400, temperature=0, response_format={"type": "json_object"}
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.lstrip().startswith("{")

    class Point(BaseModel):
        x: int
        visible: bool

    parsed = client.chat.completions.parse(model="tiny", messages=MESSAGES, max_tokens=100, seed=3, response_format=Point)
    assert isinstance(parsed.choices[0].message.parsed, Point)


def test_a_schema_that_cannot_be_compiled_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        )
    assert caught.value.param and "response_format" in caught.value.param


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "stop_music",
            "parameters": {"type": "object", "properties": {"fade": {"type": "boolean"}}, "required": ["fade"], "additionalProperties": False},
        },
    },
]


def parameters(name):
    return next(tool["function"]["parameters"] for tool in TOOLS if tool["function"]["name"] == name)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "stop_music"}}])
def test_a_forced_tool_call_fits_its_schema(client, choice):
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=300, seed=seed
        )
        assert answer.choices[0].finish_reason == ("tool_calls" if choice == "required" else answer.choices[0].finish_reason)
        calls = answer.choices[0].message.tool_calls
        assert calls
        for call in calls:
            jsonschema.validate(json.loads(call.function.arguments), parameters(call.function.name))
            assert choice == "required" or call.function.name == "stop_music"


def test_a_forced_tool_call_streams(client):
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300,
        seed=5, stream=True,
    )
    name, arguments, identifier = None, "", None
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            name = name or call.function.name
            identifier = identifier or call.id
            arguments += call.function.arguments or ""
            assert call.index == 0
    assert identifier
    jsonschema.validate(json.loads(arguments), parameters(name))


def test_tools_may_be_left_alone(client):
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=8, temperature=0
        )
        assert answer.choices[0].message.content is not None or answer.choices[0].message.tool_calls


def test_a_tool_result_goes_back_in(client):
    conversation = MESSAGES + [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo","days":1}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    answer = client.chat.completions.create(model="tiny", messages=conversation, tools=TOOLS, max_tokens=8)
    assert answer.choices


BAD = [
    ({"temperature": 9}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
    ({"n": 0}, "n"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"presence_penalty": 3}, "presence_penalty"),
]


@pytest.mark.parametrize("change,param", BAD, ids=[param for _, param in BAD])
def test_bad_values_are_named(client, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": "tiny", "messages": MESSAGES, "max_tokens": 4} | change))
    assert caught.value.param and caught.value.param.split(".")[0].startswith(param.split("[")[0])
    assert caught.value.body["message"] and caught.value.request_id


def test_error_classes(client, base_url):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-none", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as key:
        openai.OpenAI(base_url=base_url + "/v1", api_key="wrong", max_retries=0).models.list()
    assert key.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 4000}])
    assert long.value.code == "context_length_exceeded"
    assert long.value.body["n_ctx"] == 2048 and long.value.body["n_prompt_tokens"] > 2048
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="all-MiniLM-L6-v2", input="")


def test_a_repeated_prompt_comes_from_the_prefix_cache(client):
    messages = [{"role": "system", "content": "Answer from the documentation. " * 12}, *MESSAGES]
    first = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2, temperature=0)
    second = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens > 0.5 * second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


def test_the_llama_server_routes(base_url):
    def post(path, body):
        request = urllib.request.Request(
            base_url + path, json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": "Bearer sk-test-key"},
        )
        return json.load(urllib.request.urlopen(request))

    tokens = post("/tokenize", {"content": "Hearth is a server."})["tokens"]
    assert post("/detokenize", {"tokens": tokens})["content"] == "Hearth is a server."
    prompt = post("/apply-template", {"messages": MESSAGES})["prompt"]
    assert MESSAGES[0]["content"] in prompt and prompt.endswith("assistant\n")
