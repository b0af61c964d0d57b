"""golden.json: texts with the vectors the model must give, and how close an engine has to come."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import GoldenMismatch, ModelFileError
from service.recipe.prompts import Role

Precision = Literal["fp32", "bf16", "fp16", "int8"]
FORMAT = 1


@dataclass(frozen=True)
class GoldenItem:
    """One text with its role and its vector float32[D], of length one."""

    text: str
    role: Role
    instruction: str | None
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """source: what computed the vectors ("torch", or "onnxruntime-fp32" for a pulled model).

    bounds: the smallest cosine allowed for any text, by the precision an engine computes in.
    """

    source: str
    bounds: dict[str, float]
    items: tuple[GoldenItem, ...]


def save_golden(path: Path, golden: Golden) -> None:
    """Write golden.json; vectors as base64 of little-endian float32."""
    items = [
        {
            "text": item.text,
            "role": item.role,
            "instruction": item.instruction,
            "vector": base64.b64encode(item.vector.astype("<f4").tobytes()).decode("ascii"),
        }
        for item in golden.items
    ]
    raw = {"format": FORMAT, "source": golden.source, "bounds": golden.bounds, "items": items}
    path.write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_golden(path: Path) -> Golden:
    """Read golden.json."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, this version reads {FORMAT}")
        items = tuple(
            GoldenItem(
                text=item["text"],
                role=item["role"],
                instruction=item["instruction"],
                vector=np.frombuffer(base64.b64decode(item["vector"]), dtype="<f4").astype(np.float32),
            )
            for item in raw["items"]
        )
        if not items:
            raise ValueError("no texts")
        if len({item.vector.size for item in items}) > 1:
            raise ValueError("its vectors have several sizes")
        return Golden(raw["source"], {name: float(bound) for name, bound in raw["bounds"].items()}, items)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"can't read {path}: {error}; export or pull the model again") from error


def prove(golden: Golden, vectors: Sequence[NDArray[np.float32]] | NDArray[np.float32], precision: Precision) -> float:
    """The smallest cosine between an engine's vectors float32[N, D] and the golden ones.

    Raises GoldenMismatch below the bound for this precision, and for a vector that is not finite.
    """
    bound = golden.bounds.get(precision, 0.999)
    found = np.asarray(vectors, dtype=np.float64)
    wanted = np.stack([item.vector for item in golden.items]).astype(np.float64)
    if found.shape != wanted.shape:
        raise GoldenMismatch(f"the engine gives vectors of shape {found.shape}, the model's are {wanted.shape}")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = (found * wanted).sum(axis=1) / np.maximum(lengths, 1e-12)
    worst = int(np.argmin(np.nan_to_num(cosines, nan=-2.0)))
    if not cosines[worst] >= bound:
        raise GoldenMismatch(
            f"golden text {worst} ({golden.items[worst].text[:40]!r}) has cosine {cosines[worst]:.6f} to the model's "
            f"vector, the bound for {precision} is {bound}; try ME5_PRECISION=fp32 or ME5_ENGINE=onnx"
        )
    return float(cosines[worst])
