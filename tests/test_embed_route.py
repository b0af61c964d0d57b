"""POST /embed: the wire contract of Text Embeddings Inference, with E5's roles added."""

from __future__ import annotations

import re

import httpx
import numpy as np
import pytest
from metric_series import scrape, series
from numpy.typing import NDArray

from service.recipe.prompts import INPUT_TYPES
from service.recipe.spec import ModelSpec

TEXT = "The harbour of Rotterdam lies at the mouth of the Rhine."
LONG = "Der Hafen von Rotterdam liegt an der Mündung des Rheins, und die Schiffe kommen von weit her. " * 60
TEXTS = [TEXT, "ok", "Как высока телебашня в Берлине?", "東京の人口は約千四百万人です。" * 4, LONG, "🙂 ‍‍ e\u0301 é"]
# The same program on the same batch; only the JSON's shortest decimals lie between.
SAME = 1e-6


def post(client: httpx.Client, inputs: object, **fields: object) -> httpx.Response:
    """POST /embed, which must succeed."""
    response = client.post("/embed", json={"inputs": inputs, **fields})
    assert response.status_code == 200, response.text
    return response


def vectors(client: httpx.Client, inputs: object, **fields: object) -> NDArray[np.float64]:
    """The vectors [N, D] of an /embed request."""
    return np.array(post(client, inputs, **fields).json())


def ids_of(client: httpx.Client, text: str, **fields: object) -> list[int]:
    """The ids of a text, prompt and special tokens included, uncut."""
    response = client.post("/tokenize", json={"inputs": text, **fields})
    return [token["id"] for token in response.json()[0]]


def cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: NDArray[np.float64] = (left * right).sum(axis=1) / lengths
    return found


def test_every_form_of_inputs_gives_a_list_of_vectors(client: httpx.Client, spec: ModelSpec) -> None:
    ids = ids_of(client, TEXT)
    for inputs, count in [(TEXT, 1), ([TEXT], 1), ([TEXT, "ok"], 2), (ids, 1), ([ids], 1), ([ids, "ok", ids], 3)]:
        body = post(client, inputs).json()
        assert isinstance(body, list)
        assert [len(row) for row in body] == [spec.dimension] * count
        assert all(isinstance(value, float) for row in body for value in row)


def test_the_root_answers_like_embed(client: httpx.Client) -> None:
    response = client.post("/", json={"inputs": [TEXT]})
    np.testing.assert_allclose(np.array(response.json()), vectors(client, [TEXT]), atol=SAME)


@pytest.mark.parametrize("inputs", ["", [], [""], [[]]])
def test_an_empty_input_is_refused_in_teis_own_words(client: httpx.Client, inputs: object) -> None:
    response = client.post("/embed", json={"inputs": inputs})
    assert response.status_code == 400
    assert response.json() == {"error": "Input validation error: `inputs` cannot be empty", "error_type": "Empty"}


def test_unknown_fields_are_ignored_but_counted(client: httpx.Client) -> None:
    counter = series("me5_unknown_fields_total", route="/embed")
    before = scrape(client)[counter]
    found = vectors(client, TEXT, late_chunking=True, priority={"level": 3})
    np.testing.assert_allclose(found, vectors(client, TEXT), atol=SAME)
    assert scrape(client)[counter] - before == 2


def test_a_long_text_is_refused_with_teis_message_where_truncation_is_off(
    client: httpx.Client, spec: ModelSpec
) -> None:
    response = client.post("/embed", json={"inputs": ["ok", LONG, "ok", LONG], "truncate": False})
    given = len(ids_of(client, LONG))
    assert response.status_code == 422
    body = response.json()
    # Elasticsearch's client knows this sentence and then sends the text in halves.
    begin = f"Input validation error: `inputs` must have less than {spec.max_tokens} tokens. Given: {given}"
    assert body["error"].startswith(begin)
    assert "1, 3" in body["error"]
    assert body["error_type"] == "Validation"


def test_the_limit_of_tokens_is_inclusive(client: httpx.Client, spec: ModelSpec) -> None:
    ids = ids_of(client, LONG)
    exact = [*ids[: spec.max_tokens - 1], ids[-1]]
    assert post(client, [exact], truncate=False).headers["x-compute-tokens"] == str(spec.max_tokens)
    response = client.post("/embed", json={"inputs": [[*exact, exact[-1]]], "truncate": False})
    assert response.status_code == 422
    assert f"Given: {spec.max_tokens + 1}" in response.json()["error"]


