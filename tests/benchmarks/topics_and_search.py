"""How good topics and hits are across languages: make applications-bench ME5_DATA=FOLDER.

XQuAD (Artetxe, Ruder and Yogatama 2020): 240 paragraphs, five of each of 48 articles, and 1,190 questions, all in eight
languages. Topics: are a paragraph's translations together; is a topic an article, or a language? Search: does a
question find its paragraph in any language, and with its own language left out of the index? Measured are the functions
behind `cluster`, `index` and `search`; nothing is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import v_measure_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from machine import describe

from service.applications.languages import languages_of
from service.applications.passage_index import PassageIndex, Vectors, adding, publish
from service.applications.searching import Searcher, by_words, kind_for, with_nearest, with_words
from service.applications.texts import embed
from service.applications.topics import NOISE, Numbers, by_density, by_kmeans, centred, lay_out
from service.applications.words import pieces_of, words_of
from service.model import Model, read_model
from service.ready import opened
from service.recipe.prompts import InputType
from service.settings import load_settings

# The paragraphs' numbers are the same in all languages and go by article, five of each.
ARTICLES, PARAGRAPHS_AN_ARTICLE = 48, 5
LEAST_TEXTS, HITS = (5, 10, 20), 10
# What topics are judged by, and how it is printed.
JUDGED = {"topics": ".0f", "in none": ".0%", "together": ".0%", "by article": ".2f", "by language": ".2f"}


@dataclass(frozen=True)
class Item:
    """A paragraph, or a question.   number: of the paragraph, or of the one with the answer."""

    name: str
    language: str
    number: int
    text: str


def read_xquad(data: Path) -> tuple[list[Item], list[Item]]:
    """Paragraphs and questions in all languages."""
    folder = data / "eval" / "retrieval_xquad"
    with gzip.open(folder / "qrels.tsv.gz", "rt", encoding="utf-8") as stream:
        next(stream)
        answers = {question: document for _, question, document, _ in (line.split("\t") for line in stream)}

    def items(file: str, key: str) -> list[Item]:
        with gzip.open(folder / f"{file}.jsonl.gz", "rt", encoding="utf-8") as stream:
            rows = ((row[key], row) for row in map(json.loads, stream))
            return [Item(name, row["lang"], number_of(answers.get(name, name)), row["text"]) for name, row in rows]

    return items("corpus", "doc_id"), items("queries", "query_id")


def number_of(document: str) -> int:
    """12 of x-de-12."""
    return int(document.rpartition("-")[2])


async def embedded(items: Sequence[Item], use: InputType) -> Vectors:
    """Vectors of the items' texts by the settings' model."""
    async with opened(load_settings()) as embedder:
        return await embed(embedder, [item.text for item in items], use, use)


def measure_topics(paragraphs: Sequence[Item], vectors: Vectors) -> dict[str, dict[str, float]]:
    """As many topics as articles by k-means; HDBSCAN over the plane, as `cluster` has it, and over the vectors."""
    without = centred(vectors, languages_of([item.text for item in paragraphs]))
    plane = lay_out(without)
    found = {"k-means, languages left in": by_kmeans(vectors, ARTICLES), "k-means": by_kmeans(without, ARTICLES)}
    found |= {f"density, `--least-texts {least}`": by_density(plane, least) for least in LEAST_TEXTS}
    found["HDBSCAN over the vectors, 10 texts"] = by_density(without.astype(np.float64), 10)
    return {name: judged(paragraphs, topics) for name, topics in found.items()}


def judged(paragraphs: Sequence[Item], topics: Numbers) -> dict[str, float]:
    """By JUDGED, in its order.

    together: of a paragraph's translations, the share in the topic that has most of them.   by article, by language:
    V-measures, for which the texts in no topic are one more.
    """
    numbers = np.array([item.number for item in paragraphs])
    each = [topics[numbers == number] for number in np.unique(numbers)]
    together = [np.bincount(found[found != NOISE], minlength=1).max() / len(found) for found in each]
    by_article = v_measure_score(numbers // PARAGRAPHS_AN_ARTICLE, topics)
    by_language = v_measure_score([item.language for item in paragraphs], topics)
    values = (topics.max() + 1, np.mean(topics == NOISE), np.mean(together), by_article, by_language)
    return dict(zip(JUDGED, map(float, values), strict=True))


def cosines_of_translations(paragraphs: Sequence[Item], vectors: Vectors) -> NDArray[np.float64]:
    """Quartiles of the cosines between two translations of a paragraph."""
    numbers = np.array([item.number for item in paragraphs])
    squares = [vectors[numbers == each] @ vectors[numbers == each].T for each in np.unique(numbers)]
    found = [square[np.triu_indices(len(square), 1)] for square in squares]
    return np.asarray(np.quantile(found, (0.25, 0.5, 0.75)), dtype=np.float64)


def make_index(folder: Path, model: Model, paragraphs: Sequence[Item], vectors: Vectors) -> PassageIndex:
    """As `index --words` makes it."""
    with adding(folder, model) as addition:
        addition.add([item.name for item in paragraphs], [item.text for item in paragraphs], vectors)
        finished, _ = with_nearest(addition.finish(), kind_for(addition.count))
        found = with_words(finished, model.tokenizer)
        publish(found)
    return found


def reciprocal_ranks(questions: Sequence[Item], found: Iterable[Sequence[str]]) -> list[float]:
    """1 ÷ the rank of the first hit that is a question's paragraph in whatever language, or 0. found: names of hits."""
    right = [[number_of(name) == item.number for name in names] for item, names in zip(questions, found, strict=True)]
    return [1 / (hits.index(True) + 1) if True in hits else 0.0 for hits in right]


