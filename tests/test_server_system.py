"""A running server as a System: the real gateway by each wire, and small real servers for what it doesn't speak."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from gateway_process import Gateway
from own_scores import own_bitext
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.recipe.spec import MODEL_FILE, ModelSpec
from training.errors import ServerFailed, UnknownSystem
from training.open_system import OpenOptions, open_system
from training.server_system import KEY_VARIABLE, ServerOptions, open_server, split_address
from training.system import Side, System

OPENINGS = ("I see", "Ich sehe", "Je vois", "我看见")
THINGS = ("the bridge", "a red boat", "two loaves of bread", "the old town", "rain", "das Haus", "the sea", "a map")
SENTENCES = [f"{opening} {thing}" for opening in OPENINGS for thing in THINGS]
QUERIES, PASSAGES = Side(SENTENCES[:8], "query"), Side([*SENTENCES, "word " * 3000], "passage")
# What a handler gives back: status, body, headers.
Answer = tuple[int, object, dict[str, str]]


@pytest.fixture(scope="module")
def embedded(shipped: Path) -> System:
    """The shipped model without a server."""
    return open_system(str(shipped))


@pytest.fixture(scope="module")
def expected(embedded: System) -> tuple[np.ndarray, np.ndarray]:
    """Its vectors of both sides."""
    reading = embedded.read([QUERIES, PASSAGES])
    return reading.features(QUERIES), reading.features(PASSAGES)


@contextmanager
def serve(answer: Callable[[str, dict[str, object], dict[str, str]], Answer]) -> Iterator[str]:
    """A real HTTP server on a free port. answer: path, body, headers in lower case → what it gives."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._give({})

        def do_POST(self) -> None:
            self._give(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _give(self, body: dict[str, object]) -> None:
            try:
                status, found, headers = answer(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            except Exception as error:  # a check of the test that fails must fail the test, not hang the client
                status, found, headers = 500, {"error": f"{type(error).__name__}: {error}"}, {}
            data = json.dumps(found).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing: what goes wrong is asserted."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("wire", ["", "openai+"])
def test_a_gateways_vectors_are_the_embedded_models(
    gateway: Gateway, expected: tuple[np.ndarray, np.ndarray], least_cosine: float, wire: str
) -> None:
    reading = open_system(wire + gateway.url).read([QUERIES, PASSAGES])
    for side, vectors in zip((QUERIES, PASSAGES), expected, strict=True):
        found = reading.features(side)
        assert np.min(np.sum(found * vectors, axis=1)) >= least_cosine
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_scores_through_the_gateway_are_the_embedded_models(gateway: Gateway, embedded: System) -> None:
    sources, targets = Side(SENTENCES[:8], "query"), Side(SENTENCES[8:16], "query")
    scores = []
    for system in (embedded, open_system(gateway.url)):
        reading = system.read([sources, targets])
        scores.append(own_bitext(reading, sources, targets))
    assert scores[0] == scores[1]


def test_a_gateway_says_who_it_is(gateway: Gateway, spec: ModelSpec) -> None:
    info = gateway.client().get("/info").json()
    for wire in ("", "openai+"):
        identity = open_system(wire + gateway.url).identity
        assert identity.name == spec.name
        assert identity.dtype == info["precision"]
        assert identity.max_tokens == spec.max_tokens
        assert identity.prompts == {"query": "query: ", "passage": "passage: "}
        assert identity.files == {"model.onnx": spec.files[MODEL_FILE]}
        assert identity.details["address"].startswith(gateway.url)


def test_vectors_before_scaling_are_asked_for_where_the_server_has_them(gateway: Gateway) -> None:
    options = OpenOptions(server=ServerOptions(raw_features=True))
    reading = open_system(gateway.url, options).read([QUERIES])
    lengths = np.linalg.norm(reading.features(QUERIES), axis=1)
    assert not np.any(np.isclose(lengths, 1, atol=1e-3))
    np.testing.assert_allclose(np.diag(reading.nearness(QUERIES, QUERIES)), 1, atol=1e-5)


def test_a_task_without_prompts_is_refused_for_a_server_that_always_puts_one(gateway: Gateway) -> None:
    for wire in ("", "openai+"):
        with pytest.raises(UnknownSystem, match="prompt before every text"):
            open_system(wire + gateway.url).read([Side(["bread"], None)])


def test_the_gateway_is_measured_as_tei_by_the_names_of_its_prompts(
    gateway: Gateway, expected: tuple[np.ndarray, np.ndarray], least_cosine: float
) -> None:
    found = open_system(f"tei+{gateway.url}").read([PASSAGES]).features(PASSAGES)
    assert np.min(np.sum(found * expected[1], axis=1)) >= least_cosine


class CohereEmbed(BaseModel):
    """POST /v2/embed as Cohere's API reference publishes it, for texts."""

    model_config = ConfigDict(extra="forbid")
    model: str
    input_type: str = Field(pattern="^(search_document|search_query|classification|clustering|image)$")
    texts: list[str] = Field(min_length=1, max_length=96)
    embedding_types: list[str] | None = None
    truncate: str | None = Field(default=None, pattern="^(NONE|START|END)$")


def test_coheres_wire_sends_what_the_reference_publishes(
    embedded: System, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    asked: list[CohereEmbed] = []

    def answer(path: str, body: dict[str, object], _headers: dict[str, str]) -> Answer:
        assert path == "/v2/embed"
        asked.append(request := TypeAdapter(CohereEmbed).validate_python(body))
        side = Side(request.texts, "query" if request.input_type == "search_query" else "passage")
        rows = embedded.read([side]).features(side).tolist()
        return 200, {"id": "1", "response_type": "embeddings_by_type", "embeddings": {"float": rows}}, {}

    with serve(answer) as url:
        system = open_system(f"cohere+{url}#embed-multilingual-v3.0")
        many = Side([f"{text} {number}" for number in range(4) for text in SENTENCES], "passage")
        reading = system.read([QUERIES, PASSAGES, many, Side(["bread"], None)])
    for side, vectors in zip((QUERIES, PASSAGES), expected, strict=True):
        # float32 sums in batches of another width.
        np.testing.assert_allclose(reading.features(side), vectors, atol=1e-5)
    assert {request.input_type for request in asked} == {"search_query", "search_document"}
    assert {request.model for request in asked} == {"embed-multilingual-v3.0"}
    assert max(len(request.texts) for request in asked) == 96
    assert system.identity.name == "embed-multilingual-v3.0"


def test_a_foreign_openai_server_gets_prompts_from_here_in_any_order_of_rows_and_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[str, list[str]]] = []
    monkeypatch.setenv("OTHER_KEY", "s3cret")

    def answer(path: str, body: dict[str, object], headers: dict[str, str]) -> Answer:
        if path == "/v1/models":
            return 200, {"data": [{"id": "their-model"}]}, {}
        if path != "/v1/embeddings":
            return 404, {"error": {"message": f"no {path}"}}, {}
        texts = TypeAdapter(list[str]).validate_python(body["input"])
        heard.append((headers["authorization"], texts))
        rows = [np.array([len(text), 1], dtype="<f4") for text in texts]
        data = [{"index": n, "embedding": base64.b64encode(row.tobytes()).decode()} for n, row in enumerate(rows)]
        return 200, {"object": "list", "data": data[::-1], "model": body["model"]}, {}

    with serve(answer) as url:
        options = ServerOptions(query_prompt="ask: ", passage_prompt="", key_variable="OTHER_KEY")
        system = open_server(f"openai+{url}", options)
        texts = Side(["a", "bcd", "ef"], "query")
        found = system.read([texts]).features(texts)
    assert {text for _, texts in heard for text in texts} == {"ask: a", "ask: bcd", "ask: ef"}
    assert {key for key, _ in heard} == {"Bearer s3cret"}
    expected = np.array([[len("ask: ") + len(text), 1] for text in texts.texts], dtype=np.float32)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert system.identity.name == "their-model"
    assert "s3cret" not in repr(system.identity)


def test_a_tei_server_of_a_known_model_gets_that_models_prompts() -> None:
    heard: list[dict[str, object]] = []

    def answer(path: str, body: dict[str, object], _headers: dict[str, str]) -> Answer:
        if path == "/info":
            known = {"model_id": "intfloat/multilingual-e5-small", "model_dtype": "float16", "max_input_length": 512}
            return 200, {**known, "max_client_batch_size": 2, "version": "1.9.3"}, {}
        heard.append(body)
        return 200, [[1.0, 0.0] for _ in TypeAdapter(list[str]).validate_python(body["inputs"])], {}

    with serve(answer) as url:
        system = open_system(url)
        system.read([Side(["a", "b", "c"], "passage"), Side(["d"], None)])
    assert sorted(str(text) for body in heard for text in body["inputs"]) == [
        "d",
        "passage: a",
        "passage: b",
        "passage: c",
    ]
    assert max(len(body["inputs"]) for body in heard) == 2
    assert {body["normalize"] for body in heard} == {True}
    assert (system.identity.dtype, system.identity.engine, system.identity.max_tokens) == ("float16", "tei 1.9.3", 512)


def test_a_known_model_that_compares_by_products_is_asked_for_unscaled_vectors() -> None:
    def answer(path: str, body: dict[str, object], _headers: dict[str, str]) -> Answer:
        if path == "/info":
            return 200, {"model_id": "facebook/mcontriever-msmarco", "max_client_batch_size": 32}, {}
        return (200, [[3.0, 4.0]], {}) if body["normalize"] is False else (422, {"error": "scaled"}, {})

    side = Side(["a"], "query")
    with serve(answer) as url:
        near = open_system(url).read([side]).nearness(side, side)
    np.testing.assert_array_equal(near, [[25.0]])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(status: int) -> None:
    refusals = [(status, {"error": "overloaded", "error_type": "Overloaded"}, {"retry-after": "0"})] * 3

    def answer(path: str, _body: dict[str, object], _headers: dict[str, str]) -> Answer:
        if path == "/info":
            return 404, {}, {}
        return refusals.pop() if refusals else (200, [[3.0, 4.0]], {})

    with serve(answer) as url:
        side = Side(["a"], None)
        found = open_system(f"tei+{url}").read([side]).features(side)
    np.testing.assert_allclose(found, [[0.6, 0.8]], atol=1e-6)
    assert not refusals


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((422, {"error": "batch size 33 > 32", "error_type": "Validation"}, {}), "422: batch size 33 > 32"),
        ((401, {"error": {"message": "no key"}}, {}), "401: no key"),
        ((404, {"message": "no such model"}, {}), "404: no such model"),
        ((429, {"error": "tomorrow"}, {"retry-after": "86400"}), "left alone for 86400 s"),
        ((200, {"rows": []}, {}), "not one of the tei wire"),
        ((200, [[1.0], [2.0]], {}), "2 vectors for 1 texts"),
        ((200, [[float("nan")]], {}), "not finite"),
    ],
)
def test_what_a_server_refuses_is_told_with_its_address(given: Answer, told: str) -> None:
    with serve(lambda path, _body, _headers: given if path == "/embed" else (404, {}, {})) as url:
        with pytest.raises(ServerFailed, match=told) as failed:
            open_system(f"tei+{url}").read([Side(["a"], "query")])
        assert url in failed.value.message


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with serve(lambda *_: (200, {}, {})) as url:
        pass
    with pytest.raises(ServerFailed, match=f"{url}/info can't be reached"):
        open_system(url)


def test_a_server_that_says_nothing_of_itself_needs_its_wire_named() -> None:
    with serve(lambda *_: (404, {}, {})) as url:
        for text, remedy in ((url, "name its wire"), (f"openai+{url}", "behind a #"), (f"cohere+{url}", "behind a #")):
            with pytest.raises(UnknownSystem, match=remedy):
                open_system(text)


def test_a_key_in_an_address_is_refused_for_it_would_end_up_in_results() -> None:
    with pytest.raises(UnknownSystem, match=KEY_VARIABLE) as refused:
        split_address("https://me:s3cret@host/v1")
    assert "s3cret" not in refused.value.message
