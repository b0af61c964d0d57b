"""The path behind the meaning: what it computes, whatever writes it down, and what it is there for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_checkpoint import DIMENSION, LINES, PASSAGE_ID, batch_of, int8_vectors, write_tiny_checkpoint

from service.engine import open_engine, vectors_of
from service.graph_states import states_tensor
from service.recipe.pooling import l2_normalize
from service.recipe.spec import MODEL_FILE, load_spec
from service.recipe.tokens import TokenBatch
from service.settings import EngineName
from training import two_paths_modules
from training.collection import Vectors
from training.export import Weights, export
from training.fused_graph import fused_graph
from training.graph_weights import read_encoder
from training.int8_graphs import find_shape
from training.lexical_path import (
    LOW_ROWS,
    LexicalPath,
    draw_lexical_path,
    lexical_weights,
    load_lexical_path,
    told_scales,
)
from training.plain_graph import plain_graph
from training.sentence_model import load_sentence_model, torch_run
from training.token_store import TokenStore
from training.tokenizer import SPECIAL_TOKENS
from training.tracing import in_float16

TEXTS = [*LINES[::20], *LINES[-7:]]
WIDTH = 96


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("three") / "checkpoint", two_paths=True, lexical_width=WIDTH)


@pytest.fixture(scope="module", params=["float32", "int8"])
def version(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    weights: Weights = request.param
    return export(checkpoint, name="three", model_repo=tmp_path_factory.mktemp("repo"), weights=weights).folder


def of_both_roles(version: Path) -> TokenBatch:
    """Texts of which every second one begins as a passage's prompt does."""
    batch = batch_of(version, TEXTS)
    ids = batch.ids.copy()
    ids[::2, 1], ids[1::2, 1] = PASSAGE_ID, PASSAGE_ID + 1
    return TokenBatch(ids, batch.mask)


def test_a_text_is_the_weighted_sum_of_its_tokens_codes_padded_or_not() -> None:
    path = draw_lexical_path(torch.linspace(0, 5, 3 * LOW_ROWS)[:, None], WIDTH, (0.5, 1.0), 7, seed=1)
    tokens = [3, LOW_ROWS - 1, LOW_ROWS, 3 * LOW_ROWS - 1, LOW_ROWS]
    codes = [path.low[token % LOW_ROWS] * path.high[token // LOW_ROWS] for token in tokens]
    assert {int(sign) for code in codes for sign in code} == {-1, 1}
    total = sum(path.weights[token] * code.float() for token, code in zip(tokens, codes, strict=True))
    wanted = 0.5 * torch.nn.functional.normalize(torch.as_tensor(total)[None])
    ids, mask = torch.tensor([[*tokens, 1, 1]]), torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(path(ids, mask), wanted)
    torch.testing.assert_close(path(ids[:, :5], mask[:, :5]), wanted)


def test_a_passage_is_told_by_its_prompt_and_has_a_length_of_its_own() -> None:
    path = draw_lexical_path(torch.ones(16, 1), WIDTH, (0.5, 1.0), 7, seed=1)
    ids = torch.tensor([[0, 6, 7, 5, 2], [0, 7, 6, 5, 2]])
    found = torch.linalg.norm(path(ids, torch.ones_like(ids)), dim=1)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0]))
    assert path(ids[:, :1], torch.ones(2, 1, dtype=torch.int64)).shape == (2, WIDTH)


def test_roles_whose_prompts_begin_alike_have_one_scale_and_the_same_product() -> None:
    assert told_scales((0.25, 1.0), (6, 7)) == (0.25, 1.0)
    assert told_scales((0.25, 1.0), (6, 6)) == (0.5, 0.5)


def test_sentence_transformers_module_tells_a_passage_as_we_do_in_a_text_of_one_token_too() -> None:
    ours = draw_lexical_path(torch.ones(16, 1), WIDTH, (0.5, 1.0), 7, seed=1)
    theirs = two_paths_modules.LexicalPath(vocab_size=16, high_rows=1, dimension=2, width=WIDTH)
    theirs.load_state_dict(ours.state_dict())
    for ids in (torch.tensor([[0, 6, 7, 5, 2], [0, 7, 6, 5, 2]]), torch.tensor([[7]])):
        features = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "sentence_embedding": torch.ones(len(ids), 2),
        }
        found = theirs.forward(features)["sentence_embedding"]
        torch.testing.assert_close(found[:, 2:], ours(ids, torch.ones_like(ids)))


def test_a_text_of_tokens_without_weight_has_a_lexical_part_of_zeros() -> None:
    path = draw_lexical_path(torch.zeros(8, 1), WIDTH, (0.5, 1.0), 7, seed=1)
    assert not path(torch.tensor([[0, 5, 2]]), torch.ones(1, 3, dtype=torch.int64)).any()


