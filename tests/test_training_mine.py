"""Mining: the search is exact, the rules drop what may be right, and other rules need no other search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import tiny_tokenizer

from service.recipe.prompts import Role
from training.config import FilterConfig, MineConfig, SourceConfig
from training.mine import NONE, Candidates, bm25_top, choose, joined, mine
from training.neighbours import top_k
from training.pair_store import PairRow, PairStore, text_key
from training.prepare import prepare

WORDS = ["harbour", "lantern", "violin", "garden", "bridge", "kettle", "river", "bread"]


def bag(texts: Sequence[str], _role: Role | None = None) -> NDArray[np.float32]:
    """A model that counts some words, and has a taste of its own for every text."""
    vectors = np.array([[text.count(word) + 0.01 * (text_key(word + text) % 7) for word in WORDS] for text in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("queries", "passages", "k"), [(7, 50, 5), (30, 13, 20), (5, 100, 1)])
def test_the_neighbours_of_pieces_are_those_of_the_whole(tmp_path: Path, queries: int, passages: int, k: int) -> None:
    draw = np.random.default_rng(k)
    asked, found = (draw.standard_normal((count, 6)).astype(np.float32) for count in (queries, passages))
    mapped = np.lib.format.open_memmap(tmp_path / "p.npy", "w+", dtype=np.float32, shape=found.shape)
    mapped[:] = found
    scores, numbers = top_k(asked, mapped, k, query_rows=4, passage_rows=8)
    whole = asked @ found.T
    expected = np.argsort(-whole, axis=1)[:, : min(k, passages)]
    assert np.array_equal(numbers, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(whole, expected, axis=1), atol=1e-6)


def test_bm25_finds_the_text_with_the_rare_word() -> None:
    texts = ["the book is about boats", "the book is about bread", "the sea", "line 7 of the book"]
    found = bm25_top(["bread", "the sea"], texts, tiny_tokenizer(), 2)
    assert found[:, 0].tolist() == [1, 2]


def test_candidates_of_both_are_joined_once_and_sorted_by_cosine() -> None:
    passages = np.eye(4, dtype=np.float32)
    queries = np.array([[0.1, 0.5, 0.3, 0.2]], dtype=np.float32)
    numbers, scores = joined(np.array([[1, 0, 3, 1, 3, 2]]), queries, passages)
    assert numbers.tolist() == [[1, 2, 3, 0, NONE, NONE]]
    np.testing.assert_allclose(scores[0, :4], [0.5, 0.3, 0.2, 0.1])


def candidates(scores: list[float], positive: float = 0.8) -> tuple[list[PairRow], Candidates]:
    """One query whose positive is passage 0, and as many other passages as scores."""
    rows = [PairRow("the question", "its answer")]
    rows += [PairRow(f"question {number}", f"passage {number}") for number in range(len(scores))]
    found = Candidates(
        passages=np.arange(len(rows)),
        numbers=np.tile(np.arange(1, len(rows)), (len(rows), 1)),
        scores=np.tile(np.array(scores, dtype=np.float32), (len(rows), 1)),
        positives=np.full(len(rows), positive, dtype=np.float32),
    )
    return rows, found


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({}, [3, 4, 5]),
        ({"relative_margin": 0.0}, [2, 3, 4]),
        ({"relative_margin": 0.2}, [4, 5, NONE]),
        ({"relative_margin": 0.0, "absolute_margin": 0.1}, [3, 4, 5]),
        ({"rank_from": 3}, [4, 5, NONE]),
        ({"rank_to": 4}, [3, 4, NONE]),
    ],
)
def test_each_rule_drops_what_it_should(rules: dict[str, float], chosen: list[int]) -> None:
    rows, found = candidates([0.9, 0.79, 0.7, 0.6, 0.5])
    config = MineConfig.model_validate({"negatives": 3, "filled_to": 0, **rules})
    assert choose(rows, found, config)[0].tolist() == chosen


def test_a_negative_positive_score_does_not_turn_the_margin_round() -> None:
    rows, found = candidates([-0.30, -0.42, -0.43], positive=-0.4)
    assert choose(rows, found, MineConfig(negatives=2, filled_to=0, relative_margin=0.05))[0].tolist() == [2, 3]


def test_what_is_known_to_be_right_is_no_negative() -> None:
    rows, found = candidates([0.7, 0.6, 0.5, 0.4])
    # The same question has a second answer, and a passage is the question itself.
    rows[1] = PairRow("THE  question", "passage 0")
    rows[2] = PairRow("question 1", "the question")
    assert choose(rows, found, MineConfig(negatives=3, filled_to=0))[0].tolist() == [3, 4, NONE]


def test_a_query_with_too_few_is_filled_with_others_that_are_not_right() -> None:
    rows, found = candidates([0.9, 0.9, 0.5, 0.9])
    rows[1] = PairRow("the question", "passage 0")
    chosen = choose(rows, found, MineConfig(negatives=4, filled_to=3))[0].tolist()
    assert chosen[0] == 3
    assert set(chosen[1:3]) == {2, 4}
    assert chosen[3] == NONE


def test_a_source_is_mined_once_and_other_rules_need_no_search(tmp_path: Path) -> None:
    rows = [
        {"query": f"where is the {word} {number}?", "positive": f"the {word} {number} is at the {other}", "lang": "en"}
        for number in range(10)
        for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "all.jsonl").write_text(lines)
    prepare({"all": SourceConfig(path="train/all.jsonl")}, FilterConfig(), data=tmp_path, out=tmp_path / "prepared")
    store, asked = PairStore(tmp_path / "prepared" / "all"), []

    def counted(texts: Sequence[str], role: Role | None) -> NDArray[np.float32]:
        asked.append(role)
        return bag(texts)

    config = MineConfig(negatives=5, filled_to=2, relative_margin=0.01)
    about = mine(store, counted, tiny_tokenizer(), {"weights": "one"}, config, tmp_path / "mined")
    mined = PairStore(tmp_path / "mined" / "all")
    assert sum(about.languages.values()) == 80
    assert asked == ["query", "passage"]
    negatives = [row.negatives for row in mined.rows(np.arange(80))]
    assert max(map(len, negatives)) == 5
    assert about.negatives == min(map(len, negatives)) >= 2
    for row in mined.rows(np.arange(80)):
        assert row.positive not in row.negatives
        cosine = bag([row.query]) @ bag([row.positive, *row.negatives]).T
        # Beyond the two that may have been drawn, all were found.
        assert len(row.negatives) <= 2 or (cosine[0, 1:] <= cosine[0, 0] * 0.99 + 1e-6).all()
    stricter = config.model_copy(update={"relative_margin": 0.5})
    mine(store, counted, tiny_tokenizer(), {"weights": "one"}, stricter, tmp_path / "mined")
    assert len(asked) == 2
    others = [row.negatives for row in PairStore(tmp_path / "mined" / "all").rows(np.arange(80))]
    assert others != negatives
    # Another model's candidates are others.
    mine(store, counted, tiny_tokenizer(), {"weights": "two"}, config, tmp_path / "mined")
    assert len(asked) == 4
