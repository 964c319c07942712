"""The SDK's own calls for files and vector stores, those that poll included."""

import io

import openai
import pytest

TOPICS = {
    "bread.md": "# Bread\n\nKnead the dough with flour, water and yeast, and bake the loaf in a hot oven.",
    "engine.md": "# Engine\n\nThe car's motor oil is to be changed every ten thousand kilometres by a mechanic.",
    "tax.md": "# Taxes\n\nThe income tax return must be filed with the revenue office before the end of July.",
}


@pytest.fixture
def store(client):
    store = client.vector_stores.create(name="topics", metadata={"team": "a"})
    yield store
    client.vector_stores.delete(store.id)


def upload(client, name, text):
    return client.files.create(file=(name, text.encode()), purpose="assistants")


def test_files(client):
    files = [upload(client, f"{number}.txt", f"text {number}") for number in range(5)]
    assert client.files.retrieve(files[0].id) == files[0] and files[0].bytes == 6
    assert client.files.content(files[3].id).read() == b"text 3"
    listed = [file.id for file in client.files.list(limit=2)]
    assert listed[:5] == [file.id for file in reversed(files)], "page after page, the newest first"
    # Deleting while iterating: the cursor of the next page is gone by then.
    for file in client.files.list(limit=2):
        assert client.files.delete(file.id).deleted
    assert client.files.list().data == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0].id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.txt", b"a"), purpose="nonsense")
    assert caught.value.param == "purpose"


def test_a_vector_store_is_filled_and_searched(client, store):
    assert store.status == "completed" and store.metadata == {"team": "a"}
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[(name, io.BytesIO(text.encode())) for name, text in TOPICS.items()]
    )
    assert (batch.status, batch.file_counts.completed, batch.file_counts.total) == ("completed", 3, 3)
    files = {client.files.retrieve(file.id).filename: file for file in client.vector_stores.files.list(store.id)}
    assert set(files) == set(TOPICS)
    assert len(list(client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=1))) == 3
    filled = client.vector_stores.retrieve(store.id)
    assert filled.file_counts.completed == 3 and filled.usage_bytes == sum(len(text) for text in TOPICS.values())

    found = client.vector_stores.search(store.id, query="How do I bake a loaf?", max_num_results=2)
    assert found.data[0].filename == "bread.md" and "yeast" in found.data[0].content[0].text
    assert 0 < found.data[0].score <= 1 and len(found.data) <= 2
    content = client.vector_stores.files.content(files["tax.md"].id, vector_store_id=store.id)
    assert "July" in content.data[0].text

    changed = client.vector_stores.files.update(
        files["engine.md"].id, vector_store_id=store.id, attributes={"kind": "manual", "year": 2024}
    )
    assert changed.attributes == {"kind": "manual", "year": 2024}
    for filters in (
        {"type": "eq", "key": "kind", "value": "manual"},
        {"type": "and", "filters": [{"type": "gte", "key": "year", "value": 2024}, {"type": "ne", "key": "kind", "value": "x"}]},
    ):
        found = client.vector_stores.search(store.id, query="How do I bake a loaf?", filters=filters)
        assert [result.filename for result in found.data] == ["engine.md"]
    assert client.vector_stores.files.delete(files["bread.md"].id, vector_store_id=store.id).deleted
    assert "bread.md" not in [result.filename for result in client.vector_stores.search(store.id, query="bake a loaf")]
    assert client.vector_stores.update(store.id, name="other").name == "other"


def test_one_file_is_uploaded_and_polled(client, store):
    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("a.md", b"A note about gardens."))
    assert file.status == "completed" and file.last_error is None
    broken = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("b.pdf", b"%PDF-1.7 no"))
    assert broken.status == "failed" and broken.last_error.code == "invalid_file"
    again = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("c.md", b"A note about gardens."))
    assert again.status == "completed"
    failed = client.vector_stores.files.list(store.id, filter="failed")
    assert [one.id for one in failed] == [broken.id]


def test_two_vector_stores_may_have_one_name(client):
    first, second = (client.vector_stores.create(name="twins") for _ in range(2))
    assert first.id != second.id
    assert {first.id, second.id} <= {store.id for store in client.vector_stores.list(limit=1)}
    for store in (first, second):
        assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.vector_stores.create(
            chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}}
        )
    assert caught.value.param == "chunking_strategy"
