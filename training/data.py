"""Sources of text pairs: read the manifest, keep what the licence allows, number the texts.

A data folder holds MANIFEST.json and the files it names: gzip-compressed JSON lines
`{"query", "positive", "negative": [...], "lang"}`. Every text is stored once and pairs are rows of text
numbers, so that "the same passage" is an integer comparison everywhere later.
"""

import gzip
import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import BadTrainingData

logger = logging.getLogger(__name__)

# Terms under which a trained model could not be given away.
RESTRICTED_LICENCE = re.compile(r"research|non-?commercial|\bNC\b|academic use", re.IGNORECASE)
NO_TEXT = -1
MANIFEST_FILE = "MANIFEST.json"
FILE_ENDING = ".jsonl.gz"
# Of every five rows of a development set the first two are left to measure with.
DEV_FOLDS, DEV_FOLDS_MEASURED = 5, 2


@dataclass(frozen=True)
class Source:
    """One file of pairs, as the manifest describes it.

    is_dev: not pairs, but a similarity set in several languages, of whose development part the translations are taken.
    """

    name: str
    path: Path
    licence: str
    pair_count: int
    sha256: str
    is_dev: bool = False


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and at most one text that looks right and is wrong."""

    query: str
    positive: str
    negative: str | None
    query_language: str
    positive_language: str


@dataclass(frozen=True)
class Corpus:
    """All pairs of a run over one list of distinct texts.

    texts: the distinct texts.                      text_language: int16[T], into `languages`.
    pairs: int32[N, 2], query and positive as text numbers.
    negatives: int32[N], NO_TEXT where there is none.
    pair_source: int16[N], into `sources`.
    pair_language: int16[N], into `languages`: of the side that is not English, where there is one.
    """

    texts: list[str]
    languages: list[str]
    sources: list[str]
    text_language: np.ndarray
    pairs: np.ndarray
    negatives: np.ndarray
    pair_source: np.ndarray
    pair_language: np.ndarray


def read_sources(data: Path, dev_sets: Sequence[str] = ()) -> list[Source]:
    """List the training files of a data folder, in the order of the manifest, and behind them the development sets.

    dev_sets: names of similarity sets among the evaluation files. Raises BadTrainingData for one that is not there,
    damaged, or without translations.
    """
    manifest_path = data / MANIFEST_FILE
    if not manifest_path.is_file():
        raise BadTrainingData(f"{manifest_path} is missing; --data needs the folder that holds MANIFEST.json")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    by_name = {_name_of(entry): entry for entry in manifest.get("eval", [])}
    if unknown := [name for name in dev_sets if name not in by_name]:
        raise BadTrainingData(f"{manifest_path} has no evaluation file {unknown[0]!r}; it has {', '.join(by_name)}")
    dev = [replace(_source(data, by_name[name], f"translation_dev_{name}"), is_dev=True) for name in dev_sets]
    for source in dev:
        check_hash(source)
    return [
        *(_source(data, entry, _name_of(entry)) for entry in manifest["train"]),
        *(replace(source, pair_count=sum(1 for _ in read_pairs(source))) for source in dev),
    ]


def _name_of(entry: dict[str, str]) -> str:
    return Path(entry["file"]).name.removesuffix(FILE_ENDING)


def _source(data: Path, entry: dict[str, Any], name: str) -> Source:
    path, licence = data / entry["file"], entry["licence"]
    return Source(name=name, path=path, licence=licence, pair_count=entry["lines"], sha256=entry["sha256"])


def is_licence_open(licence: str) -> bool:
    """Say whether a model trained on texts under this licence may be given away and used commercially."""
    return RESTRICTED_LICENCE.search(licence) is None


def keep_open_sources(sources: list[Source]) -> list[Source]:
    """Leave out the sources that are for research or non-commercial use only, and log which."""
    for source in sources:
        if not is_licence_open(source.licence):
            logger.warning("left out %s (%d pairs): licence %r", source.name, source.pair_count, source.licence)
    return [source for source in sources if is_licence_open(source.licence)]


# ISO 15924 and 3166; codes of languages are lower case.
_SCRIPT_OR_COUNTRY = re.compile(r"[A-Z][a-z]{3}|[A-Z]{2}")


def split_languages(lang: str) -> tuple[str, str]:
    """Turn the `lang` of a line into the languages of its two sides: `en-zh-Hant` is `en`, `zh-Hant`."""
    sides: list[str] = []
    for part in lang.split("-"):
        if sides and _SCRIPT_OR_COUNTRY.fullmatch(part):
            sides[-1] += f"-{part}"
        else:
            sides.append(part)
    return sides[0], "-".join(sides[1:]) or sides[0]


def read_pairs(source: Source) -> Iterator[Pair]:
    """Yield the pairs of one file, in file order."""
    with gzip.open(source.path, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        if source.is_dev:
            try:
                yield from dev_translations(rows)
            except (KeyError, ValueError) as error:
                raise BadTrainingData(
                    f"{source.path}: a development set has the same rows in English and in other languages: {error}"
                ) from error
            return
        for row in rows:
            query_language, positive_language = split_languages(row["lang"])
            negatives = row.get("negative") or [None]
            yield Pair(row["query"], row["positive"], negatives[0], query_language, positive_language)


def dev_translations(rows: Iterator[dict[str, Any]]) -> Iterator[Pair]:
    """Pair the English sentences of a similarity set's development part with those of the same place elsewhere.

    rows: `{"lang", "split", "sentence1", "sentence2"}`, every language in the same order. No score is read.
    """
    by_language: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        if row["split"] == "dev":
            by_language[row["lang"]].append((row["sentence1"], row["sentence2"]))
    english = by_language.pop("en")
    for language, others in by_language.items():
        for place, (texts, translations) in enumerate(zip(english, others, strict=True)):
            if place % DEV_FOLDS >= DEV_FOLDS_MEASURED:
                for text, translation in zip(texts, translations, strict=True):
                    yield Pair(text, translation, None, "en", language)


def check_hash(source: Source) -> None:
    """Raise BadTrainingData when a file is not the one that the manifest names."""
    found = hashlib.sha256(source.path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise BadTrainingData(f"{source.path} has SHA-256 {found}, the manifest says {source.sha256}")


def is_held_out(pair: Pair, held_out_per_mille: int) -> bool:
    """Put a fixed share of the pairs aside, by the query's text: all its translations stay out together."""
    digest = hashlib.blake2b(pair.query.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 1000 < held_out_per_mille


def main_language(pair: Pair) -> str:
    """Name the language that a pair teaches: the side that is not English, where there is one."""
    return pair.positive_language if pair.query_language == "en" else pair.query_language


def read_corpus(sources: list[Source], held_out_per_mille: int = 0, only_held_out: bool = False) -> Corpus:
    """Read all pairs into one numbered corpus, without the held-out ones (or with only those)."""
    texts: dict[str, int] = {}
    languages: dict[str, int] = {}
    text_language: list[int] = []
    pairs: list[tuple[int, int]] = []
    negatives: list[int] = []
    pair_source: list[int] = []
    pair_language: list[int] = []

    def number(text: str, language: str) -> int:
        text_number = texts.setdefault(text, len(texts))
        if text_number == len(text_language):
            text_language.append(languages.setdefault(language, len(languages)))
        return text_number

    for source_number, source in enumerate(sources):
        check_hash(source)
        for pair in read_pairs(source):
            if is_held_out(pair, held_out_per_mille) != only_held_out:
                continue
            pairs.append((number(pair.query, pair.query_language), number(pair.positive, pair.positive_language)))
            wrong = pair.negative
            negatives.append(NO_TEXT if wrong is None else number(wrong, pair.positive_language))
            pair_source.append(source_number)
            pair_language.append(languages.setdefault(main_language(pair), len(languages)))
    return Corpus(
        texts=list(texts),
        languages=list(languages),
        sources=[source.name for source in sources],
        text_language=np.array(text_language, dtype=np.int16),
        pairs=np.array(pairs, dtype=np.int32).reshape(-1, 2),
        negatives=np.array(negatives, dtype=np.int32),
        pair_source=np.array(pair_source, dtype=np.int16),
        pair_language=np.array(pair_language, dtype=np.int16),
    )
