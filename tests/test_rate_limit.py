"""The token bucket, on a clock that the tests set."""

from __future__ import annotations

import math
import random

import pytest

from service.rate_limit import Bucket, duration


def test_what_is_taken_in_any_time_is_at_most_the_burst_and_the_rate_and_as_much_if_it_is_wanted() -> None:
    # A client that asks far more often than it may, in pieces of every size, for two hours.
    chance = random.Random(7)
    rate, burst = 6_000, 4_000
    bucket = Bucket(rate, burst, 0.0)
    now = 0.0
    taken: list[tuple[float, int]] = []
    while now < 7_200:
        tokens = chance.randint(1, 600)
        if bucket.take(tokens, now):
            taken.append((now, tokens))
        now += chance.expovariate(2.0)
    for start in range(0, len(taken), 97):
        since, total = taken[start][0], 0
        for at, tokens in taken[start:]:
            total += tokens
            # 1e-6: the level is a float, and each addition rounds it.
            assert total <= burst + (at - since) * rate / 60 + 1e-6
    # Nothing that was due is lost either: at the end less is in the bucket than it holds.
    assert sum(tokens for _, tokens in taken) >= now * rate / 60


def test_a_request_takes_all_of_its_tokens_or_none() -> None:
    bucket = Bucket(60, 100, 0.0)
    assert bucket.take(90, 0.0)
    assert not bucket.take(11, 0.0)
    assert bucket.take(10, 0.0)
    assert bucket.remaining(0.0) == 0


def test_the_wait_told_is_exactly_the_wait_there_is() -> None:
    bucket = Bucket(60, 100, 0.0)
    assert bucket.take(100, 0.0)
    assert bucket.wait_s(40, 0.0) == pytest.approx(40)
    assert not bucket.take(40, 39.99)
    assert bucket.take(40, 40.01)


def test_more_than_the_bucket_holds_never_fits() -> None:
    bucket = Bucket(60, 100, 0.0)
    assert bucket.wait_s(101, 0.0) == math.inf
    assert not bucket.take(101, 1e9)
    assert bucket.remaining(1e9) == 100


def test_a_clock_that_stands_or_is_read_late_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(60, 100, 10.0)
    assert bucket.take(50, 10.0)
    assert bucket.remaining(9.0) == 50


def test_tokens_given_back_are_there_at_once_and_never_more_than_it_holds() -> None:
    bucket = Bucket(60, 100, 0.0)
    assert bucket.take(80, 0.0)
    bucket.give_back(80, 5.0)
    assert bucket.remaining(5.0) == 100


def test_a_bucket_of_another_size_misses_what_the_old_one_missed() -> None:
    bucket = Bucket(60, 100, 0.0)
    assert bucket.take(70, 0.0)
    assert bucket.resized(600, 1000, 0.0).remaining(0.0) == 930


def test_a_lowered_limit_leaves_an_empty_bucket_and_no_debt() -> None:
    bucket = Bucket(1_000_000, 1_000_000, 0.0)
    assert bucket.take(1_000_000, 0.0)
    small = bucket.resized(60, 50, 0.0)
    assert small.remaining(0.0) == 0
    assert small.wait_s(1, 0.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0ms"), (0.35, "350ms"), (0.0001, "1ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "60s")),
        *((60, "1m0s"), (119.2, "2m0s"), (360, "6m0s"), (3723, "1h2m3s")),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
