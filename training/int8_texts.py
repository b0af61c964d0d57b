"""The texts that int8 is calibrated on and held to: never the same ones."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError
from training.eval_reading import FLORES

# Parallel news in 128 languages, in the data folder's training part.
NTREX = "train/translation_ntrex128.jsonl.gz"
CALIBRATION_PER_LANGUAGE = 4
GATE_PER_LANGUAGE = 64
# Below this a language's mean is chance.
GATE_MIN = 4


@dataclass(frozen=True)
class Texts:
    """calibration: texts of every language.   languages, gate: the held-out texts and the language of each."""

    calibration: list[str]
    languages: list[str]
    gate: list[str]


def texts_of_data(data: Path) -> Texts:
    """From the data folder: calibrated on a file of its training part, held to FLORES-200."""
    calibration: dict[str, list[str]] = defaultdict(list)
    for line in _lines(data / NTREX):
        calibration[line["lang"]].append(line["positive"])
    gate: dict[str, list[str]] = defaultdict(list)
    for line in _lines(data / FLORES):
        gate[line["lang"]].append(line["text"])
    return _chosen(calibration, gate)


def texts_of_file(path: Path) -> Texts:
    """From JSON lines {"text", "lang"}: of each language every other text is held out."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(_lines(path), start=1):
        if not isinstance(line.get("text"), str) or not isinstance(line.get("lang"), str):
            raise DataError(f'{path}, line {number}: wanted is {{"text": "…", "lang": "…"}}')
        by_language[line["lang"]].append(line["text"])
    by_language = {language: list(dict.fromkeys(texts)) for language, texts in by_language.items()}
    short = sorted(language for language, texts in by_language.items() if len(texts) < 2 * GATE_MIN)
    if short or not by_language:
        raise DataError(f"{path}: {', '.join(short) or 'no language'} has less than {2 * GATE_MIN} texts; add some")
    return _chosen(
        {language: texts[0::2] for language, texts in by_language.items()},
        {language: texts[1::2] for language, texts in by_language.items()},
    )


def _chosen(calibration: dict[str, list[str]], gate: dict[str, list[str]]) -> Texts:
    held = {language: _spread(texts, GATE_PER_LANGUAGE) for language, texts in sorted(gate.items())}
    return Texts(
        [text for texts in calibration.values() for text in _spread(texts, CALIBRATION_PER_LANGUAGE)],
        [language for language, texts in held.items() for _ in texts],
        [text for texts in held.values() for text in texts],
    )


def _spread(texts: list[str], count: int) -> list[str]:
    return texts[:: max(1, len(texts) // count)][:count]


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} is missing; --data must name the folder with train/ and eval/, --texts a file")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
