"""A model version gets graphs that compute in int8, one for each engine, and becomes the next version.

    python -m training quantize model_repo/me5_nano/2 --data DATA

model_int8.onnx is for ONNX Runtime, model_int8_openvino.onnx for OpenVINO (int8_graphs.py). Each is held, language by
language, to the vectors that the version gives in fp32 on texts that it was not calibrated on (parity.py); one that
falls below a limit is not written. int8.json in the version says what each language loses.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from service.engine import open_engine, vectors_of
from service.recipe.golden import Golden, Precision, load_golden, save_golden
from service.recipe.spec import (
    GOLDEN_FILE,
    INT8_FILES,
    INT8_REPORT_FILE,
    SPEC_FILE,
    TOKENIZER_FILE,
    ModelSpec,
    load_spec,
    save_spec,
)
from service.recipe.tokens import TokenBatch, load_tokenizer, pad
from training.collection import Recipe, Run, Vectors, embed_collection
from training.errors import ExportError
from training.gate_texts import Texts
from training.int8_graphs import write_onnx_dynamic, write_onnx_int8, write_openvino_int8
from training.model_card import write_version_card
from training.parity import INT8, Parity, hold, table
from training.versions import choose_version, unfinished_version

EngineName = Literal["onnx", "openvino"]
Int8Method = Literal["static", "dynamic"]

BATCH_ROWS = 16
GOLDEN_BOUND_MAX = 0.999


@dataclass(frozen=True)
class Int8Result:
    """What each engine's graph loses.   Those that lost too much are not in the version."""

    parities: dict[EngineName, Parity]

    @property
    def refused(self) -> list[EngineName]:
        """The engines whose graph lost too much in some language."""
        return [engine for engine, parity in self.parities.items() if parity.failed]


@dataclass(frozen=True)
class Quantized:
    """A finished version, and what its int8 graphs lose."""

    folder: Path
    result: Int8Result

    def describe(self) -> str:
        """For the terminal."""
        parts = [f"{parity.sentence()}\n{table(parity.lost)}" for parity in self.result.parities.values()]
        return "\n\n".join([*parts, f"{self.folder}"])


def quantize(
    folder: Path,
    texts: Texts,
    *,
    engines: Sequence[EngineName] = ("onnx", "openvino"),
    method: Int8Method = "static",
) -> Quantized:
    """Write the next version beside `folder`. Raises ExportError where no graph passes; nothing is left behind then."""
    spec = load_spec(folder)
    recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), spec.prompts, spec.max_tokens, spec.pad_id)
    target = choose_version(folder.resolve().parent, None)
    with unfinished_version(target) as staging:
        for path in folder.iterdir():
            if path.name not in (SPEC_FILE, INT8_REPORT_FILE, *INT8_FILES.values()):
                shutil.copyfile(path, staging / path.name)
        result = add_int8(staging, spec, recipe, texts, engines=engines, method=method)
        write_version_card(staging, save_spec(staging, spec))
    return Quantized(target, result)


def add_int8(
    folder: Path,
    spec: ModelSpec,
    recipe: Recipe,
    texts: Texts,
    *,
    engines: Sequence[EngineName] = ("onnx", "openvino"),
    method: Int8Method = "static",
) -> Int8Result:
    """Write int8 graphs, int8.json and the golden bound into an unfinished version.

    method: of the graph for ONNX Runtime; OpenVINO's is static always.   Raises ExportError where no graph passes.
    """
    batches = calibration_batches(recipe, texts.calibration)
    wanted = _embed(_run(folder, spec, "onnx", "fp32"), recipe, texts.gate.texts)
    golden = load_golden(folder / GOLDEN_FILE)
    parities: dict[EngineName, Parity] = {}
    worst_golden = 1.0
    for engine in engines:
        path = folder / INT8_FILES[engine]
        form = _form(engine, method)
        WRITERS[form](folder, spec, batches, path)
        run = _run(folder, spec, engine, "int8")
        parities[engine] = hold(form, INT8, texts.gate, wanted, _embed(run, recipe, texts.gate.texts))
        if parities[engine].failed:
            path.unlink()
        else:
            worst_golden = min(worst_golden, _worst_golden(run, recipe, golden))
    result = Int8Result(parities)
    if len(result.refused) == len(engines):
        raise ExportError("\n".join(parity.sentence() for parity in parities.values()))
    # Half as far again as here is left to processors that add in another order.
    bound = round(min(GOLDEN_BOUND_MAX, 1 - 1.5 * (1 - worst_golden)), 5)
    save_golden(folder / GOLDEN_FILE, Golden(golden.source, {**golden.bounds, "int8": bound}, golden.items))
    (folder / INT8_REPORT_FILE).write_text(_report(result, method), encoding="utf-8")
    return result


def calibration_batches(recipe: Recipe, texts: Sequence[str]) -> list[TokenBatch]:
    """Both prompts, as the model sees them; of like length together, which costs least padding."""
    # The texts lie language by language: every other one, so that each language is read with both.
    rows = [*recipe.rows(texts[0::2], "query"), *recipe.rows(texts[1::2], "passage")]
    rows.sort(key=len)
    return [pad(rows[start : start + BATCH_ROWS], recipe.pad_id) for start in range(0, len(rows), BATCH_ROWS)]


WRITERS: dict[str, Callable[[Path, ModelSpec, list[TokenBatch], Path], None]] = {
    "int8 static for onnx": write_onnx_int8,
    "int8 dynamic for onnx": write_onnx_dynamic,
    "int8 static for openvino": write_openvino_int8,
}


def _form(engine: EngineName, method: Int8Method) -> str:
    return f"int8 {method if engine == 'onnx' else 'static'} for {engine}"


def _run(folder: Path, spec: ModelSpec, engine: EngineName, precision: Precision) -> Run:
    opened = open_engine(folder, spec, engine=engine, precision=precision, device="cpu" if engine == "onnx" else "auto")
    return lambda batch: vectors_of(opened.run(batch), batch)


def _embed(run: Run, recipe: Recipe, texts: Sequence[str]) -> Vectors:
    return embed_collection(run, recipe, texts, "query", progress=True)


def _worst_golden(run: Run, recipe: Recipe, golden: Golden) -> float:
    rows = [recipe.rows([item.text], item.role)[0] for item in golden.items]
    found = np.concatenate([run(pad([row], recipe.pad_id)) for row in rows])
    return float((found * np.stack([item.vector for item in golden.items])).sum(axis=1).min())


def _report(result: Int8Result, method: Int8Method) -> str:
    document = {
        "format": 1,
        "method": method,
        "bounds": asdict(INT8),
        "refused": result.refused,
        "lost": {
            engine: {name: asdict(item) for name, item in parity.lost.items()}
            for engine, parity in result.parities.items()
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
