"""Mining: the search is exact, the rules drop what may be right, and other rules need no other search."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import tiny_tokenizer

from service.recipe.prompts import Role
from training.answers import holds_answer
from training.candidates import NONE, Candidates, bm25_index, bm25_top, distinct, in_turns, keys_of
from training.config import FilterConfig, MineConfig, SourceConfig
from training.errors import BadTrainingData
from training.mine import mine, with_negatives
from training.neighbours import top_k
from training.pair_store import PairRow, PairStore, text_key, write_store
from training.prepare import prepare
from training.score_cache import ScoreCache, open_cache

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
    index = bm25_index(iter(texts), tiny_tokenizer())
    found = bm25_top(index, ["bread", "the sea"], tiny_tokenizer(), 2)
    assert found[:, 0].tolist() == [1, 2]


def test_what_both_found_comes_in_turns_and_once() -> None:
    passages = np.eye(4, dtype=np.float32)
    queries = np.array([[0.1, 0.5, 0.3, 0.2]], dtype=np.float32)
    numbers, scores = in_turns([np.array([[1, 2, 0]]), np.array([[3, 1]])], queries, passages)
    # By cosine the 3, which only the second has, would stand behind both of the first's best.
    assert numbers.tolist() == [[1, 3, 2, 0, NONE]]
    np.testing.assert_allclose(scores[0, :4], [0.5, 0.2, 0.3, 0.1])


def stored(folder: Path, rows: Sequence[PairRow], languages: Sequence[str] = ()) -> PairStore:
    """Rows as a prepared source."""
    named = zip(languages or ["en"] * len(rows), rows, strict=True)
    write_store(
        folder / "toy", named, name="toy", pair="", roles=("query", "passage"), licence="", settings={}, dropped={}
    )
    return PairStore(folder / "toy")


def candidates(scores: list[float], positive: float = 0.8) -> tuple[list[PairRow], Candidates]:
    """One query whose positive is passage 0, and as many other passages as scores."""
    rows = [PairRow("the question", "its answer")]
    rows += [PairRow(f"question {number}", f"passage {number}") for number in range(len(scores))]
    found = Candidates(
        passages=np.arange(len(rows)),
        numbers=np.tile(np.arange(1, len(rows), dtype=np.int32), (len(rows), 1)),
        scores=np.tile(np.array(scores, dtype=np.float32), (len(rows), 1)),
        positives=np.full(len(rows), positive, dtype=np.float32),
    )
    return rows, found


def mined(
    folder: Path, rows: Sequence[PairRow], found: Candidates, cache: ScoreCache | None = None, **rules: object
) -> list[PairRow]:
    """The first query's rows with what is chosen for it."""
    config = MineConfig.model_validate({"filled_to": 0, **rules})
    store = stored(folder, rows)
    chosen = with_negatives(store, keys_of(store), found, config, cache, Counter())
    return [row for number, row in chosen if number == 0]


def numbers_of(rows: Sequence[PairRow], row: PairRow) -> list[int]:
    """Its negatives by their places among the rows."""
    return [[one.positive for one in rows].index(text) for text in row.negatives]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({}, [3, 4, 5]),
        ({"relative_margin": 0.0}, [2, 3, 4]),
        ({"relative_margin": 0.2}, [4, 5]),
        ({"relative_margin": 0.0, "absolute_margin": 0.1}, [3, 4, 5]),
        ({"rank_from": 3}, [4, 5]),
        ({"rank_to": 4}, [3, 4]),
    ],
)
def test_each_rule_drops_what_it_should(tmp_path: Path, rules: dict[str, float], chosen: list[int]) -> None:
    rows, found = candidates([0.9, 0.79, 0.7, 0.6, 0.5])
    (row,) = mined(tmp_path, rows, found, negatives=3, **rules)
    assert numbers_of(rows, row) == chosen


def test_a_negative_positive_score_does_not_turn_the_margin_round(tmp_path: Path) -> None:
    rows, found = candidates([-0.30, -0.42, -0.43], positive=-0.4)
    (row,) = mined(tmp_path, rows, found, negatives=2, relative_margin=0.05)
    assert numbers_of(rows, row) == [2, 3]


def test_what_is_known_to_be_right_is_no_negative(tmp_path: Path) -> None:
    rows, found = candidates([0.7, 0.6, 0.5, 0.4])
    # The same question has a second answer, and a passage is the question itself.
    rows[1] = PairRow("THE  question", "passage 0")
    rows[2] = PairRow("question 1", "the question")
    (row,) = mined(tmp_path, rows, found, negatives=3)
    assert numbers_of(rows, row) == [3, 4]


def test_a_query_with_too_few_is_filled_with_others_that_are_not_right(tmp_path: Path) -> None:
    rows, found = candidates([0.9, 0.9, 0.5, 0.9])
    rows[1] = PairRow("the question", "passage 0")
    (row,) = mined(tmp_path, rows, found, negatives=4, filled_to=3)
    chosen = numbers_of(rows, row)
    assert chosen[0] == 3
    assert set(chosen[1:]) == {2, 4}