def test_cosines_are_those_of_weighted_word_counts() -> None:
    size, drawn = 5000, np.random.default_rng(0)
    path = draw_lexical_path(torch.ones(size, 1), 4096, (0.5, 1.0), 7, seed=1)
    counts = np.zeros((2, size), dtype=np.float32)
    rows = drawn.integers(4, size, (2, 30))
    rows[1, :12] = rows[0, :12]
    for count, row in zip(counts, rows, strict=True):
        np.add.at(count, row, 1)
    exact = counts[0] @ counts[1] / np.prod(np.linalg.norm(counts, axis=1))
    first, second = path(torch.from_numpy(rows), torch.ones(2, 30, dtype=torch.int64))
    # Five times the error that a projection onto so many numbers has.
    assert abs(float(torch.cosine_similarity(first, second, dim=0)) - exact) < 5 / np.sqrt(4096)
    assert exact > 0.35


def test_the_meaning_comes_first_and_has_length_one() -> None:
    both = LexicalPath.behind(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(both, torch.tensor([[0.6, 0.8, 0.5, 0.0, 0.0, 0.0]]))


def test_rare_tokens_weigh_most_special_ones_nothing_and_a_prefix_as_what_every_second_text_holds() -> None:
    # Token 4 in all of eight texts, twice in one; 5 in four; 6 in one; 7 in none; 8 and 9 are prefixes.
    texts = [[4, 4, 5, 6], [4, 5], [4, 5], [4, 5], *[[4]] * 4]
    starts = np.cumsum([0, *(len(text) for text in texts)])
    store = TokenStore(np.array([token for text in texts for token in text], dtype=np.int32), starts)
    weights = lexical_weights(store, [np.array([8], dtype=np.int32), np.array([9], dtype=np.int32)], 10)[:, 0]
    assert not weights[: len(SPECIAL_TOKENS)].any()
    wanted = np.log1p(8 / (np.array([8, 4, 1, 0, 4, 4]) + 0.5))
    np.testing.assert_allclose(weights[4:].numpy(), wanted, rtol=1e-6)


def test_a_checkpoint_without_the_file_has_no_such_path(tmp_path: Path) -> None:
    assert load_lexical_path(write_tiny_checkpoint(tmp_path / "two", two_paths=True)) is None


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_both_engines_give_the_checkpoints_vectors(version: Path, checkpoint: Path, engine: EngineName) -> None:
    batch, spec = of_both_roles(version), load_spec(version)
    assert (spec.dimension, spec.states_dimension) == (DIMENSION + WIDTH, DIMENSION)
    wanted = torch_run(load_sentence_model(checkpoint))(batch)
    found = vectors_of(open_engine(version, spec, engine=engine, precision="fp32").run(batch), batch)
    assert found.shape == wanted.shape == (len(TEXTS), DIMENSION + WIDTH)
    assert worst_cosine(found, wanted) > (0.99999 if spec.weights == "float32" else 0.999)


def test_cut_behind_the_meaning_a_vector_is_that_of_two_paths(checkpoint: Path, version: Path) -> None:
    batch = of_both_roles(version)
    three = load_sentence_model(checkpoint)
    found = torch_run(three)(batch)[:, :DIMENSION]
    three.lexical = None
    wanted = torch_run(three)(batch)
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=1, keepdims=True), wanted, atol=1e-6)


def test_in_float16_the_codes_are_floats_and_the_vectors_the_same(checkpoint: Path, version: Path) -> None:
    model, batch = load_sentence_model(checkpoint), of_both_roles(version)
    halved = in_float16(model)
    assert halved.lexical is not None
    assert halved.lexical.low.dtype == halved.lexical.high.dtype == torch.float16
    assert worst_cosine(torch_run(halved)(batch), torch_run(model)(batch)) > 0.999


def test_the_fused_and_the_plain_graph_are_the_same_function(version: Path, tmp_path: Path) -> None:
    batch, spec = of_both_roles(version), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    encoder = read_encoder(onnx.load(version / MODEL_FILE))
    assert encoder.lexical is not None
    shape = find_shape(encoder, version, spec, batch, tmp_path)
    for name, graph in (
        ("fused", fused_graph(encoder, shape, spec)),
        ("plain", plain_graph(encoder, shape, spec)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(graph, folder / MODEL_FILE)
        found = vectors_of(open_engine(folder, spec, engine="onnx", precision="fp32").run(batch), batch)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert states_tensor(folder / MODEL_FILE, spec) == "states"


def test_int8_of_both_engines_keeps_which_tokens_a_text_holds(version: Path) -> None:
    batch, spec = of_both_roles(version), load_spec(version)
    wanted = vectors_of(open_engine(version, spec, engine="onnx", precision="fp32").run(batch), batch)
    for found in int8_vectors(version, batch):
        assert worst_cosine(found, wanted) > 0.98
        assert worst_cosine(*(l2_normalize(vectors[:, DIMENSION:]) for vectors in (found, wanted))) > 0.999


def worst_cosine(found: Vectors, wanted: Vectors) -> float:
    return float((found * wanted).sum(axis=1).min())
