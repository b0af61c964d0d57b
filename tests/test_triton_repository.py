"""The committed model repository in a real Triton: started as it is, batched, overloaded, published into."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from faulty_engine import MODEL_REPO, SHIPPED
from google.protobuf import text_format
from numpy.typing import NDArray
from published_folder import write_published_folder
from triton_requests import ANSWER_MAX_S, Asker, bucketed, golden_rows, of_shape
from triton_server import TritonServer, needs_triton, start_triton
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from service.engine import open_engine
from service.pull import pull
from service.recipe.golden import load_golden, prove
from service.recipe.spec import ModelSpec, load_spec
from service.recipe.tokens import TokenBatch, pad
from service.triton_config import BULK_PRIORITY, INTERACTIVE_PRIORITY, JOINED_ROWS, render, write_config
from training.versions import unfinished_version

pytestmark = needs_triton

NAME = "me5_nano"
WITHOUT_WEIGHTS = ["me5_base", "me5_large", "me5_large_instruct", "me5_small"]
# float32 sums in another order, where the rows beside a text and its padding differ.
LEAST_COSINE = 0.99999


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return load_spec(SHIPPED, verify=False)


@pytest.fixture(scope="module")
def triton() -> Iterator[TritonServer]:
    """The repository as it is committed."""
    with start_triton(MODEL_REPO, model=NAME, options=["--log-verbose=1"]) as server:
        yield server


@pytest.fixture
def asker(triton: TritonServer, spec: ModelSpec) -> Iterator[Asker]:
    with Asker(triton.grpc_url, spec) as opened:
        yield opened
    triton.set_delay(0)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton over an empty repository, for tests that bring their own models."""
    options = ["--disable-auto-complete-config"]
    with start_triton(tmp_path_factory.mktemp("model_repo"), explicit=True, options=options) as server:
        yield server


def without_warmup(config: str) -> str:
    """For tests of something else, which then take less time."""
    return re.sub(r"model_warmup \[.*\n\]", "", config, flags=re.DOTALL)


