"""The evaluation sets as they lie on disk, read into the three shapes that can be scored.

A set has one or more subsets (a language, or a year for the English STS tasks); a model is scored on each alone. The
folder is the `--data` folder; its `eval/` part holds gzip-compressed JSON lines, described in the data's own README.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from training.errors import DataError


@dataclass(frozen=True)
class Bitext:
    """Row i of the targets is the translation of row i of the sources, and of no other."""

    sources: list[str]
    targets: list[str]


@dataclass(frozen=True)
class Similarity:
    """Pairs of sentences and how alike people found them."""

    firsts: list[str]
    seconds: list[str]
    judged: list[float]


@dataclass(frozen=True)
class Retrieval:
    """Queries, the pool they are searched in, and for each query: row of a relevant document → grade."""

    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, int]]


Subset = Bitext | Similarity | Retrieval


@dataclass(frozen=True)
class EvalSet:
    """One set: its files under the data folder, and how they are read."""

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Mapping[str, Subset]]


# The languages that small multilingual models are compared in: large, and in nine scripts.
FLORES_CORE = (
    "deu_Latn", "fra_Latn", "spa_Latn", "por_Latn", "nld_Latn", "pol_Latn", "rus_Cyrl", "tur_Latn", "zho_Hans",
    "jpn_Jpan", "kor_Hang", "arb_Arab", "hin_Deva",
)  # fmt: skip


def read_flores(data: Path, languages: Sequence[str] = ()) -> dict[str, Bitext]:
    """FLORES-200: each language against English; without `languages` all that the file has."""
    by_language: dict[str, dict[str, str]] = defaultdict(dict)
    for line in _lines(data / FLORES):
        by_language[line["lang"]][line["id"]] = line["text"]
    english = by_language.pop("eng_Latn", None)
    if english is None:
        raise DataError(f"{data / FLORES} has no eng_Latn sentences, and every other language is searched in them")
    missing = set(languages) - by_language.keys()
    if missing:
        raise DataError(f"{data / FLORES} has no sentences in {', '.join(sorted(missing))}")
    chosen = languages or sorted(by_language)
    return {lang: _aligned(by_language[lang], english) for lang in chosen}


def _aligned(sentences: dict[str, str], english: dict[str, str]) -> Bitext:
    shared = sorted(sentences.keys() & english.keys())
    return Bitext([sentences[number] for number in shared], [english[number] for number in shared])


def read_tatoeba(data: Path) -> dict[str, Bitext]:
    """Tatoeba, as LASER published it: each language into English."""
    subsets: dict[str, Bitext] = defaultdict(lambda: Bitext([], []))
    for line in _lines(data / TATOEBA):
        subsets[line["lang"]].sources.append(line["src"])
        subsets[line["lang"]].targets.append(line["tgt"])
    return dict(subsets)


def read_sts(
    data: Path, *, file: str, splits: frozenset[str], subset: Literal["lang", "task"]
) -> dict[str, Similarity]:
    """Pairs of the wanted splits, one subset for each value of the field `subset`."""
    subsets: dict[str, Similarity] = defaultdict(lambda: Similarity([], [], []))
    for line in _lines(data / file):
        if line["split"] in splits:
            pairs = subsets[line[subset]]
            pairs.firsts.append(line["sentence1"])
            pairs.seconds.append(line["sentence2"])
            pairs.judged.append(float(line["score"]))
    return dict(subsets)


def read_retrieval(data: Path, *, folder: str, one_pool: bool = False) -> dict[str, Retrieval]:
    """Queries by language; each searched in the documents of its language, or all in one pool.

    A document's title goes in front of its text with one space between, when it has one.
    """
    rows_in_pool: dict[str, dict[str, int]] = defaultdict(dict)
    documents: dict[str, list[str]] = defaultdict(list)
    for line in _lines(data / folder / "corpus.jsonl.gz"):
        pool = "" if one_pool else line["lang"]
        rows_in_pool[pool][line["doc_id"]] = len(documents[pool])
        documents[pool].append(f"{line['title']} {line['text']}" if line.get("title") else line["text"])

    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for _, query, document, grade in _rows(data / folder / "qrels.tsv.gz"):
        if int(grade) > 0:
            grades[query][document] = int(grade)

    subsets: dict[str, Retrieval] = {}
    for line in _lines(data / folder / "queries.jsonl.gz"):
        pool = "" if one_pool else line["lang"]
        subset = subsets.setdefault(line["lang"], Retrieval([], documents[pool], []))
        subset.queries.append(line["text"])
        rows = rows_in_pool[pool]
        subset.relevant.append({rows[doc]: grade for doc, grade in grades[line["query_id"]].items() if doc in rows})
    return subsets


# One JSON object of a set: every value is a string but `id` and `score`.
Line = dict[str, str]


def _lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(_text(path), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error


def _rows(path: Path) -> Iterator[list[str]]:
    lines = _text(path)
    next(lines, None)  # the header
    return (line.rstrip("\n").split("\t") for line in lines)


def _text(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise DataError(f"{path} is missing; --data (or ME5_DATA) must name the folder that holds eval/")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from file


FLORES = "eval/bitext_flores200.jsonl.gz"
TATOEBA = "eval/bitext_tatoeba.jsonl.gz"


def _sts(name: str, file: str, splits: set[str], subset: Literal["lang", "task"] = "lang") -> EvalSet:
    read = partial(read_sts, file=file, splits=frozenset(splits), subset=subset)
    return EvalSet(name, (file,), read)


def _retrieval(name: str, folder: str, *, one_pool: bool = False) -> EvalSet:
    files = tuple(f"{folder}/{file}" for file in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz"))
    return EvalSet(name, files, partial(read_retrieval, folder=folder, one_pool=one_pool))


_ALL = (
    EvalSet("flores", (FLORES,), read_flores),
    EvalSet("tatoeba", (TATOEBA,), read_tatoeba),
    _sts("stsb", "eval/sts_stsb_multi.jsonl.gz", {"test"}),
    # mteb's SICK-R is all 9,927 pairs, its JSTS the validation split: the same here, so that figures compare.
    _sts("sick", "eval/sts_sick.jsonl.gz", {"train", "dev", "test"}),
    _sts("jsts", "eval/sts_jsts.jsonl.gz", {"valid"}),
    _sts("sts12-16", "eval/sts_semeval12_16.jsonl.gz", {"test"}, subset="task"),
    _retrieval("xquad", "eval/retrieval_xquad"),
    _retrieval("afriqa", "eval/retrieval_afriqa", one_pool=True),
    _retrieval("arcd", "eval/retrieval_arcd_ar"),
    _retrieval("covidqa", "eval/retrieval_covidqa_en"),
    _retrieval("drcd", "eval/retrieval_drcd_zh_hant"),
    _retrieval("iapp", "eval/retrieval_iapp_th"),
    _retrieval("jsquad", "eval/retrieval_jsquad_ja"),
    _retrieval("persianqa", "eval/retrieval_persianqa_fa"),
)
EVAL_SETS = {eval_set.name: eval_set for eval_set in _ALL}
FLORES_CORE_SET = EvalSet("flores", (FLORES,), partial(read_flores, languages=FLORES_CORE))
QUICK = (FLORES_CORE_SET, EVAL_SETS["stsb"], EVAL_SETS["xquad"])
