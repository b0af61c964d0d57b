"""The evaluation sets as they lie on disk, read into the shapes that can be scored.

A set has one or more subsets (a language, a pair of languages, or a year for the English STS tasks); a system is scored
on each alone. The folder is the `--data` folder; its `eval/` part holds gzip-compressed JSON lines, described in the
data's own README.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Literal

from training.errors import DataError
from training.eval_shapes import Bitext, Classification, Clustering, Retrieval, Similarity

# The languages that small multilingual models are compared in: large, and in nine scripts.
FLORES_CORE = (
    "deu_Latn", "fra_Latn", "spa_Latn", "por_Latn", "nld_Latn", "pol_Latn", "rus_Cyrl", "tur_Latn", "zho_Hans",
    "jpn_Jpan", "kor_Hang", "arb_Arab", "hin_Deva",
)  # fmt: skip
# The same, and seven more.
FLORES_20 = (
    *FLORES_CORE, "ukr_Cyrl", "ces_Latn", "ron_Latn", "vie_Latn", "pes_Arab", "ell_Grek", "fin_Latn",
)  # fmt: skip
# Of the matrix: the core, English, and six languages with little text, in four scripts.
FLORES_MATRIX = (
    "eng_Latn", *FLORES_CORE, "amh_Ethi", "khm_Khmr", "mya_Mymr", "sun_Latn", "yor_Latn", "zul_Latn",
)  # fmt: skip
# Table 4 of the mE5 paper averages over these, which leaves out the surprise languages de and yo.
MIRACL_16 = ("ar", "bn", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "zh")


def read_flores(data: Path, languages: Sequence[str] = ()) -> dict[str, Bitext]:
    """FLORES-200: each language against English; without `languages` all that the file has."""
    by_language = _flores_sentences(data, ("eng_Latn", *languages))
    chosen = languages or sorted(by_language.keys() - {"eng_Latn"})
    return {lang: _aligned(by_language[lang], by_language["eng_Latn"]) for lang in chosen}


def read_flores_matrix(data: Path, languages: Sequence[str] = FLORES_MATRIX) -> dict[str, Bitext]:
    """FLORES-200: each of the languages against each other one, `deu_Latn→fra_Latn`."""
    by_language = _flores_sentences(data, languages)
    shared = sorted(set.intersection(*(set(by_language[lang]) for lang in languages)))
    texts = {lang: [by_language[lang][number] for number in shared] for lang in languages}
    return {pair_name(a, b): Bitext(texts[a], texts[b], one_way=True) for a, b in permutations(languages, 2)}


def pair_name(source: str, target: str) -> str:
    """The subset in which texts of one language look for those of another."""
    return f"{source}→{target}"


def _flores_sentences(data: Path, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    by_language: dict[str, dict[str, str]] = defaultdict(dict)
    for line in _lines(data / FLORES):
        by_language[line["lang"]][line["id"]] = line["text"]
    if missing := set(wanted) - by_language.keys():
        raise DataError(f"{data / FLORES} has no sentences in {', '.join(sorted(missing))}")
    return by_language


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


def read_across(data: Path, *, folder: str) -> dict[str, Retrieval]:
    """Parallel sets: the questions of each language, searched in the paragraphs of each other one, `de→en`.

    Row i is the same question, or the same paragraph, in every language.
    """
    own = _parallel(read_retrieval(data, folder=folder), data / folder)
    return {
        pair_name(a, b): Retrieval(own[a].queries, own[b].documents, own[a].relevant) for a, b in permutations(own, 2)
    }


def read_all_languages(data: Path, *, folder: str) -> dict[str, Retrieval]:
    """Parallel sets: the questions of each language, searched in one pool of all languages.

    The paragraph is an answer in every language it is there in.
    """
    own = _parallel(read_retrieval(data, folder=folder), data / folder)
    pool = [document for subset in own.values() for document in subset.documents]
    starts = range(0, len(pool), len(pool) // len(own))
    return {
        lang: Retrieval(
            subset.queries,
            pool,
            [{start + row: grade for start in starts for row, grade in rows.items()} for rows in subset.relevant],
        )
        for lang, subset in own.items()
    }


def _parallel(subsets: dict[str, Retrieval], path: Path) -> dict[str, Retrieval]:
    first = next(iter(subsets.values()))
    for lang, subset in subsets.items():
        if len(subset.documents) != len(first.documents) or subset.relevant != first.relevant:
            raise DataError(f"{path}: {lang} has other questions or paragraphs than {next(iter(subsets))}")
    return subsets


def read_labelled(data: Path, *, file: str) -> dict[str, Classification]:
    """Labelled texts by language; what is not of the test split is learned from."""
    subsets: dict[str, Classification] = defaultdict(lambda: Classification([], [], [], []))
    for line in _lines(data / file):
        subset, tested = subsets[line["lang"]], line["split"] == "test"
        (subset.texts if tested else subset.train_texts).append(line["text"])
        (subset.labels if tested else subset.train_labels).append(line["label"])
    return dict(subsets)


def read_topics(data: Path, *, file: str) -> dict[str, Clustering]:
    """Texts with their topics, by language."""
    subsets: dict[str, Clustering] = defaultdict(lambda: Clustering([], []))
    for line in _lines(data / file):
        subsets[line["lang"]].texts.append(line["text"])
        subsets[line["lang"]].labels.append(line["label"])
    return dict(subsets)


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
