"""Every route gives the vectors that the engine gives for the text with the prompt of its role."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from exact_gateway import reference
from gateway_process import SHIPPED_MODEL
from numpy.typing import NDArray
from token_states import token_ids, vector_of

from service.engine import Engine, open_engine
from service.recipe.prompts import Role
from service.recipe.spec import ModelSpec

TEXTS = ["Rotterdam's harbour is the largest in Europe.", "Как высока телебашня?", "東京の人口", "ok"]
# The same engine in float32, alone and in a batch: it sums in another order.
LEAST_COSINE = 0.9999

Vectors = NDArray[np.float64]
Ask = Callable[[httpx.Client, Role], Vectors]


def _json(path: str, body: Callable[[Role], dict[str, object]], found: Callable[[dict[str, object]], object]) -> Ask:
    def ask(client: httpx.Client, role: Role) -> Vectors:
        answer = client.post(path, json=body(role))
        assert answer.status_code == 200, answer.text
        return np.array(found(answer.json()), dtype=np.float64)

    return ask


def _openai(answer: dict) -> list[list[float]]:
    return [item["embedding"] for item in answer["data"]]


def _base64(answer: dict) -> list[NDArray[np.float32]]:
    return [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]]


def _npy(client: httpx.Client, role: Role) -> Vectors:
    answer = client.post("/embed", json={"inputs": TEXTS, "prompt_name": role}, headers={"accept": "application/x-npy"})
    return np.load(io.BytesIO(answer.content)).astype(np.float64)


def _one_by_one(client: httpx.Client, role: Role) -> Vectors:
    bodies = [{"model": f"{SHIPPED_MODEL}-{role}", "prompt": text} for text in TEXTS]
    return np.array([client.post("/api/embeddings", json=body).json()["embedding"] for body in bodies])


def _states(client: httpx.Client, role: Role) -> Vectors:
    rows = client.post("/embed_all", json={"inputs": TEXTS, "input_type": role}).json()
    ids = token_ids(client, TEXTS, role)
    return np.stack([vector_of(np.array(row), row_ids) for row, row_ids in zip(rows, ids, strict=True)])


COHERE: dict[Role, str] = {"query": "search_query", "passage": "search_document"}
ROUTES: dict[str, Ask] = {
    "/embed": _json("/embed", lambda role: {"inputs": TEXTS, "input_type": role}, lambda answer: answer),
    "/embed by prompt_name": _json("/embed", lambda role: {"inputs": TEXTS, "prompt_name": role}, lambda a: a),
    "/embed as .npy": _npy,
    "/embed by the address": lambda client, role: _json(f"/embed?input_type={role}", lambda _: {"inputs": TEXTS}, list)(
        client, role
    ),
    "/": _json("/", lambda role: {"inputs": TEXTS, "prompt_name": role}, lambda answer: answer),
    "/invocations": _json("/invocations", lambda role: {"inputs": TEXTS, "prompt_name": role}, lambda answer: answer),
    "/embed_all, pooled": _states,
    "/v1/embeddings by name": _json(
        "/v1/embeddings", lambda role: {"input": TEXTS, "model": f"{SHIPPED_MODEL}-{role}"}, _openai
    ),
    "/embeddings by extra_body": _json(
        "/embeddings",
        lambda role: {"input": TEXTS, "model": "x", "input_type": role, "encoding_format": "base64"},
        _base64,
    ),
    "/v2/embed": _json(
        "/v2/embed",
        lambda role: {"texts": TEXTS, "model": "x", "input_type": COHERE[role]},
        lambda answer: answer["embeddings"]["float"],
    ),
    "/v2/embed by inputs": _json(
        "/v2/embed",
        lambda role: {
            "inputs": [{"content": [{"type": "text", "text": text}]} for text in TEXTS],
            "input_type": COHERE[role],
        },
        lambda answer: answer["embeddings"]["float"],
    ),
    "/v1/embed": _json(
        "/v1/embed",
        lambda role: {"texts": TEXTS, "model": "x", "input_type": COHERE[role]},
        lambda answer: answer["embeddings"],
    ),
    "/api/embed": _json(
        "/api/embed",
        lambda role: {"input": TEXTS, "model": f"{SHIPPED_MODEL}-{role}:latest"},
        lambda answer: answer["embeddings"],
    ),
    "/api/embeddings": _one_by_one,
}


@pytest.fixture(scope="module")
def engine(shipped: Path, spec: ModelSpec) -> Engine:
    """The reference: ONNX Runtime in float32, without a gateway."""
    return open_engine(shipped, spec, engine="onnx", precision="fp32")


@pytest.fixture(scope="module")
def wanted(engine: Engine, shipped: Path, spec: ModelSpec) -> dict[Role, NDArray[np.float32]]:
    """The vectors of both roles."""
    prefixes: dict[Role, str] = {"query": "query: ", "passage": "passage: "}
    return {
        role: reference(engine, shipped, spec, [prefix + text for text in TEXTS]) for role, prefix in prefixes.items()
    }


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_gives_both_roles_their_own_vectors(
    exact: httpx.Client, wanted: dict[Role, NDArray[np.float32]], route: str
) -> None:
    found = {role: ROUTES[route](exact, role) for role in wanted}
    for role, vectors in found.items():
        assert (vectors * wanted[role]).sum(axis=1).min() >= LEAST_COSINE
    # Of the other role they would not pass.
    assert (found["query"] * wanted["passage"]).sum(axis=1).max() < LEAST_COSINE


@pytest.mark.parametrize("path", ["/similarity", "/", "/invocations"])
@pytest.mark.parametrize(
    ("parameters", "sides"),
    [
        (None, ("query", "query")),
        ({"prompt_name": "passage"}, ("passage", "passage")),
        ({"source_type": "query", "sentences_type": "passage"}, ("query", "passage")),
        ({"sentences_type": "search_document"}, ("query", "passage")),
        ({"source_type": "search_query", "prompt_name": "passage"}, ("query", "passage")),
        ({"source_type": "passage"}, ("passage", "query")),
    ],
)
def test_each_side_of_a_similarity_has_its_role(
    exact: httpx.Client,
    wanted: dict[Role, NDArray[np.float32]],
    path: str,
    parameters: dict[str, str] | None,
    sides: tuple[Role, Role],
) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}, "parameters": parameters}
    answer = exact.post(path, json=body)
    source, sentences = (wanted[side] for side in sides)
    np.testing.assert_allclose(answer.json(), sentences[1:] @ source[0], atol=1e-4)
    assert answer.headers["x-me5-role"] == (sides[0] if len(set(sides)) == 1 else "mixed")


def test_a_route_that_is_not_told_a_role_takes_the_default_one(
    exact: httpx.Client, wanted: dict[Role, NDArray[np.float32]]
) -> None:
    bodies: dict[str, dict[str, object]] = {
        "/embed": {"inputs": TEXTS},
        "/v1/embeddings": {"input": TEXTS},
        "/v2/embed": {"texts": TEXTS},
        "/api/embed": {"input": TEXTS},
    }
    assert exact.get("/info").json()["default_role"] == "query"
    for path, body in bodies.items():
        answer = exact.post(path, json=body)
        assert answer.headers["x-me5-role"] == "query"
        found = answer.json()
        if path == "/v1/embeddings":
            found = _openai(found)
        elif path != "/embed":
            found = found["embeddings"]["float"] if path == "/v2/embed" else found["embeddings"]
        assert (np.array(found) * wanted["query"]).sum(axis=1).min() >= LEAST_COSINE
