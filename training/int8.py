"""A model version gets graphs that compute in int8, one for each engine, and becomes the next version.

    python -m training quantize model_repo/me5_nano/1 --data DATA

model_int8.onnx is for ONNX Runtime (fused_graph.py), model_int8_openvino.onnx for OpenVINO (quantised by nncf). Each is
held, language by language, to the vectors that the version gives in fp32 on texts that it was not calibrated on; one
that falls below a bound is not written. int8.json in the version says what each language loses.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from service.engine import open_engine, vectors_of
from service.recipe.golden import Golden, Precision, load_golden, save_golden
from service.recipe.spec import (
    GOLDEN_FILE,
    INT8_FILES,
    INT8_REPORT_FILE,
    MODEL_FILE,
    SPEC_FILE,
    TOKENIZER_FILE,
    ModelSpec,
    load_spec,
    save_spec,
)
from service.recipe.tokens import TokenBatch, load_tokenizer, pad
from training.calibration import input_scales, observe
from training.collection import Recipe, Run, Vectors, embed_collection
from training.errors import ExportError
from training.export import choose_version, unfinished_version
from training.fused_graph import Shape, activation_names, fused_graph
from training.graph_weights import Encoder, read_encoder
from training.int8_gate import MEAN_COSINE_MIN, NEIGHBOURS_MIN, WORST_COSINE_MIN, Loss, losses, table
from training.int8_texts import Texts
from training.plain_graph import plain_graph
from training.quantize import quantize_weights

EngineName = Literal["onnx", "openvino"]

# The fused graph in float32 has to be the same function as the graph it was read from.
FUSED_ERROR_MAX = 1e-4
# Rounding alone: with this number of heads no other has to be tried.
FUSED_ERROR_SURE = 1e-5
HEAD_WIDTHS = (64, 32, 128, 16, 8)
BATCH_ROWS = 16
# Of these, nncf gets every fourth, each alone.
FEED_EVERY = 4
GOLDEN_BOUND_MAX = 0.999


@dataclass(frozen=True)
class Quantized:
    """What came of it.   lost: by engine and language.   refused: engines whose graph fell below a bound."""

    folder: Path
    lost: dict[str, dict[str, Loss]]
    refused: Sequence[str]

    def describe(self) -> str:
        """For the terminal."""
        parts = [f"{engine}: {_sentence(engine, found)}\n{table(found)}" for engine, found in self.lost.items()]
        return "\n\n".join([*parts, f"{self.folder}"])


def quantize(folder: Path, texts: Texts, *, engines: Sequence[EngineName] = ("onnx", "openvino")) -> Quantized:
    """Write the next version beside `folder`. Raises ExportError where no graph passes; nothing is left behind then."""
    spec = load_spec(folder)
    recipe = Recipe(load_tokenizer(folder / TOKENIZER_FILE), spec.prompts, spec.max_tokens, spec.pad_id)
    batches = calibration_batches(recipe, texts.calibration)
    wanted = _embed(_run(folder, spec, "onnx", "fp32"), recipe, texts.gate)
    golden = load_golden(folder / GOLDEN_FILE)
    lost: dict[str, dict[str, Loss]] = {}
    target = choose_version(folder.resolve().parent, None)
    with unfinished_version(target) as staging:
        for path in folder.iterdir():
            if path.name not in (SPEC_FILE, INT8_REPORT_FILE, *INT8_FILES.values()):
                shutil.copyfile(path, staging / path.name)
        worst_golden = 1.0
        for engine in engines:
            path = staging / INT8_FILES[engine]
            _WRITERS[engine](folder, spec, batches, path)
            run = _run(staging, spec, engine, "int8")
            lost[engine] = losses(texts.languages, wanted, _embed(run, recipe, texts.gate))
            if all(item.passed for item in lost[engine].values()):
                worst_golden = min(worst_golden, _worst_golden(run, recipe, golden))
            else:
                path.unlink()
        refused = [engine for engine in engines if not (staging / INT8_FILES[engine]).exists()]
        if len(refused) == len(engines):
            raise ExportError("\n".join(_sentence(engine, lost[engine]) for engine in refused))
        # Half as far again as here is left to processors that add in another order.
        bound = round(min(GOLDEN_BOUND_MAX, 1 - 1.5 * (1 - worst_golden)), 5)
        save_golden(staging / GOLDEN_FILE, Golden(golden.source, {**golden.bounds, "int8": bound}, golden.items))
        (staging / INT8_REPORT_FILE).write_text(_report(lost, refused), encoding="utf-8")
        save_spec(staging, spec)
    return Quantized(target, lost, refused)


def calibration_batches(recipe: Recipe, texts: Sequence[str]) -> list[TokenBatch]:
    """Both prompts, as the model sees them; of like length together, which costs least padding."""
    half = len(texts) // 2
    rows = [*recipe.rows(texts[:half], "query"), *recipe.rows(texts[half:], "passage")]
    rows.sort(key=len)
    return [pad(rows[start : start + BATCH_ROWS], recipe.pad_id) for start in range(0, len(rows), BATCH_ROWS)]


def write_onnx_int8(folder: Path, spec: ModelSpec, batches: list[TokenBatch], path: Path) -> None:
    """The fused graph for ONNX Runtime, its scales found on the batches."""
    encoder = read_encoder(onnx.load(folder / MODEL_FILE))
    with tempfile.TemporaryDirectory(prefix="me5-int8-") as scratch:
        shape = find_shape(encoder, folder, spec, batches[0], Path(scratch))
        names = activation_names(encoder)
        run = _session(fused_graph(encoder, shape, spec, show=True), spec, Path(scratch), names)
        seen = observe(lambda batch: dict(zip(names, run(batch), strict=True)), batches)
    onnx.save(fused_graph(encoder, shape, spec, input_scales(encoder, seen)), path)


def find_shape(encoder: Encoder, folder: Path, spec: ModelSpec, batch: TokenBatch, scratch: Path) -> Shape:
    """The number of heads with which the fused float32 graph gives what the version's own graph gives."""
    wanted = vectors_of(_run(folder, spec, "onnx", "fp32")(batch), batch)
    errors: dict[int, float] = {}
    for width in HEAD_WIDTHS:
        if encoder.width % width == 0:
            shape = Shape(encoder.width // width, spec.pad_id)
            found = vectors_of(
                _session(fused_graph(encoder, shape, spec), spec, scratch, [spec.output])(batch)[0], batch
            )
            errors[shape.heads] = float(np.abs(found - wanted).max())
            if errors[shape.heads] <= FUSED_ERROR_SURE:
                break
    best = min(errors, key=lambda heads: errors[heads])
    if not errors[best] <= FUSED_ERROR_MAX:
        raise ExportError(
            f"the graph was not understood: rebuilt with {best} heads its vectors are off by {errors[best]:.1e}, "
            f"allowed is {FUSED_ERROR_MAX}; export or pull the plain graph"
        )
    return Shape(best, spec.pad_id)


def write_openvino_int8(folder: Path, spec: ModelSpec, batches: list[TokenBatch], path: Path) -> None:
    """nncf's static quantisation with SmoothQuant of the version's own graph; token tables stay as int8 tables."""
    import nncf

    encoder = read_encoder(onnx.load(folder / MODEL_FILE))
    with tempfile.TemporaryDirectory(prefix="me5-int8-") as scratch:
        shape = find_shape(encoder, folder, spec, batches[0], Path(scratch))
    model = plain_graph(encoder, shape, spec)
    quantize_weights(model, matrices=False)
    # Each alone and without padding, which nncf would count as text.
    feeds = [_feed(spec, _row(batch, row)) for batch in batches for row in range(0, batch.rows, FEED_EVERY)]
    quantised = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
        fast_bias_correction=True,
    )
    onnx.save(quantised, path)


