"""POST /api/embed and /api/embeddings, as Ollama's clients send and read them."""

from __future__ import annotations

from datetime import datetime

import httpx
import numpy as np
import pytest
from gateway_process import SHIPPED_MODEL
from metric_series import scrape, series

from service import __version__
from service.recipe.spec import ModelSpec

LONG = "many words " * 600


def embed(client: httpx.Client, **fields: object) -> dict:
    """What /api/embed answers."""
    answer = client.post("/api/embed", json={"model": SHIPPED_MODEL, **fields})
    assert answer.status_code == 200, answer.text
    found: dict = answer.json()
    return found


def test_one_text_and_many_give_a_list_of_vectors(client: httpx.Client, spec: ModelSpec) -> None:
    for texts in ("one", ["one"], ["one", "two", "three"]):
        found = embed(client, input=texts)
        assert np.array(found["embeddings"]).shape == (1 if isinstance(texts, str) else len(texts), spec.dimension)
        np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-5)
        assert found["model"] == SHIPPED_MODEL
        assert found["total_duration"] > 0
        assert found["prompt_eval_count"] > 3


def test_the_options_of_a_generating_model_are_taken_and_change_nothing(client: httpx.Client) -> None:
    counter = series("me5_unknown_fields_total", route="/api/embed")
    before = scrape(client)[counter]
    plain = embed(client, input="one")
    found = embed(client, input="one", options={"num_ctx": 4096, "temperature": 0.1}, keep_alive="5m")
    np.testing.assert_allclose(found["embeddings"], plain["embeddings"], atol=1e-6)
    embed(client, input="one", keep_alive=-1)
    assert scrape(client)[counter] == before
    embed(client, input="one", surprise=1)
    assert client.post("/api/embeddings", json={"prompt": "one", "surprise": 1}).status_code == 200
    assert scrape(client)[counter] == before + 2


def test_nothing_to_embed_loads_a_model_that_is_loaded(client: httpx.Client) -> None:
    for fields in ({}, {"input": ""}, {"input": []}, {"input": None}):
        found = embed(client, **fields)
        assert (found["embeddings"], found["prompt_eval_count"]) == ([], 0)
    for body in ({}, {"prompt": ""}, {"prompt": None}):
        assert client.post("/api/embeddings", json=body).json() == {"embedding": []}


def test_the_models_name_may_have_a_role_and_a_tag(client: httpx.Client, spec: ModelSpec) -> None:
    counter = series("me5_foreign_model_names_total")
    before = scrape(client)[counter]
    for name, role in (
        (spec.name, "query"),
        (f"{spec.name}:latest", "query"),
        (f"{spec.name}-passage", "passage"),
        (f"{spec.name}-passage:latest", "passage"),
    ):
        answer = client.post("/api/embed", json={"model": name, "input": "one"})
        assert answer.headers["x-me5-role"] == role
        assert answer.json()["model"] == name
    assert scrape(client)[counter] == before
    embed(client, model="nomic-embed-text", input="one")
    assert scrape(client)[counter] == before + 1


def test_dimensions_are_cut_and_scaled(client: httpx.Client) -> None:
    found = np.array(embed(client, input="one", dimensions=32)["embeddings"])
    assert found.shape == (1, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_long_text_is_cut_unless_that_is_refused(client: httpx.Client, spec: ModelSpec) -> None:
    assert embed(client, input=LONG)["prompt_eval_count"] == spec.max_tokens
    answer = client.post("/api/embed", json={"model": SHIPPED_MODEL, "input": ["ok", LONG], "truncate": False})
    assert answer.status_code == 422
    assert set(answer.json()) == {"error"}
    assert "less than 512 tokens" in answer.json()["error"]


@pytest.mark.parametrize("inputs", [5, ["a", 5], [[1]], {"a": 1}])
def test_what_is_no_text_is_refused(client: httpx.Client, inputs: object) -> None:
    answer = client.post("/api/embed", json={"model": SHIPPED_MODEL, "input": inputs})
    assert answer.status_code == 422
    assert "`input`" in answer.json()["error"]


def test_the_models_are_listed_once_per_role(client: httpx.Client, spec: ModelSpec) -> None:
    models = client.get("/api/tags").json()["models"]
    assert [model["name"] for model in models] == [
        f"{spec.name}{suffix}:latest" for suffix in ("", "-query", "-passage")
    ]
    assert models[0]["digest"] == spec.files["model.onnx"]
    assert datetime.fromisoformat(models[0]["modified_at"]).tzinfo is not None
    assert models[0]["size"] > 1_000_000
    assert client.get("/api/version").json() == {"version": __version__}
