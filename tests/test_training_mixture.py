"""Batches: one source, no shared text, balanced languages, the same after a resume."""

from pathlib import Path

import numpy as np
import pytest

from training.data import NO_TEXT, keep_open_sources, read_corpus, read_sources
from training.mixture import (
    build_mixture,
    draw_batch,
    first_without_shared_text,
    pair_odds,
    source_odds,
    source_weights,
)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(keep_open_sources(read_sources(DATA)))


def test_every_batch_has_one_source_and_no_text_twice(corpus):
    mixture = build_mixture(corpus, 0.5, 0.5, {})
    for step in range(30):
        rows = draw_batch(corpus, mixture, [16] * len(corpus.sources), seed=3, step=step)
        texts = np.concatenate([corpus.pairs[rows].ravel(), corpus.negatives[rows]])
        texts = texts[texts != NO_TEXT]
        assert len(np.unique(corpus.pair_source[rows])) == 1
        assert len(np.unique(texts)) == len(texts)
        assert 1 < len(rows) <= 16


def test_a_batch_is_a_function_of_seed_and_step(corpus):
    mixture = build_mixture(corpus, 0.5, 0.5, {})
    sizes = [16] * len(corpus.sources)
    again = [draw_batch(corpus, mixture, sizes, seed=3, step=7) for _ in range(2)]
    assert again[0].tolist() == again[1].tolist()
    assert again[0].tolist() != draw_batch(corpus, mixture, sizes, seed=4, step=7).tolist()


def test_a_batch_is_in_one_language_where_that_is_asked(corpus):
    mixture = build_mixture(corpus, 0.5, 0.5, {})
    sizes, every = [16] * len(corpus.sources), range(len(corpus.sources))
    alone, mixed = (
        [
            len(np.unique(corpus.pair_language[draw_batch(corpus, mixture, sizes, 3, step, sources)]))
            for step in range(30)
        ]
        for sources in (every, ())
    )
    assert set(alone) == {1}
    assert max(mixed) > 1


def test_a_pair_without_weight_does_not_come_up_in_a_batch_of_one_language_either(corpus):
    weights = np.ones(len(corpus.pairs))
    weights[::3] = 0
    mixture = build_mixture(corpus, 0.5, 0.5, {}, weights)
    sizes, every = [16] * len(corpus.sources), range(len(corpus.sources))
    drawn = np.concatenate([draw_batch(corpus, mixture, sizes, 3, step, every) for step in range(60)])
    assert len(np.unique(drawn)) > 100
    assert (drawn % 3 != 0).all()


def test_exponent_zero_gives_every_language_the_same_share():
    languages = np.array([0] * 90 + [1] * 10)
    odds = pair_odds(languages, 0.0)
    assert odds[languages == 1].sum() == pytest.approx(0.5)


def test_exponent_one_keeps_every_language_at_its_share():
    languages = np.array([0] * 90 + [1] * 10)
    odds = pair_odds(languages, 1.0)
    assert odds[languages == 1].sum() == pytest.approx(0.1)


def test_pairs_of_their_own_weight_come_up_less_often_within_their_language():
    odds = pair_odds(np.array([0, 0, 1, 1]), 1.0, np.array([1.0, 0.25, 1.0, 1.0]))
    assert odds[1] == pytest.approx(odds[0] / 4)
    assert odds.sum() == pytest.approx(1.0)


def test_the_longest_beginning_of_a_name_decides_the_weight_of_a_source():
    weights = {"translation_": 2.0, "translation_ui": 0.0}
    assert source_weights(["translation_news", "translation_ui", "qa"], weights).tolist() == [2.0, 0.0, 1.0]


def test_a_source_without_pairs_is_never_drawn():
    assert source_odds(np.array([0, 5]), 0.5, np.ones(2)).tolist() == [0.0, 1.0]


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="weights"):
        source_odds(np.array([5]), 0.5, np.zeros(1))


def test_of_two_rows_that_share_a_text_on_any_side_the_first_is_kept():
    rows = np.array([[1, 2, NO_TEXT], [3, 1, NO_TEXT], [4, 5, NO_TEXT], [6, 7, 5]])
    assert first_without_shared_text(rows).tolist() == [0, 2]
