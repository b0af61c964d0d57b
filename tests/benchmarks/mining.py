"""How well and how fast translations are mined: make mining-bench ME5_DATA=FOLDER.

Quality: the 506 FLORES-200 sentences of a language and of English, each side hidden among distractors (sentences of the
training pairs in that language, none of which has its translation on the other side). Half of the sentences choose the
threshold, the other half is counted. Speed: 100,000 sentences against 100,000, by faiss and by NumPy, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from machine import describe

from service.applications.mining import Pairs, best_threshold, mine, quality
from service.applications.neighbours import cells_of, nearest, open_cells, recall_of
from service.applications.texts import embed
from service.ready import opened
from service.settings import load_settings

Vectors = NDArray[np.float32]
K = 4
DISTRACTORS = 1500
# FLORES sentences are long; short ones would be told apart by their length.
DISTRACTOR_CHARS_MIN = {"Hans": 18, "Jpan": 20, "Hang": 25, "Thai": 50}
# FLORES-200's codes of the 66 languages beside English, and the two letters that the training pairs call them by.
_CODES = """
afr_Latn:af amh_Ethi:am arb_Arab:ar asm_Beng:as azj_Latn:az bel_Cyrl:be ben_Beng:bn bos_Latn:bs bul_Cyrl:bg
cat_Latn:ca ceb_Latn:ceb ces_Latn:cs cym_Latn:cy dan_Latn:da deu_Latn:de ell_Grek:el epo_Latn:eo est_Latn:et
fin_Latn:fi fra_Latn:fr gla_Latn:gd glg_Latn:gl guj_Gujr:gu hau_Latn:ha hin_Deva:hi hrv_Latn:hr hye_Armn:hy
ibo_Latn:ig isl_Latn:is jpn_Jpan:ja kan_Knda:kn kaz_Cyrl:kk khm_Khmr:km kor_Hang:ko lao_Laoo:lo lit_Latn:lt
lvs_Latn:lv mal_Mlym:ml mar_Deva:mr mkd_Cyrl:mk mya_Mymr:my nld_Latn:nl nob_Latn:nb npi_Deva:ne pan_Guru:pa
pes_Arab:fa pol_Latn:pl por_Latn:pt ron_Latn:ro rus_Cyrl:ru sin_Sinh:si slk_Latn:sk slv_Latn:sl som_Latn:so
spa_Latn:es srp_Cyrl:sr sun_Latn:su tam_Taml:ta tha_Thai:th tur_Latn:tr ukr_Cyrl:uk uzn_Latn:uz vie_Latn:vi
yor_Latn:yo zho_Hans:zh zul_Latn:zu
"""
LANGUAGES = dict(pair.split(":") for pair in _CODES.split())
ENGLISH = "eng_Latn"


def lines_of(path: Path) -> Iterator[dict[str, str]]:
    """The records of a .jsonl.gz."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def flores(data: Path) -> dict[str, list[str]]:
    """Each language's sentences, in one order."""
    found: dict[str, dict[str, str]] = {}
    for line in lines_of(data / "eval" / "bitext_flores200.jsonl.gz"):
        found.setdefault(line["lang"], {})[line["id"]] = line["text"]
    order = sorted(found[ENGLISH])
    return {lang: [texts[name] for name in order] for lang, texts in found.items()}


def distractors(data: Path) -> dict[str, list[str]]:
    """By FLORES's code, sentences of the training pairs; of each pair one side alone, so that none has its partner."""
    code_of = {two: code for code, two in LANGUAGES.items()}
    found: dict[str, dict[str, None]] = {code: {} for code in (ENGLISH, *LANGUAGES)}
    for path in sorted((data / "train").glob("translation_*.jsonl.gz")):
        for line in lines_of(path):
            first, _, second = line["lang"].partition("-")
            if first != "en" or second not in code_of:
                continue
            # By the English side: a sentence that is there in forty languages stays on one side in all of them.
            english = crc32(line["query"].encode()) % 2 == 0
            code, text = (ENGLISH, line["query"]) if english else (code_of[second], line["positive"])
            if len(text) >= DISTRACTOR_CHARS_MIN.get(code.partition("_")[2], 60):
                found[code].setdefault(text)
    return {code: sorted(texts, key=lambda text: crc32(text.encode()))[:DISTRACTORS] for code, texts in found.items()}


def measure_quality(data: Path, codes: list[str]) -> list[dict[str, object]]:
    """A row for each language against English."""
    sentences, others = flores(data), distractors(data)
    sides = {code: sentences[code] + others[code] for code in (ENGLISH, *codes)}

    async def compute() -> dict[str, Vectors]:
        async with opened(load_settings()) as embedder:
            return {code: await embed(embedder, texts, "similarity", code) for code, texts in sides.items()}

    vectors = asyncio.run(compute())
    return [judged(code, vectors[code], vectors[ENGLISH], len(sentences[ENGLISH]), len(others[code])) for code in codes]


def judged(code: str, sources: Vectors, targets: Vectors, pairs: int, others: int) -> dict[str, object]:
    """One language: precision, recall and F1 on the half that did not choose the threshold, by margin and by cosine."""
    # FLORES's sentences come from articles, in order: every second one. The pair of row i is row i.
    gold = {row: row if row < pairs else None for row in range(len(sources))}
    halves = [{row: target for row, target in gold.items() if row % 2 == half} for half in (0, 1)]
    forward, backward = nearest(sources, targets, K), nearest(targets, sources, K)
    row: dict[str, object] = {"language": code, "distractors": others}
    for margin in ("ratio", "distance", "absolute"):
        found: Pairs = mine(forward, backward, margin)
        threshold = best_threshold(found, halves[0])
        score = quality(found.above(threshold), halves[1])
        row[margin] = {"threshold": threshold, "precision": score.precision, "recall": score.recall, "f1": score.f1}
    return row


