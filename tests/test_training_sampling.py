"""The order of the data: complete, even, the same from any step on, and found as fast at a billion pairs."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from training.permutation import key_of, permuted
from training.sampling import Sampler, SourceShape, source_odds
from training.turns import Turns

SHAPES = [
    SourceShape("wikipedia", {"en": 5000, "sw": 40}),
    SourceShape("nllb", {"en-de": 30_000, "en-yo": 300, "en-qu": 3}),
    SourceShape("empty", {}),
    SourceShape("xp3", {"hi": 7}),
]


def sampler(batch_pairs: int = 64, seed: int = 7) -> Sampler:
    odds = source_odds(SHAPES, exponent=0.5, cap=20_000, weights={"xp3": 3.0})
    return Sampler(SHAPES, odds, batch_pairs=batch_pairs, steps=1_000_000, language_exponent=0.5, seed=seed)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
def test_every_row_comes_exactly_once(size: int, key: int) -> None:
    rows = permuted(np.arange(size), size, key_of(key))
    assert sorted(rows.tolist()) == list(range(size))


def test_another_key_is_another_order_and_no_order_is_the_rows_own() -> None:
    places = np.arange(10_000)
    first, second = (permuted(places, 10_000, key_of(1, epoch)) for epoch in (0, 1))
    for one, other in ((first, second), (first, places), (second, places)):
        # Two independent orders agree at one place on average.
        assert (one == other).sum() < 10
    # Nor does a row tell the next one: the distances of neighbours are spread as those of strangers.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


@given(odds=st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), first=st.integers(0, 10**9))
def test_turns_are_dealt_by_the_odds_and_counted_without_counting(odds: list[int], first: int) -> None:
    turns = Turns(np.array(odds, dtype=np.float64))
    owners, ranks = turns.of(np.arange(first, first + 2000))
    for party, odd in enumerate(odds):
        had = ranks[owners == party]
        # One after another, without a gap, from wherever the count stood.
        assert (np.diff(had) == 1).all()
        # Off by one turn for each halving, and by the fineness of the shares.
        assert abs(len(had) - 2000 * odd / sum(odds)) <= 1 + len(odds).bit_length() * 2
        if odd == 0:
            assert not len(had)


def test_a_million_batches_match_the_mixture_and_none_mixes_sources() -> None:
    odds = source_odds(SHAPES, exponent=0.5, cap=20_000, weights={"xp3": 3.0})
    owners, _ = sampler().source_of(np.arange(1_000_000))
    counts = np.bincount(owners, minlength=len(SHAPES))
    assert counts[2] == 0
    filled = odds > 0
    assert chisquare(counts[filled], odds[filled] * 1_000_000).pvalue > 0.05
    # A batch names one source, and all its rows are that source's.
    for step in range(200):
        batch = sampler().batch(step)
        assert batch.rows.min() >= 0
        assert batch.rows.max() < SHAPES[batch.sources[0]].rows
        assert (batch.sources == batch.sources[0]).all()


def test_languages_inside_a_source_match_their_temperature() -> None:
    drawn = np.concatenate([batch.rows for step in range(3000) if (batch := sampler().batch(step)).sources[0] == 1])
    counts = np.histogram(drawn, bins=[0, 30_000, 30_300, 30_303])[0]
    wanted = np.sqrt([30_000, 300, 3])
    assert chisquare(counts, wanted / wanted.sum() * counts.sum()).pvalue > 0.05


@pytest.mark.parametrize("epochs", [1, 2, 13])
def test_epochs_show_every_pair_as_often_as_any_other(epochs: int) -> None:
    shapes = [SourceShape("one", {"en": 1000, "de": 1000}), SourceShape("two", {"fr": 3000})]
    odds, steps = source_odds(shapes, exponent=1.0, cap=None, weights={}), epochs * 5000 // 50
    whole = Sampler(shapes, odds, batch_pairs=50, steps=steps, language_exponent=1.0, seed=3)
    seen = [np.zeros(2000, dtype=int), np.zeros(3000, dtype=int)]
    for step in range(steps):
        batch = whole.batch(step)
        np.add.at(seen[batch.sources[0]], batch.rows, 1)
    for counts in seen:
        # Shares are dealt out to within a batch or two.
        assert (counts != epochs).sum() <= 100
        assert abs(counts - epochs).max() <= 1


def row_wise(shapes: list[SourceShape], odds: np.ndarray, batch_pairs: int, steps: int, seed: int = 7) -> Sampler:
    return Sampler(
        shapes,
        odds,
        batch_pairs=batch_pairs,
        steps=steps,
        language_exponent=1.0,
        seed=seed,
        one_source_a_batch=False,
    )


def test_rows_of_mixed_batches_match_the_mixture_in_every_slice() -> None:
    odds = source_odds(SHAPES, exponent=0.5, cap=20_000, weights={"xp3": 3.0})
    mixed = row_wise(SHAPES, odds, 64, 1_000_000)
    batches = [mixed.batch(step) for step in range(2000)]
    filled = odds > 0
    # Slices of processes: the first rows of a batch, and all of it.
    for rows in (8, 64):
        counts = np.bincount(np.concatenate([batch.sources[:rows] for batch in batches]), minlength=len(SHAPES))
        assert counts[2] == 0
        assert chisquare(counts[filled], odds[filled] * counts.sum()).pvalue > 0.05
    assert all(len(np.unique(batch.sources)) > 1 for batch in batches)
    for batch in batches[:100]:
        for source, row in zip(batch.sources, batch.rows, strict=True):
            assert 0 <= row < SHAPES[source].rows


def test_epochs_of_mixed_batches_show_every_pair_as_often_as_any_other() -> None:
    shapes = [SourceShape("one", {"en": 1000, "de": 1000}), SourceShape("two", {"fr": 3000})]
    odds = source_odds(shapes, exponent=1.0, cap=None, weights={})
    mixed = row_wise(shapes, odds, 50, 3 * 5000 // 50)
    seen = [np.zeros(2000, dtype=int), np.zeros(3000, dtype=int)]
    for step in range(3 * 5000 // 50):
        batch = mixed.batch(step)
        for source in (0, 1):
            np.add.at(seen[source], batch.rows[batch.sources == source], 1)
    for counts in seen:
        # Turns are off by one a halving.
        assert (counts != 3).sum() <= 4
        assert abs(counts - 3).max() <= 1


def test_a_mixed_batch_depends_on_seed_and_step_alone() -> None:
    odds = source_odds(SHAPES, exponent=0.5, cap=20_000, weights={})
    one, other = row_wise(SHAPES, odds, 64, 10**6), row_wise(SHAPES, odds, 64, 10**6)
    other.batch(3)
    assert np.array_equal(one.batch(999_999).rows, other.batch(999_999).rows)
    assert np.array_equal(one.batch(999_999).sources, other.batch(999_999).sources)
    assert not np.array_equal(row_wise(SHAPES, odds, 64, 10**6, seed=8).batch(5).rows, one.batch(5).rows)


def test_a_step_s_batch_depends_on_seed_and_step_alone() -> None:
    ahead = sampler().batch(12_345)
    again = sampler()
    for step in (3, 99, 12_344):
        again.batch(step)
    assert np.array_equal(again.batch(12_345).rows, ahead.rows)
    assert not np.array_equal(sampler(seed=8).batch(12_345).rows, ahead.rows)


def test_a_seek_in_a_billion_pairs_costs_what_the_first_step_costs() -> None:
    shapes = [
        SourceShape(f"source {number}", {f"language {place}": 500_000 for place in range(100)}) for number in range(20)
    ]
    assert sum(shape.rows for shape in shapes) == 1_000_000_000
    odds = source_odds(shapes, exponent=1.0, cap=None, weights={})
    large = Sampler(shapes, odds, batch_pairs=512, steps=2_000_000, language_exponent=0.7, seed=1)

    def fastest_s(step: int) -> float:
        spent = []
        for _ in range(5):
            started = time.perf_counter()
            large.batch(step)
            spent.append(time.perf_counter() - started)
        return min(spent)

    near, far = fastest_s(0), fastest_s(1_900_000)
    print(f"\nfirst step {near * 1000:.2f} ms, step 1,900,000 {far * 1000:.2f} ms")
    assert far < 3 * near
    tracemalloc.start()
    large.batch(1_500_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_without_any_pairs_the_odds_say_so() -> None:
    with pytest.raises(ValueError, match="no source has pairs"):
        source_odds([SourceShape("empty", {})], exponent=1.0, cap=None, weights={})
