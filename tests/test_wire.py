"""The bytes on the wire: large bodies read in pieces, answers in every format, and whose request it is."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic_core import from_json
from starlette.requests import Request

from service.api.embed import EmbedBody
from service.api.encoding import NUMBERS_A_SLICE, convert, int8_scale, json_list, openai_list, raw
from service.api.large_json import parse_large, parse_small
from service.api.reading import client_of, parse_inputs
from service.api.turns import Turns
from service.errors import InvalidInput, MalformedRequest, Me5Error
from service.model import load_model
from service.recipe.prompts import format_text
from service.recipe.tokens import tokenize

OCTETS = {"accept": "application/octet-stream"}
TEXTS = ["How deep is the harbour?", "Как высока телебашня в Берлине?", "東京の人口は約千四百万人です。"]
# Small enough that a short text is cut in many places, large enough for a pair of escaped surrogates.
PIECE_BYTES = 24
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1"}


def cut(body: bytes, piece_bytes: int = PIECE_BYTES) -> object:
    """The value as a large body is read."""
    return asyncio.run(parse_large(body, Turns(), 2048, piece_bytes))


texts = st.text(st.characters(codec="utf-8"), max_size=80)
numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False, width=32)
leaves = st.none() | st.booleans() | numbers | texts
inputs = st.lists(texts | st.lists(st.integers(0, 300_000), max_size=40), max_size=12)
bodies = st.dictionaries(
    st.sampled_from(["inputs", "truncate", "note"]) | texts,
    leaves | inputs | st.dictionaries(texts, leaves | st.lists(texts, max_size=6), max_size=4),
    max_size=5,
)


@given(bodies, st.booleans(), st.sampled_from([None, 0, 30]))
@settings(max_examples=150, deadline=None)
def test_a_body_read_in_pieces_is_the_body_read_whole(body: object, ascii_only: bool, indent: int | None) -> None:
    sent = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode()
    assert cut(sent) == from_json(sent) == body


@given(bodies, st.binary(max_size=3), st.integers(0, 10**6), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_damaged_body_is_refused_in_pieces_as_it_is_whole(body: object, noise: bytes, at: int, lost: int) -> None:
    sent = json.dumps(body, ensure_ascii=False).encode()
    at %= len(sent) + 1
    sent = sent[:at] + noise + sent[at + lost :]
    try:
        whole: object = parse_small(sent)
    except MalformedRequest:
        with pytest.raises(Me5Error):
            cut(sent)
        return
    try:
        found = cut(sent)
    except MalformedRequest as refused:
        # A number longer than a piece, which only pieces this small make possible.
        if "one value" not in refused.message:
            raise
    else:
        assert found == whole


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": ["a",, "b"]}',
        b'{"inputs": ["a", "b",]}',
        b'{"inputs": [, "a", "b"]}',
        b'{"inputs": "a",}',
        b'{"inputs": ["a" "b"]}',
        b'{"inputs": ["a"}]',
        b'{"inputs": "\\ud83d"}',
        b'{"inputs": "\\ud83d\\u0041"}',
        b'{"inputs": "\\x"}',
        b'{"inputs": "a\x01"}',
        b'{"inputs": "\xff"}',
        b'{"inputs": ["a"]} x',
        b'{"inputs": ["a"',
        b'{"inputs": "a',
        b'{inputs: "a"}',
        b'{"inputs" "a"}',
        b"[" * 5000,
        b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"",
        b" ",
    ],
)
@pytest.mark.parametrize("padding", [0, 200], ids=["", "padded"])
def test_what_is_not_json_is_refused_in_pieces_too(body: bytes, padding: int) -> None:
    sent = body.replace(b'"a', b'"' + b"a" * padding + b"a")
    with pytest.raises(MalformedRequest, match="not JSON"):
        cut(sent)


def test_names_given_twice_and_numbers_that_are_none_mean_the_same_in_pieces() -> None:
    body = b'{"inputs": "%s", "a": NaN, "b": 1e999, "c": %d, "inputs": "last", "padding": "%s"}' % (
        b"x" * 100,
        10**30,
        b"y" * 100,
    )
    found = cut(body, 64)
    assert isinstance(found, dict)
    assert (found["inputs"], found["b"], found["c"]) == ("last", math.inf, 10**30)
    assert math.isnan(found["a"])
    assert list(found) == list(from_json(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + b",".join([b"[]"] * 1_000_000) + b"]}",
        b'{"inputs":[' + b",".join([b"7"] * 1_000_000) + b"]}",
        b'{"inputs":[[' + b",".join([b"7"] * 1_000_000) + b"]]}",
        b"{" + b",".join(b'"%d":0' % number for number in range(300_000)) + b"}",
    ],
    ids=["empty lists", "ids", "ids of one input", "fields"],
)
def test_a_body_of_countless_items_is_refused_before_it_becomes_objects(body: bytes) -> None:
    def refuse() -> None:
        with pytest.raises(InvalidInput, match="items; split the request"):
            asyncio.run(parse_large(body, Turns(), 2048))

    # To make the objects and drop them again takes several times as long as to count commas.
    assert cpu_s(refuse) < 2 * cpu_s(lambda: from_json(body))
    assert peak_bytes(refuse) < peak_bytes(lambda: from_json(body)) / 2


def cpu_s(work: Callable[[], object]) -> float:
    """The least of five times, by this thread's own clock: what else the machine does only adds to it."""
    spent = []
    for _ in range(5):
        started = time.thread_time()
        work()
        spent.append(time.thread_time() - started)
    return min(spent)