def sentences(data: Path, count: int) -> tuple[list[str], list[str]]:
    """So many distinct sentences in other languages, and so many in English, of the training pairs."""
    first: dict[str, None] = {}
    second: dict[str, None] = {}
    for line in lines_of(data / "train" / "translation_tatoeba_challenge.jsonl.gz"):
        if line["lang"].startswith("en-"):
            first.setdefault(line["query"])
            second.setdefault(line["positive"])
    chosen = [sorted(side, key=lambda text: crc32(text.encode()))[:count] for side in (second, first)]
    return chosen[0], chosen[1]


def brute_force(queries: Vectors, base: Vectors) -> NDArray[np.int64]:
    """The exact neighbours by NumPy alone: a matrix product of some queries at a time, and a partition of its rows."""
    numbers = np.empty((len(queries), K), dtype=np.int64)
    for start in range(0, len(queries), 1024):
        products = queries[start : start + 1024] @ base.T
        best = np.argpartition(products, -K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(products, best, axis=1), axis=1)
        numbers[start : start + len(best)] = np.take_along_axis(best, order, axis=1)
    return numbers


def measure_speed(data: Path, count: int, queries: int, rounds: int, kept: Path) -> dict[str, object]:
    """Seconds for the nearest targets of the first `queries` sources, and ratios by round.

    A round is a share of them against all targets, one way after another, so that its ratios compare the same minutes
    of a machine that others use too. To build the cells, and to find how many to look into, is counted: each round
    gets as much of it as it has of all the sources.
    """
    pair = []
    for name, texts in zip(("others", "english"), sentences(data, count), strict=True):
        path = kept / f"mining-{name}-{count}.npy"
        if not path.is_file():
            np.save(path, asyncio.run(embedded(texts, name)))
        pair.append(np.load(path))
    sources, targets = pair
    started = time.perf_counter()
    cells = cells_of(targets)
    promised = open_cells(cells, sources, targets, K)
    building = time.perf_counter() - started
    ways: dict[str, Callable[[Vectors], NDArray[np.int64]]] = {
        "numpy": lambda queries: brute_force(queries, targets),
        "exact": lambda queries: nearest(queries, targets, K, "exact").numbers,
        "cells": lambda queries: cells.search(queries, K)[1],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    recall: dict[str, list[float]] = {"exact": [], "cells": []}
    for part in np.array_split(sources[:queries], rounds):
        found = {}
        for way, search in ways.items():
            started = time.perf_counter()
            found[way] = search(part)
            taken = time.perf_counter() - started + (building * len(part) / len(sources) if way == "cells" else 0)
            seconds[way].append(taken)
            print(f"{way}: {taken:.1f} s", file=sys.stderr, flush=True)
        for way in recall:
            recall[way].append(recall_of(found[way], found["numpy"]))
    return {
        "sentences": [len(sources), len(targets)],
        "queries": min(queries, len(sources)),
        "rounds": rounds,
        "seconds": {way: sum(times) for way, times in seconds.items()},
        "times_faster": {
            way: statistics.median(a / b for a, b in zip(seconds["numpy"], seconds[way], strict=True)) for way in recall
        },
        "recall": {way: statistics.mean(shares) for way, shares in recall.items()},
        "cells": {"count": cells.nlist, "looked_into": cells.nprobe, "building_s": building, "promised": promised},
    }


async def embedded(texts: list[str], name: str) -> Vectors:
    """Vectors of texts by the settings' model."""
    async with opened(load_settings()) as embedder:
        return await embed(embedder, texts, "similarity", name)


def print_quality(rows: list[dict[str, object]]) -> None:
    """A line for each language, and their means."""
    print(f"{'':10} distractors | " + " | ".join(f"{m:>8} P, R, F1  " for m in ("ratio", "distance", "absolute")))
    for row in rows:
        cells = " | ".join(_cells(row[margin]) for margin in ("ratio", "distance", "absolute"))
        print(f"{row['language']:10} {row['distractors']:11} | {cells}")
    for measure in ("precision", "recall", "f1"):
        means = {m: statistics.mean(row[m][measure] for row in rows) for m in ("ratio", "distance", "absolute")}
        print(f"mean {measure}: " + ", ".join(f"{margin} {mean:.3f}" for margin, mean in means.items()))


def _cells(score: object) -> str:
    assert isinstance(score, dict)
    return f"{score['precision']:.3f} {score['recall']:.3f} {score['f1']:.3f}"


def main() -> None:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--languages", nargs="*", default=sorted(LANGUAGES))
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument("--out", type=Path, default=Path(".bench/mining.json"))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": describe(), "model": load_settings().model}
    if asked.only != "speed":
        result["quality"] = rows = measure_quality(asked.data, asked.languages)
        print_quality(rows)
    if asked.only != "quality":
        result["speed"] = speed = measure_speed(
            asked.data, asked.sentences, asked.queries, asked.rounds, asked.out.parent
        )
        print(json.dumps(speed, indent=1))
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
