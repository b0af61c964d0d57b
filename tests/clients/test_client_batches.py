"""Many texts at once, as clients send them when they index, and clients that do not do what they ought to."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from catalogue import CLIENTS, TEXTS, Client
from gateway_process import Gateway, start_gateway
from metric_series import scrape
from numpy.typing import NDArray
from occupied import occupied_gateway
from running import CLIENTS_VENV, Ask, missing, run
from trying import PASSAGES, QUESTION, Reference

# fp32 sums in another order in a batch; JSON and base64 carry float32 whole.
CLOSE = 1e-4
# A client begins to ask within seconds, but the machine may be busy with something else.
ASKED_MAX_S = 120.0
# What a user of langchain-openai has who leaves out what the example says.
TOKEN_ARRAYS = (f", {TEXTS}", "")


@dataclass(frozen=True)
class Bulk:
    """A client's script, how many texts it is given, and how many requests it makes of them by default."""

    script: str
    texts: int
    requests: int


BULKS = (
    # All of them in one request, which asks for base64.
    Bulk("python/openai-sync.py", 2048, 1),
    # 1000 texts a request.
    Bulk("python/langchain-openai.py", 2001, 3),
    # 96 texts a request.
    Bulk("python/cohere-v1.py", 97, 2),
    Bulk("python/langchain-cohere.py", 97, 2),
    # 32 texts a request.
    Bulk("python/haystack-openai.py", 33, 2),
    # 10 texts a request.
    Bulk("python/llama-index-openai-like.py", 21, 3),
    # 512 texts a request.
    Bulk("node/langchain.mjs", 513, 2),
    # 2048 texts a request.
    Bulk("node/ai-sdk.mjs", 2049, 2),
)
TEXTS_OF_A_BULK = [
    f"Line {number} leaves from platform {number % 7}." for number in range(max(bulk.texts for bulk in BULKS))
]


def client_of(script: str) -> Client:
    """By its script; where it is not installed, the test is skipped."""
    (client,) = [client for client in CLIENTS if client.script == script]
    if why := missing(client.place):
        pytest.skip(why)
    return client


def counted(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum over all series of this name that have these labels."""
    return sum(value for (found, all_), value in scrape(client).items() if found == name and labels.items() <= all_)


def answered(client: httpx.Client) -> float:
    """How many requests the gateway has answered with vectors."""
    return counted(client, "me5_request_duration_seconds_count", code="200")


@pytest.fixture(scope="module")
def wanted(plain: Gateway) -> NDArray[np.float32]:
    """The vectors of as many texts as the largest bulk has, by the gateway's own route: [texts, dimension]."""
    with plain.client() as ours:
        answers = [
            ours.post("/embed", json={"inputs": TEXTS_OF_A_BULK[first : first + 512], "input_type": "passage"})
            for first in range(0, len(TEXTS_OF_A_BULK), 512)
        ]
    return np.concatenate([np.array(answer.raise_for_status().json(), np.float32) for answer in answers])


@pytest.mark.parametrize("bulk", BULKS, ids=lambda bulk: bulk.script)
def test_every_text_of_a_bulk_gets_its_own_vector(bulk: Bulk, plain: Gateway, wanted: NDArray[np.float32]) -> None:
    client = client_of(bulk.script)
    with plain.client() as ours:
        before = answered(ours)
        found = run(client, Ask(plain.url, QUESTION, TEXTS_OF_A_BULK[: bulk.texts]))
        assert not found.error, found
        # One more for the question.
        assert answered(ours) - before == bulk.requests + 1
    np.testing.assert_allclose(found.passage_vectors, wanted[: bulk.texts], atol=CLOSE)


def test_langchains_token_arrays_are_refused_with_the_remedy(plain: Gateway) -> None:
    client = client_of("python/langchain-openai.py")
    found = run(client, Ask(plain.url, QUESTION, PASSAGES), TOKEN_ARRAYS)
    assert found.error == "openai.BadRequestError", found
    assert "OpenAIEmbeddings(check_embedding_ctx_length=False)" in found.message


def test_langchains_token_arrays_are_read_where_the_gateway_has_their_vocabulary(reference: Reference) -> None:
    client = client_of("python/langchain-openai.py")
    (vocabulary,) = CLIENTS_VENV.glob(
        "frameworks/lib/python*/site-packages/llama_index/core/_static/tiktoken_cache/9b*"
    )
    with start_gateway(engine="onnx", precision="fp32", openai_tokens=vocabulary) as gateway:
        found = run(client, Ask(gateway.url, QUESTION, PASSAGES), TOKEN_ARRAYS)
    assert not found.error, found
    np.testing.assert_allclose(found.question_vector, reference(f"query: {QUESTION}"), atol=CLOSE)
    stored = [reference(f"passage: {passage}") for passage in PASSAGES]
    np.testing.assert_allclose(found.passage_vectors, stored, atol=CLOSE)


def test_a_client_that_is_refused_for_lack_of_room_comes_back_by_itself() -> None:
    # The most patient one: on a busy machine two tries may be over before this test sees the first.
    client = client_of("python/llama-index-openai-like.py")
    with occupied_gateway() as occupied, occupied.gateway.client() as ours, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(run, client, Ask(occupied.gateway.url, QUESTION, PASSAGES))
        give_up = time.monotonic() + ASKED_MAX_S
        while not counted(ours, "me5_request_duration_seconds_count", code="429") and time.monotonic() < give_up:
            time.sleep(0.05)
        occupied.release()
        found = asking.result()
        assert counted(ours, "me5_request_duration_seconds_count", code="429")
    assert not found.error, found
