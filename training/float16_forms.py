"""A version's graphs in float16, for GPUs: held to float32 as PyTorch's halves and as ONNX Runtime reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from service.recipe.golden import Golden, prove
from service.recipe.spec import FP16_ATTENTION_FILE, FP16_FILE, ModelSpec
from service.recipe.tokens import pad
from training.collection import Recipe, Vectors, embed_collection
from training.graph_run import graph_run
from training.parity import FLOAT16, GateTexts, Parity, hold
from training.sentence_model import SentenceModel, torch_run
from training.tracing import ATTENTION_OPSET, EXTERNAL_ABOVE_BYTES, OPSET, in_float16, trace

Float16Form = Literal["fp16", "fp16-attention"]
PARITY_FILE = "parity.json"

# fp16 is what every reader takes, TensorRT first of all; fp16-attention has one Attention node a layer.
FILES: dict[Float16Form, tuple[str, int]] = {
    "fp16": (FP16_FILE, OPSET),
    "fp16-attention": (FP16_ATTENTION_FILE, ATTENTION_OPSET),
}


def add_float16(
    folder: Path,
    spec: ModelSpec,
    model: SentenceModel,
    recipe: Recipe,
    golden: Golden,
    forms: Sequence[Float16Form],
    gate: GateTexts,
    wanted: Vectors,
) -> list[Parity]:
    """Write the forms into an unfinished version, and parity.json with what each loses in each language.

    wanted: the vectors of the gate's texts by the version's float32 graph.   Raises ExportError where a language lost
    too much, and GoldenMismatch where a golden text did.
    """
    halved = in_float16(model)
    # ONNX Runtime computes float16 graphs in float32 on a CPU: it would not see a value that leaves float16's range.
    # PyTorch stores every state as a half.
    arithmetic = embed_collection(torch_run(halved), recipe, gate.texts, "query", progress=True)
    parities = [hold("fp16 as PyTorch computes it", FLOAT16, gate, wanted, arithmetic)]
    parities[0].check()
    for form in forms:
        name, opset = FILES[form]
        write_float16(halved, spec, folder / name, opset)
        run = graph_run(folder / name, spec)
        found = embed_collection(run, recipe, gate.texts, "query", progress=True)
        parity = hold(form, FLOAT16, gate, wanted, found)
        parity.check()
        rows = [recipe.rows([item.text], item.role)[0] for item in golden.items]
        prove(golden, np.concatenate([run(pad([row], recipe.pad_id)) for row in rows]), "fp16")
        parities.append(parity)
    report = {"format": 1, "forms": {parity.form: parity.as_json() for parity in parities}}
    (folder / PARITY_FILE).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return parities


def write_float16(
    halved: SentenceModel, spec: ModelSpec, path: Path, opset: int, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> None:
    """Trace a model that is in float16 already; above external_above_bytes of weights into two files."""
    weights_bytes = sum(values.numel() * values.element_size() for values in halved.parameters())
    trace(halved, spec.pad_id, path, external=weights_bytes > external_above_bytes, opset=opset)
    onnx.checker.check_model(str(path))
