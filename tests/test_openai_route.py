"""POST /v1/embeddings, by the `openai` package as its users have it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from gateway_process import SHIPPED_MODEL, Gateway
from metric_series import scrape, series
from numpy.typing import NDArray
from openai.types import CreateEmbeddingResponse

from service.recipe.spec import ModelSpec

TEXT = "Rotterdam's harbour is the largest in Europe."
TEXTS = [TEXT, "Как высока телебашня?", "東京の人口"]
# The same program on the same batch; base64 carries float32 whole, JSON its shortest decimals.
SAME = 1e-6


@pytest.fixture(scope="module")
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """OpenAI's client, pointed at the gateway and told not to hide errors behind retries."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def embed(client: httpx.Client, inputs: object, **fields: object) -> NDArray[np.float64]:
    """What POST /embed gives for the same."""
    return np.array(client.post("/embed", json={"inputs": inputs, **fields}).raise_for_status().json())


def rows(answer: CreateEmbeddingResponse) -> NDArray[np.float64]:
    """The vectors of an answer, in its order."""
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data])


def test_the_client_gets_the_vectors_of_embed_without_being_told_anything(
    sdk: openai.OpenAI, client: httpx.Client, spec: ModelSpec
) -> None:
    for inputs in (TEXT, [TEXT], TEXTS):
        answer = sdk.embeddings.create(model=SHIPPED_MODEL, input=inputs)
        np.testing.assert_allclose(rows(answer), embed(client, inputs), atol=SAME)
        assert answer.object == "list"
        assert answer.model == spec.name


def test_floats_and_base64_are_the_same_numbers(sdk: openai.OpenAI, client: httpx.Client) -> None:
    floats = sdk.embeddings.create(model="x", input=TEXTS, encoding_format="float")
    np.testing.assert_allclose(rows(floats), embed(client, TEXTS), atol=SAME)
    response = client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"})
    for item, wanted in zip(response.json()["data"], rows(floats), strict=True):
        assert item["object"] == "embedding"
        found = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
        np.testing.assert_allclose(found, wanted, atol=SAME)


def test_without_a_format_the_answer_holds_floats(client: httpx.Client, spec: ModelSpec) -> None:
    item = client.post("/v1/embeddings", json={"input": TEXT, "model": "x"}).json()["data"][0]
    assert isinstance(item["embedding"], list)
    assert len(item["embedding"]) == spec.dimension


def test_dimensions_are_cut_and_scaled(sdk: openai.OpenAI, client: httpx.Client) -> None:
    answer = sdk.embeddings.create(model="x", input=TEXTS, dimensions=32)
    np.testing.assert_allclose(rows(answer), embed(client, TEXTS, dimensions=32), atol=SAME)
    assert rows(answer).shape == (3, 32)


@pytest.mark.parametrize("role", ["query", "passage"])
def test_the_models_suffix_sets_the_role(sdk: openai.OpenAI, client: httpx.Client, role: str) -> None:
    answer = sdk.embeddings.create(model=f"{SHIPPED_MODEL}-{role}", input=TEXTS)
    np.testing.assert_allclose(rows(answer), embed(client, TEXTS, input_type=role), atol=SAME)


def test_the_two_roles_differ(sdk: openai.OpenAI) -> None:
    query, passage = (
        rows(sdk.embeddings.create(model=f"{SHIPPED_MODEL}-{role}", input=TEXT)) for role in ("query", "passage")
    )
    assert np.abs(query - passage).max() > 1e-4


@pytest.mark.parametrize("field", ["input_type", "prompt_name"])
def test_extra_body_sets_the_role_and_is_stronger_than_the_suffix(
    sdk: openai.OpenAI, client: httpx.Client, field: str
) -> None:
    for model in (SHIPPED_MODEL, f"{SHIPPED_MODEL}-query"):
        answer = sdk.embeddings.create(model=model, input=TEXT, extra_body={field: "search_document"})
        np.testing.assert_allclose(rows(answer), embed(client, TEXT, input_type="passage"), atol=SAME)


def test_extra_body_reaches_the_other_options(sdk: openai.OpenAI, client: httpx.Client) -> None:
    long = "one two three four " * 500
    left = sdk.embeddings.create(model="x", input=long, extra_body={"truncation_direction": "left"})
    np.testing.assert_allclose(rows(left), embed(client, long, truncation_direction="left"), atol=SAME)
    with pytest.raises(openai.UnprocessableEntityError, match="must have less than"):
        sdk.embeddings.create(model="x", input=long, extra_body={"truncate": False})


def test_extra_body_may_leave_the_vectors_as_long_as_they_are(sdk: openai.OpenAI, client: httpx.Client) -> None:
    raw = sdk.embeddings.create(model="x", input=TEXTS, extra_body={"normalize": False})
    np.testing.assert_allclose(rows(raw), embed(client, TEXTS, normalize=False), atol=1e-5)
    assert np.abs(np.linalg.norm(rows(raw), axis=1) - 1).min() > 1e-3
    with pytest.raises(openai.UnprocessableEntityError, match="takes no instruction"):
        sdk.embeddings.create(model="x", input=TEXT, extra_body={"instruction": "Find the port"})


