"""POST /v2/embed and /v1/embed, as Cohere's clients send and read them."""

from __future__ import annotations

import base64
import re

import httpx
import numpy as np
import pytest
from gateway_process import SHIPPED_MODEL
from metric_series import scrape, series

from service.recipe.spec import ModelSpec

TEXTS = ["Rotterdam's harbour is the largest in Europe.", "Как высока телебашня?", "東京の人口"]
LONG = "many words " * 600
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def embed(client: httpx.Client, path: str = "/v2/embed", **fields: object) -> dict:
    """What a route answers to these texts as documents, and to these fields."""
    body = {"model": SHIPPED_MODEL, "input_type": "search_document", "texts": TEXTS, **fields}
    answer = client.post(path, json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 200, answer.text
    found: dict = answer.json()
    return found


def refused(client: httpx.Client, **fields: object) -> str:
    """What these fields are refused with."""
    body = {"model": SHIPPED_MODEL, "input_type": "search_document", "texts": TEXTS, **fields}
    answer = client.post("/v2/embed", json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"message"}
    return str(answer.json()["message"])


def test_every_type_is_made_of_the_same_vectors_as_documented(client: httpx.Client, spec: ModelSpec) -> None:
    found = embed(client, embedding_types=TYPES)["embeddings"]
    assert list(found) == TYPES
    floats = np.array(found["float"], dtype=np.float32)
    assert floats.shape == (3, spec.dimension)
    for row, encoded in zip(floats, found["base64"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded), dtype="<f4"), row)
    scale = client.get("/info").json()["int8_scale"]
    int8 = np.clip(np.rint(floats * np.float32(scale)), -127, 127).astype(int)
    np.testing.assert_array_equal(found["int8"], int8)
    np.testing.assert_array_equal(found["uint8"], int8 + 128)
    bits = [int("".join("1" if value > 0 else "0" for value in row[:8]), 2) for row in floats]
    assert [row[0] for row in found["ubinary"]] == bits
    assert np.array(found["ubinary"]).shape == (3, spec.dimension // 8)
    np.testing.assert_array_equal(found["binary"], np.array(found["ubinary"]) - 128)


def test_only_the_types_asked_for_are_there_each_once(client: httpx.Client) -> None:
    assert list(embed(client)["embeddings"]) == ["float"]
    assert list(embed(client, embedding_types=["int8"])["embeddings"]) == ["int8"]
    assert list(embed(client, embedding_types=["ubinary", "float", "ubinary"])["embeddings"]) == ["ubinary", "float"]
    assert list(embed(client, embedding_types=[])["embeddings"]) == ["float"]


def test_bits_of_dimensions_that_fill_no_byte_are_padded_with_zeros(client: httpx.Client) -> None:
    found = embed(client, output_dimension=12, embedding_types=["float", "ubinary", "int8"])["embeddings"]
    assert np.array(found["float"]).shape == (3, 12)
    assert np.array(found["ubinary"]).shape == (3, 2)
    assert all(row[1] & 0b1111 == 0 for row in found["ubinary"])
    np.testing.assert_allclose(np.linalg.norm(found["float"], axis=1), 1, atol=1e-5)
    # The scale of int8 is that of twelve dimensions.
    assert np.abs(found["int8"]).max() > 64


def test_the_answer_says_what_it_was_asked(client: httpx.Client) -> None:
    answer = client.post(
        "/v2/embed",
        json={"model": "embed-v4.0", "input_type": "search_query", "texts": ["a"]},
        headers={"x-request-id": "mine"},
    )
    found = answer.json()
    assert found["id"] == "mine"
    assert found["texts"] == ["a"]
    assert found["response_type"] == "embeddings_by_type"
    assert found["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": int(answer.headers["x-compute-tokens"])},
    }


def test_long_and_strange_texts_come_back_as_they_were(client: httpx.Client) -> None:
    texts = ['"\\\n\t\u2028 🙂', "東京の人口は約" * 20_000, *[f"text {number}" for number in range(300)]]
    assert embed(client, texts=texts)["texts"] == texts


def test_cuts_and_prompts_that_were_there_already_are_warnings(client: httpx.Client, spec: ModelSpec) -> None:
    found = embed(client, texts=["ok", LONG, "passage: ok", LONG, "query: ok"])
    assert found["meta"]["warnings"] == [
        f"2 of 5 texts cut at {spec.max_tokens} tokens, prompt included: inputs 1, 3",
        "1 of 5 texts came with their prompt, which was not put there again: input 2",
    ]
    assert found["embeddings"]["float"][0] == pytest.approx(found["embeddings"]["float"][2], abs=0.02)


@pytest.mark.parametrize(("truncate", "side"), [("START", "left"), ("END", "right"), ("end", "right"), (None, "right")])
def test_truncate_says_which_end_goes(client: httpx.Client, truncate: str | None, side: str) -> None:
    text = f"{LONG} the end"
    found = embed(client, texts=[text], truncate=truncate)["embeddings"]["float"][0]
    body = {"inputs": text, "input_type": "passage", "truncation_direction": side}
    assert np.dot(found, client.post("/embed", json=body).json()[0]) >= 0.9995


