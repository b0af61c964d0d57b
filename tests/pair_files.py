"""Small sources of pairs for the tests of training: sentences by a rule, in made-up languages."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

THINGS = [
    "boats",
    "bread",
    "harbour",
    "lantern",
    "violin",
    "winter",
    "garden",
    "bridge",
    "kettle",
    "river",
    "sea",
    "tea",
]
PLACES = ["Rotterdam", "Kyoto", "Lagos", "Lima", "Oslo", "Cairo", "Quito", "Hanoi", "Turin", "Minsk"]


def sentence(number: int) -> str:
    """One of many sentences."""
    return f"{THINGS[number % 12]} number {number} stands near {PLACES[number // 12 % 10]}"


def write_pairs(data: Path, rows: int = 300, seed: int = 0) -> Path:
    """Two files of pairs, translations into two languages and questions; a folder for --data."""
    folder = data / "train"
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    with gzip.open(folder / "translation.jsonl.gz", "wt", encoding="utf-8") as stream:
        for number in range(rows):
            text = sentence(number)
            other = "en-de" if number % 4 else "en-sw"
            turned = " ".join(f"{'x' if other == 'en-de' else 'ku'}{word}" for word in text.split())
            stream.write(json.dumps({"query": text, "positive": turned, "lang": other}) + "\n")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            thing, place = draw.choice(THINGS), draw.choice(PLACES)
            row = {
                "query": f"where is {thing} number {number} of {place}?",
                "positive": f"In {place} people say that {thing} number {number} is kept behind the old mill.",
                "negative": [sentence(number + 1), sentence(number + 2)],
                "lang": "en",
            }
            stream.write(json.dumps(row) + "\n")
    return data


SOURCES = """
[{stage}.sources.translation]
path = "train/translation.jsonl.gz"
query_role = "query"
positive_role = "query"

[{stage}.sources.questions]
path = "train/questions.jsonl"
"""