def test_the_route_without_a_version_is_the_same(gateway: Gateway, client: httpx.Client) -> None:
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as sdk:
        answer = sdk.embeddings.create(model=f"{SHIPPED_MODEL}-passage", input=TEXTS)
        np.testing.assert_allclose(rows(answer), embed(client, TEXTS, input_type="passage"), atol=SAME)
        with pytest.raises(openai.BadRequestError, match="`input` cannot be empty"):
            sdk.embeddings.create(model="x", input="")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_vectors_may_be_bytes(client: httpx.Client, path: str) -> None:
    wanted = embed(client, TEXTS)
    body = {"input": TEXTS, "model": "x", "encoding_format": "base64"}
    octets = client.post(path, json=body, headers={"accept": "application/octet-stream"})
    assert octets.headers["x-me5-shape"] == f"{len(TEXTS)},{wanted.shape[1]}"
    np.testing.assert_allclose(np.frombuffer(octets.content, "<f4").reshape(wanted.shape), wanted, atol=SAME)
    npy = client.post(path, json=body, headers={"accept": "application/x-npy, application/json"})
    np.testing.assert_allclose(np.load(io.BytesIO(npy.content)), wanted, atol=SAME)


def test_usage_counts_the_tokens_the_model_read(sdk: openai.OpenAI, client: httpx.Client) -> None:
    answer = sdk.embeddings.create(model="x", input=TEXTS)
    tokens = sum(len(row) for row in client.post("/tokenize", json={"inputs": TEXTS}).json())
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_cuts_are_told_by_header(sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.with_raw_response.create(model="x", input=["ok", "many words " * 600])
    assert answer.headers["x-me5-truncated"] == "1"
    assert answer.headers["x-me5-truncated-inputs"] == "1"
    assert answer.headers["x-me5-role"] == "query"
    assert len(answer.parse().data) == 2


def test_an_error_reaches_the_caller_as_the_clients_own_with_our_sentence(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`input` cannot be empty") as caught:
        sdk.embeddings.create(model="x", input="")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "empty"
    assert caught.value.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="`dimensions` is 99999"):
        sdk.embeddings.create(model="x", input="a", dimensions=99999)
    with pytest.raises(openai.NotFoundError, match="no route"):
        sdk.post("/nope", cast_to=object, body={})


@pytest.mark.parametrize("inputs", [[3923, 374, 264], [[3923, 374], [264]]])
def test_ids_of_a_foreign_vocabulary_are_refused_with_langchains_remedy(
    sdk: openai.OpenAI, inputs: list[int] | list[list[int]]
) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        sdk.embeddings.create(model=SHIPPED_MODEL, input=inputs)
    assert "/embed" in caught.value.message


def test_the_models_are_listed_and_found_under_each_name(sdk: openai.OpenAI, spec: ModelSpec) -> None:
    names = [spec.name, f"{spec.name}-query", f"{spec.name}-passage"]
    assert [card.id for card in sdk.models.list()] == names
    for name in names:
        card = sdk.models.retrieve(name)
        assert (card.id, card.object) == (name, "model")
        assert card.owned_by
    with pytest.raises(openai.NotFoundError, match=f"no model 'gpt-4'.*{spec.name}"):
        sdk.models.retrieve("gpt-4")


def test_any_model_name_is_served_and_a_foreign_one_counted(
    sdk: openai.OpenAI, client: httpx.Client, spec: ModelSpec
) -> None:
    def foreign(model: str) -> float:
        counter = series("me5_foreign_model_names_total")
        before = scrape(client)[counter]
        answer = sdk.embeddings.create(model=model, input="ok")
        assert answer.model == spec.name
        return scrape(client)[counter] - before

    assert foreign("text-embedding-3-small") == 1
    assert foreign("intfloat/multilingual-e5-small-passage") == 1
    assert foreign(spec.name) == 0
    assert foreign(f"{spec.name}-passage") == 0


def test_the_model_may_be_left_out(client: httpx.Client) -> None:
    for model in ({}, {"model": None}, {"model": ""}):
        assert client.post("/v1/embeddings", json={"input": "ok", "user": "me", **model}).status_code == 200


async def concurrent_calls(url: str) -> list[CreateEmbeddingResponse]:
    """Forty calls of the asynchronous client at once."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        calls = [sdk.embeddings.create(model="x", input=[f"call {index}", TEXT]) for index in range(40)]
        return await asyncio.gather(*calls)


def test_the_asynchronous_clients_calls_get_each_their_own_answer(
    gateway: Gateway, client: httpx.Client, least_cosine: float
) -> None:
    answers = asyncio.run(concurrent_calls(gateway.url))
    wanted = embed(client, [*(f"call {index}" for index in range(40)), TEXT])
    for index, answer in enumerate(answers):
        found = rows(answer)
        assert (found * wanted[[index, 40]]).sum(axis=1).min() >= least_cosine