def peak_bytes(work: Callable[[], object]) -> int:
    """What Python's objects took at most meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def embed(client: httpx.Client, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    """POST /embed of the texts, which must succeed."""
    response = client.post("/embed", json={"inputs": TEXTS, **fields}, headers=headers)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_format_carries_the_same_numbers(client: httpx.Client, dtype: str) -> None:
    floats = embed(client, output_dtype=dtype)
    wanted = np.array(floats.json())
    texts_ = embed(client, output_dtype=dtype, encoding_format="base64").json()
    by_base64 = np.array([np.frombuffer(base64.b64decode(row), dtype=DTYPES[dtype]) for row in texts_])
    answer = embed(client, OCTETS, output_dtype=dtype)
    shape = tuple(map(int, answer.headers["x-me5-shape"].split(",")))
    by_bytes = np.frombuffer(answer.content, dtype=DTYPES[dtype]).reshape(shape)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-me5-dtype"] == dtype
    assert int(answer.headers["content-length"]) == wanted.size * np.dtype(DTYPES[dtype]).itemsize
    # Three requests, so three batches of the same shape: the same program and the same rounding, up to a last digit.
    tolerance = 1 if dtype == "int8" else 1e-3 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(by_base64.astype(float), wanted, atol=tolerance)
    np.testing.assert_allclose(by_bytes.astype(float), wanted, atol=tolerance)
    for response in (floats, answer):
        assert ("x-me5-scale" in response.headers) == (dtype == "int8")


def test_the_root_gives_bytes_as_well_and_null_means_the_default(client: httpx.Client) -> None:
    body = {"inputs": TEXTS, "encoding_format": None, "output_dtype": None}
    answer = client.post("/", json=body, headers={"accept": "application/octet-stream, application/json;q=0.5"})
    assert answer.headers["x-me5-dtype"] == "float32"
    assert isinstance(client.post("/", json=body, headers={"accept": "*/*"}).json()[0][0], float)
    json_first = {"accept": "application/json, application/octet-stream"}
    assert client.post("/", json=body, headers=json_first).headers["content-type"] == "application/json"


def golden_vectors(shipped: Path) -> NDArray[np.float32]:
    """The golden vectors [N, D] of the shipped model."""
    return np.stack([item.vector for item in load_model(str(shipped), shipped).golden.items])


def test_int8_vectors_of_the_golden_texts_point_where_float32_ones_do(client: httpx.Client, shipped: Path) -> None:
    items = load_model(str(shipped), shipped).golden.items
    scale = client.get("/info").json()["int8_scale"]
    assert scale == pytest.approx(int8_scale(golden_vectors(shipped)))
    for role in ("query", "passage"):
        body = {"inputs": [item.text for item in items if item.role == role], "input_type": role}
        wanted = np.array(client.post("/embed", json=body).json())
        answer = client.post("/embed", json={**body, "output_dtype": "int8"})
        assert float(answer.headers["x-me5-scale"]) == scale
        found = np.array(answer.json()) / scale
        cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() >= 0.999
        # Not only the direction: an inner product of int8 vectors, over the squared scale, is the cosine.
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=0.01)


@pytest.mark.parametrize("dimensions", [16, 64, 200])
def test_int8_vectors_cut_to_fewer_dimensions_have_a_scale_of_their_own(
    client: httpx.Client, shipped: Path, dimensions: int
) -> None:
    answer = embed(client, output_dtype="int8", dimensions=dimensions)
    scale = float(answer.headers["x-me5-scale"])
    assert scale == pytest.approx(int8_scale(golden_vectors(shipped), dimensions))
    wanted = np.array(embed(client, dimensions=dimensions).json())
    found = np.array(answer.json()) / scale
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= 0.999


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output_dtype": "int8", "normalize": False}, ("int8", "`normalize`", "float16")),
        ({"output_dtype": "binary"}, ("`output_dtype`", "float16", "binary")),
        ({"encoding_format": "hex"}, ("`encoding_format`", "base64", "hex")),
    ],
)
def test_a_format_that_can_not_be_had_is_refused(
    client: httpx.Client, fields: dict[str, object], words: tuple[str, ...]
) -> None:
    response = client.post("/embed", json={"inputs": "a", **fields}, headers=OCTETS)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/json"
    for word in words:
        assert word in response.json()["error"]


def test_an_answer_in_slices_is_the_answer_in_one() -> None:
    rows = 3 * NUMBERS_A_SLICE // 384 + 5
    vectors = np.random.default_rng(0).normal(size=(rows, 384)).astype(np.float32)
    parts = list(json_list(vectors, "float"))
    assert len(parts) > 3
    np.testing.assert_array_equal(np.array(json.loads(b"".join(parts)), dtype=np.float32), vectors)
    assert b"".join(raw(vectors)) == vectors.tobytes()
    for form in ("float", "base64"):
        answer = json.loads(b"".join(openai_list(vectors, form, "me5", 7)))
        assert [item["index"] for item in answer["data"]] == list(range(rows))
        assert (answer["object"], answer["model"], answer["usage"]["total_tokens"]) == ("list", "me5", 7)
    texts_ = json.loads(b"".join(json_list(convert(vectors, "float16"), "base64")))
    assert [base64.b64decode(text) for text in texts_] == [row.astype("<f2").tobytes() for row in vectors]


def test_int8_is_cut_at_its_ends_and_rounded_to_the_nearest() -> None:
    vectors = np.array([[0.5, -0.5, 0.0149, 0.0151, -0.0151]], dtype=np.float32)
    assert convert(vectors, "int8", 100.0).tolist() == [[50, -50, 1, 2, -2]]
    assert convert(vectors, "int8", 1000.0).tolist() == [[127, -127, 15, 15, -15]]


def client_named(*headers: tuple[bytes, bytes], address: str = "10.0.0.1") -> str:
    """Whom a request with these headers is taken for."""
    return client_of(Request({"type": "http", "headers": list(headers), "client": (address, 5)}))


def test_a_client_is_known_by_its_key_or_else_by_its_address() -> None:
    one, other = (b"authorization", b"Bearer key-one"), (b"authorization", b"bearer key-two")
    assert client_named(one) == client_named(one, address="10.0.0.2") != client_named(other)
    assert client_named((b"authorization", b"bearer  key-one")) == client_named(one)
    assert client_named() == "10.0.0.1" != client_named(address="10.0.0.2")
    assert "key" not in client_named(one)


def median_s(work: Callable[[], object], rounds: int = 60) -> float:
    """The median time of one call."""
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


@pytest.mark.parametrize("count", [1, 32])
def test_reading_a_request_costs_less_than_tokenising_its_texts(shipped: Path, count: int) -> None:
    model = load_model(str(shipped), shipped)
    passage = "Der Hafen von Rotterdam liegt dort, wo der Rhein in die See mündet, und Schiffe kommen von weit her. "
    sent = [f"{number}: {passage * (1 if count == 1 else 5)}" for number in range(count)]
    body = json.dumps({"inputs": sent, "input_type": "passage"}).encode()

    def read_body() -> object:
        return parse_inputs(EmbedBody.model_validate(parse_small(body)).inputs, "inputs", 2048)

    def tokenise() -> object:
        prompted = [format_text(text, model.spec.prompts, "passage", default_role="query") for text in sent]
        return tokenize(model.tokenizer, prompted, model.spec.max_tokens)

    read_body(), tokenise()
    ratio = median_s(read_body) / median_s(tokenise)
    print(f"\nreading {len(body)} bytes of {count} texts takes {ratio:.3f} of tokenising them")
    assert ratio < 1
