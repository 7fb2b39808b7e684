"""`/v1/embeddings` by the official client: the encoder's own vectors, and errors as sentences."""

from __future__ import annotations

import numpy as np
import pytest

from lmlab.endpoints.server import background
from lmlab.endpoints.server.embeddings import ServedEncoder
from lmlab.retrieval import load_encoder
from tiny_retriever import write_retriever

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    place = write_retriever(tmp_path_factory.mktemp("served"), prompts={"query": "what is ", "document": ""})
    with background(ServedEncoder("tiny", load_encoder(place))) as url:
        yield load_encoder(place), openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def vectors(answer) -> np.ndarray:
    return np.array([each.embedding for each in answer.data])


def test_vectors_are_the_encoders_in_both_forms_and_for_both_kinds(served):
    encoder, client = served
    texts = ["sea ship captain", "bread", "star planet moon"]
    expected = encoder.encode_text(texts)
    for form in ({"encoding_format": "float"}, {}):  # the client asks for base64 where nothing is said
        answer = client.embeddings.create(model="tiny", input=texts, **form)
        assert np.abs(vectors(answer) - expected).max() < 1e-6
        assert [each.index for each in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == sum(map(len, encoder.tokenize(texts)))
    asked = client.embeddings.create(model="tiny", input=texts[0], extra_body={"input_type": "query"})
    assert np.abs(vectors(asked) - encoder.encode_text(texts[:1], "query")).max() < 1e-6
    ids = encoder.tokenizer.inner([texts[0]])
    assert np.abs(vectors(client.embeddings.create(model="tiny", input=ids)) - expected[:1]).max() < 1e-6
    short = client.embeddings.create(model="tiny", input=texts, dimensions=8)
    cut = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    assert np.abs(vectors(short) - cut).max() < 1e-6
    assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "sea " * 40}, "This model reads 32 tokens; input 0 has 42"),
        ({"input": "sea", "dimensions": 99}, "'dimensions' is 99; the model has 32"),
        ({"input": [[9999]]}, "a token id that is not below"),
        ({"input": ["sea"] * 2049}, "a request may have 2048"),
    ],
)
def test_what_cannot_be_embedded_is_told(served, settings, message):
    with pytest.raises(openai.BadRequestError, match=message):
        served[1].embeddings.create(model="tiny", **settings)


def test_each_side_of_two_towers_has_its_own_longest_input(tmp_path):
    from lmlab.endpoints.server.errors import ApiError

    short = write_retriever(tmp_path / "q", max_length=12)
    two = load_encoder(write_retriever(tmp_path / "d", seed=1), query_encoder=short)
    encoder, text = ServedEncoder("two", two), "sea " * 15
    assert encoder.embed([text], "document")[0].shape == (1, 32)
    with pytest.raises(ApiError, match="This model reads 12 tokens; input 0 has 17"):
        encoder.embed([text], "query")
