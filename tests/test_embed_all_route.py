"""POST /embed_all: the states of tokens, on the scheduler that vectors take, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from gateway_process import Gateway
from metric_series import scrape, series
from starlette.types import Message, Receive, Scope, Send
from token_states import token_ids, vector_of

from service.api.answering import CUT, Streamed
from service.api.embed_all import STATES_BYTES_MAX
from service.api.encoding import NUMBERS_A_SLICE
from service.api.intake import Intake
from service.api.turns import Turns
from service.engine import Engine, open_engine
from service.errors import Overloaded
from service.graph_states import states_tensor, with_output
from service.metrics import Metrics
from service.recipe.spec import MODEL_FILE, ModelSpec
from service.recipe.tokens import TokenBatch, pad

TEXTS = ["Rotterdam's harbour is the largest in Europe.", "東京の人口", "ok"]
# Of 512 tokens each, 4.7 MB of states.
LONG = ["many words " * 600] * 6
BATCH = pad([np.array([0, 5, 900, 77, 2], dtype=np.int32), np.array([0, 41, 2], dtype=np.int32)], 1)


def states(client: httpx.Client, inputs: object, **fields: object) -> list[np.ndarray]:
    """The rows of each input."""
    answer = client.post("/embed_all", json={"inputs": inputs, **fields})
    assert answer.status_code == 200, answer.text
    return [np.array(rows) for rows in answer.json()]


def test_there_is_a_row_for_each_token_specials_and_prompt_included(client: httpx.Client, spec: ModelSpec) -> None:
    for role in ("query", "passage"):
        tokens = client.post("/tokenize", json={"inputs": TEXTS, "prompt_name": role}).json()
        found = states(client, TEXTS, prompt_name=role)
        assert [rows.shape for rows in found] == [(len(row), spec.states_dimension) for row in tokens]


def test_rows_are_not_scaled_and_their_mean_makes_the_vector(client: httpx.Client, least_cosine: float) -> None:
    vectors = np.array(client.post("/embed", json={"inputs": TEXTS}).json())
    for rows, ids, vector in zip(states(client, TEXTS), token_ids(client, TEXTS), vectors, strict=True):
        # One of them may have about that length by chance.
        assert np.median(np.abs(np.linalg.norm(rows, axis=1) - 1)) > 1e-2
        assert vector_of(rows, ids) @ vector >= least_cosine


def test_one_text_and_ids_are_taken_as_embed_takes_them(client: httpx.Client) -> None:
    ids = [token["id"] for token in client.post("/tokenize", json={"inputs": "ok"}).json()[0]]
    (by_text,) = states(client, "ok")
    (by_ids,) = states(client, ids)
    # bf16 rounds to 8 bits of mantissa; components are of the order of one.
    np.testing.assert_allclose(by_ids, by_text, atol=0.1)
    (cut,) = states(client, LONG[0])
    assert len(cut) == 512


def test_headers_and_errors_are_teis(client: httpx.Client) -> None:
    answer = client.post("/embed_all", json={"inputs": TEXTS, "prompt_name": "passage"})
    assert answer.headers["x-me5-role"] == "passage"
    assert int(answer.headers["x-compute-tokens"]) == sum(map(len, answer.json()))
    answer = client.post("/embed_all", json={"inputs": LONG[0], "truncate": False})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")
    answer = client.post("/embed_all", json={"inputs": []})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "Empty")


def test_more_states_than_a_request_may_have_are_refused_before_they_are_computed(client: httpx.Client) -> None:
    answer = client.post("/embed_all", json={"inputs": LONG * 4})
    assert answer.status_code == 422
    assert str(STATES_BYTES_MAX) in answer.json()["error"]
    buffered = series("me5_buffered_bytes")
    assert scrape(client)[buffered] == 0


def test_states_of_all_requests_together_are_bounded(exact: httpx.Client) -> None:
    """The gateway has room for one such answer more than none: who comes while it is under way is told to wait."""
    started, statuses = threading.Barrier(3), []

    def ask() -> None:
        with httpx.Client(base_url=exact.base_url, timeout=120) as own:
            started.wait()
            answer = own.post("/embed_all", json={"inputs": LONG})
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert [len(rows) for rows in answer.json()] == [512] * len(LONG)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(statuses)) == [200, 429]
    assert scrape(exact)[series("me5_buffered_bytes")] == 0


def test_a_batch_may_hold_both_kinds_and_each_gets_its_own(gateway: Gateway, least_cosine: float) -> None:
    with gateway.client() as own:
        wanted = np.array(own.post("/embed", json={"inputs": TEXTS}).json())
        ids = token_ids(own, TEXTS)
    failures: list[str] = []

    def vectors() -> None:
        with gateway.client() as one:
            for _ in range(8):
                found = np.array(one.post("/embed", json={"inputs": TEXTS}).json())
                if (found * wanted).sum(axis=1).min() < least_cosine:
                    failures.append("a vector is another one")

    def tokens() -> None:
        with gateway.client() as one:
            for _ in range(8):
                for rows, row_ids, vector in zip(states(one, TEXTS), ids, wanted, strict=True):
                    if vector_of(rows, row_ids) @ vector < least_cosine:
                        failures.append("a row is another one")

    threads = [threading.Thread(target=work) for work in (vectors, tokens, vectors, tokens)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture(params=["onnx", "openvino"])
def engine(request: pytest.FixtureRequest, shipped: Path, spec: ModelSpec) -> Engine:
    """Each engine, whose graph pools inside."""
    return open_engine(shipped, spec, engine=request.param, precision="fp32")


def test_an_engine_gives_the_states_that_its_graph_pools(engine: Engine, spec: ModelSpec) -> None:
    assert engine.gives_states
    found = engine.states(BATCH)
    assert found.shape == (2, BATCH.ids.shape[1], spec.states_dimension)
    sizes = BATCH.mask.sum(axis=1)
    made = [vector_of(found[row, :size], BATCH.ids[row, :size].tolist()) for row, size in enumerate(sizes)]
    # The same sums in float32, in another order.
    np.testing.assert_allclose(np.stack(made), engine.run(BATCH), atol=1e-5)


def test_an_engine_that_gives_states_gives_the_same_vectors_as_before(shipped: Path, spec: ModelSpec) -> None:
    import onnxruntime

    plain = onnxruntime.InferenceSession(str(shipped / MODEL_FILE), providers=["CPUExecutionProvider"])
    feed = {"input_ids": BATCH.ids, "attention_mask": BATCH.mask}
    (wanted,) = plain.run([spec.output], feed)
    np.testing.assert_allclose(open_engine(shipped, spec).run(BATCH), wanted, atol=1e-6)


def test_a_graph_with_an_output_more_is_still_that_graph(shipped: Path, spec: ModelSpec) -> None:
    name = states_tensor(shipped / MODEL_FILE, spec)
    assert name is not None
    graph = (shipped / MODEL_FILE).read_bytes()
    one, other = onnx.load_from_string(graph), onnx.load_from_string(with_output(graph, name))
    onnx.checker.check_model(other)
    assert [output.name for output in other.graph.output] == [*(output.name for output in one.graph.output), name]
    assert [node.name for node in other.graph.node] == [node.name for node in one.graph.node]
    assert len(other.graph.initializer) == len(one.graph.initializer)


def test_states_that_can_not_be_told_apart_are_not_guessed(tmp_path: Path, spec: ModelSpec) -> None:
    helper = onnx.helper
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    inputs = [helper.make_tensor_value_info(name, int64, ["b", "t"]) for name in spec.inputs]
    output = helper.make_tensor_value_info(spec.output, float32, ["b", "t"])
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"]),
        helper.make_node("Cast", ["sum"], [spec.output], to=float32),
    ]
    model = helper.make_model(helper.make_graph(nodes, "no pooling by a product", inputs, [output]))
    onnx.save(model, tmp_path / MODEL_FILE)
    assert states_tensor(tmp_path / MODEL_FILE, spec) is None


def test_padding_changes_no_row(engine: Engine) -> None:
    alone = engine.states(TokenBatch(BATCH.ids[1:, :3], BATCH.mask[1:, :3]))[0]
    np.testing.assert_allclose(engine.states(BATCH)[1, :3], alone, atol=1e-3)


def test_states_that_are_read_slowly_leave_half_of_the_room_to_bodies() -> None:
    intake = Intake(1000, Metrics())
    readers: list[Scope] = [{}, {}]
    for reader in readers:
        intake.take(reader, 10)
        intake.take_states(reader, 250)
    with pytest.raises(Overloaded):
        intake.take_states({}, 1)
    sender: Scope = {}
    intake.take(sender, 480)
    with pytest.raises(Overloaded):
        intake.take({}, 1)
    for scope in (*readers, sender):
        intake.release(scope)
    # Alone, a request always has room; and what it has beyond its share is nobody else's loss.
    intake.take_states(readers[0], 5000)
    intake.take(sender, 500)


def streamed_to(send: Send, receive: Receive, parts: Iterator[bytes]) -> list[str]:
    """Send an answer in parts; why the connection was cut."""
    cut: list[str] = []
    asyncio.run(Streamed(Turns(), parts, [], grace_s=0.1)({"type": "http", CUT: cut.append}, receive, send))
    return cut


async def never() -> Message:
    """Nothing comes from a client that waits for its answer."""
    await asyncio.Event().wait()
    raise AssertionError


def test_who_takes_an_answer_too_slowly_on_the_whole_is_cut() -> None:
    async def send(_: Message) -> None:
        await asyncio.sleep(0.02)

    # 20 ms for each part, none of which is long in coming: of 10 bytes too slow, of 64 KiB fast enough.
    slow, quick = iter([b"a" * 10] * 200), iter([b"a" * 65536] * 20)
    assert streamed_to(send, never, slow) == ["not_reading"]
    assert next(slow, None) is not None
    assert streamed_to(send, never, quick) == []
    assert next(quick, None) is None


def test_nothing_more_is_written_for_a_client_that_has_gone() -> None:
    sent = 0
    gone = asyncio.Event()

    async def send(_: Message) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            gone.set()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    assert streamed_to(send, receive, iter([b"a" * 65536] * 200)) == []
    assert sent < 10


def test_an_answer_for_http_1_0_comes_whole_and_in_no_chunks(gateway: Gateway) -> None:
    body = json.dumps({"inputs": "many words " * 100}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /embed_all HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head, _, found = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    (rows,) = json.loads(found)
    assert len(rows) * len(rows[0]) > NUMBERS_A_SLICE


def test_what_could_not_be_computed_in_time_is_counted_in_texts(client: httpx.Client) -> None:
    answer = client.post("/embed_all", json={"inputs": LONG[:3]}, headers={"x-me5-timeout-ms": "1"})
    assert answer.status_code == 504
    assert "of 3 texts" in answer.json()["error"]
