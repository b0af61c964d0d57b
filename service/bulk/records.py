"""A record of an input file, and where in the file its parts are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

# A longer line, or CSV field, belongs to a file of another kind: it is read past, and never held.
LINE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A text. id: as the file gives it, else the record's place from 0.   line: of the file, or row, from 1."""

    id: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record without a text that can be embedded. reason: what is wrong, without the line's number."""

    line: int
    reason: str


@dataclass(frozen=True)
class Fields:
    """Where a record's parts are; plain lines have no fields.

    id: None numbers the records from 0.   title: put before the text with a blank between, as E5 was trained on
    passages that have one. Where a record has none, the text stands alone.
    """

    text: str = "text"
    id: str | None = None
    title: str | None = None

    def names(self) -> list[str]:
        """All that a record may have."""
        return [name for name in dict.fromkeys((self.id, self.title, self.text)) if name is not None]


class Records(Protocol):
    """The records of a file, in order."""

    def __iter__(self) -> Iterator[Record | BadRecord]:
        """Those that are left."""

    def skip(self, count: int) -> int:
        """Pass over so many without looking into them. Returns how many there were to pass over."""


def record_of(values: Mapping[str, object], fields: Fields, place: int, line: int) -> Record | BadRecord:
    """A record from its fields' values. place: its number from 0."""
    text = values.get(fields.text)
    if not isinstance(text, str):
        return BadRecord(line, f"field {fields.text!r} is {_kind(values, fields.text)}, not a text")
    title = None if fields.title is None else values.get(fields.title)
    if title is not None and not isinstance(title, str):
        return BadRecord(line, f"field {fields.title!r} is {_kind(values, fields.title)}, not a text")
    name = str(place) if fields.id is None else values.get(fields.id)
    if isinstance(name, bool) or not isinstance(name, str | int):
        return BadRecord(line, f"field {fields.id!r} is {_kind(values, fields.id)}, not a text or a whole number")
    whole = f"{title} {text}" if title else text
    return Record(str(name), whole, line) if whole else BadRecord(line, "the text is empty")


def _kind(values: Mapping[str, object], name: str | None) -> str:
    if name is None or name not in values:
        return "missing"
    value = values[name]
    return "null" if value is None else f"of type {type(value).__name__}"
