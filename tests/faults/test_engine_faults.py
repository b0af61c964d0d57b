"""Faults of the engine, in its own process, under a gateway that serves all the while."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
from episode import Body, Episode, short_text, watched
from evidence import GREEN
from faulty import Faulty, Saw, engine_of, restarts
from gateway_process import Gateway
from metric_series import scrape, series

# A text of as many tokens as the model reads: its batch needs megabytes.
LONG = "many words " * 600


def vector(gateway: Gateway) -> np.ndarray:
    """The vector of one text, the same one each time."""
    with gateway.client() as client:
        return np.array(client.post("/embed", json={"inputs": "the same text"}).json()[0])


def lose(
    faulty: Faulty,
    strike: Callable[[], float],
    saw: Saw,
    *,
    statuses: set[int],
    reasons: tuple[str, ...],
    log: str,
    body: Body = short_text,
    meanwhile: Callable[[Episode], None] = lambda _: None,
) -> None:
    """Strike under load; the gateway has to say so, lose no request, and come back with the same vectors.

    statuses: what requests under way may get; the first failure among them must occur.   log: a pattern.
    """
    gateway = faulty.gateway
    usual = vector(gateway)
    with gateway.client() as client:
        before, log_before, struck = scrape(client), len(gateway.log_text()), engine_of(gateway).pid
        with watched(gateway, body=body) as episode:
            at = strike()
            meanwhile(episode)
            episode.wait_until_green_again(at)
            red, back = episode.red_at(at), episode.green_again_at(at)
            assert red is not None
            assert back is not None
            episode.answered_after(back)
        after = scrape(client)
    seen = episode.statuses(at, back)
    assert set(seen) <= {200, *statuses}
    assert any(status in seen for status in statuses)
    (reason,) = [one for one in reasons if after[restarts(one)] > before[restarts(one)]]
    assert after[restarts(reason)] - before[restarts(reason)] == 1
    found = re.search(log, gateway.log_text()[log_before:])
    assert found, gateway.log_text()[log_before:]
    assert engine_of(gateway).pid != struck
    assert not psutil.pid_exists(struck)
    assert vector(gateway) @ usual > 0.9999
    saw(
        requests=dict(seen),
        red_after_s=red - at,
        log=found[0],
        metric=f'me5_engine_restarts_total{{reason="{reason}"}}',
        back="a new engine process, proved,",
        back_after_s=back - red,
    )


def test_engine_raises_once(faulty: Faulty, saw: Saw) -> None:
    gateway = faulty.gateway
    failed = series("me5_request_duration_seconds_count", route="/embed", role="none", lane="none", code="500")
    with gateway.client() as client:
        before, log_before = scrape(client), len(gateway.log_text())
        with watched(gateway) as episode:
            at = faulty.order("once", "raises")
            episode.wait_for(lambda: any(one.status == 500 for one in list(episode.asked)), "the batch that fails")
            after = time.monotonic()
            episode.answered_after(after)
        counted = scrape(client)[failed] - before[failed]
    seen = episode.statuses(at, after)
    assert set(seen) == {200, 500}
    assert counted == seen[500]
    assert episode.red_at(at) is None
    found = re.search(
        r"batch of \d+ texts failed \(1 in a row\): .*out of device memory", gateway.log_text()[log_before:]
    )
    assert found
    saw(
        requests=dict(seen),
        red_after_s=GREEN,
        log="batch of … texts failed (1 in a row): …",
        metric='me5_request_duration_seconds_count{code="500"}',
        back="with the next batch",
    )


def test_engine_raises_on_every_batch(faulty: Faulty, saw: Saw) -> None:
    lose(
        faulty,
        lambda: faulty.order("process", "raises"),
        saw,
        statuses={500, 503},
        reasons=("failed",),
        log="the engine is lost: .*batches.* failed",
    )


def test_engine_gives_nan(faulty: Faulty, saw: Saw) -> None:
    lose(
        faulty,
        lambda: faulty.order("process", "gives_nan"),
        saw,
        statuses={500, 503},
        reasons=("failed",),
        log="vectors of a batch are not finite",
    )


def test_engine_gives_a_wrong_shape(faulty: Faulty, saw: Saw) -> None:
    lose(
        faulty,
        lambda: faulty.order("process", "gives_a_wrong_shape"),
        saw,
        statuses={500, 503},
        reasons=("failed",),
        log="the engine gave an array of shape",
    )


def test_engine_hangs(faulty: Faulty, saw: Saw) -> None:
    lose(
        faulty,
        lambda: faulty.order("once", "hangs"),
        saw,
        statuses={503},
        reasons=("hung",),
        log=r"the engine did not finish a batch in \d+ s",
    )


def test_engine_crashes(faulty: Faulty, saw: Saw) -> None:
    lose(
        faulty,
        lambda: faulty.order("once", "crashes"),
        saw,
        statuses={503},
        reasons=("died",),
        log="the engine is lost: .*SIGSEGV",
    )


def test_engine_is_killed(faulty: Faulty, saw: Saw) -> None:
    def kill() -> float:
        at = time.monotonic()
        engine_of(faulty.gateway).kill()
        return at

    lose(faulty, kill, saw, statuses={503}, reasons=("died",), log="the engine is lost: .*SIGKILL")


def test_engine_runs_out_of_memory(faulty: Faulty, saw: Saw) -> None:
    hungry = threading.Event()

    def starve() -> float:
        at = faulty.order("once", "lacks_memory")
        hungry.set()
        return at

    lose(
        faulty,
        starve,
        saw,
        statuses={500, 503},
        # Native code raises where it can, and aborts where it can't.
        reasons=("failed", "died"),
        log=r"the engine is lost: .*",
        # Short texts need what the engine has already; the longest need more.
        body=lambda number: {"inputs": f"{number} {LONG if hungry.is_set() else ''}"},
    )


def test_engine_fails_its_proof_when_it_starts_again(faulty: Faulty, saw: Saw) -> None:
    def kill() -> float:
        at = time.monotonic()
        os.kill(engine_of(faulty.gateway).pid, signal.SIGKILL)
        # A new process takes longer to start than this.
        faulty.order("always", "gives_wrong_vectors")
        return at

    def mend(episode: Episode) -> None:
        episode.wait_for(lambda: "can't be reopened" in faulty.gateway.log_text(), "a refused proof")
        episode.wait_for(lambda: any(one.status == 503 for one in list(episode.asked)), "refused requests")
        faulty.withdraw()

    lose(
        faulty,
        kill,
        saw,
        statuses={503},
        reasons=("died",),
        log="the engine can't be reopened, next try in 1 s: golden text",
        meanwhile=mend,
    )
