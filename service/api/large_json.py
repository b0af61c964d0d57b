"""A large JSON body to values, in pieces of a millisecond, by the same parser and as strict as for a small one."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from service.api.json_split import DEPTH_MAX, Place, commas
from service.api.turns import Turns
from service.errors import InvalidInput, MalformedRequest

# Up to this size a body is parsed in one go: 64 KiB of "[],[],…", the slowest there is, take 1.4 ms.
PIECE_BYTES = 64 * 1024
# A list or object this deep may still be large: {"inputs": {"sentences": ["…"]}} and {"inputs": [["…", …], …]}.
LARGE_LEVELS = 4
# Commas of one list or object: ids of one input, and fields of one object.
ITEMS_MAX, FIELDS_MAX = 100_000, 1_000

_SPACE = b" \t\n\r"
_KEY = re.compile(rb'[ \t\n\r]*+("(?:[^"\\]++|\\.)*+")[ \t\n\r]*+:', re.DOTALL)
_KEY_BYTES = 4096
# Whole characters, as far as they go: no escape is cut, and neither is a pair of surrogates.
_TEXT = re.compile(
    rb'(?:[^"\\]++|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)


async def parse_large(body: bytes | bytearray, turns: Turns, max_items: int, piece_bytes: int = PIECE_BYTES) -> object:
    """The value of a JSON text. Raises MalformedRequest where it is none, InvalidInput for more items than a list may
    have: max_items, or ITEMS_MAX if that is more (a list may hold ids).
    """
    return await _Parser(body, turns, max(max_items, ITEMS_MAX), piece_bytes).value(0, len(body), 1)


def parse_small(body: bytes | bytearray, at: int | None = None) -> object:
    """The value of a JSON text, in one go. at: where in a larger body it lies, for the message."""
    try:
        value: object = from_json(body, cache_strings="keys")
    except ValueError as error:
        said = str(error)
        if at is not None:
            said = f"{said.partition(' at line ')[0]} near byte {at}"
        raise MalformedRequest(f"the body is not JSON: {said}") from error
    return value


class _Parser:
    def __init__(self, body: bytes | bytearray, turns: Turns, items_max: int, piece_bytes: int) -> None:
        self._body = body
        self._turns = turns
        self._items_max = items_max
        self._piece = piece_bytes

    async def value(self, start: int, end: int, level: int) -> object:
        """The one value between two positions."""
        start, end = await self._trim(start, end)
        if end - start <= self._piece:
            async with self._turns:
                return parse_small(self._body[start:end], start)
        first, last = self._body[start : start + 1], self._body[end - 1 : end]
        if first == b'"' and last == b'"':
            return await self._text(start + 1, end - 1)
        if level <= LARGE_LEVELS and (first, last) == (b"[", b"]"):
            return await self._list(start, end, level)
        if level <= LARGE_LEVELS and (first, last) == (b"{", b"}"):
            return await self._object(start, end, level)
        raise MalformedRequest(
            f"the body is not JSON, or nested too deep for its size: {end - start} bytes from byte {start} on are "
            "one value, and neither a text nor a list or object of few levels"
        )

    async def _list(self, start: int, end: int, level: int) -> list[object]:
        bounds = await self._bounds(start, end, self._items_max)
        found: list[object] = []
        for first, last, single in _groups(bounds, self._piece):
            if single:
                if await self._is_empty(bounds):
                    break
                found.append(await self.value(first, last, level + 1))
                continue
            async with self._turns:
                part = parse_small(b"[%s]" % self._body[first:last], first)
                self._check_group(part, first)
                assert isinstance(part, list)
                found += part
        return found

    async def _object(self, start: int, end: int, level: int) -> dict[str, object]:
        bounds = await self._bounds(start, end, FIELDS_MAX)
        found: dict[str, object] = {}
        for first, last, single in _groups(bounds, self._piece):
            if not single:
                async with self._turns:
                    part = parse_small(b"{%s}" % self._body[first:last], first)
                    self._check_group(part, first)
                    assert isinstance(part, dict)
                    found |= part
                continue
            if await self._is_empty(bounds):
                break
            named = _KEY.match(self._body, first, min(last, first + _KEY_BYTES))
            if named is None:
                raise MalformedRequest(f"the body is not JSON: no short name and colon near byte {first}")
            key = parse_small(named[1], first)
            assert isinstance(key, str)
            found[key] = await self.value(named.end(), last, level + 1)
        return found

    async def _text(self, start: int, end: int) -> str:
        parts: list[str] = []
        while start < end:
            async with self._turns:
                stop = min(end, start + self._piece)
                if self._body.find(b"\\", start, stop) >= 0 and (whole := _TEXT.match(self._body, start, stop)):
                    stop = whole.end()
                # UTF-8: back to the first byte of a character that the slice has cut.
                while stop < end and start < stop and self._body[stop] & 0xC0 == 0x80:
                    stop -= 1
                if stop == start:
                    raise MalformedRequest(
                        f"the body is not JSON: an escape that is none, or half a surrogate pair, near byte {start}"
                    )
                part = parse_small(b'"%s"' % self._body[start:stop], start)
                assert isinstance(part, str)
                parts.append(part)
            start = stop
        return "".join(parts)

    async def _bounds(self, start: int, end: int, limit: int) -> NDArray[np.int64]:
        """The bracket's position, those of its commas, and that of its closing partner."""
        place = Place()
        found: list[NDArray[np.int64]] = [np.array([start])]
        count = 0
        for first in range(start, end, self._piece):
            async with self._turns:
                at, place = commas(self._body[first : min(end, first + self._piece)], place)
            count += at.size
            if count >= limit:
                raise InvalidInput(f"a list or object of more than {limit} items; split the request")
            if place.deepest > DEPTH_MAX:
                raise MalformedRequest(f"the body is not JSON: more than {DEPTH_MAX} levels near byte {first}")
            found.append(at + first)
        if place.depth or place.in_text:
            raise MalformedRequest(f"the body is not JSON: what opens at byte {start} is not closed")
        return np.concatenate([*found, [end - 1]])

    async def _is_empty(self, bounds: NDArray[np.int64]) -> bool:
        """Whether there is nothing but space between two brackets, much of it."""
        if len(bounds) > 2:
            return False
        first, last = await self._trim(int(bounds[0]) + 1, int(bounds[1]))
        return first == last

    def _check_group(self, part: object, at: int) -> None:
        """Between two commas there must be something; within a group the parser sees to it itself."""
        if not part:
            raise MalformedRequest(f"the body is not JSON: a comma without a value near byte {at}")

    async def _trim(self, start: int, end: int) -> tuple[int, int]:
        """The range without the space around it."""
        while start < end and self._body[start] in _SPACE:
            async with self._turns:
                part = self._body[start : min(end, start + self._piece)]
                start += len(part) - len(part.lstrip(_SPACE))
        while start < end and self._body[end - 1] in _SPACE:
            async with self._turns:
                part = self._body[max(start, end - self._piece) : end]
                end -= len(part) - len(part.rstrip(_SPACE))
        return start, end


def _groups(bounds: NDArray[np.int64], piece: int) -> list[tuple[int, int, bool]]:
    """Ranges between the bounds, neighbours joined up to a piece; and whether a range is one item larger than that."""
    found: list[tuple[int, int, bool]] = []
    at = 0
    while at < len(bounds) - 1:
        stop = int(np.searchsorted(bounds, bounds[at] + piece, side="right")) - 1
        single = stop <= at
        stop = max(stop, at + 1)
        found.append((int(bounds[at]) + 1, int(bounds[stop]), single))
        at = stop
    return found