_WRITERS: dict[EngineName, Callable[[Path, ModelSpec, list[TokenBatch], Path], None]] = {
    "onnx": write_onnx_int8,
    "openvino": write_openvino_int8,
}


def _session(
    model: onnx.ModelProto, spec: ModelSpec, scratch: Path, names: list[str]
) -> Callable[[TokenBatch], list[Vectors]]:
    """A graph of any size as a function of a batch: its weights lie in a file, since protobuf ends at 2 GiB."""
    import onnxruntime

    path = scratch / "fused.onnx"
    path.unlink(missing_ok=True)
    (scratch / "fused.bin").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="fused.bin")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    return lambda batch: session.run(names, _feed(spec, batch))


def _row(batch: TokenBatch, row: int) -> TokenBatch:
    size = int(batch.mask[row].sum())
    return TokenBatch(batch.ids[row : row + 1, :size], batch.mask[row : row + 1, :size])


def _feed(spec: ModelSpec, batch: TokenBatch) -> dict[str, np.ndarray]:
    feed = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": np.zeros_like(batch.ids)}
    return {name: feed[name] for name in spec.inputs}


def _run(folder: Path, spec: ModelSpec, engine: EngineName, precision: Precision) -> Run:
    opened = open_engine(folder, spec, engine=engine, precision=precision, device="cpu" if engine == "onnx" else "auto")
    return lambda batch: vectors_of(opened.run(batch), batch)


def _embed(run: Run, recipe: Recipe, texts: Sequence[str]) -> Vectors:
    return embed_collection(run, recipe, texts, "query", progress=True)


def _worst_golden(run: Run, recipe: Recipe, golden: Golden) -> float:
    rows = [recipe.rows([item.text], item.role)[0] for item in golden.items]
    found = np.concatenate([run(pad([row], recipe.pad_id)) for row in rows])
    return float((found * np.stack([item.vector for item in golden.items])).sum(axis=1).min())


def _sentence(engine: str, lost: dict[str, Loss]) -> str:
    failed = {language: item for language, item in lost.items() if not item.passed}
    if not failed:
        return f"{len(lost)} languages within the bounds"
    return (
        f"the int8 graph for {engine} is not written: {', '.join(failed)} lost more than is allowed (mean cosine "
        f"≥ {MEAN_COSINE_MIN}, worst ≥ {WORST_COSINE_MIN}, neighbours ≥ {NEIGHBOURS_MIN}); serve fp32 or bf16, or "
        f"calibrate on texts of these languages\n{table(failed)}"
    )


def _report(lost: Mapping[str, dict[str, Loss]], refused: Sequence[str]) -> str:
    document = {
        "format": 1,
        "bounds": {"mean_cosine": MEAN_COSINE_MIN, "worst_cosine": WORST_COSINE_MIN, "neighbours": NEIGHBOURS_MIN},
        "refused": refused,
        "lost": {engine: {name: asdict(item) for name, item in found.items()} for engine, found in lost.items()},
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
