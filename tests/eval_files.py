"""A small data folder with one file of each kind of evaluation set."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from training.eval_reading import FLORES_CORE

THINGS = ("boats", "bread", "the sea", "a line", "the book")


def write_eval_files(root: Path) -> Path:
    """A data folder with one small file of each kind."""
    write_lines(
        root / "eval/bitext_flores200.jsonl.gz",
        [
            {"id": number, "lang": lang, "text": f"{thing} {lang}"}
            for lang in ("eng_Latn", "sun_Latn", *FLORES_CORE)
            for number, thing in enumerate(THINGS)
        ],
    )
    write_lines(root / "eval/bitext_tatoeba.jsonl.gz", [{"lang": "afr", "src": f"{t} af", "tgt": t} for t in THINGS])
    write_lines(
        root / "eval/sts_stsb_multi.jsonl.gz",
        [
            {"task": "STSB", "lang": "en", "split": split, "sentence1": "boats", "sentence2": thing, "score": score}
            for split in ("dev", "test")
            for score, thing in enumerate(THINGS)
        ],
    )
    for lang, folder in (("ar", "retrieval_xquad"), ("en", "retrieval_afriqa")):
        write_lines(
            root / f"eval/{folder}/corpus.jsonl.gz",
            [
                {"lang": lang, "doc_id": "d0", "title": "Boats", "text": "they float"},
                {"lang": lang if folder == "retrieval_xquad" else "fr", "doc_id": "d1", "title": "", "text": "bread"},
            ],
        )
        asks = lang if folder == "retrieval_xquad" else "ibo"
        write_lines(
            root / f"eval/{folder}/queries.jsonl.gz",
            [{"lang": asks, "query_id": "q0", "text": "what is bread"}, {"lang": asks, "query_id": "q1", "text": "?"}],
        )
        with gzip.open(root / f"eval/{folder}/qrels.tsv.gz", "wt") as file:
            file.write(f"lang\tquery_id\tdoc_id\tscore\n{asks}\tq0\td1\t1\n{asks}\tq0\td0\t0\n")
    write_lines(
        root / "eval/classification_banking77.jsonl.gz",
        [
            {"lang": "en", "split": split, "text": f"{thing} number {number} of {split}", "label": thing}
            for split, count in (("train", 12), ("test", 4))
            for thing in THINGS
            for number in range(count)
        ],
    )
    write_lines(
        root / "eval/clustering_stackoverflow.jsonl.gz",
        [
            {"lang": "en", "split": "test", "text": f"{thing} {thing} {number}", "label": thing}
            for thing in THINGS
            for number in range(8)
        ],
    )
    return root


def write_parallel_questions(root: Path, languages: Sequence[str]) -> None:
    """XQuAD's layout: the same three questions and two paragraphs in each language."""
    folder = root / "eval/retrieval_xquad"
    documents = [
        {"lang": lang, "doc_id": f"{lang}-{number}", "title": "", "text": f"{THINGS[number]} {lang}"}
        for lang in languages
        for number in range(2)
    ]
    queries = [
        {"lang": lang, "query_id": f"{lang}-q{number}", "text": f"which {number} {lang}"}
        for lang in languages
        for number in range(3)
    ]
    write_lines(folder / "corpus.jsonl.gz", documents)
    write_lines(folder / "queries.jsonl.gz", queries)
    with gzip.open(folder / "qrels.tsv.gz", "wt") as file:
        file.write("lang\tquery_id\tdoc_id\tscore\n")
        file.writelines(f"{lang}\t{lang}-q{n}\t{lang}-{n % 2}\t1\n" for lang in languages for n in range(3))


def write_lines(path: Path, lines: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
