"""spec.json and golden.json on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.errors import GoldenMismatch, ModelFileError
from service.recipe.golden import Golden, GoldenItem, load_golden, prove, save_golden
from service.recipe.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS
from service.recipe.spec import PUBLISHED, ModelSpec, load_spec, save_spec

SPEC = ModelSpec(name="tiny", source="a test", prompts=E5_PROMPTS, dimension=4)


def write_version(folder: Path) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "tokenizer.json", "golden.json"):
        (folder / name).write_text(name)
    return save_spec(folder, SPEC)


def test_a_spec_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = write_version(tmp_path / "1")
    assert load_spec(tmp_path / "1") == saved
    assert set(saved.files) == {"model.onnx", "tokenizer.json", "golden.json"}


def test_an_instruct_spec_keeps_its_instructions(tmp_path: Path) -> None:
    spec = ModelSpec(name="tiny", source="", prompts=E5_INSTRUCT_PROMPTS, dimension=4)
    save_spec(tmp_path, spec)
    assert load_spec(tmp_path, verify=False).prompts == E5_INSTRUCT_PROMPTS


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json"])
def test_an_edited_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_version(tmp_path)
    (tmp_path / name).write_text("edited")
    with pytest.raises(ModelFileError, match=rf"{name} is damaged or was edited"):
        load_spec(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.json", "spec.json"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_version(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "prompts": {"zork": 1}, "inputs": []}']
)
def test_a_damaged_spec_is_refused(tmp_path: Path, text: str) -> None:
    write_version(tmp_path)
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"spec\.json"):
        load_spec(tmp_path)


def test_a_spec_that_names_no_model_file_is_refused(tmp_path: Path) -> None:
    write_version(tmp_path)
    raw = json.loads((tmp_path / "spec.json").read_text())
    del raw["files"]["model.onnx"]
    (tmp_path / "spec.json").write_text(json.dumps(raw))
    with pytest.raises(ModelFileError, match=r"names no model\.onnx"):
        load_spec(tmp_path)


def test_the_published_checkpoints_have_their_published_facts() -> None:
    facts = {name: (spec.dimension, spec.max_tokens, spec.pad_id) for name, spec in PUBLISHED.items()}
    assert facts == {
        "intfloat/multilingual-e5-small": (384, 512, 1),
        "intfloat/multilingual-e5-base": (768, 512, 1),
        "intfloat/multilingual-e5-large": (1024, 512, 1),
        "intfloat/multilingual-e5-large-instruct": (1024, 512, 1),
    }
    assert [name for name, spec in PUBLISHED.items() if spec.prompts.instruct] == [
        "intfloat/multilingual-e5-large-instruct"
    ]
    assert [name for name, spec in PUBLISHED.items() if "token_type_ids" in spec.inputs] == [
        "intfloat/multilingual-e5-small"
    ]


def golden_of(vectors: np.ndarray) -> Golden:
    items = tuple(GoldenItem(f"text {row}", "query", None, vector) for row, vector in enumerate(vectors))
    return Golden("torch", {"fp32": 0.9999, "bf16": 0.999}, items)


VECTORS = np.eye(3, 4, dtype=np.float32)


def test_golden_vectors_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    vectors = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    save_golden(path, golden_of(vectors))
    found = load_golden(path)
    assert found.source == "torch"
    assert np.array_equal(np.stack([item.vector for item in found.items]), vectors)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 1, "source": "", "bounds": {}, "items": []}'])
def test_a_damaged_golden_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=r"golden\.json"):
        load_golden(path)


def test_the_proof_gives_the_smallest_cosine() -> None:
    turned = VECTORS.copy()
    turned[1, 0] = 0.01
    assert prove(golden_of(VECTORS), turned, "fp32") == pytest.approx(1 / np.hypot(1, 0.01), abs=1e-9)


def test_the_proof_is_held_to_the_precision_it_ran_in() -> None:
    turned = VECTORS.copy()
    turned[1, 0] = 0.03
    assert prove(golden_of(VECTORS), turned, "bf16") > 0.999
    with pytest.raises(GoldenMismatch, match="text 1"):
        prove(golden_of(VECTORS), turned, "fp32")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_fails_the_proof(bad: float) -> None:
    broken = VECTORS.copy()
    broken[2, 2] = bad
    with pytest.raises(GoldenMismatch, match="text 2"):
        prove(golden_of(VECTORS), broken, "fp32")


def test_vectors_of_another_dimension_fail_the_proof() -> None:
    with pytest.raises(GoldenMismatch, match="shape"):
        prove(golden_of(VECTORS), VECTORS[:, :3], "fp32")
