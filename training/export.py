"""A checkpoint becomes a model version: model.onnx, tokenizer.json, golden.json and spec.json in one folder.

    python -m training export runs/me5_nano/latest --name me5_nano --weights int8

The graph takes token ids and gives unit vectors: pooling and normalisation are traced from the functions that serving
uses. A version is proved before it is seen: the written file, run by the gateway's own engine, must give the vectors of
the checkpoint on the golden texts, each alone and all padded together. Then one finished folder is renamed into place.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from service.engine import open_engine
from service.recipe.golden import Golden, GoldenItem, save_golden
from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, TOKENIZER_FILE, ModelSpec, file_sha256, save_spec
from service.recipe.tokens import load_tokenizer, pad
from training.collection import Recipe, Run, Vectors
from training.errors import ExportError
from training.golden_texts import golden_texts
from training.quantize import quantize_weights
from training.sentence_folder import SentenceFolder, read_sentence_folder
from training.sentence_model import SentenceModel, load_sentence_model, torch_run

Weights = Literal["float32", "int8"]

# 18 is the newest that every server at hand reads: Triton's stock backend ships an ONNX Runtime of 2024.
OPSET = 18
# Protocol buffers end at 2 GiB; above, weights go to a file beside the graph.
EXTERNAL_ABOVE_BYTES = 2_000_000_000
UNIT_LENGTH_TOLERANCE = 1e-5
ALONE_AND_PADDED_COSINE = 0.9999


@dataclass(frozen=True)
class Proof:
    """What the written file gives, compared with the checkpoint: smallest cosines and largest error of length."""

    worst_cosine: float
    worst_alone_to_padded: float
    worst_length_error: float


@dataclass(frozen=True)
class Exported:
    """A finished version."""

    folder: Path
    total_bytes: int
    proof: Proof

    def describe(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.folder}: {self.total_bytes:,} bytes; cosine to the checkpoint ≥ {self.proof.worst_cosine:.6f}, "
            f"alone to padded ≥ {self.proof.worst_alone_to_padded:.6f}"
        )


def bounds(weights: Weights) -> dict[str, float]:
    """The smallest cosine allowed for each precision of an engine, given how the weights are stored."""
    return {"fp32": 0.9999 if weights == "float32" else 0.999, "bf16": 0.999, "fp16": 0.999, "int8": 0.999}


def export(
    checkpoint: Path,
    *,
    name: str,
    model_repo: Path,
    weights: Weights = "float32",
    version: int | None = None,
    max_bytes: int | None = None,
) -> Exported:
    """Write, prove and publish model_repo/name/version. On any error nothing is left behind."""
    folder = read_sentence_folder(checkpoint)
    target = choose_version(model_repo / name, version)
    model = load_sentence_model(checkpoint)
    recipe = Recipe(load_tokenizer(checkpoint / TOKENIZER_FILE), folder.prompts, folder.max_tokens, folder.pad_id)
    golden = prove_with(torch_run(model), recipe, bounds(weights))
    with unfinished_version(target) as staging:
        write_graph(model, folder, staging / MODEL_FILE, weights)
        shutil.copyfile(checkpoint / TOKENIZER_FILE, staging / TOKENIZER_FILE)
        save_golden(staging / GOLDEN_FILE, golden)
        spec = save_spec(staging, describe_version(folder, name, weights))
        proof = compare(run_of(staging, spec), recipe, golden)
        check(proof, golden.bounds["fp32"])
        total_bytes = sum(file.stat().st_size for file in staging.iterdir())
        if max_bytes is not None and total_bytes > max_bytes:
            raise ExportError(
                f"the version has {total_bytes:,} bytes, allowed are {max_bytes:,}; try --weights int8, or fewer tokens"
            )
    return Exported(target, total_bytes, proof)


def choose_version(model_folder: Path, wanted: int | None) -> Path:
    """The folder of the wanted version, which must be new; without one, of the number after the highest."""
    there = [int(path.name) for path in model_folder.glob("*") if path.name.isdecimal()]
    version = max(there, default=0) + 1 if wanted is None else wanted
    if version in there:
        raise ExportError(f"{model_folder / str(version)} exists, and versions are never edited; leave --version out")
    return model_folder / str(version)


@contextmanager
def unfinished_version(target: Path) -> Iterator[Path]:
    """A folder beside the target that becomes the target if the block succeeds, and is removed if it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that is no number: neither the gateway nor Triton takes it for a version.
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's folders are private; a server runs as another user
        try:
            staging.rename(target)
        except OSError as error:
            raise ExportError(f"can't rename {staging} to {target}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(target.parent.iterdir()):
            target.parent.rmdir()


def prove_with(run: Run, recipe: Recipe, allowed: dict[str, float]) -> Golden:
    """The golden texts with the vectors that the training model gives, each alone in its batch."""
    texts = golden_texts(recipe.prompts)
    vectors = np.concatenate([run(pad(recipe.rows([text], role), recipe.pad_id)) for role, text in texts])
    items = (GoldenItem(text, role, None, vector) for (role, text), vector in zip(texts, vectors, strict=True))
    return Golden("torch", allowed, tuple(items))


def describe_version(folder: SentenceFolder, name: str, weights: Weights) -> ModelSpec:
    """The spec of a version; its weights are named by their hash, since a path means nothing elsewhere."""
    sha256 = file_sha256(folder.path / "model.safetensors")
    return ModelSpec(
        name=name,
        source=f"checkpoint {folder.path.resolve().name}, model.safetensors sha256 {sha256}",
        prompts=folder.prompts,
        dimension=folder.dimension,
        pooling="graph",
        max_tokens=folder.max_tokens,
        pad_id=folder.pad_id,
        output="sentence_embedding",
        raw_output="sentence_mean",
        weights=weights,
    )


def write_graph(
    model: SentenceModel,
    folder: SentenceFolder,
    path: Path,
    weights: Weights,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
) -> None:
    """Trace the model and write it; above external_above_bytes of weights into two files."""
    parameters_bytes = sum(values.numel() * values.element_size() for values in model.parameters())
    traced = path.with_name("traced.onnx") if weights == "int8" else path
    trace(model, folder.pad_id, traced, external=parameters_bytes > external_above_bytes)
    if weights == "int8":
        graph = onnx.load(traced)
        quantize_weights(graph)
        for leftover in path.parent.glob("traced.onnx*"):
            leftover.unlink()
        external = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > external_above_bytes
        onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path))