@pytest.mark.parametrize(
    ("passage", "answers", "holds"),
    [
        ("It was Marie  CURIE who found it.", ["marie curie"], True),
        ("It was found in 19034.", ["1903"], False),
        ("Found in 1903: radium.", ["1902", "1903"], True),
        ("a carthage of ruins", ["art"], False),
        ("art and carts", ["art"], True),
        ("首都是北京市", ["北京"], True),
        ("東京タワーは1958年に完成", ["1958"], True),
        ("ﬁne ﬁsh", ["FINE"], True),
        ("किताबें", ["किताब"], False),
        ("anything", ["", "  "], False),
    ],
)
def test_an_answer_is_found_as_whole_words_where_there_are_spaces(
    passage: str, answers: list[str], holds: bool
) -> None:
    assert holds_answer(passage, answers) is holds


@pytest.mark.parametrize(
    ("answer", "negatives", "positives"),
    [("drop", [2, 4], [0]), ("keep", [1, 2, 3], [0]), ("positive", [2, 4], [0, 1, 3])],
)
def test_a_passage_that_holds_the_answer_is_no_negative(
    tmp_path: Path, answer: str, negatives: list[int], positives: list[int]
) -> None:
    rows, found = candidates([0.7, 0.6, 0.5, 0.4])
    rows[0] = PairRow("the question", "its answer is Lima", answers=["Lima"])
    rows[1] = PairRow("question 0", "passage 0 says: in lima.")
    rows[3] = PairRow("question 2", "Lima, says passage 2")
    chosen = mined(tmp_path, rows, found, negatives=3, answer=answer)
    assert [numbers_of(rows, row) for row in chosen] == [negatives] * len(positives)
    assert [row.positive for row in chosen] == [rows[place].positive for place in positives]
    assert all(row.query == "the question" for row in chosen)


def test_a_passage_that_the_teacher_prefers_is_no_negative_and_scores_are_taken_over(tmp_path: Path) -> None:
    rows, found = candidates([0.7, 0.6, 0.5, 0.4])
    with pytest.raises(BadTrainingData, match="needs a teacher's scores"):
        mined(tmp_path, rows, found, teacher_margin=0.0)
    with open_cache(tmp_path / "scores.sqlite3", "teacher") as cache:
        with pytest.raises(BadTrainingData, match="has not read the positive of 'the question'"):
            mined(tmp_path, rows, found, cache, teacher_margin=0.0)
        # The third candidate has not been read.
        scores = {"its answer": 5.0, "passage 0": 5.5, "passage 1": 4.5, "passage 3": -2.0}
        cache.add([("the question", text) for text in scores], np.array(list(scores.values()), dtype=np.float32))
        for margin, expected in ((0.0, [2, 4]), (1.0, [4]), (-1.0, [1, 2, 4])):
            row = next(iter(first_of(tmp_path, rows, found, cache, margin)))
            assert numbers_of(rows, row) == expected
            assert row.scores == [5.0, *(scores[text] for text in row.negatives)]
        # Without the rule a passage that nobody has read is kept, and the row is not scored.
        row = mined(tmp_path, rows, found, cache, negatives=4)[0]
        assert (numbers_of(rows, row), row.scores) == ([1, 2, 3, 4], [])


def first_of(
    folder: Path, rows: Sequence[PairRow], found: Candidates, cache: ScoreCache, margin: float
) -> Iterator[PairRow]:
    """Rows as they come: the first query's before those whose positives nobody has read."""
    store, config = stored(folder, rows), MineConfig(filled_to=0, teacher_margin=margin)
    for _, row in with_negatives(store, keys_of(store), found, config, cache, Counter()):
        yield row


def test_candidates_may_have_to_be_of_the_query_s_language(tmp_path: Path) -> None:
    rows = [PairRow(f"question {number}", f"passage {number}") for number in range(6)]
    store = stored(tmp_path, rows, ["de", "de", "de", "en", "en", "en"])
    found = Candidates(
        passages=np.arange(6),
        numbers=np.tile(np.array([3, 1, 4, 2, 5, 0], dtype=np.int32), (6, 1)),
        scores=np.full((6, 6), 0.1, dtype=np.float32),
        positives=np.ones(6, dtype=np.float32),
    )
    chosen = {}
    for languages in ("any", "same"):
        config = MineConfig.model_validate({"languages": languages, "filled_to": 2})
        mined_rows = with_negatives(store, keys_of(store), found, config, None, Counter())
        chosen[languages] = [sorted(numbers_of(rows, row)) for _, row in mined_rows]
    assert chosen["any"] == [[place for place in range(6) if place != number] for number in range(6)]
    assert chosen["same"] == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    # What is drawn to fill up is of that language too.
    empty = Candidates(found.passages, np.full((6, 1), NONE, dtype=np.int32), found.scores[:, :1], found.positives)
    config = MineConfig(languages="same", filled_to=2)
    filled = [row for _, row in with_negatives(store, keys_of(store), empty, config, None, Counter())]
    assert [sorted(numbers_of(rows, row)) for row in filled] == chosen["same"]


def test_passages_are_counted_once_and_every_row_knows_its_own() -> None:
    passages, own = distinct(np.array([9, 3, 9, 7, 3]))
    assert (passages.tolist(), own.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1])


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