def test_truncate_none_refuses_and_names_the_texts(client: httpx.Client) -> None:
    message = refused(client, texts=[LONG, "ok", LONG], truncate="NONE")
    assert re.search(r"must have less than 512 tokens\. Given: \d+ \(inputs 0, 2\)", message)


def test_max_tokens_cuts_earlier(client: httpx.Client) -> None:
    text = "one two three four five six seven eight nine ten " * 4
    found = embed(client, texts=[text, "one"], max_tokens=12)
    assert found["meta"]["warnings"] == ["1 of 2 texts cut at 12 tokens, prompt included: input 0"]
    assert found["meta"]["billed_units"]["input_tokens"] < 24
    assert "less than 12 tokens" in refused(client, texts=[text], max_tokens=12, truncate="NONE")
    # The prompt alone would be left.
    assert "`max_tokens` is 3" in refused(client, max_tokens=3)
    assert "warnings" not in embed(client, texts=["one"], max_tokens=5000)["meta"]


def test_parts_of_an_input_are_lines_of_one_text(client: httpx.Client) -> None:
    inputs = [{"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    found = embed(client, texts=None, inputs=inputs)
    assert found["texts"] == ["one\ntwo"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_type": "image", "texts": None}, ("image", "reads text", "search_query")),
        ({"images": ["data:image/png;base64,AAAA"], "texts": None}, ("`images`", "reads text")),
        ({"input_type": "nobody"}, ("'nobody'", "search_document")),
        ({"texts": None}, ("`texts` and `inputs`",)),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, ("`texts` and `inputs`",)),
        (
            {"texts": None, "inputs": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            ("input 0", "'image_url'", "text alone"),
        ),
        ({"texts": None, "inputs": [{"content": []}]}, ("input 0", "`content`")),
        ({"texts": None, "inputs": {"content": []}}, ("`inputs`", "list")),
        ({"texts": None, "inputs": [{"content": [{"type": "text", "text": 5}]}]}, ("input 0", "a number")),
        ({"texts": ["a", [5]]}, ("input 1", "numbers")),
        ({"embedding_types": ["float", "float16", "float17"]}, ("embedding_types.1", "'float16'")),
        ({"output_dimension": 5000}, ("`output_dimension` is 5000", "768")),
        ({"output_dimension": 0}, ("`output_dimension` is 0", "768")),
        ({"embedding_types": ["float"] * 13}, ("`embedding_types`", "13", "the limit is 12")),
        ({"truncate": ["END"]}, ("`truncate`", "a list")),
        ({"truncate": "MIDDLE"}, ("truncate", "MIDDLE")),
        ({"priority": 1000}, ("priority", "999")),
    ],
)
def test_what_can_not_be_done_is_refused_with_the_reason(
    client: httpx.Client, fields: dict[str, object], words: tuple[str, ...]
) -> None:
    message = refused(client, **fields)
    for word in words:
        assert word in message


def test_an_empty_text_is_refused_as_everywhere(client: httpx.Client) -> None:
    answer = client.post("/v2/embed", json={"model": "x", "input_type": "search_query", "texts": ["a", ""]})
    assert (answer.status_code, answer.json()) == (400, {"message": "`texts` cannot be empty (input 1)"})


@pytest.mark.parametrize(("priority", "lane"), [(None, "bulk"), (0, "interactive"), (1, "bulk"), (999, "bulk")])
def test_priority_is_a_lane(client: httpx.Client, priority: int | None, lane: str) -> None:
    body = {"input_type": "search_document", "texts": ["a"], "priority": priority}
    assert client.post("/v2/embed", json=body).headers["x-me5-lane"] == lane
    header = {"x-me5-lane": "interactive"}
    assert client.post("/v2/embed", json=body, headers=header).headers["x-me5-lane"] == "interactive"


def test_more_texts_than_cohere_takes_are_taken(client: httpx.Client, spec: ModelSpec) -> None:
    found = embed(client, texts=[f"text {number}" for number in range(200)], embedding_types=["int8"])
    assert np.array(found["embeddings"]["int8"]).shape == (200, spec.dimension)


def test_the_older_route_gives_a_plain_list_unless_types_are_asked_for(client: httpx.Client) -> None:
    plain = embed(client, "/v1/embed")
    assert plain["response_type"] == "embeddings_floats"
    assert plain["meta"]["api_version"] == {"version": "1"}
    typed = embed(client, "/v1/embed", embedding_types=["float"])
    assert typed["response_type"] == "embeddings_by_type"
    np.testing.assert_allclose(plain["embeddings"], typed["embeddings"]["float"], atol=1e-6)


def test_unknown_fields_are_counted_under_one_route(client: httpx.Client) -> None:
    counter = series("me5_unknown_fields_total", route="/v2/embed")
    before = scrape(client)[counter]
    embed(client, surprise=1)
    embed(client, "/v1/embed", surprise=1, another=2)
    assert scrape(client)[counter] - before == 3


def test_of_countless_types_none_is_looked_at(client: httpx.Client) -> None:
    message = refused(client, embedding_types=["float16"] * 99_000)
    assert "the limit is 12" in message
    # Each of them, told, would be an error of its own.
    assert "float16" not in message


def test_a_body_of_null_is_told_what_it_has_to_be(client: httpx.Client) -> None:
    answer = client.post("/v2/embed", content=b"null")
    assert answer.status_code == 422
    assert answer.json()["message"] == "the body must be a JSON object"
