"""Prepared pairs on disk: one folder a source, rows language by language, any row found by its number.

    pairs.jsonl    {"query", "positive", "negatives", "scores", "answers"} a line, and "instruction" where there is one
    offsets.u64    where each line begins, and where the last one ends
    source.json    languages with their rows, roles, hashes, what was left out and why

Text and not tokens: another backbone, BM25 and a teacher read the same files.
"""

import hashlib
import json
import mmap
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from service.recipe.prompts import Role
from training.errors import BadTrainingData
from training.sampling import SourceShape

PAIRS_FILE, OFFSETS_FILE, ABOUT_FILE = "pairs.jsonl", "offsets.u64", "source.json"
FORMAT = 1
# Kept in memory for each language before it is appended to that language's file.
SPOOL_BYTES = 1 << 18


@dataclass(frozen=True)
class PairRow:
    """A query, the passage that belongs to it, and passages that look right and are wrong.

    scores: a cross-encoder's, of the query with its positive and then with each negative; none where nobody was asked.
    answers: short ones, that a right passage holds.   instruction: the task, for instruct models; "" where the pair has
    none of its own.
    """

    query: str
    positive: str
    negatives: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    instruction: str = ""


@dataclass(frozen=True)
class About:
    """languages: name → rows, in the order in which they lie.   dropped: reason → pairs.

    negatives: that every row has at least.   scored: whether every row has its scores.   settings: that it was
    prepared with.
    """

    name: str
    pair: str
    query_role: Role
    positive_role: Role
    licence: str
    languages: dict[str, int]
    negatives: int
    scored: bool
    settings: dict[str, object]
    dropped: dict[str, int]
    pairs_sha256: str
    offsets_sha256: str


class PairStore:
    """A prepared source, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Raises BadTrainingData where a file is missing or half-written."""
        self.folder = folder
        try:
            raw = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            if raw.pop("format") != FORMAT:
                raise BadTrainingData(f"{folder / ABOUT_FILE} is not of format {FORMAT}; prepare the source again")
            self.about = About(**raw)
            self._offsets = np.memmap(folder / OFFSETS_FILE, dtype=np.uint64, mode="r")
            with (folder / PAIRS_FILE).open("rb") as stream:
                self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadTrainingData(f"can't read the prepared source {folder}: {error}; prepare it again") from error
        rows = self.shape.rows
        if len(self._offsets) != rows + 1 or int(self._offsets[-1]) != len(self._lines):
            raise BadTrainingData(
                f"{folder} is half-written: {ABOUT_FILE} says {rows} rows, {OFFSETS_FILE} has {len(self._offsets) - 1} "
                f"that end at byte {int(self._offsets[-1])}, {PAIRS_FILE} has {len(self._lines)}; prepare it again"
            )

    @property
    def shape(self) -> SourceShape:
        """Its name, and the rows of each language."""
        return SourceShape(self.about.name, self.about.languages)

    def rows(self, numbers: NDArray[np.int64]) -> list[PairRow]:
        """Some rows by their numbers. Raises BadTrainingData where one can't be read."""
        return [self._row(int(number)) for number in numbers]

    def _row(self, number: int) -> PairRow:
        line = self._lines[int(self._offsets[number]) : int(self._offsets[number + 1])]
        try:
            return PairRow(**orjson.loads(line))
        except (orjson.JSONDecodeError, TypeError) as error:
            raise BadTrainingData(
                f"row {number} of {self.folder / PAIRS_FILE} is damaged: {error}; prepare the source again"
            ) from error