def trace(model: SentenceModel, pad_id: int, path: Path, *, external: bool) -> None:
    """Write the float32 graph.

    input_ids, attention_mask: int64[batch, sequence].   sentence_embedding: float32[batch, D], of length one.
    sentence_mean: the same before it is scaled.
    """
    # Two rows and some padding: an example of one row, or without padding, is traced as if it were always so.
    ids = torch.full((2, 8), pad_id, dtype=torch.int64)
    ids[0, :] = ids[1, :5] = 0
    axes = {0: "batch", 1: "sequence"}
    with quiet_exporter():
        torch.onnx.export(
            model.eval(),
            (ids, (ids != pad_id).long()),
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=external,
            input_names=["input_ids", "attention_mask"],
            # "embedding" as an output's name collides with a node's and makes an invalid file.
            output_names=["sentence_embedding", "sentence_mean"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            verbose=False,
        )


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about packages and axis names; none of it is about this graph."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def run_of(folder: Path, spec: ModelSpec) -> Run:
    """A written version, as the gateway's reference engine computes it."""
    return open_engine(folder, spec, engine="onnx", precision="fp32").run


def compare(run: Run, recipe: Recipe, golden: Golden) -> Proof:
    """Run the golden texts alone and padded together, and measure how far they are from the checkpoint's vectors."""
    rows = [recipe.rows([item.text], item.role)[0] for item in golden.items]
    alone = np.concatenate([run(pad([row], recipe.pad_id)) for row in rows])
    padded = run(pad(rows, recipe.pad_id))
    wanted = np.stack([item.vector for item in golden.items])
    lengths = np.linalg.norm(np.concatenate([alone, padded]).astype(np.float64), axis=1)
    return Proof(
        worst_cosine=min(worst_cosine(alone, wanted), worst_cosine(padded, wanted)),
        worst_alone_to_padded=worst_cosine(alone, padded),
        worst_length_error=float(np.abs(lengths - 1).max()),
    )


def worst_cosine(left: Vectors, right: Vectors) -> float:
    """The smallest cosine between rows of the same number."""
    products = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    lengths = np.linalg.norm(left.astype(np.float64), axis=1) * np.linalg.norm(right.astype(np.float64), axis=1)
    return float(np.min(products / lengths))


def check(proof: Proof, bound: float) -> None:
    """Refuse a version whose vectors are not the checkpoint's. A value that is not a number passes no comparison."""
    passed = (
        proof.worst_cosine >= bound
        and proof.worst_alone_to_padded >= ALONE_AND_PADDED_COSINE
        and proof.worst_length_error <= UNIT_LENGTH_TOLERANCE
    )
    if not passed:
        raise ExportError(
            "the written model does not give the checkpoint's vectors: "
            f"cosine {proof.worst_cosine:.6f} (bound {bound}), "
            f"alone to padded {proof.worst_alone_to_padded:.6f} (bound {ALONE_AND_PADDED_COSINE}), "
            f"length off by {proof.worst_length_error:.1e} (bound {UNIT_LENGTH_TOLERANCE}); nothing was written"
        )
