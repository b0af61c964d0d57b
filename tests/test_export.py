"""Export: what is written gives the checkpoint's vectors, and nothing is written otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tiny_checkpoint import DIMENSION, write_tiny_checkpoint

from service.engine import open_engine
from service.recipe.golden import load_golden
from service.recipe.prompts import Role
from service.recipe.spec import load_spec
from service.recipe.tokens import load_tokenizer, pad
from service.triton_config import render
from training.collection import Recipe
from training.errors import CheckpointError, ExportError
from training.export import (
    Proof,
    Weights,
    check,
    compare,
    export,
    prove_with,
    write_graph,
)
from training.quantize import input_gains, quantize_symmetric
from training.sentence_folder import read_sentence_folder
from training.sentence_model import load_sentence_model, torch_run
from training.versions import choose_version, unfinished_version

TEXTS = [
    "boats",
    "a line about bread and the sea, longer than the others by some words",
    "осенью желтеют листья 京都で雨の日 🙂",
    " ".join(f"line {number} of the book" for number in range(400)),  # over 512 tokens
]
# Sums of float32 in another order; int8 rounds each weight by up to 0.4 % of the largest of its channel.
BOUNDS: dict[Weights, float] = {"float32": 0.9999, "int8": 0.999}


@dataclass(frozen=True)
class Version:
    """A checkpoint and the folder it was exported to."""

    checkpoint: Path
    folder: Path
    weights: Weights

    def embed(self, texts: list[str], role: Role) -> NDArray[np.float32]:
        """The texts in one padded batch, through the gateway's recipe and engine."""
        spec = load_spec(self.folder)
        recipe = Recipe(load_tokenizer(self.folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
        return open_engine(self.folder, spec, threads=1).run(pad(recipe.rows(texts, role), spec.pad_id))


@pytest.fixture(
    scope="module",
    params=[("bert", "float32"), ("bert", "int8"), ("xlm-roberta", "int8")],
    ids="-".join,
)
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Version:
    kind, weights = request.param
    root = tmp_path_factory.mktemp("export")
    checkpoint = write_tiny_checkpoint(root / "checkpoint", kind)
    exported = export(checkpoint, name="tiny", model_repo=root / "repo", weights=weights)
    return Version(checkpoint, exported.folder, weights)


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: NDArray[np.float64] = np.einsum("nd,nd->n", left, right, dtype=np.float64) / lengths
    return found


@pytest.mark.parametrize("role", ["query", "passage"])
def test_a_version_gives_the_vectors_of_sentence_transformers_on_the_checkpoint(version: Version, role: Role) -> None:
    reference = SentenceTransformer(str(version.checkpoint), device="cpu").encode(TEXTS, prompt_name=role)
    found = version.embed(TEXTS, role)
    assert found.shape == (len(TEXTS), DIMENSION)
    assert cosines(found, reference).min() >= BOUNDS[version.weights]
    # The comparison has teeth only where texts and roles differ.
    assert cosines(found[:1], found[1:2]).max() < 0.99
    other = version.embed(TEXTS, "passage" if role == "query" else "query")
    assert cosines(found, other)[0] < 0.9999


def test_a_text_alone_gives_the_vector_of_the_same_text_in_a_padded_batch(version: Version) -> None:
    together = version.embed(TEXTS, "query")
    alone = np.concatenate([version.embed([text], "query") for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)  # float32 sums in another order


def test_vectors_have_length_one_and_point_where_the_raw_mean_points(version: Version) -> None:
    spec = load_spec(version.folder)
    recipe = Recipe(load_tokenizer(version.folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    engine, batch = open_engine(version.folder, spec, threads=1), pad(recipe.rows(TEXTS, "query"), spec.pad_id)
    unit, mean = engine.run(batch), engine.run(batch, unit=False)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=1, keepdims=True), unit, atol=1e-5)
    assert not np.allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-2)


def test_openvino_gives_the_same_vectors_as_onnx_runtime(version: Version) -> None:
    pytest.importorskip("openvino")
    spec = load_spec(version.folder)
    recipe = Recipe(load_tokenizer(version.folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    engine = open_engine(version.folder, spec, engine="openvino", precision="fp32", threads=1)
    found = engine.run(pad(recipe.rows(TEXTS, "query"), spec.pad_id))
    np.testing.assert_allclose(found, version.embed(TEXTS, "query"), atol=1e-5)


def test_a_version_holds_its_files_and_says_what_it_was_trained_with(version: Version) -> None:
    assert sorted(file.name for file in version.folder.iterdir()) == [
        "README.md", "golden.json", "model.onnx", "spec.json", "tokenizer.json"
    ]  # fmt: skip
    spec = load_spec(version.folder)
    assert sorted(spec.files) == ["golden.json", "model.onnx", "tokenizer.json"]
    assert (spec.name, spec.dimension, spec.max_tokens, spec.pad_id) == ("tiny", DIMENSION, 512, 1)
    assert (spec.prompts.query, spec.prompts.passage, spec.weights) == ("query: ", "passage: ", version.weights)
    assert str(version.checkpoint.parent) not in (version.folder / "spec.json").read_text(encoding="utf-8")


def test_a_version_names_no_file_of_the_machine_that_exports(version: Version) -> None:
    graph = (version.folder / "model.onnx").read_bytes()
    for folder in (Path(__file__).parent.parent, Path(onnx.__file__).parent.parent):
        assert str(folder).encode() not in graph
    assert b"stack_trace" not in graph


def test_a_new_model_gets_tritons_config(version: Version) -> None:
    config = version.folder.parent / "config.pbtxt"
    assert config.read_text(encoding="utf-8") == render(load_spec(version.folder))


def test_golden_texts_cover_both_roles_the_limit_and_a_text_that_has_its_prompt(version: Version) -> None:
    golden, spec = load_golden(version.folder / "golden.json"), load_spec(version.folder)
    tokenizer = load_tokenizer(version.folder / "tokenizer.json")
    assert 16 <= len(golden.items) <= 20
    assert {item.role for item in golden.items} == {"query", "passage"}
    assert max(len(tokenizer.encode(item.text).ids) for item in golden.items) > spec.max_tokens
    assert any(item.text.startswith(spec.prompts.passage) for item in golden.items)
    assert golden.bounds["fp32"] == BOUNDS[version.weights]


def test_int8_tables_stay_int8_and_no_large_float_tensor_is_left(version: Version) -> None:
    if version.weights != "int8":
        pytest.skip("about stored int8")
    tensors = onnx.load(version.folder / "model.onnx").graph.initializer
    large = [tensor for tensor in tensors if np.prod(tensor.dims) >= 4096]
    assert large
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.INT8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def test_weights_that_int8_cannot_hold_are_refused_with_the_figures_and_leave_nothing(tmp_path: Path) -> None:
    steep = write_tiny_checkpoint(tmp_path / "steep", spread=3.0)
    with pytest.raises(ExportError, match=r"cosine 0\.\d+ \(bound 0\.999\)"):
        export(steep, name="tiny", model_repo=tmp_path / "repo", weights="int8")
    assert list((tmp_path / "repo").iterdir()) == []


def test_a_version_over_the_size_limit_is_refused_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="allowed are 1,000"):
        export(checkpoint, name="tiny", model_repo=tmp_path, max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_version_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "3").mkdir(parents=True)
    with pytest.raises(ExportError, match="versions are never edited"):
        export(checkpoint, name="tiny", model_repo=tmp_path, version=3)
    assert list((tmp_path / "tiny" / "3").iterdir()) == []


def test_the_default_version_is_the_number_after_the_highest(tmp_path: Path) -> None:
    assert choose_version(tmp_path / "tiny", None) == tmp_path / "tiny" / "1"
    (tmp_path / "tiny" / "3").mkdir(parents=True)
    assert choose_version(tmp_path / "tiny", None) == tmp_path / "tiny" / "4"


def test_an_interrupted_export_never_shows_a_version(tmp_path: Path) -> None:
    target = tmp_path / "tiny" / "1"

    def interrupted() -> None:
        with unfinished_version(target) as staging:
            (staging / "model.onnx").write_bytes(b"half a model")
            assert not any(folder.name.isdecimal() for folder in target.parent.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_two_exports_of_one_version_leave_the_one_that_finished_first(tmp_path: Path) -> None:
    target = tmp_path / "tiny" / "1"

    def second() -> None:
        with unfinished_version(target) as staging:
            (staging / "model.onnx").write_bytes(b"second")
            target.mkdir()
            (target / "model.onnx").write_bytes(b"first")

    with pytest.raises(ExportError, match="can't rename"):
        second()
    assert [file.read_bytes() for file in target.iterdir()] == [b"first"]
    assert [folder.name for folder in target.parent.iterdir()] == ["1"]


def test_the_proof_notices_the_vectors_of_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    folder = read_sentence_folder(checkpoint)
    recipe = Recipe(load_tokenizer(checkpoint / "tokenizer.json"), folder.prompts, folder.max_tokens, folder.pad_id)
    golden = prove_with(torch_run(load_sentence_model(checkpoint)), recipe, {"fp32": 0.9999})
    other = torch_run(load_sentence_model(write_tiny_checkpoint(tmp_path / "other", seed=1)))
    with pytest.raises(ExportError, match="does not give the checkpoint's vectors"):
        check(compare(other, recipe, golden), golden.bounds["fp32"])


@pytest.mark.parametrize(
    "proof", [Proof(float("nan"), 1, 0, 1), Proof(1, 0.99, 0, 1), Proof(1, 1, 1e-3, 1), Proof(1, 1, 0, 0.9)]
)
def test_any_one_failing_figure_refuses_the_version(proof: Proof) -> None:
    with pytest.raises(ExportError):
        check(proof, 0.9999)


def test_a_large_model_is_written_in_two_files_that_run(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(load_sentence_model(checkpoint), read_sentence_folder(checkpoint), path, "int8", 1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.array([[0, 5, 6, 2]])
    assert session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0].shape == (1, DIMENSION)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "gpt2"}, "model_type 'gpt2'"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "only the mean"),
        ("config_sentence_transformers.json", {"prompts": {}}, "no prompts for both roles"),
        ("config.json", {"vocab_size": 10}, "not of the same training"),
    ],
)
def test_a_checkpoint_that_is_something_else_is_refused(
    checkpoint: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_sentence_folder(folder)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="lacks 16 of the model's tensors"):
        load_sentence_model(folder)


@pytest.mark.parametrize("axis", [0, 1])
def test_rounding_to_int8_is_off_by_half_a_step_at_most(axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((30, 50)).astype(np.float32)
    values[0], values[:, 0] = 0, 0
    quantised, scales = quantize_symmetric(values, axis)
    assert quantised.min() >= -127
    assert np.all(np.abs(quantised * scales - values) <= scales / 2 * (1 + 1e-5))


def test_input_gains_are_never_zero() -> None:
    matrix = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(input_gains(matrix), np.ones((3, 1)))
    matrix[1] = 2
    assert np.all(input_gains(matrix) > 0)