def open_stores(folder: Path, names: Collection[str] = ()) -> list[PairStore]:
    """The prepared sources of these names, or every one under a folder. Raises BadTrainingData where one is missing."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob(f"[!.]*/{ABOUT_FILE}"))}
    if not found:
        raise BadTrainingData(f"{folder} holds no prepared sources; make them by `python -m training prepare`")
    missing = sorted(set(names) - set(found))
    if missing:
        raise BadTrainingData(
            f"{folder} lacks {', '.join(missing)}; prepare them by `python -m training prepare`, or take them out of "
            "the configuration"
        )
    return [PairStore(path) for name, path in found.items() if not names or name in names]


def text_key(text: str) -> int:
    """A number of 63 bits for a text; equal up to case and white space is equal."""
    digest = hashlib.blake2b(" ".join(text.lower().split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def write_store(
    folder: Path,
    pairs: Iterable[tuple[str, PairRow]],
    *,
    name: str,
    pair: str,
    roles: tuple[Role, Role],
    licence: str,
    settings: dict[str, object],
    dropped: Mapping[str, int],
) -> About:
    """Write a source. pairs: language and row, in any order; a pair that came before is dropped.

    dropped: what the reader left out so far, read when all pairs are through. The folder appears when all is written.
    Raises BadTrainingData where no pair is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{name}.unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        tally = _Tally()
        spools = _spool(staging, tally.watch(pairs))
        with (staging / PAIRS_FILE).open("wb") as lines, (staging / OFFSETS_FILE).open("wb") as offsets:
            languages, duplicates = _join(spools, lines, offsets)
        for spool in spools.values():
            spool.unlink()
        if not languages:
            raise BadTrainingData(f"the source {name} has no pairs left; dropped: {dict(dropped) or 'none'}")
        about = About(
            name=name,
            pair=pair,
            query_role=roles[0],
            positive_role=roles[1],
            licence=licence,
            languages=languages,
            negatives=tally.negatives or 0,
            scored=tally.scored,
            settings=settings,
            dropped={**dropped, "duplicate": dropped.get("duplicate", 0) + duplicates},
            pairs_sha256=_sha256(staging / PAIRS_FILE),
            offsets_sha256=_sha256(staging / OFFSETS_FILE),
        )
        (staging / ABOUT_FILE).write_text(
            json.dumps({"format": FORMAT, **asdict(about)}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        # Aside first: removing gigabytes takes time, in which a killed process would leave neither of the two.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return about


class _Tally:
    """What all rows have in common, taken as they pass."""

    def __init__(self) -> None:
        self.negatives: int | None = None
        self.scored = True

    def watch(self, pairs: Iterable[tuple[str, PairRow]]) -> Iterator[tuple[str, PairRow]]:
        for language, row in pairs:
            count = len(row.negatives)
            self.negatives = count if self.negatives is None else min(self.negatives, count)
            self.scored = self.scored and len(row.scores) == 1 + count
            yield language, row


def _spool(staging: Path, pairs: Iterable[tuple[str, PairRow]]) -> dict[str, Path]:
    """One file a language, as the pairs come."""
    files: dict[str, Path] = {}
    waiting: dict[str, bytearray] = {}

    def flush(language: str) -> None:
        with files[language].open("ab") as stream:
            stream.write(waiting[language])
        waiting[language] = bytearray()

    for language, row in pairs:
        if language not in files:
            files[language] = staging / f"spool{len(files)}"
            waiting[language] = bytearray()
        waiting[language] += _line_of(row)
        if len(waiting[language]) > SPOOL_BYTES:
            flush(language)
    for language in files:
        flush(language)
    return files


def _join(spools: Mapping[str, Path], lines: BinaryIO, offsets: BinaryIO) -> tuple[dict[str, int], int]:
    """The languages' files one after another, each pair once. Returns rows by language, and how many came again."""
    languages: dict[str, int] = {}
    position, duplicates = 0, 0
    offsets.write(np.uint64(0).tobytes())
    for language in sorted(spools):
        keys = np.fromiter((_pair_key(line) for line in _lines(spools[language])), dtype=np.uint64)
        first = np.zeros(len(keys), dtype=bool)
        first[np.unique(keys, return_index=True)[1]] = True
        for line, wanted in zip(_lines(spools[language]), first.tolist(), strict=True):
            if wanted:
                lines.write(line)
                position += len(line)
                offsets.write(np.uint64(position).tobytes())
        languages[language] = int(first.sum())
        duplicates += int((~first).sum())
    return languages, duplicates


def _line_of(row: PairRow) -> bytes:
    # A billion pairs without an instruction need no byte for it.
    fields = {name: value for name, value in asdict(row).items() if value or name != "instruction"}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _pair_key(line: bytes) -> int:
    row = orjson.loads(line)
    return text_key(f"{text_key(row['query'])} {text_key(row['positive'])}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes_of(stores: Sequence[PairStore]) -> dict[str, str]:
    """Source → hash of its pairs, for the run's manifest."""
    return {store.about.name: store.about.pairs_sha256 for store in stores}


def sources_of(stores: Sequence[PairStore]) -> dict[str, dict[str, object]]:
    """Source → its pairs, licence and languages, for the model card."""
    return {
        store.about.name: {
            "pairs": store.shape.rows,
            "licence": store.about.licence,
            "languages": list(store.about.languages),
        }
        for store in stores
    }
