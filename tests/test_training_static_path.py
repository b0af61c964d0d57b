"""The path beside the layers: one formula however the tokens come, and every graph that is made of a checkpoint."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoint import LINES, batch_of, int8_vectors, write_tiny_checkpoint

from service.engine import open_engine, vectors_of
from service.recipe.spec import MODEL_FILE, load_spec
from service.settings import EngineName
from training.collection import Vectors
from training.export import Weights, export
from training.fused_graph import fused_graph
from training.graph_weights import read_encoder
from training.int8_graphs import find_shape
from training.plain_graph import plain_graph
from training.sentence_model import load_sentence_model, torch_run
from training.static_path import StaticPath, load_static_path, rotation_onto

TEXTS = [*LINES[::20], *LINES[-7:]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("two") / "checkpoint", two_paths=True)


@pytest.fixture(scope="module", params=["float32", "int8"])
def version(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    weights: Weights = request.param
    return export(checkpoint, name="two", model_repo=tmp_path_factory.mktemp("repo"), weights=weights).folder


def worst_cosine(found: Vectors, wanted: Vectors) -> float:
    return float((found * wanted).sum(axis=1).min())


def static_path() -> StaticPath:
    drawn = torch.Generator().manual_seed(0)
    weights = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.5], [1.0]])
    return StaticPath(weights, torch.randn(8, generator=drawn), torch.randn(8, 8, generator=drawn), torch.tensor(0.25))


def test_a_text_is_the_weighted_sum_of_its_tokens_under_the_matrix_padded_or_not() -> None:
    static, table = static_path(), torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    first = (0.5 * (table[4] - static.middle) + 2 * (table[5] - static.middle)) @ static.matrix
    second = 0.5 * (table[4] - static.middle) @ static.matrix
    wanted = torch.nn.functional.normalize(torch.stack([first, second]))
    ids, mask = torch.tensor([[0, 4, 5, 5, 2], [0, 4, 2, 1, 1]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    torch.testing.assert_close(static(ids, mask, table[ids]), wanted)
    rows = [np.array([0, 4, 5, 5, 2], dtype=np.int32), np.array([0, 4, 2], dtype=np.int32)]
    distinct = torch.tensor([0, 2, 4, 5])
    torch.testing.assert_close(static.of_rows(rows, distinct, table[distinct]), wanted)


def test_the_share_is_that_of_two_vectors_of_length_one() -> None:
    mean, static = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    path = StaticPath(torch.ones(6, 1), torch.zeros(2), torch.eye(2), torch.tensor(0.25))
    torch.testing.assert_close(path.beside(mean, static), torch.tensor([[0.75, 0.25]]))


def test_a_rotation_is_found_again_and_keeps_cosines() -> None:
    drawn = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(200, 16, generator=drawn))
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=drawn))
    found = rotation_onto(vectors, vectors @ rotation)
    torch.testing.assert_close(found, rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close((vectors @ found) @ (vectors @ found).T, vectors @ vectors.T, atol=1e-4, rtol=0)


def test_a_checkpoint_without_the_file_has_layers_alone(tmp_path: Path) -> None:
    assert load_static_path(write_tiny_checkpoint(tmp_path / "one")) is None


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_both_engines_give_the_checkpoints_vectors(version: Path, checkpoint: Path, engine: EngineName) -> None:
    batch, spec = batch_of(version, TEXTS), load_spec(version)
    wanted = torch_run(load_sentence_model(checkpoint))(batch)
    found = vectors_of(open_engine(version, spec, engine=engine, precision="fp32").run(batch), batch)
    assert worst_cosine(found, wanted) > (0.99999 if spec.weights == "float32" else 0.999)
    # And the static path is part of them.
    layers = load_sentence_model(checkpoint)
    layers.static = None
    assert worst_cosine(torch_run(layers)(batch), wanted) < 0.95


def test_the_fused_and_the_plain_graph_are_the_same_function(version: Path, tmp_path: Path) -> None:
    batch, spec = batch_of(version, TEXTS), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    encoder = read_encoder(onnx.load(version / MODEL_FILE))
    assert encoder.static is not None
    shape = find_shape(encoder, version, spec, batch, tmp_path)
    for graph in (fused_graph(encoder, shape, spec), plain_graph(encoder, shape, spec)):
        folder = tmp_path / graph.producer_name
        folder.mkdir(exist_ok=True)
        onnx.save(graph, folder / MODEL_FILE)
        found = vectors_of(open_engine(folder, spec, engine="onnx", precision="fp32").run(batch), batch)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_int8_of_both_engines_keeps_the_static_path(version: Path) -> None:
    batch, spec = batch_of(version, TEXTS), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    for found in int8_vectors(version, batch):
        assert worst_cosine(found, wanted) > 0.98
