"""Float16 forms of a version: what they give, what they are made of, and that damage to one language is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from faulty_engine import SHIPPED
from onnx import TensorProto
from safetensors.torch import load_file, save_file
from tiny_checkpoint import LINES, write_tiny_checkpoint

from service.engine import open_engine
from service.errors import ModelFileError
from service.recipe.spec import FP16_ATTENTION_FILE, FP16_FILE, load_spec
from service.recipe.tokens import load_tokenizer, pad
from training import float16_forms
from training.collection import Recipe
from training.errors import ExportError
from training.export import Exported, Forms, export
from training.gate_texts import Texts, texts_of_file
from training.sentence_model import SentenceModel

LAYERS = 2
KINDS = ("bert", "xlm-roberta")
LATIN = ["boats are late", "bread is cheap", "the sea is calm", "a book about bread", "one line more", "the last line"]
RUSSIAN = ["осенью желтеют листья", "вода замерзает", "листья при нуле", "вода осенью", "нуле желтеют", "листья вода"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    sides = {"en": [*LATIN, *LINES[:6]], "ru": [*RUSSIAN, *(f"{text} вода {n}" for n, text in enumerate(RUSSIAN))]}
    lines = [
        {"lang": lang, "text": text, "id": f"{number:02}"} for lang in sides for number, text in enumerate(sides[lang])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return texts_of_file(path)


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, texts: Texts) -> Exported:
    root = tmp_path_factory.mktemp("float16")
    checkpoint = write_tiny_checkpoint(root / "checkpoint", request.param)
    return export(
        checkpoint, name="tiny", model_repo=root / "repo", forms=Forms(("fp16", "fp16-attention")), texts=texts
    )


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_both_forms_are_hashed_and_reported_by_language(exported: Exported) -> None:
    spec = load_spec(exported.folder)
    assert {FP16_FILE, FP16_ATTENTION_FILE, "parity.json"} <= set(spec.files)
    report = json.loads((exported.folder / "parity.json").read_text(encoding="utf-8"))
    assert {name: sorted(form["lost"]) for name, form in report["forms"].items()} == {
        "fp16 as PyTorch computes it": ["en", "ru"],
        "fp16": ["en", "ru"],
        "fp16-attention": ["en", "ru"],
    }
    assert report["forms"]["fp16"]["lost"]["ru"]["bitext_drop"] == 0
    assert "fp16: 2 languages within the limits" in exported.describe()


def test_the_engine_opens_fp16_and_gives_float32_vectors_that_are_near_and_not_equal(exported: Exported) -> None:
    spec = load_spec(exported.folder)
    recipe = Recipe(load_tokenizer(exported.folder / "tokenizer.json"), spec.prompts, spec.max_tokens, spec.pad_id)
    batch = pad(recipe.rows([*LATIN, " ".join(LINES)], "query"), spec.pad_id)
    found, wanted = (open_engine(exported.folder, spec, precision=name).run(batch) for name in ("fp16", "fp32"))
    assert found.dtype == np.float32
    assert (found * wanted).sum(axis=1).min() > 0.9999  # 11 bits of fraction through two layers
    assert np.abs(found - wanted).max() > 1e-6
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_weights_are_float16_and_norms_and_pooling_float32(exported: Exported) -> None:
    for name in (FP16_FILE, FP16_ATTENTION_FILE):
        model = onnx.shape_inference.infer_shapes(onnx.load(exported.folder / name), data_prop=True)
        large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 1024]
        assert large
        assert {tensor.data_type for tensor in large} <= {TensorProto.FLOAT16, TensorProto.INT64}
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        # The sum over tokens and the squares of the length.
        pooled = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "ReduceSum", "ReduceL2")]
        assert sum(node.op_type == "LayerNormalization" for node in pooled) == 2 * LAYERS + 1
        floats = {types[node.input[0]] for node in pooled if types[node.input[0]] != TensorProto.INT64}
        assert floats == {TensorProto.FLOAT}


def test_opset_23_has_one_attention_node_a_layer_and_fewer_nodes(exported: Exported) -> None:
    plain, native = nodes(exported.folder / FP16_FILE), nodes(exported.folder / FP16_ATTENTION_FILE)
    assert (plain["Attention"], native["Attention"]) == (0, LAYERS)
    assert (plain["Softmax"], native["Softmax"]) == (LAYERS, 0)
    # 153 and 112 when this was written: a layer loses some twenty.
    assert native.total() <= plain.total() - 15 * LAYERS
    opsets = {
        name: onnx.load(exported.folder / name).opset_import[0].version for name in (FP16_FILE, FP16_ATTENTION_FILE)
    }
    assert opsets == {FP16_FILE: 18, FP16_ATTENTION_FILE: 23}


def test_a_language_whose_tokens_are_zeroed_is_named_and_nothing_is_published(
    tmp_path: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    latin = {part for text in LATIN for part in tokenizer.encode(f"query: {text}").ids}
    own = sorted({part for text in RUSSIAN for part in tokenizer.encode(text).ids} - latin)
    whole = float16_forms.in_float16

    def damaged(model: SentenceModel) -> SentenceModel:
        found = whole(model)
        with torch.no_grad():
            found.encoder.get_input_embeddings().weight[own] = 0
        return found

    monkeypatch.setattr(float16_forms, "in_float16", damaged)
    with pytest.raises(
        ExportError,
        match=r"fp16 as PyTorch computes it is not written.*in 1 of 2 languages: ru: mean cosine 0\.\d+",
    ):
        export(checkpoint, name="tiny", model_repo=tmp_path / "repo", forms=Forms(("fp16",)), texts=texts)
    assert list((tmp_path / "repo").iterdir()) == []


def test_a_model_whose_states_leave_float16_s_range_is_refused_where_the_cpu_s_engine_would_not_notice(
    tmp_path: Path, texts: Texts
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    # Every weight is within the range, and so is what the layer gives; the states between are not.
    weights["encoder.layer.0.intermediate.dense.weight"] *= 1e5
    weights["encoder.layer.0.output.dense.weight"] *= 1e-5
    assert max(float(part.abs().max()) for part in weights.values()) < 65504
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"fp16 as PyTorch computes it is not written"):
        export(checkpoint, name="tiny", model_repo=tmp_path / "repo", forms=Forms(("fp16",)), texts=texts)


def test_export_adds_int8_graphs_to_the_same_version(tmp_path: Path, texts: Texts) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    exported = export(checkpoint, name="tiny", model_repo=tmp_path / "repo", forms=Forms(int8="dynamic"), texts=texts)
    spec = load_spec(exported.folder)
    assert exported.folder.name == "1"
    assert exported.int8 is not None
    assert spec.int8_engines == [engine for engine in exported.int8.parities if engine not in exported.int8.refused]
    assert "onnx" in spec.int8_engines
    assert "int8 dynamic for onnx: 2 languages within the limits" in exported.describe()
    assert "| `model_int8.onnx` | int8" in (exported.folder / "README.md").read_text(encoding="utf-8")


def test_a_form_without_texts_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give --data FOLDER, or --texts FILE"):
        export(tmp_path, name="tiny", model_repo=tmp_path / "repo", forms=Forms(("fp16",)))


def test_a_version_without_a_float16_graph_says_how_to_make_one() -> None:
    with pytest.raises(ModelFileError, match="model_fp16.onnx is missing.*export CHECKPOINT --name me5_nano --fp16"):
        open_engine(SHIPPED, load_spec(SHIPPED), precision="fp16")
