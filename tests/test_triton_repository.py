"""The committed model repository in a real Triton: started as it is, batched, overloaded, published into."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
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


def busy_with(asker: Asker, batch: TokenBatch) -> Future[NDArray[np.float32]]:
    """Send a batch that is being computed, all of a delay long, when this returns."""
    sent = asker.send(batch, priority=INTERACTIVE_PRIORITY)
    time.sleep(0.1)
    assert not sent.done()
    return sent


def test_the_committed_repository_starts_though_four_of_its_models_have_no_weights(triton: TritonServer) -> None:
    rows = httpx.post(f"{triton.http_url}/v2/repository/index", json={}).raise_for_status().json()
    assert sorted({row["name"] for row in rows}) == sorted([NAME, *WITHOUT_WEIGHTS])
    assert [(row["name"], row["version"]) for row in rows if row.get("state") == "READY"] == [(NAME, "1")]


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_loading_a_model_without_weights_fails_and_harms_nothing(triton: TritonServer, name: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=f"load {name}.*at least one version"):
        triton.load(name)
    assert triton.model_ready(NAME)


def test_every_width_is_computed_alone_and_with_company_before_the_model_is_ready(triton: TritonServer) -> None:
    config = text_format.Parse((MODEL_REPO / NAME / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    before = triton.log_text().split(f"successfully loaded '{NAME}'")[0]
    ran = re.findall(rf"stand-in: {NAME} 1 runs (\d+x\d+) of", before)
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
    triton.set_delay(400)
    before = triton.statistics(NAME)
    first = busy_with(asker, of_shape(1, 32, spec))
    found = [sent.result(ANSWER_MAX_S) for sent in [asker.send(batch) for batch in texts]]
    first.result(ANSWER_MAX_S)
    after = triton.statistics(NAME)
    assert after["inference_count"] - before["inference_count"] == 25
    # The first one alone; what came meanwhile, by eights.
    assert after["execution_count"] - before["execution_count"] == 1 + 24 // JOINED_ROWS["onnx"]
    assert cosines(np.concatenate(found), np.concatenate(alone)).min() >= LEAST_COSINE


def test_requests_of_different_widths_are_not(triton: TritonServer, asker: Asker, spec: ModelSpec) -> None:
    triton.set_delay(200)
    before = triton.statistics(NAME)
    sent = [busy_with(asker, of_shape(1, 32, spec))]
    sent += [asker.send(of_shape(1, width, spec)) for width in (32, 64, 128, 256, 512)]
    assert [answer.result(ANSWER_MAX_S).shape for answer in sent] == [(1, spec.dimension)] * 6
    after = triton.statistics(NAME)
    assert after["execution_count"] - before["execution_count"] == 6


def test_a_request_of_more_rows_than_are_joined_is_computed_whole(
    triton: TritonServer, asker: Asker, spec: ModelSpec
) -> None:
    before = triton.statistics(NAME)
    assert asker.ask(of_shape(256, 32, spec)).shape == (256, spec.dimension)
    assert triton.statistics(NAME)["execution_count"] - before["execution_count"] == 1
    with pytest.raises(InferenceServerException, match=r"batch-size must be <= 256"):
        asker.ask(of_shape(257, 32, spec))


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_there_is_room(
    own: TritonServer, spec: ModelSpec
) -> None:
    with bring(own, spec, "short_queue", ("max_queue_size: 256", "max_queue_size: 4")) as asker:
        own.set_delay(1000)
        first = busy_with(asker, of_shape(8, 32, spec))
        sent = [asker.send(of_shape(8, 32, spec)) for _ in range(16)]
        refused = [answer.exception() for answer in wait(sent, timeout=0.5).done]
        assert len(refused) >= 8
        for error in refused:
            assert isinstance(error, InferenceServerException)
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert "Exceeds maximum queue size" in error.message()
        own.set_delay(0)
        assert first.result(ANSWER_MAX_S).shape == (8, spec.dimension)
        answered = [answer for answer in sent if answer.exception(ANSWER_MAX_S) is None]
        assert 4 <= len(answered) == 16 - len(refused)
        assert asker.ask(of_shape(8, 32, spec)).shape == (8, spec.dimension)


def test_a_request_leaves_the_queue_when_its_own_time_is_up(own: TritonServer, spec: ModelSpec) -> None:
    with bring(own, spec, "own_time") as asker:
        own.set_delay(600)
        first = busy_with(asker, of_shape(8, 32, spec))
        filling = asker.send(of_shape(8, 32, spec))
        hurried, patient = asker.send(of_shape(8, 32, spec), timeout_s=0.2), asker.send(of_shape(8, 32, spec))
        error = hurried.exception(ANSWER_MAX_S)
        assert isinstance(error, InferenceServerException)
        assert (error.status(), error.message()) == ("StatusCode.UNAVAILABLE", "Request timeout expired")
        for answer in (first, filling, patient):
            assert answer.result(ANSWER_MAX_S).shape == (8, spec.dimension)


def test_a_request_can_not_ask_for_more_time_than_the_model_gives(own: TritonServer, spec: ModelSpec) -> None:
    edit = ("default_timeout_microseconds: 60000000", "default_timeout_microseconds: 200000")
    with bring(own, spec, "little_time", edit) as asker:
        own.set_delay(600)
        busy_with(asker, of_shape(8, 32, spec))
        asker.send(of_shape(8, 32, spec))
        error = asker.send(of_shape(8, 32, spec), timeout_s=30).exception(ANSWER_MAX_S)
        assert isinstance(error, InferenceServerException)
        assert error.message() == "Request timeout expired"


def test_an_interactive_request_overtakes_bulk_and_those_that_do_not_say(own: TritonServer, spec: ModelSpec) -> None:
    with bring(own, spec, "lanes") as asker:
        own.set_delay(200)
        done: list[str] = []
        sent = [busy_with(asker, of_shape(8, 32, spec))]
        # Of eight rows, so that none is joined with another.
        for place, priority in enumerate([BULK_PRIORITY, 0, BULK_PRIORITY, 0, BULK_PRIORITY, 0]):
            answer = asker.send(of_shape(8, 32, spec), priority=priority)
            answer.add_done_callback(lambda _, place=place: done.append(f"bulk {place}"))
            sent.append(answer)
        time.sleep(0.02)
        query = asker.send(of_shape(1, 32, spec), priority=INTERACTIVE_PRIORITY)
        query.add_done_callback(lambda _: done.append("query"))
        wait([*sent, query], timeout=ANSWER_MAX_S)
        assert len(done) == 7
        # One batch may have been handed to the instance before the query came.
        assert done.index("query") <= 1


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
            wait_until_gone(own, name, 2)
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


def wait_until_gone(server: TritonServer, name: str, version: int) -> None:
    give_up = time.monotonic() + 30
    while server.model_ready(name, version):
        assert time.monotonic() < give_up, f"version {version} of {name} still answers\n{server.log_text()}"
        time.sleep(0.05)


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
        ('"sentence_mean" data_type: TYPE_FP32 dims: [ 384', '"sentence_mean" data_type: TYPE_FP32 dims: [ 383', "383"),
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
