"""Clients as their users have them, against a gateway: the right vectors for each role, and errors they can read."""

from __future__ import annotations

import numpy as np
import pytest
from catalogue import CLIENTS, SIMILARITY, Client
from numpy.typing import ArrayLike
from running import Tried, missing
from trying import PASSAGES, QUESTION, TRY_MAX_S, Reference

# The first test waits for all clients to be tried.
pytestmark = pytest.mark.timeout(TRY_MAX_S)

# fp32 sums in another order in a batch; JSON and base64 carry float32 whole.
LEAST_COSINE = 0.9999
# What the gateway says of too many texts, and where it has no room.
TOO_MANY = "batch size 2 > maximum allowed batch size 1; split the request, or raise ME5_MAX_INPUTS"
NO_ROOM = "Model is overloaded"

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.script)


def of(client: Client, tried: dict[str, Tried]) -> Tried:
    """What this client came to; where it is not installed, the test is skipped."""
    why = missing(client.place)
    if why:
        pytest.skip(why)
    return tried[client.script]


def cosine(one: ArrayLike, other: ArrayLike) -> float:
    """Of two vectors of any length: a client may have one that is not unit."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@each_client
def test_questions_and_passages_get_the_vectors_of_their_own_prompt(
    client: Client, tried: dict[str, Tried], reference: Reference
) -> None:
    found = of(client, tried).works
    assert not found.error, found
    assert found.question_vector is not None
    assert found.passage_vectors is not None
    assert len(found.passage_vectors) == len(PASSAGES)
    assert cosine(found.question_vector, reference(f"query: {QUESTION}")) >= LEAST_COSINE
    for vector, passage in zip(found.passage_vectors, PASSAGES, strict=True):
        assert cosine(vector, reference(f"passage: {passage}")) >= LEAST_COSINE
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    # The same text in both roles.
    assert cosine(found.question_vector, found.passage_vectors[0]) < LEAST_COSINE


@each_client
def test_a_refused_request_raises_the_clients_own_error_with_the_remedy_in_it(
    client: Client, tried: dict[str, Tried]
) -> None:
    found = of(client, tried).refused
    assert found.error
    assert (TOO_MANY in found.message) is not client.blind, found


@each_client
def test_a_gateway_without_room_raises_the_clients_own_error_that_says_so(
    client: Client, tried: dict[str, Tried]
) -> None:
    found = of(client, tried).overloaded
    assert found.error
    assert (NO_ROOM in found.message) is not client.blind, found


def test_sentence_similarity_compares_a_question_with_passages(tried: dict[str, Tried], reference: Reference) -> None:
    found = of(SIMILARITY, tried)
    wanted = [cosine(reference(f"query: {QUESTION}"), reference(f"passage: {passage}")) for passage in PASSAGES]
    assert found.works.similarities == pytest.approx(wanted, abs=1e-3)
    assert NO_ROOM in found.overloaded.message