@pytest.mark.parametrize("direction", ["right", "Right", None])
def test_a_text_loses_its_end_by_default(client: httpx.Client, spec: ModelSpec, direction: str | None) -> None:
    fields = {} if direction is None else {"truncation_direction": direction}
    ids = ids_of(client, LONG)
    kept = [*ids[: spec.max_tokens - 1], ids[-1]]
    np.testing.assert_allclose(vectors(client, LONG, **fields), vectors(client, [kept]), atol=SAME)


@pytest.mark.parametrize("direction", ["left", "Left"])
def test_a_text_cut_on_the_left_keeps_its_prompt(client: httpx.Client, spec: ModelSpec, direction: str) -> None:
    tokens = client.post("/tokenize", json={"inputs": LONG}).json()[0]
    prompt_bytes = len(spec.prompts.query.encode())
    head = [token["id"] for token in tokens if token["stop"] is not None and token["stop"] <= prompt_bytes]
    ids = [token["id"] for token in tokens]
    kept = [ids[0], *head]
    kept += ids[len(ids) - (spec.max_tokens - len(kept)) :]
    np.testing.assert_allclose(
        vectors(client, LONG, truncation_direction=direction), vectors(client, [kept]), atol=SAME
    )


def test_every_cut_is_told_by_number_and_by_index(client: httpx.Client) -> None:
    response = post(client, ["ok", LONG, LONG, "ok", LONG])
    assert response.headers["x-me5-truncated"] == "3"
    assert response.headers["x-me5-truncated-inputs"] == "1-2,4"
    uncut = post(client, ["ok", "fine"])
    assert uncut.headers["x-me5-truncated"] == "0"
    assert "x-me5-truncated-inputs" not in uncut.headers


def test_dimensions_are_cut_before_the_vector_is_scaled(client: httpx.Client, spec: ModelSpec) -> None:
    full = vectors(client, TEXTS)
    cut = vectors(client, TEXTS, dimensions=64)
    wanted = full[:, :64] / np.linalg.norm(full[:, :64], axis=1, keepdims=True)
    assert cut.shape == (len(TEXTS), 64)
    # float32 keeps seven digits.
    np.testing.assert_allclose(cut, wanted, atol=1e-5)
    np.testing.assert_allclose(vectors(client, TEXTS, dimensions=spec.dimension), full, atol=1e-5)


@pytest.mark.parametrize("wrong", [0, -1, "one too many"])
def test_dimensions_outside_the_model_are_refused(client: httpx.Client, spec: ModelSpec, wrong: int | str) -> None:
    dimensions = spec.dimension + 1 if isinstance(wrong, str) else wrong
    response = client.post("/embed", json={"inputs": TEXT, "dimensions": dimensions})
    assert response.status_code == 422
    assert str(dimensions) in response.json()["error"]
    assert str(spec.dimension) in response.json()["error"]


def test_vectors_have_length_one_unless_the_caller_declines(client: httpx.Client, spec: ModelSpec) -> None:
    unit = vectors(client, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors(client, TEXTS, dimensions=17), axis=1), 1, atol=1e-5)
    response = client.post("/embed", json={"inputs": TEXTS, "normalize": False})
    if spec.pooling == "graph" and spec.raw_output is None:
        assert response.status_code == 422
        assert "normalize" in response.json()["error"]
        return
    raw = np.array(response.json())
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 1e-3
    assert cosines(raw, unit).min() > 0.9999
    np.testing.assert_allclose(vectors(client, TEXTS, normalize=False, dimensions=5), raw[:, :5], rtol=1e-4, atol=1e-5)


def test_a_raw_and_a_unit_request_in_the_same_moment_both_get_what_they_asked_for(
    client: httpx.Client, spec: ModelSpec
) -> None:
    if spec.pooling == "graph" and spec.raw_output is None:
        pytest.skip("this model's graph gives vectors of length one only")
    raw, unit = vectors(client, [TEXT], normalize=False), vectors(client, [TEXT])
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)


