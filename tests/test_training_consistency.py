"""The consistency filter: planted mismatches go, what is right stays, and languages are compared with their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.recipe.prompts import Role
from training.candidates import distinct, keys_of
from training.config import ConsistencyConfig
from training.consistency import KnownRight, filter_consistent, found_before, others_of
from training.errors import BadTrainingData
from training.pair_store import PairRow, PairStore, open_stores, write_store


def by_number(texts: Sequence[str], role: Role | None) -> NDArray[np.float32]:
    """A model that reads the number in a text, and hears it a little differently as a query and as a passage.

    Passages from 500 of a thousand on lie away from all queries, so that none is near one by chance.
    """
    vectors = []
    for text in texts:
        (number,) = re.findall(r"\d+", text)
        noise = np.random.default_rng(int(number) + (10**6 if role == "query" else 0)).standard_normal(24)
        vectors.append(np.random.default_rng(int(number)).standard_normal(24) + 0.1 * noise)
        vectors[-1][0] = -5 if int(number) % 1000 >= 500 else 5
    found = np.array(vectors, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def stored(folder: Path, rows: Sequence[tuple[str, PairRow]]) -> PairStore:
    write_store(
        folder / "toy",
        rows,
        name="toy",
        pair="",
        roles=("query", "passage"),
        licence="",
        settings={},
        dropped={"short": 3},
    )
    return PairStore(folder / "toy")


def planted(languages: Sequence[str] = ("en",)) -> list[tuple[str, PairRow]]:
    """A hundred pairs a language that belong together, and ten whose passage is about something else."""
    rows = []
    for place, language in enumerate(languages):
        for number in range(1000 * place, 1000 * place + 110):
            other = number + 500 if number % 11 == 10 else number
            rows.append((language, PairRow(f"what is {number}?", f"it is {other}")))
    return rows


@pytest.mark.parametrize("languages", [("en",), ("en", "de", "sw")])
def test_planted_mismatches_are_dropped_and_counted_and_nothing_else(
    tmp_path: Path, languages: tuple[str, ...]
) -> None:
    store = stored(tmp_path / "pairs", planted(languages))
    config = ConsistencyConfig(language_passages_min=50)
    about = filter_consistent(store, by_number, {"weights": "one"}, config, tmp_path / "kept", seed=1)
    (kept,) = open_stores(tmp_path / "kept")
    for row in kept.rows(np.arange(kept.shape.rows)):
        assert row.query[8:-1] == row.positive[6:]
    assert about.languages == dict.fromkeys(sorted(languages), 100)
    assert about.dropped == {"short": 3, "inconsistent": 10 * len(languages), "duplicate": 0}
    made = json.loads((tmp_path / "kept" / "toy" / "consistency.json").read_text())
    assert made["pairs"] == store.about.pairs_sha256
    assert made["model"] == {"weights": "one"}
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["toy"]


def test_a_passage_outside_the_drawn_ones_can_not_stand_before_the_right_one(tmp_path: Path) -> None:
    store = stored(tmp_path / "pairs", planted())
    # Nobody stands before a passage among no others: with one drawn all stay.
    lenient = ConsistencyConfig(passages=1)
    about = filter_consistent(store, by_number, {}, lenient, tmp_path / "kept", seed=1)
    assert about.languages == {"en": 110}


def test_the_count_is_that_of_all_cosines_without_what_is_known_to_be_right(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    rows = [PairRow(f"what is {number % 40}?", f"it is {number}") for number in range(120)]
    # A query that has the best passages of all, and one whose own text is a passage.
    rows[7] = PairRow("it is 9", "it is 7")
    store = stored(tmp_path, [("en", row) for row in rows])
    keys = keys_of(store)
    passages, own = distinct(keys.positives)
    queries, texts = (draw.standard_normal((120, 8)).astype(np.float32) for _ in range(2))
    drawn = np.sort(draw.choice(120, 50, replace=False))
    right = KnownRight(keys, passages, own).places(np.arange(120), drawn)
    found = found_before(queries, texts, texts, drawn, right)
    assert len(right[0]) > 50
    stored_rows = store.rows(np.arange(120))
    for number, row in enumerate(stored_rows):
        known = {other.positive for other in stored_rows if other.query == row.query} | {row.query}
        others = [place for place in drawn if stored_rows[place].positive not in known]
        bound = queries[number] @ texts[number]
        assert found[number] == sum(queries[number] @ texts[place] > bound for place in others)


def test_a_language_is_compared_with_its_own_passages_where_it_has_enough(tmp_path: Path) -> None:
    rows = [("de", PairRow(f"what is {n}?", f"it is {n}")) for n in range(200)]
    rows += [("sw", PairRow(f"what is {n}?", f"it is {n}")) for n in range(300, 330)]
    store = stored(tmp_path, rows)
    passages = np.arange(230)
    config = ConsistencyConfig(passages=60, language_passages_min=100)
    german, swahili = others_of(store, passages, config, seed=5)
    assert (german.rows, swahili.rows) == (range(200), range(200, 230))
    assert len(set(german.passages.tolist())) == 60
    assert german.passages.max() < 200 <= swahili.passages.max()
    assert swahili.passages.min() < 200
    again = [others.passages.tolist() for others in others_of(store, passages, config, seed=5)]
    assert again == [german.passages.tolist(), swahili.passages.tolist()]
    assert [others.passages.tolist() for others in others_of(store, passages, config, seed=6)] != again


def test_a_source_of_which_nothing_stays_is_named(tmp_path: Path) -> None:
    # Every query's own passage lies behind those of the others.
    rows = [("en", PairRow(f"what is {n}?", f"it is {(n + 2) % 80}")) for n in range(0, 80, 2)]
    store = stored(tmp_path / "other", rows)
    with pytest.raises(BadTrainingData, match=r"toy has no pairs left; dropped: .*'inconsistent': 40"):
        filter_consistent(store, by_number, {}, ConsistencyConfig(top=1), tmp_path / "kept", seed=1)