def bring(own: TritonServer, spec: ModelSpec, name: str, *edits: tuple[str, str]) -> Asker:
    """Load the shipped version under another name, its config edited."""
    own.set_delay(0)
    shelf = own.repository / name
    shelf.mkdir()
    (shelf / "1").symlink_to(SHIPPED)
    text = without_warmup(render(replace(spec, name=name)))
    for old, new in edits:
        assert text.count(old) == 1, f"{old} is {text.count(old)} times in the config"
        text = text.replace(old, new)
    (shelf / "config.pbtxt").write_text(text, encoding="utf-8")
    own.load(name)
    return Asker(own.grpc_url, replace(spec, name=name))


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return (one * other).sum(axis=-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def busy_with(server: TritonServer, asker: Asker, batch: TokenBatch) -> Future[NDArray[np.float32]]:
    """Send a batch; when this returns it is being computed, and is until the delay is set to 0."""
    server.set_delay(60_000)
    before = len(server.runs(asker.name))
    sent = asker.send(batch, priority=INTERACTIVE_PRIORITY)
    wait_until(lambda: len(server.runs(asker.name)) > before, server)
    return sent


def wait_until(reached: Callable[[], bool], server: TritonServer) -> None:
    give_up = time.monotonic() + ANSWER_MAX_S
    while not reached():
        assert time.monotonic() < give_up, server.log_text()
        time.sleep(0.02)


def executed(server: TritonServer, name: str) -> tuple[int, int]:
    """Texts and executions so far. Triton counts an execution a moment after it has answered its requests."""
    seen = {}
    while seen != (seen := server.statistics(name)):
        time.sleep(0.3)
    return seen["inference_count"], seen["execution_count"]


def test_the_committed_repository_starts_though_four_of_its_models_have_no_weights(triton: TritonServer) -> None:
    rows = httpx.post(f"{triton.http_url}/v2/repository/index", json={}).raise_for_status().json()
    assert sorted({row["name"] for row in rows}) == sorted([NAME, *WITHOUT_WEIGHTS])
    assert [(row["name"], row["version"]) for row in rows if row.get("state") == "READY"] == [(NAME, SHIPPED.name)]


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_loading_a_model_without_weights_fails_and_harms_nothing(triton: TritonServer, name: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=f"load {name}.*at least one version"):
        triton.load(name)
    assert triton.model_ready(NAME)


def test_every_width_is_computed_alone_and_with_company_before_the_model_is_ready(triton: TritonServer) -> None:
    config = text_format.Parse((MODEL_REPO / NAME / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    before = triton.log_text().split(f"successfully loaded '{NAME}'")[0]
    ran = re.findall(rf"stand-in runs {NAME} {SHIPPED.name} (\d+x\d+) ", before)
    assert ran == [sample.name for sample in config.model_warmup]
    assert {name.split("x")[1] for name in ran} == {"32", "64", "128", "256", "512"}


def test_vectors_are_those_of_onnx_runtime_and_pass_the_proof(asker: Asker, spec: ModelSpec) -> None:
    rows = golden_rows(SHIPPED)
    vectors = np.concatenate([asker.ask(bucketed(row, spec)) for row in rows])
    direct = open_engine(SHIPPED, spec, engine="onnx", threads=1)
    wanted = np.concatenate([direct.run(pad([row], spec.pad_id)) for row in rows])
    assert cosines(vectors, wanted).min() >= LEAST_COSINE
    golden = load_golden(SHIPPED / "golden.json")
    assert prove(golden, vectors, "fp32") >= golden.bounds["fp32"]


def test_requests_of_one_width_are_computed_together(triton: TritonServer, asker: Asker, spec: ModelSpec) -> None:
    texts = [of_shape(1, 32, spec, first=5 + 7 * place) for place in range(24)]
    alone = [asker.ask(batch) for batch in texts]
    before = executed(triton, NAME)
    first = busy_with(triton, asker, of_shape(1, 32, spec))
    sent = [asker.send(batch) for batch in texts]
    wait_until(lambda: triton.pending(NAME) == 24, triton)
    triton.set_delay(0)
    found = [answer.result(ANSWER_MAX_S) for answer in sent]
    first.result(ANSWER_MAX_S)
    after = executed(triton, NAME)
    # The first one alone; what came meanwhile, by eights.
    assert (after[0] - before[0], after[1] - before[1]) == (25, 1 + 24 // JOINED_ROWS["onnx"])
    assert cosines(np.concatenate(found), np.concatenate(alone)).min() >= LEAST_COSINE


def test_requests_of_different_widths_are_not(triton: TritonServer, asker: Asker, spec: ModelSpec) -> None:
    before = executed(triton, NAME)
    sent = [busy_with(triton, asker, of_shape(1, 32, spec))]
    sent += [asker.send(of_shape(1, width, spec)) for width in (32, 64, 128, 256, 512)]
    wait_until(lambda: triton.pending(NAME) == 5, triton)
    triton.set_delay(0)
    assert [answer.result(ANSWER_MAX_S).shape for answer in sent] == [(1, spec.dimension)] * 6
    after = executed(triton, NAME)
    assert (after[0] - before[0], after[1] - before[1]) == (6, 6)


def test_a_request_of_more_rows_than_are_joined_is_computed_whole(
    triton: TritonServer, asker: Asker, spec: ModelSpec
) -> None:
    before = len(triton.runs(NAME))
    assert asker.ask(of_shape(256, 32, spec)).shape == (256, spec.dimension)
    assert triton.runs(NAME)[before:] == [f"{SHIPPED.name} 256x32 1"]
    with pytest.raises(InferenceServerException, match=r"batch-size must be <= 256"):
        asker.ask(of_shape(257, 32, spec))


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_there_is_room(
    own: TritonServer, spec: ModelSpec
) -> None:
    with bring(own, spec, "short_queue", ("max_queue_size: 256", "max_queue_size: 4")) as asker:
        first = busy_with(own, asker, of_shape(8, 32, spec))
        sent = [asker.send(of_shape(8, 32, spec)) for _ in range(16)]
        wait_until(lambda: sum(answer.done() for answer in sent) == 12, own)
        for answer in sent:
            if answer.done():
                error = answer.exception()
                assert isinstance(error, InferenceServerException)
                assert error.status() == "StatusCode.UNAVAILABLE"
                assert "Exceeds maximum queue size" in error.message()
        assert own.pending("short_queue") == 4
        own.set_delay(0)
        assert first.result(ANSWER_MAX_S).shape == (8, spec.dimension)
        assert sum(answer.exception(ANSWER_MAX_S) is None for answer in sent) == 4
        assert asker.ask(of_shape(8, 32, spec)).shape == (8, spec.dimension)


def test_a_request_leaves_the_queue_when_its_own_time_is_up(own: TritonServer, spec: ModelSpec) -> None:
    with bring(own, spec, "own_time") as asker:
        first = busy_with(own, asker, of_shape(8, 32, spec))
        hurried, patient = asker.send(of_shape(8, 32, spec), timeout_s=0.2), asker.send(of_shape(8, 32, spec))
        wait_until(lambda: own.pending("own_time") == 2, own)
        time.sleep(0.3)
        own.set_delay(0)
        error = hurried.exception(ANSWER_MAX_S)
        assert isinstance(error, InferenceServerException)
        assert (error.status(), error.message()) == ("StatusCode.UNAVAILABLE", "Request timeout expired")
        for answer in (first, patient):
            assert answer.result(ANSWER_MAX_S).shape == (8, spec.dimension)


def test_a_request_can_not_ask_for_more_time_than_the_model_gives(own: TritonServer, spec: ModelSpec) -> None:
    edit = ("default_timeout_microseconds: 60000000", "default_timeout_microseconds: 200000")
    with bring(own, spec, "little_time", edit) as asker:
        busy_with(own, asker, of_shape(8, 32, spec))
        greedy = asker.send(of_shape(8, 32, spec), timeout_s=30)
        wait_until(lambda: own.pending("little_time") == 1, own)
        time.sleep(0.3)
        own.set_delay(0)
        error = greedy.exception(ANSWER_MAX_S)
        assert isinstance(error, InferenceServerException)
        assert error.message() == "Request timeout expired"


def test_an_interactive_request_overtakes_bulk_and_those_that_do_not_say(own: TritonServer, spec: ModelSpec) -> None:
    with bring(own, spec, "lanes") as asker:
        first = busy_with(own, asker, of_shape(1, 32, spec))
        # Of eight rows, so that none is joined with another.
        bulk = [asker.send(of_shape(8, 32, spec), priority=priority) for priority in (BULK_PRIORITY, 0) * 3]
        wait_until(lambda: own.pending("lanes") == 6, own)
        query = asker.send(of_shape(2, 32, spec), priority=INTERACTIVE_PRIORITY)
        wait_until(lambda: own.pending("lanes") == 7, own)
        own.set_delay(0)
        wait([first, *bulk, query], timeout=ANSWER_MAX_S)
        ran = own.runs("lanes")
        assert (ran[0], len(ran)) == ("1 1x32 1", 8)
        # The batch that came first may have been handed over before the query came.
        assert ran.index("1 2x32 1") <= 2


def test_a_version_is_published_by_one_rename_and_rolled_back_while_the_other_answers(
    own: TritonServer, spec: ModelSpec, tmp_path: Path
) -> None:
    name, text = "published", of_shape(1, 32, spec)
    with bring(own, spec, name) as asker:
        old = asker.ask(text)
        stubs = own.stub_pids()
        with unfinished_version(own.repository / name / "2") as staging:
            shutil.copytree(SHIPPED, staging, dirs_exist_ok=True)
            write_opposite(staging / "model.onnx")
        with constant_load(asker, text, version=1) as answers:
            own.load(name)
            # Both, by their numbers; who names none gets the newest.
            assert cosines(asker.ask(text, version=2), old) == pytest.approx(-1, abs=1e-5)
            assert cosines(asker.ask(text), old) == pytest.approx(-1, abs=1e-5)
            assert set(stubs) < set(own.stub_pids()), "the version before was opened again"
            (own.repository / name / "2").rename(tmp_path / "withdrawn")
            own.load(name)
            wait_until(lambda: not own.model_ready(name, 2), own)
            assert cosines(asker.ask(text), old) == pytest.approx(1, abs=1e-5)
        assert len(answers) > 1
        assert min(cosines(answer, old)[0] for answer in answers) >= LEAST_COSINE


def test_a_version_that_is_being_written_is_not_seen_and_the_one_before_goes_on_answering(
    own: TritonServer, spec: ModelSpec
) -> None:
    name, text = "half_written", of_shape(1, 32, spec)
    with bring(own, spec, name) as asker:
        old = asker.ask(text)
        with unfinished_version(own.repository / name / "2") as staging:
            (staging / "model.onnx").write_bytes((SHIPPED / "model.onnx").read_bytes()[:1000])
            with constant_load(asker, text, version=1) as answers:
                own.load(name)
                assert not own.model_ready(name, 2)
                assert cosines(asker.ask(text), old) == pytest.approx(1, abs=1e-5)
        assert len(answers) > 1


def write_opposite(path: Path) -> None:
    """A graph that gives the shipped one's vectors, turned round."""
    model = onnx.load(SHIPPED / "model.onnx")
    for output in model.graph.output:
        for node in model.graph.node:
            node.output[:] = [f"{each}_before" if each == output.name else each for each in node.output]
            node.input[:] = [f"{each}_before" if each == output.name else each for each in node.input]
        model.graph.node.append(onnx.helper.make_node("Neg", [f"{output.name}_before"], [output.name]))
    onnx.save(model, path)


@contextmanager
def constant_load(asker: Asker, batch: TokenBatch, *, version: int) -> Iterator[list[NDArray[np.float32]]]:
    """One request after another from a thread; the list of their answers. At the end raises what one of them raised."""
    answers: list[NDArray[np.float32]] = []
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            answers.append(asker.ask(batch, version=version))

    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_on)
        try:
            yield answers
        finally:
            stop.set()
        asking.result(ANSWER_MAX_S)


def test_the_fp16_variant_opens_the_fp16_file_of_the_same_version(own: TritonServer, spec: ModelSpec) -> None:
    folder = own.repository / "halves" / "1"
    shutil.copytree(SHIPPED, folder)
    write_opposite(folder / "model_fp16.onnx")
    named = replace(spec, name="halves")
    write_config(folder.parent, without_warmup(render(named, "onnx-fp16")))
    own.set_delay(0)
    own.load("halves")
    text = of_shape(1, 32, spec)
    with Asker(own.grpc_url, named) as asker:
        direct = open_engine(SHIPPED, spec, engine="onnx", threads=1).run(text)
        assert cosines(asker.ask(text), direct) == pytest.approx(-1, abs=1e-5)


def test_a_pulled_checkpoint_is_served_with_the_committed_config(own: TritonServer, tmp_path: Path) -> None:
    committed = MODEL_REPO / "me5_small" / "config.pbtxt"
    (own.repository / "me5_small").mkdir()
    shutil.copy(committed, own.repository / "me5_small")
    source = "intfloat/multilingual-e5-small"
    folder = pull(
        str(write_published_folder(tmp_path / "small", SHIPPED / "tokenizer.json")), own.repository, published=source
    )
    assert (folder.parent / "config.pbtxt").read_bytes() == committed.read_bytes()
    own.set_delay(0)
    own.load("me5_small")
    spec = load_spec(folder)
    batch = pad(golden_rows(folder)[:3], spec.pad_id, 64)
    with Asker(own.grpc_url, spec) as asker:
        found = asker.ask(batch)
    wanted = open_engine(folder, spec, engine="onnx", threads=1).run(batch)
    assert found.shape == (3, 64, 384)
    assert cosines(found, wanted)[batch.mask == 1].min() >= LEAST_COSINE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{ name: "input_ids" data', '{ name: "token_ids" data', "token_ids"),
        ('{ name: "sentence_embedding" data', '{ name: "vector" data', "vector is not in the graph"),
        ('{ name: "attention_mask" data_type: TYPE_INT64', '{ name: "attention_mask" data_type: TYPE_INT32', "INT32"),
        ('"sentence_embedding" data_type: TYPE_FP32', '"sentence_embedding" data_type: TYPE_FP16', "TYPE_FP16"),
        ('"sentence_mean" data_type: TYPE_FP32 dims: [ 768', '"sentence_mean" data_type: TYPE_FP32 dims: [ 767', "767"),
        ('"input_ids" data_type: TYPE_INT64 dims: [ -1 ]', '"input_ids" data_type: TYPE_INT64 dims: [ -1, 1 ]', "dims"),
    ],
    ids=["input's name", "output's name", "input's type", "output's type", "output's size", "input's rank"],
)
def test_a_config_that_contradicts_the_graph_is_refused(
    own: TritonServer, spec: ModelSpec, request: pytest.FixtureRequest, old: str, new: str, message: str
) -> None:
    name = "wrong_" + re.sub(r"\W", "_", request.node.callspec.id)
    with pytest.raises(httpx.HTTPStatusError, match=f"load {name}: .*{message}"):
        bring(own, spec, name, (old, new))