def test_headers_tell_time_size_role_and_engine(client: httpx.Client) -> None:
    response = post(client, [TEXT, "ok"], input_type="passage")
    headers, info = response.headers, client.get("/info").json()
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert re.fullmatch(r"\d+", headers[name]), name
    tokens = sum(len(ids_of(client, text, input_type="passage")) for text in (TEXT, "ok"))
    assert headers["x-compute-tokens"] == str(tokens)
    assert headers["x-compute-characters"] == str(len(TEXT) + len("ok"))
    assert headers["x-compute-type"] == f"{info['device']}+{info['engine']}-{info['precision']}"
    assert headers["x-me5-role"] == "passage"
    assert headers["x-me5-lane"] in ("interactive", "bulk")
    assert headers["content-type"] == "application/json"


def test_passages_go_to_the_bulk_lane_unless_a_header_says_otherwise(client: httpx.Client) -> None:
    def lane(role: str, headers: dict[str, str]) -> str:
        response = client.post("/embed", json={"inputs": TEXT, "input_type": role}, headers=headers)
        return response.headers["x-me5-lane"]

    assert lane("query", {}) == "interactive"
    assert lane("passage", {}) == "bulk"
    assert lane("query", {"x-me5-lane": "bulk"}) == "bulk"
    assert lane("passage", {"x-me5-lane": "interactive"}) == "interactive"


@pytest.mark.parametrize("field", ["input_type", "prompt_name"])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_an_explicit_role_puts_its_prompt_before_the_text(
    client: httpx.Client, spec: ModelSpec, field: str, role: str
) -> None:
    response = post(client, TEXT, **{field: role})
    prompted = {"query": spec.prompts.query, "passage": spec.prompts.passage}[role] + TEXT
    assert response.headers["x-me5-role"] == role
    np.testing.assert_allclose(np.array(response.json()), vectors(client, [ids_of(client, prompted)]), atol=SAME)


def test_a_text_with_a_prompt_has_that_role_where_none_is_named(client: httpx.Client, spec: ModelSpec) -> None:
    response = post(client, spec.prompts.passage + TEXT)
    assert response.headers["x-me5-role"] == "passage"
    np.testing.assert_allclose(np.array(response.json()), vectors(client, TEXT, input_type="passage"), atol=SAME)


def test_a_text_without_a_role_gets_the_default_that_info_tells(client: httpx.Client) -> None:
    default = client.get("/info").json()["default_role"]
    response = post(client, TEXT)
    assert response.headers["x-me5-role"] == default
    np.testing.assert_allclose(np.array(response.json()), vectors(client, TEXT, input_type=default), atol=SAME)


def test_each_text_of_a_batch_has_its_own_implicit_role(
    client: httpx.Client, spec: ModelSpec, least_cosine: float
) -> None:
    mixed = vectors(client, [spec.prompts.passage + TEXT, TEXT])
    alone = [vectors(client, TEXT, input_type=role)[0] for role in ("passage", "query")]
    assert cosines(mixed, np.array(alone)).min() >= least_cosine


@pytest.mark.parametrize("role", ["query", "passage"])
def test_a_prompt_that_is_there_is_not_put_there_twice(client: httpx.Client, spec: ModelSpec, role: str) -> None:
    prompt = {"query": spec.prompts.query, "passage": spec.prompts.passage}[role]
    once, twice = post(client, TEXT, input_type=role), post(client, prompt + TEXT, input_type=role)
    assert once.headers["x-compute-tokens"] == twice.headers["x-compute-tokens"]
    np.testing.assert_allclose(np.array(once.json()), np.array(twice.json()), atol=SAME)


def test_the_other_roles_prompt_is_part_of_the_text(client: httpx.Client, spec: ModelSpec) -> None:
    response = post(client, spec.prompts.query + TEXT, input_type="passage")
    ids = ids_of(client, spec.prompts.passage + spec.prompts.query + TEXT)
    assert response.headers["x-compute-tokens"] == str(len(ids))
    np.testing.assert_allclose(np.array(response.json()), vectors(client, [ids]), atol=SAME)


