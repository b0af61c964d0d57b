"""Token ids of OpenAI's vocabularies back to text, from a .tiktoken file on disk.

Format: openai/tiktoken, tiktoken/load.py: a line for each token, its bytes in base64, a space, its id.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from service.errors import InvalidInput, SettingsError

# Looked up and joined in a millisecond.
IDS_A_SLICE = 20_000
# Larger than any vocabulary there is; the table has a place for every id below it.
IDS_MAX = 2_000_000


class ForeignTokens:
    """What each id stands for, in bytes. Raises SettingsError for a file of another format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found: dict[int, bytes] = {}
        try:
            for line in path.read_bytes().splitlines():
                if line:
                    token, number = line.split()
                    found[int(number)] = base64.b64decode(token, validate=True)
            if not found or min(found) < 0 or max(found) > IDS_MAX:
                raise ValueError("no tokens, or ids that no vocabulary has")
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"ME5_OPENAI_TOKENS: {path} is no .tiktoken file, with a token's base64 and its id a line: {error}"
            ) from error
        self._bytes: list[bytes | None] = [found.get(number) for number in range(max(found) + 1)]

    def texts(self, rows: Sequence[str | list[int]], hold: Callable[[int], None]) -> Iterator[list[str]]:
        """Rows of ids as texts, texts as they are, in parts of about IDS_A_SLICE ids: a part may hold no text yet.

        Ids that end within a character leave the replacement character there.   hold: told how many bytes each slice of
        ids stands for before they are joined, and may refuse: of ids of a hundred bytes each, a body of ten megabytes
        would make hundreds.
        """
        part: list[str] = []
        size = 0
        for index, row in enumerate(rows):
            if isinstance(row, str):
                part.append(row)
                continue
            pieces: list[bytes] = []
            for start in range(0, len(row), IDS_A_SLICE):
                ids = row[start : start + IDS_A_SLICE]
                pieces.append(self._joined(ids, index, hold))
                size += len(ids)
                if size >= IDS_A_SLICE:
                    yield part
                    part, size = [], 0
            part.append(b"".join(pieces).decode("utf-8", "replace"))
        yield part

    def _joined(self, ids: list[int], index: int, hold: Callable[[int], None]) -> bytes:
        try:
            if min(ids) < 0:
                # Python would count from the end.
                raise IndexError
            tokens: list[bytes] = [self._bytes[number] for number in ids]  # type: ignore[misc]
            size = sum(map(len, tokens))
        except (IndexError, TypeError):
            known = self._bytes
            wrong = next(number for number in ids if not 0 <= number < len(known) or known[number] is None)
            raise InvalidInput(
                f"input {index}: token id {str(wrong)[:40]} is not in {self.path.name}; send texts, or set "
                "ME5_OPENAI_TOKENS to the vocabulary that the client uses"
            ) from None
        hold(size)
        return b"".join(tokens)
