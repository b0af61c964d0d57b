"""Token vectors of fewer dimensions: they stay there in training, and every graph of a version stores them so."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tiny_checkpoint import LINES, write_tiny_checkpoint

from service.engine import open_engine, vectors_of
from service.recipe.spec import INT8_FILES, MODEL_FILE, load_spec
from service.recipe.tokens import TokenBatch, load_tokenizer, pad
from service.settings import EngineName
from training.collection import Recipe
from training.export import export
from training.graph_weights import read_encoder
from training.int8_graphs import write_onnx_int8, write_openvino_int8
from training.narrow import main_directions, onto_subspace
from training.quantize import narrowed
from training.row_adam import RowAdam
from training.sentence_model import load_sentence_model, torch_run

TABLE = "embeddings.word_embeddings.weight"
ENGINES: list[EngineName] = ["onnx", "openvino"]


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose token vectors fill half of their dimensions."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("narrow") / "checkpoint", two_paths=True)
    weights = load_file(folder / "model.safetensors")
    weights[TABLE] = weights[TABLE] @ onto_subspace(weights[TABLE], weights[TABLE].shape[1] // 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def version(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, name="narrow", model_repo=tmp_path_factory.mktemp("repo"), weights="int8").folder


def batch_of(folder: Path) -> TokenBatch:
    spec = load_spec(folder)
    recipe = Recipe(load_tokenizer(folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    return pad(recipe.rows(LINES[::20], "query"), recipe.pad_id)


def test_the_directions_are_those_that_are_filled_the_fullest_first() -> None:
    table = drawn(500, 3) * torch.tensor([1.0, 9.0, 3.0]) @ torch.linalg.qr(drawn(8, 3, seed=1))[0].T
    found = torch.from_numpy(main_directions(table.numpy()))
    assert found.shape == (3, 8)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-5, rtol=0)
    lengths = (table @ found.T).square().mean(dim=0)
    assert lengths[0] > lengths[1] > lengths[2]
    torch.testing.assert_close(table @ found.T @ found, table, atol=1e-4, rtol=0)


def test_rows_that_are_moved_within_a_subspace_never_leave_it() -> None:
    table = drawn(50, 8)
    within = onto_subspace(table, 3)
    table = table @ within
    optimizer = RowAdam(table, projection=within)
    for step in range(30):
        ids = torch.arange(step % 5, 50, 5)
        optimizer.step(ids, drawn(len(ids), 8, seed=step), learning_rate=0.1)
    torch.testing.assert_close(table @ within, table, atol=1e-4, rtol=0)
    assert len(main_directions(table.numpy())) == 3


def test_a_table_is_stored_narrow_only_where_that_saves_a_tenth() -> None:
    table = drawn(400, 32)
    assert narrowed(table.numpy())[1] is None
    columns, directions = narrowed((table @ onto_subspace(table, 16)).numpy())
    assert directions is not None
    assert (columns.shape, directions.shape) == ((400, 16), (16, 32))
    # So few rows that the directions would cost more than the columns save.
    assert narrowed((table[:20] @ onto_subspace(table[:20], 16)).numpy())[1] is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_version_stores_fewer_columns_and_gives_the_checkpoints_vectors(
    version: Path, checkpoint: Path, engine: EngineName
) -> None:
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(version / MODEL_FILE).graph.initializer}
    stored = next(values for name, values in tensors.items() if name.endswith("word_embeddings.weight_int8"))
    table = load_file(checkpoint / "model.safetensors")[TABLE]
    assert stored.reshape(len(table), -1).shape[1] == table.shape[1] // 2
    batch = batch_of(version)
    wanted = torch_run(load_sentence_model(checkpoint))(batch)
    found = vectors_of(open_engine(version, load_spec(version), engine=engine, precision="fp32").run(batch), batch)
    assert (found * wanted).sum(axis=1).min() > 0.999


def test_the_graph_is_read_back_with_whole_token_vectors(version: Path, checkpoint: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")[TABLE].numpy()
    encoder = read_encoder(onnx.load(version / MODEL_FILE))
    assert encoder.words.shape == table.shape
    assert np.abs(encoder.words - table).max() < 0.02 * np.abs(table).max()
    assert len(main_directions(encoder.words)) == table.shape[1] // 2


def test_int8_graphs_of_both_engines_store_fewer_columns_too(version: Path) -> None:
    batch, spec = batch_of(version), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    write_onnx_int8(version, spec, [batch], version / INT8_FILES["onnx"])
    write_openvino_int8(version, spec, [batch], version / INT8_FILES["openvino"])
    columns = read_encoder(onnx.load(version / MODEL_FILE)).width // 2
    for engine in ENGINES:
        graph = onnx.load(version / INT8_FILES[engine]).graph
        tables = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 3]
        assert columns in [item.dims[1] * item.dims[2] for item in tables]
        found = vectors_of(open_engine(version, spec, engine=engine, precision="int8").run(batch), batch)
        assert (found * wanted).sum(axis=1).min() > 0.98
