"""The texts that a form of a model is calibrated on and held to: never the same ones."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training.errors import DataError
from training.eval_reading import FLORES
from training.parity import GateTexts

# Parallel news in 128 languages, in the data folder's training part.
NTREX = "train/translation_ntrex128.jsonl.gz"
CALIBRATION_PER_LANGUAGE = 4
# One text is one per cent.
GATE_PER_LANGUAGE = 100
# Below this a language's mean is chance.
GATE_MIN = 4


# A text, and what it shares with its translations.
Keyed = tuple[str, str | None]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Texts:
    """calibration: texts of every language.   gate: the held-out texts."""

    calibration: list[str]
    gate: GateTexts


def texts_of_data(data: Path) -> Texts:
    """From the data folder: calibrated on a file of its training part, held to FLORES-200, whose texts are parallel."""
    calibration: dict[str, list[Keyed]] = defaultdict(list)
    for line in _lines(data / NTREX):
        calibration[line["lang"]].append((line["positive"], None))
    gate: dict[str, list[Keyed]] = defaultdict(list)
    for line in _lines(data / FLORES):
        gate[line["lang"]].append((line["text"], line["id"]))
    return _chosen(calibration, gate)


def texts_of_file(path: Path) -> Texts:
    """From JSON lines {"text", "lang", "id"}: of each language every other text is held out.

    id: optional, the same for a text and its translations; those are then split alike.
    """
    by_language: dict[str, dict[str, str | None]] = defaultdict(dict)
    for number, line in enumerate(_lines(path), start=1):
        if not isinstance(line.get("text"), str) or not isinstance(line.get("lang"), str):
            raise DataError(f'{path}, line {number}: wanted is {{"text": "…", "lang": "…"}}')
        key = line.get("id")
        by_language[line["lang"]].setdefault(line["text"], None if key is None else str(key))
    calibration, gate = _halves(by_language)
    short = sorted(language for language, texts in gate.items() if len(texts) < GATE_MIN)
    if short or not by_language:
        raise DataError(f"{path}: {', '.join(short) or 'no language'} has less than {2 * GATE_MIN} texts; add some")
    return _chosen(calibration, gate)


def _halves(by_language: dict[str, dict[str, str | None]]) -> tuple[dict[str, list[Keyed]], dict[str, list[Keyed]]]:
    """Every other text of each language, and the rest; those of one key are in the same half in every language."""
    keys = sorted({key for texts in by_language.values() for key in texts.values() if key is not None})
    rank: dict[str | None, int] = {key: place for place, key in enumerate(keys)}
    halves: tuple[dict[str, list[Keyed]], dict[str, list[Keyed]]] = (defaultdict(list), defaultdict(list))
    for language, texts in by_language.items():
        for place, (text, key) in enumerate(sorted(texts.items(), key=lambda item: rank.get(item[1], -1))):
            halves[rank.get(key, place) % 2][language].append((text, key))
        # A language none of whose texts is held out is found to be short.
        halves[1].setdefault(language, [])
    return halves


def _chosen(calibration: dict[str, list[Keyed]], gate: dict[str, list[Keyed]]) -> Texts:
    held = {language: _spread(texts, GATE_PER_LANGUAGE) for language, texts in sorted(gate.items())}
    return Texts(
        [text for texts in calibration.values() for text, _ in _spread(texts, CALIBRATION_PER_LANGUAGE)],
        GateTexts(
            [language for language, texts in held.items() for _ in texts],
            [text for texts in held.values() for text, _ in texts],
            [key for texts in held.values() for _, key in texts],
        ),
    )


def _spread(items: list[Item], count: int) -> list[Item]:
    return items[:: max(1, len(items) // count)][:count]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} is missing; --data must name the folder with train/ and eval/, --texts a file")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
