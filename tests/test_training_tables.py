"""Token vectors of fewer dimensions or in four bits: trained so, and stored so in every graph of a version."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from tiny_checkpoint import DIMENSION, LINES, TOKEN_VECTORS, batch_of, change_token_vectors, write_tiny_checkpoint

from service.engine import open_engine, vectors_of
from service.recipe.spec import INT8_FILES, MODEL_FILE, load_spec
from service.settings import EngineName
from training.export import export
from training.graph_weights import read_encoder
from training.int8_graphs import write_onnx_int8, write_openvino_int8
from training.narrow import main_directions, onto_subspace
from training.nibbles import LARGEST, packed, rounded, unpacked
from training.quantize import narrowed
from training.row_adam import RowAdam
from training.sentence_model import load_sentence_model, torch_run

ENGINES: list[EngineName] = ["onnx", "openvino"]
TEXTS = LINES[::20]


@dataclass(frozen=True)
class Form:
    """stored_as: the end of the tensor's name.   row_bytes: of a token vector, without scales.   lost: at most."""

    change: Callable[[torch.Tensor], torch.Tensor]
    stored_as: str
    row_bytes: int
    lost: float


FORMS = {
    "narrow": Form(lambda table: table @ onto_subspace(table, DIMENSION // 2), "_int8", DIMENSION // 2, 0.02),
    "nibbles": Form(rounded, "_nibbles", DIMENSION // 2, 0.0),
}


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def checkpoint(form: Form, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("table") / "checkpoint", two_paths=True)
    return change_token_vectors(folder, form.change)


@pytest.fixture(scope="module")
def version(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, name="table", model_repo=tmp_path_factory.mktemp("repo"), weights="int8").folder


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


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


def test_a_table_with_one_row_that_stands_far_out_is_not_taken_for_a_rounded_one() -> None:
    table = rounded(drawn(3000, 64))
    table[5] *= 1e6
    table[2500] = drawn(1, 64, seed=1)
    assert packed(table.numpy()) is None


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
def test_a_version_stores_half_and_gives_the_checkpoints_vectors(
    form: Form, version: Path, checkpoint: Path, engine: EngineName
) -> None:
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(version / MODEL_FILE).graph.initializer}
    stored = next(values for name, values in tensors.items() if name.endswith(f"{TOKEN_VECTORS}{form.stored_as}"))
    assert stored.nbytes == len(load_file(checkpoint / "model.safetensors")[TOKEN_VECTORS]) * form.row_bytes
    batch = batch_of(version, TEXTS)
    wanted = torch_run(load_sentence_model(checkpoint))(batch)
    found = vectors_of(open_engine(version, load_spec(version), engine=engine, precision="fp32").run(batch), batch)
    assert (found * wanted).sum(axis=1).min() > 0.999


def test_the_graph_is_read_back_with_whole_token_vectors(form: Form, version: Path, checkpoint: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")[TOKEN_VECTORS].numpy()
    words = read_encoder(onnx.load(version / MODEL_FILE)).words
    assert words.shape == table.shape
    assert np.abs(words - table).max() <= form.lost * np.abs(table).max()
    assert len(main_directions(words)) == len(main_directions(table))


def test_int8_graphs_of_both_engines_keep_the_vectors(version: Path) -> None:
    batch, spec = batch_of(version, TEXTS), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    write_onnx_int8(version, spec, [batch], version / INT8_FILES["onnx"])
    write_openvino_int8(version, spec, [batch], version / INT8_FILES["openvino"])
    for engine in ENGINES:
        found = vectors_of(open_engine(version, spec, engine=engine, precision="int8").run(batch), batch)
        assert (found * wanted).sum(axis=1).min() > 0.98


def test_int8_graphs_store_a_narrow_table_narrow(tmp_path: Path) -> None:
    checkpoint = change_token_vectors(
        write_tiny_checkpoint(tmp_path / "checkpoint", two_paths=True), FORMS["narrow"].change
    )
    version = export(checkpoint, name="table", model_repo=tmp_path / "repo", weights="int8").folder
    batch, spec = batch_of(version, TEXTS), load_spec(version)
    write_onnx_int8(version, spec, [batch], version / INT8_FILES["onnx"])
    write_openvino_int8(version, spec, [batch], version / INT8_FILES["openvino"])
    for engine in ENGINES:
        graph = onnx.load(version / INT8_FILES[engine]).graph
        tables = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 3]
        assert DIMENSION // 2 in [item.dims[1] * item.dims[2] for item in tables]
