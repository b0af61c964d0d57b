"""Where a large JSON list or object may be cut: pure functions on slices of bytes, at a cost no content can raise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# As deep as the parser of small bodies goes.
DEPTH_MAX = 200

_OPEN, _CLOSE, _COMMA, _QUOTE, _BACKSLASH = 1, 2, 3, 4, 5
_KINDS = bytearray(256)
for _signs, _kind in ((b"[{", _OPEN), (b"]}", _CLOSE), (b",", _COMMA), (b'"', _QUOTE), (b"\\", _BACKSLASH)):
    for _sign in _signs:
        _KINDS[_sign] = _kind
_STEPS = np.zeros(6, dtype=np.int8)
_STEPS[[_OPEN, _CLOSE]] = 1, -1


@dataclass(frozen=True)
class Place:
    """What lies before a slice.   in_text: an open quote.   escaped: a backslash that the slice's first byte completes.

    depth: open brackets.   deepest: the most there have been.
    """

    in_text: bool = False
    escaped: bool = False
    depth: int = 0
    deepest: int = 0


def commas(part: bytes | bytearray, before: Place) -> tuple[NDArray[np.int64], Place]:
    """Where in a slice the commas of the outermost bracket are, and the place behind the slice.

    A lexer by sums: quotes turn text on and off, brackets outside of it count the depth. It judges nothing: what lies
    between two commas still has to be parsed.
    """
    if before.in_text and b'"' not in part and b"\\" not in part:
        return np.empty(0, dtype=np.int64), replace(before, escaped=False)
    kinds = np.frombuffer(part.translate(_KINDS), dtype=np.uint8)
    at = np.flatnonzero(kinds)
    kinds = kinds[at]
    quotes = kinds == _QUOTE
    escaped_next = False
    if before.escaped or (kinds == _BACKSLASH).any():
        escaped = _escaped(at[kinds == _BACKSLASH], len(part), before.escaped)
        quotes &= ~escaped[at]
        escaped_next = bool(escaped[len(part)])
    if before.in_text or quotes.any():
        inside = (np.cumsum(quotes, dtype=np.int32) + before.in_text) % 2 == 1
        outside = ~(inside | quotes)
    else:
        inside, outside = np.zeros(at.size, dtype=np.bool_), np.ones(at.size, dtype=np.bool_)
    depths = before.depth + np.cumsum(_STEPS[kinds] * outside, dtype=np.int32)
    found = at[outside & (kinds == _COMMA) & (depths == 1)]
    if not at.size:
        return found, Place(before.in_text, escaped_next, before.depth, before.deepest)
    deepest = max(before.deepest, int(depths.max()))
    return found, Place(bool(inside[-1]), escaped_next, int(depths[-1]), deepest)


def _escaped(backslashes: NDArray[np.int64], size: int, first: bool) -> NDArray[np.bool_]:
    """Which bytes of a slice a backslash before them escapes, and one more for the byte behind the slice."""
    found = np.zeros(size + 1, dtype=np.bool_)
    found[0] = first
    if first and backslashes.size and backslashes[0] == 0:
        backslashes = backslashes[1:]
    if backslashes.size:
        # In a run of backslashes every second one is the partner of the one before it.
        begins = np.diff(backslashes, prepend=-2) > 1
        starts = np.maximum.accumulate(np.where(begins, backslashes, 0))
        found[backslashes[(backslashes - starts) % 2 == 0] + 1] = True
    return found