def searched(index: PassageIndex, model: Model, questions: Sequence[Item], vectors: Vectors) -> dict[str, list[float]]:
    """Reciprocal ranks of the questions in an index, by what ranks."""
    texts = [item.text for item in questions]
    names = [passage.id for passage in index.passages(range(index.manifest.count))]
    pieces, words = list(pieces_of(model.tokenizer, texts)), list(words_of(model.tokenizer, texts))
    of_pieces = bm25s.BM25.load(str(index.folder / str(index.manifest.words)))
    of_words = bm25s.BM25()
    of_words.index(list(words_of(model.tokenizer, list(index.texts()))), show_progress=False)
    near, fused = (Searcher(index, hybrid=both).search(vectors, pieces, HITS) for both in (False, True))
    found = {
        "vectors": [[hit.passage.id for hit in hits] for hits in near],
        "BM25": [[names[number] for number in by_words(of_pieces, asked, HITS)] for asked in pieces],
        "`--hybrid`": [[hit.passage.id for hit in hits] for hits in fused],
        "BM25 by words": [[names[number] for number in by_words(of_words, asked, HITS)] for asked in words],
    }
    return {way: reciprocal_ranks(questions, hits) for way, hits in found.items()}


def measure_search(
    paragraphs: Sequence[Item], vectors: Vectors, questions: Sequence[Item], asking: Vectors, folder: Path
) -> dict[str, dict[str, float]]:
    """MRR@10 with the paragraphs of all languages, and with those of a question's own left out."""
    settings = load_settings()
    model = read_model(settings.model, settings.model_repo)
    everywhere = searched(make_index(folder / "all", model, paragraphs, vectors), model, questions, asking)
    elsewhere: dict[str, list[float]] = {way: [] for way in everywhere}
    for language in sorted({item.language for item in paragraphs}):
        kept = [row for row, item in enumerate(paragraphs) if item.language != language]
        index = make_index(folder / language, model, [paragraphs[row] for row in kept], vectors[kept])
        own = [row for row, item in enumerate(questions) if item.language == language]
        for way, ranks in searched(index, model, [questions[row] for row in own], asking[own]).items():
            elsewhere[way] += ranks
    named = {"in any language, the question's among them": everywhere, "in other languages alone": elsewhere}
    return {name: {way: float(np.mean(ranks)) for way, ranks in found.items()} for name, found in named.items()}


def print_table(corner: str, rows: Mapping[str, Mapping[str, float]], forms: Mapping[str, str]) -> None:
    """In Markdown. forms: of each column."""
    print(f"\n| {corner} | " + " | ".join(forms) + " |\n|---|" + "--:|" * len(forms))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(format(row[column], form) for column, form in forms.items()) + " |")


def main() -> None:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(".bench/applications.json"))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    paragraphs, questions = read_xquad(asked.data)
    vectors = asyncio.run(embedded(paragraphs, "clustering"))
    topics, cosines = measure_topics(paragraphs, vectors), cosines_of_translations(paragraphs, vectors)
    print_table(f"{len(paragraphs):,} texts", topics, JUDGED)
    print("\nCosines of two translations of a paragraph, quartiles: " + ", ".join(f"{each:.2f}" for each in cosines))
    passages, asking = asyncio.run(embedded(paragraphs, "passage")), asyncio.run(embedded(questions, "query"))
    with tempfile.TemporaryDirectory() as folder:
        search = measure_search(paragraphs, passages, questions, asking, Path(folder))
    ways = dict.fromkeys(next(iter(search.values())), ".3f")
    print_table(f"MRR@{HITS}, {len(questions):,} questions; the answer is", search, ways)
    about = {"machine": describe(), "model": load_settings().model}
    result = {**about, "topics": topics, "cosines": cosines.tolist(), "search": search}
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
