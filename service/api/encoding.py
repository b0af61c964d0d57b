"""Vectors to the bytes of an answer, in slices that take about a millisecond each: pure functions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from service.recipe.pooling import l2_normalize

Format = Literal["float", "base64"]
Dtype = Literal["float32", "float16", "int8"]
Vectors = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8]

# orjson writes these many in half a millisecond.
NUMBERS_A_SLICE = 16_384
# A megabyte is copied in a tenth of a millisecond, but a socket takes a few hundred kilobytes at a time.
BYTES_A_SLICE = 256 * 1024

# The int8 range is laid over the golden vectors' largest component and a quarter more; what is still outside is cut.
INT8_HEADROOM = 1.25


def int8_scale(golden: NDArray[np.float32], dimensions: int | None = None) -> float:
    """What int8 components are multiplied with, from a model version's golden vectors [N, D], each of length one.

    The same for every request, for vectors quantised with one scale can be compared with one another. Vectors cut to
    fewer dimensions have larger components, so each number of dimensions has its own.
    """
    if dimensions is not None and dimensions < golden.shape[1]:
        golden = l2_normalize(np.ascontiguousarray(golden[:, :dimensions]))
    return float(127 / (INT8_HEADROOM * np.abs(golden).max()))


def convert(vectors: NDArray[np.float32], dtype: Dtype, scale: float = 1.0) -> Vectors:
    """Vectors in the type asked for, C order, little-endian. scale: of int8, vector ≈ int8 / scale."""
    found: Vectors
    if dtype == "int8":
        found = np.clip(np.rint(vectors * np.float32(scale)), -127, 127).astype(np.int8)
        return found
    # Contiguous, for its memory is what is sent.
    found = np.ascontiguousarray(vectors, dtype="<f2" if dtype == "float16" else "<f4")
    return found


def slices(vectors: Vectors) -> Iterator[Vectors]:
    """Rows in groups of about NUMBERS_A_SLICE numbers."""
    step = max(1, NUMBERS_A_SLICE // vectors.shape[1])
    for start in range(0, len(vectors), step):
        yield vectors[start : start + step]


def json_list(vectors: Vectors, form: Format) -> Iterator[bytes]:
    """A JSON list with a list of numbers, or a base64 text, for each row."""
    mark = b"["
    for part in slices(vectors):
        if form == "base64":
            yield mark + b",".join(b'"%s"' % base64.b64encode(row.data) for row in part)
        else:
            yield mark + orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        mark = b","
    yield b"]"


def openai_list(vectors: Vectors, form: Format, model: str, tokens: int) -> Iterator[bytes]:
    """OpenAI's list of embeddings."""
    mark = b'{"object":"list","data":['
    index = 0
    for part in slices(vectors):
        items = [
            {
                "object": "embedding",
                "embedding": base64.b64encode(row.data).decode("ascii") if form == "base64" else row,
                "index": at,
            }
            for at, row in enumerate(part, start=index)
        ]
        yield mark + orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        mark, index = b",", index + len(part)
    rest = orjson.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    yield b"]," + rest[1:]


def raw(vectors: Vectors) -> Iterator[bytes | memoryview]:
    """The rows as they lie in memory."""
    whole = vectors.data.cast("B")
    for start in range(0, len(whole), BYTES_A_SLICE):
        yield whole[start : start + BYTES_A_SLICE]
