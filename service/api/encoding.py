"""Vectors to the bytes of an answer, in slices that take about a millisecond each: pure functions."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from service.recipe.golden import Golden
from service.recipe.pooling import l2_normalize

Format = Literal["float", "base64"]
Dtype = Literal["float32", "float16", "int8"]
# Cohere's names.
Kind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
TYPES: tuple[Kind, ...] = get_args(Kind)
Vectors = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8] | NDArray[np.uint8]

# orjson writes these many in half a millisecond.
NUMBERS_A_SLICE = 16_384
# A megabyte is copied in a tenth of a millisecond, but a socket takes a few hundred kilobytes at a time.
BYTES_A_SLICE = 256 * 1024

# Of text, escaped and written as UTF-8 in a tenth of a millisecond.
CHARS_A_SLICE = 64 * 1024

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


def scale_of(golden: Golden, dimensions: int | None = None) -> float:
    """int8_scale of a model version's golden texts."""
    return int8_scale(np.stack([item.vector for item in golden.items]), dimensions)


def convert(vectors: NDArray[np.float32], dtype: Dtype, scale: float = 1.0) -> Vectors:
    """Vectors in the type asked for, C order, little-endian. scale: of int8, vector ≈ int8 / scale."""
    found: Vectors
    if dtype == "int8":
        found = np.clip(np.rint(vectors * np.float32(scale)), -127, 127).astype(np.int8)
        return found
    # Contiguous, for its memory is what is sent.
    found = np.ascontiguousarray(vectors, dtype="<f2" if dtype == "float16" else "<f4")
    return found


def typed(vectors: NDArray[np.float32], kind: Kind, scale: float) -> Vectors:
    """Vectors of length one [N, D] in one of Cohere's types. scale: as of int8.

    uint8 is int8 + 128. Of the binary types, [N, D / 8] rounded up, each bit says whether a component is above zero:
    the first in the highest bit, the last byte filled with zeros; binary is ubinary - 128.
    """
    found: Vectors
    if kind in ("float", "base64"):
        return convert(vectors, "float32")
    if kind == "int8":
        return convert(vectors, "int8", scale)
    if kind == "uint8":
        found = (convert(vectors, "int8", scale).astype(np.int16) + 128).astype(np.uint8)
        return found
    packed = np.packbits(vectors > 0, axis=1)
    if kind == "ubinary":
        return packed
    found = (packed.astype(np.int16) - 128).astype(np.int8)
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


def json_texts(texts: Sequence[str]) -> Iterator[bytes]:
    """A JSON list of texts."""
    parts: list[bytes] = [b"["]
    size = 0
    for number, text in enumerate(texts):
        parts.append(b',"' if number else b'"')
        # A text of ten megabytes in parts: JSON escapes characters one by one.
        for start in range(0, len(text), CHARS_A_SLICE):
            parts.append(orjson.dumps(text[start : start + CHARS_A_SLICE])[1:-1])
            size += len(parts[-1])
            if size > CHARS_A_SLICE:
                yield b"".join(parts)
                parts, size = [], 0
        parts.append(b'"')
    yield b"".join(parts) + b"]"


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


def npy(vectors: Vectors) -> Iterator[bytes | memoryview]:
    """A .npy file of format 1.0: its header, then the rows as they lie in memory."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(vectors))
    yield head.getvalue()
    yield from raw(vectors)
