"""langchain-openai, unmodified."""

import pytest
from conftest import KEY
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field


@pytest.fixture(scope="module")
def chat(base_url):
    return ChatOpenAI(base_url=base_url + "/v1", api_key=KEY, model="tiny", max_tokens=200, temperature=0, max_retries=0)


def test_invoke_and_stream_agree(chat):
    whole = chat.invoke("What is Hearth?")
    assert whole.content and whole.usage_metadata["total_tokens"] > 0
    pieces = list(chat.stream("What is Hearth?"))
    assert len(pieces) > 1 and "".join(piece.content for piece in pieces) == whole.content


def test_batch(chat):
    assert all(answer.content for answer in chat.batch(["One?", "Two?", "Three?"]))


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=10)
    days: int = Field(ge=1, le=9)


def test_a_bound_tool_is_called(chat):
    answer = chat.bind_tools([Weather], tool_choice="required").invoke("Rain tomorrow?")
    assert answer.tool_calls and answer.tool_calls[0]["name"] == "Weather"
    Weather(**answer.tool_calls[0]["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat, method):
    assert isinstance(chat.with_structured_output(Weather, method=method).invoke("Rain tomorrow?"), Weather)


def test_embeddings(base_url):
    embedder = OpenAIEmbeddings(
        base_url=base_url + "/v1", api_key=KEY, model="all-MiniLM-L6-v2", check_embedding_ctx_length=False
    )
    vectors = embedder.embed_documents(["A cat.", "A dog."])
    assert len(vectors) == 2 and len(vectors[0]) == 384
    assert len(embedder.embed_query("A cat.")) == 384
