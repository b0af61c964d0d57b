"""Who is taken in, and when the others are told to come back: pure functions."""

from __future__ import annotations

import random

import pytest

from service.admission import Promises, Refusal, guess_tokens, refusal, wait_tokens


def asked(
    queued: dict[str, int], tokens: int, client: str = "me", timeout_s: float = 1e9, rate: float = 10.0
) -> Refusal | None:
    return refusal(queued, client, tokens, limit=100, tokens_per_s=rate, timeout_s=timeout_s)


def test_tokens_are_guessed_from_lengths_before_they_are_counted() -> None:
    assert guess_tokens(["abc" * 10, [1, 2, 3]], 512) == 14 + 7
    assert guess_tokens(["x" * 100_000], 512) == 512


def test_an_empty_lane_takes_any_request() -> None:
    assert asked({}, 10_000, timeout_s=0.001) is None


def test_a_client_may_hold_as_much_as_is_left_free() -> None:
    assert asked({"me": 40}, 20) is None
    full = asked({"me": 40}, 21)
    assert full is not None
    assert full.excess == 1
    assert "ME5_MAX_QUEUED_TOKENS" in full.why


def test_however_greedy_one_client_is_another_finds_room() -> None:
    queued: dict[str, int] = {"greedy": 1}
    while asked(queued, 1, "greedy") is None:
        queued["greedy"] += 1
    assert queued["greedy"] <= 51
    assert asked(queued, 20, "modest") is None


def test_work_that_takes_longer_than_its_time_is_refused_with_some_to_spare() -> None:
    assert asked({"me": 40}, 8, timeout_s=6.0) is None
    late = asked({"me": 40}, 9, timeout_s=6.0)
    assert late is not None
    assert late.excess == 1
    assert asked({"me": 40}, 9, timeout_s=6.0, rate=0.0) is None, "nothing is known of the rate yet"


def test_the_wait_counts_of_other_clients_no_more_than_of_ones_own() -> None:
    assert wait_tokens({"greedy": 1000, "small": 3}, "me", 10) == 10 + 10 + 3
    assert asked({"greedy": 45}, 5, timeout_s=2.0) is None


def test_refused_requests_are_told_times_at_which_there_is_room_for_each() -> None:
    promises = Promises()
    # Ten tokens a second; the first has room when 20 have left, the others when those before them are done too.
    told = [promises.retry_after_s(20, 30, 10.0, now=100.0) for _ in range(4)]
    assert told == [2, 5, 8, 11]
    promises.forget()
    assert promises.retry_after_s(20, 30, 10.0, now=101.0) == 2
    beyond = [promises.retry_after_s(10**9, 1, 1000.0, now=300.0) for _ in range(60)]
    assert all(30 <= seconds <= 60 for seconds in beyond)
    assert max(beyond.count(seconds) for seconds in beyond) <= 4, "a herd"
    assert promises.retry_after_s(1, 1, 0.0, now=400.0) == 1


@pytest.mark.parametrize("seed", range(3))
def test_who_comes_back_as_told_is_taken_in(seed: int) -> None:
    """A lane that drains at its rate, a burst of five times its limit, and nobody else: every return finds room."""
    rng = random.Random(seed)
    promises, rate, limit = Promises(), 100.0, 1000
    late = 0
    now = 0.0
    pending = [(0.0, float(rng.randrange(10, 60)), False) for _ in range(150)]
    held = 0.0
    while pending:
        pending.sort()
        at, tokens, told = pending.pop(0)
        held = max(0.0, held - (at - now) * rate)
        now = at
        refused = refusal(
            {"me": round(held)} if held >= 1 else {}, "me", round(tokens), limit=limit, tokens_per_s=rate, timeout_s=1e9
        )
        if refused is None:
            held += tokens
            continue
        late += told
        pending.append((now + promises.retry_after_s(refused.excess, round(tokens), rate, now), tokens, True))
    # Rounded to whole tokens, one of a crowd may be a token too many.
    assert late <= 2
