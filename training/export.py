"""A checkpoint becomes a model version: model.onnx, tokenizer.json, golden.json and spec.json in one folder.

    python -m training export runs/me5_nano/latest --name me5_nano --weights int8
    python -m training export runs/me5_small/latest --name me5_small --fp16 --int8 static --data DATA

The graph takes token ids and gives unit vectors: pooling and normalisation are traced from the functions that serving
uses. A version is proved before it is seen: the written file, run by the gateway's own engine, must give the vectors of
the checkpoint on the golden texts, each alone and all padded together. Every other form of it (float16 for GPUs, int8)
is held to that graph by the parity gate, language by language. Then one finished folder is renamed into place.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from service.engine import open_engine
from service.recipe.golden import Golden, GoldenItem, save_golden
from service.recipe.spec import GOLDEN_FILE, MODEL_FILE, TOKENIZER_FILE, ModelSpec, save_spec
from service.recipe.tokens import load_tokenizer, pad
from service.triton_config import keep_config
from training.card_facts import read_figures
from training.collection import Recipe, Run, Vectors, embed_collection
from training.errors import ExportError
from training.float16_forms import Float16Form, add_float16
from training.gate_texts import Texts
from training.golden_texts import golden_texts
from training.int8 import Int8Method, Int8Result, add_int8
from training.model_card import keep_facts, write_version_card
from training.parity import Parity, rank_agreement
from training.quantize import NIBBLES, quantize_weights
from training.sentence_folder import SentenceFolder, checkpoint_identity, read_sentence_folder
from training.sentence_model import SentenceModel, load_sentence_model, torch_run
from training.tracing import EXTERNAL_ABOVE_BYTES, trace
from training.versions import choose_version, unfinished_version

Weights = Literal["float32", "int8"]

UNIT_LENGTH_TOLERANCE = 1e-5
ALONE_AND_PADDED_COSINE = 0.9999
# Of the golden texts with each other: rounding may swap two that are as near as each other, and no more.
RANK_AGREEMENT = {"float32": 0.999, "int8": 0.99}


@dataclass(frozen=True)
class Proof:
    """What the written file gives, compared with the checkpoint: smallest cosines, largest error of length, and the
    rank agreement of the golden texts (parity.py)."""

    worst_cosine: float
    worst_alone_to_padded: float
    worst_length_error: float
    rank: float


@dataclass(frozen=True)
class Exported:
    """A finished version.   parities: of its float16 forms.   int8: of its int8 graphs, where some were asked for."""

    folder: Path
    total_bytes: int
    proof: Proof
    parities: Sequence[Parity] = field(default_factory=tuple)
    int8: Int8Result | None = None

    def describe(self) -> str:
        """For the terminal."""
        lines = [
            f"{self.folder}: {self.total_bytes:,} bytes; cosine to the checkpoint ≥ {self.proof.worst_cosine:.6f}, "
            f"alone to padded ≥ {self.proof.worst_alone_to_padded:.6f}, rank agreement {self.proof.rank:.5f}",
            *(parity.sentence() for parity in self.parities),
            *(parity.sentence() for parity in (self.int8.parities.values() if self.int8 else ())),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Forms:
    """What a version holds beside its float32 graph.   Any of it needs texts that it is held to."""

    float16: tuple[Float16Form, ...] = ()
    int8: Int8Method | None = None

    @property
    def needs_texts(self) -> bool:
        """Whether there is anything to hold to texts."""
        return bool(self.float16) or self.int8 is not None


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
    forms: Forms | None = None,
    texts: Texts | None = None,
    result: Path | None = None,
    licence: str | None = None,
) -> Exported:
    """Write, prove and publish model_repo/name/version. On any error nothing is left behind.

    texts: what the forms are calibrated on and held to.   result, licence: for the model card.
    """
    forms = forms or Forms()
    if forms.needs_texts and texts is None:
        raise ExportError("float16 and int8 are held to texts in every language; give --data FOLDER, or --texts FILE")
    folder = read_sentence_folder(checkpoint)
    target = choose_version(model_repo / name, version)
    if result is not None:
        # Now, and not when every form has been made and held to its texts.
        read_figures(result, [checkpoint_identity(checkpoint)])
    model = load_sentence_model(checkpoint)
    recipe = Recipe(load_tokenizer(checkpoint / TOKENIZER_FILE), folder.prompts, folder.max_tokens, folder.pad_id)
    golden = prove_with(torch_run(model), recipe, bounds(weights))
    with unfinished_version(target) as staging:
        table_bits = write_graph(model, folder, staging / MODEL_FILE, weights)
        shutil.copyfile(checkpoint / TOKENIZER_FILE, staging / TOKENIZER_FILE)
        save_golden(staging / GOLDEN_FILE, golden)
        spec = save_spec(staging, describe_version(folder, name, weights, table_bits))
        proof = compare(run_of(staging, spec), recipe, golden)
        check(proof, golden.bounds["fp32"], RANK_AGREEMENT[weights])
        parities: list[Parity] = []
        int8: Int8Result | None = None
        if texts is not None and forms.float16:
            # What rounding stored weights has cost is not float16's.
            reference = torch_run(model) if weights == "int8" else run_of(staging, spec)
            wanted = embed_collection(reference, recipe, texts.gate.texts, "query", progress=True)
            parities = add_float16(staging, spec, model, recipe, golden, forms.float16, texts.gate, wanted)
        if texts is not None and forms.int8 is not None:
            int8 = add_int8(staging, spec, recipe, texts, method=forms.int8)
        keep_facts(checkpoint, staging, result)
        spec = save_spec(staging, spec)
        write_version_card(staging, spec, licence=licence)
        total_bytes = sum(file.stat().st_size for file in staging.iterdir())
        if max_bytes is not None and total_bytes > max_bytes:
            raise ExportError(
                f"the version has {total_bytes:,} bytes, allowed are {max_bytes:,}; try --weights int8, or fewer tokens"
            )
    keep_config(target.parent, spec)
    return Exported(target, total_bytes, proof, parities, int8)


def prove_with(run: Run, recipe: Recipe, allowed: dict[str, float]) -> Golden:
    """The golden texts with the vectors that the training model gives, each alone in its batch."""
    texts = golden_texts(recipe.prompts)
    vectors = np.concatenate([run(pad(recipe.rows([text], role), recipe.pad_id)) for role, text in texts])
    items = (GoldenItem(text, role, None, vector) for (role, text), vector in zip(texts, vectors, strict=True))
    return Golden("torch", allowed, tuple(items))


def describe_version(folder: SentenceFolder, name: str, weights: Weights, table_bits: Literal[4] | None) -> ModelSpec:
    """The spec of a version; its weights are named by their hash, since a path means nothing elsewhere."""
    return ModelSpec(
        name=name,
        source=f"checkpoint {folder.path.resolve().name}, weights sha256 {checkpoint_identity(folder.path)}",
        prompts=folder.prompts,
        dimension=folder.dimension,
        pooling="graph",
        max_tokens=folder.max_tokens,
        pad_id=folder.pad_id,
        output="sentence_embedding",
        raw_output="sentence_mean",
        weights=weights,
        table_bits=table_bits,
        hidden_size=None if folder.states_dimension == folder.dimension else folder.states_dimension,
    )


def write_graph(
    model: SentenceModel,
    folder: SentenceFolder,
    path: Path,
    weights: Weights,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
) -> Literal[4] | None:
    """Trace the model and write it; above external_above_bytes of weights into two files.

    Returns the bits of a token vector's number, where those are stored otherwise than all weights.
    """
    parameters_bytes = sum(values.numel() * values.element_size() for values in model.parameters())
    in_four_bits = False
    traced = path.with_name("traced.onnx") if weights == "int8" else path
    trace(model, folder.pad_id, traced, external=parameters_bytes > external_above_bytes)
    if weights == "int8":
        graph = onnx.load(traced)
        quantize_weights(graph)
        in_four_bits = any(tensor.name.endswith(NIBBLES) for tensor in graph.graph.initializer)
        for leftover in path.parent.glob("traced.onnx*"):
            leftover.unlink()
        external = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > external_above_bytes
        onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data")
    onnx.checker.check_model(str(path))
    return 4 if in_four_bits else None


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
        rank=min(rank_agreement(wanted, alone), rank_agreement(wanted, padded)),
    )


def worst_cosine(left: Vectors, right: Vectors) -> float:
    """The smallest cosine between rows of the same number."""
    products = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    lengths = np.linalg.norm(left.astype(np.float64), axis=1) * np.linalg.norm(right.astype(np.float64), axis=1)
    return float(np.min(products / lengths))


def check(proof: Proof, bound: float, rank_bound: float = RANK_AGREEMENT["float32"]) -> None:
    """Refuse a version whose vectors are not the checkpoint's. A value that is not a number passes no comparison."""
    passed = (
        proof.worst_cosine >= bound
        and proof.worst_alone_to_padded >= ALONE_AND_PADDED_COSINE
        and proof.worst_length_error <= UNIT_LENGTH_TOLERANCE
        and proof.rank >= rank_bound
    )
    if not passed:
        raise ExportError(
            "the written model does not give the checkpoint's vectors: "
            f"cosine {proof.worst_cosine:.6f} (bound {bound}), "
            f"alone to padded {proof.worst_alone_to_padded:.6f} (bound {ALONE_AND_PADDED_COSINE}), "
            f"length off by {proof.worst_length_error:.1e} (bound {UNIT_LENGTH_TOLERANCE}), "
            f"rank agreement {proof.rank:.5f} (bound {rank_bound}); nothing was written"
        )