@pytest.mark.parametrize("alias", INPUT_TYPES)
@pytest.mark.parametrize("field", ["input_type", "prompt_name"])
def test_aliases_mean_what_other_services_mean_by_them(client: httpx.Client, alias: str, field: str) -> None:
    role = "passage" if alias in ("passage", "document", "search_document") else "query"
    for spelling in (alias, alias.upper()):
        assert post(client, "ok", **{field: spelling}).headers["x-me5-role"] == role


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_tokenize_give_the_vector_of_the_text(client: httpx.Client, text: str, spec: ModelSpec) -> None:
    ids = ids_of(client, text)
    kept = ids if len(ids) <= spec.max_tokens else [*ids[: spec.max_tokens - 1], ids[-1]]
    np.testing.assert_allclose(vectors(client, [ids]), vectors(client, text), atol=SAME)
    np.testing.assert_allclose(vectors(client, kept), vectors(client, text), atol=SAME)


def test_ids_with_a_role_become_text_again_and_get_the_prompt(client: httpx.Client, spec: ModelSpec) -> None:
    tokens = client.post("/tokenize", json={"inputs": TEXT}).json()[0]
    prompt_bytes = len(spec.prompts.query.encode())
    ids = [token["id"] for token in tokens if token["special"] or token["stop"] > prompt_bytes]
    # Not TEXT itself: a tokenizer may lose case and spaces.
    text = client.post("/decode", json={"ids": ids}).json()[0]
    found = post(client, [ids], input_type="passage")
    assert found.headers["x-me5-role"] == "passage"
    np.testing.assert_allclose(np.array(found.json()), vectors(client, text, input_type="passage"), atol=SAME)


def test_a_text_alone_has_the_vector_it_has_in_a_batch(client: httpx.Client, least_cosine: float) -> None:
    together = vectors(client, TEXTS)
    alone = np.concatenate([vectors(client, text) for text in TEXTS])
    assert cosines(together, alone).min() >= least_cosine


def test_as_many_inputs_as_allowed_are_answered_in_order(client: httpx.Client, least_cosine: float) -> None:
    limit = client.get("/info").json()["max_client_batch_size"]
    texts = [f"{index} of {limit}" for index in range(limit)]
    found = vectors(client, texts)
    assert len(found) == limit
    picked = [0, 1, 511, 512, 513, limit // 2, limit - 1]
    alone = np.concatenate([vectors(client, texts[index]) for index in picked])
    assert cosines(found[picked], alone).min() >= least_cosine
    # Neighbours differ in a digit only: each vector must be nearest to its own text, not to the one beside it.
    assert np.argmax(alone @ found.T, axis=1).tolist() == picked


def test_a_request_id_is_echoed_and_a_missing_one_made(client: httpx.Client) -> None:
    given = client.post("/embed", json={"inputs": "ok"}, headers={"x-request-id": "order-66"})
    assert given.headers["x-request-id"] == "order-66"
    refused = client.post("/embed", json={"inputs": ""}, headers={"x-request-id": "order-67"})
    assert refused.headers["x-request-id"] == "order-67"
    made = {post(client, "ok").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    for bad in ("a b", "x" * 129, "bad\ttab"):
        response = client.post("/embed", json={"inputs": "ok"}, headers={"x-request-id": bad})
        assert re.fullmatch(r"[0-9a-f-]{8,64}", response.headers["x-request-id"])


@pytest.mark.parametrize("role", ["query", "passage"])
def test_ids_that_hold_the_roles_prompt_already_are_not_prompted_twice(client: httpx.Client, role: str) -> None:
    text = "Der Fernsehturm ist 368 Meter hoch."
    tokens = client.post("/tokenize", json={"inputs": text, "input_type": role}).json()[0]
    ids = [token["id"] for token in tokens]
    by_ids = client.post("/embed", json={"inputs": [ids], "input_type": role}).json()[0]
    by_text = client.post("/embed", json={"inputs": text, "input_type": role}).json()[0]
    assert float(np.dot(by_ids, by_text)) >= 0.9999


def test_a_role_in_the_address_is_for_texts_that_have_none(client: httpx.Client) -> None:
    def of(path: str, **fields: object) -> str:
        return client.post(path, json={"inputs": "tea", **fields}).headers["x-me5-role"]

    assert of("/embed?input_type=search_document") == "passage"
    assert of("/embed?input_type=passage", prompt_name="query") == "query"
    named = client.post("/v1/embeddings?input_type=passage", json={"input": "tea", "model": "me5_nano-query"})
    assert named.headers["x-me5-role"] == "query"
    # Wrong even where it is not needed.
    refused = client.post("/embed?input_type=reader", json={"inputs": "tea", "input_type": "query"})
    assert (refused.status_code, "'reader'" in refused.json()["error"]) == (422, True)
