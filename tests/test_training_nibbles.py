"""Token vectors in four bits: trained as they are stored, so that storing loses nothing."""

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
from training.nibbles import LARGEST, packed, rounded, unpacked
from training.row_adam import RowAdam
from training.sentence_model import load_sentence_model, torch_run

TABLE = "embeddings.word_embeddings.weight"
ENGINES: list[EngineName] = ["onnx", "openvino"]


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose token vectors are rounded."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("nibbles") / "checkpoint", two_paths=True)
    weights = load_file(folder / "model.safetensors")
    weights[TABLE] = rounded(weights[TABLE])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def version(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, name="nibbles", model_repo=tmp_path_factory.mktemp("repo"), weights="int8").folder


def batch_of(folder: Path) -> TokenBatch:
    spec = load_spec(folder)
    recipe = Recipe(load_tokenizer(folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    return pad(recipe.rows(LINES[::20], "query"), recipe.pad_id)


def test_what_is_rounded_is_near_and_is_not_changed_by_rounding_again() -> None:
    table = drawn(200, 64)
    # Rows of all sizes, and one of zeros.
    table *= torch.logspace(-6, 3, 200)[:, None]
    table[7] = 0
    found = rounded(table)
    assert torch.equal(rounded(found), found)
    near = torch.nn.functional.cosine_similarity(found, table)
    assert near[torch.arange(200) != 7].min() > 0.98
    assert torch.equal(found[7], torch.zeros(64))
    groups = found.reshape(200, 2, 32)
    steps = groups / groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-30) * LARGEST
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


def test_a_rounded_table_is_packed_and_unpacked_to_the_last_bit_and_no_other_is_packed() -> None:
    table = rounded(drawn(300, 64)).numpy()
    found = packed(table)
    assert found is not None
    pairs, scales = found
    assert (pairs.dtype, pairs.shape, scales.dtype, scales.shape) == (np.uint8, (300, 32), np.float16, (300, 2, 1))
    np.testing.assert_array_equal(unpacked(pairs, scales), table)
    assert packed(drawn(300, 64).numpy()) is None
    assert packed(np.zeros((300, 96 // 2), dtype=np.float32)) is None


def test_rows_are_read_rounded_and_small_gradients_add_up_in_what_is_not() -> None:
    table = drawn(4, 32)
    optimizer = RowAdam(table, rounding=rounded)
    ids, before = torch.tensor([1, 3]), rounded(table)
    assert torch.equal(optimizer.gather(ids), before[ids])
    for _ in range(200):
        optimizer.step(ids, torch.ones(2, 32), learning_rate=1e-3)
    after = rounded(table)
    assert (after[ids] < before[ids]).float().mean() > 0.5
    assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_version_stores_half_a_byte_for_a_value_and_gives_the_checkpoints_vectors(
    version: Path, checkpoint: Path, engine: EngineName
) -> None:
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(version / MODEL_FILE).graph.initializer}
    stored = next(values for name, values in tensors.items() if name.endswith("word_embeddings.weight_nibbles"))
    table = load_file(checkpoint / "model.safetensors")[TABLE]
    assert stored.nbytes * 2 == table.numel()
    batch = batch_of(version)
    wanted = torch_run(load_sentence_model(checkpoint))(batch)
    found = vectors_of(open_engine(version, load_spec(version), engine=engine, precision="fp32").run(batch), batch)
    assert (found * wanted).sum(axis=1).min() > 0.999


def test_the_graph_is_read_back_to_the_last_bit(version: Path, checkpoint: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")[TABLE].numpy()
    np.testing.assert_array_equal(read_encoder(onnx.load(version / MODEL_FILE)).words, table)


def test_int8_graphs_of_both_engines_keep_the_vectors(version: Path) -> None:
    batch, spec = batch_of(version), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    write_onnx_int8(version, spec, [batch], version / INT8_FILES["onnx"])
    write_openvino_int8(version, spec, [batch], version / INT8_FILES["openvino"])
    for engine in ENGINES:
        found = vectors_of(open_engine(version, spec, engine=engine, precision="int8").run(batch), batch)
        assert (found * wanted).sum(axis=1).min() > 0.98
