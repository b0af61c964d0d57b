"""How many replicas a load needs: a sum, from what one replica was measured to do. Pure functions; seconds and tokens.

A balancer sends each request to any replica, so each has a queue of its own; a Poisson stream that is split at random
gives Poisson streams. Inside, a text waits for one of the replica's streams: M/G/c with c = streams, of which no exact
formula is known. Used are Erlang's C for whether a text waits, and for how long an exponential law with the mean that
Allen and Cunneen give: that of M/M/c times (1 + scv) / 2. With one stream the mean is exact (Pollaczek and Khinchine),
with exponential lengths all of it, and at high load the law is the one that every such queue approaches (Kingman).
tests/test_capacity.py compares all of it with simulated queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Replica:
    """What was measured: tokens a second, all streams busy.   cores: it was measured on."""

    tokens_per_s: float
    streams: int = 1
    cores: int = 2

    def __post_init__(self) -> None:
        if self.tokens_per_s <= 0 or self.streams < 1 or self.cores < 1:
            raise ValueError(f"{self}: tokens_per_s must be above 0, streams and cores at least 1")


@dataclass(frozen=True)
class Work:
    """What arrives. texts_per_s: on average, at random.   tokens: mean of a text.   scv: squared coefficient of
    variation of its tokens, variance over mean squared: 0 if all are alike, 1 for an exponential law.

    texts_a_request: sent together; a replica's streams share them, so such a request is one piece of work for all.
    """

    texts_per_s: float
    tokens: float
    scv: float = 1.0
    texts_a_request: int = 1

    def __post_init__(self) -> None:
        if self.texts_per_s <= 0 or self.tokens <= 0 or self.scv < 0 or self.texts_a_request < 1:
            raise ValueError(f"{self}: rates and tokens must be above 0, scv at least 0, texts_a_request at least 1")


@dataclass(frozen=True)
class Plan:
    """p95_wait_s, mean_wait_s: before the work on a text begins.   service_s: of the work on a mean text, or request.

    replicas: with the spare ones; the waits are those without them, when as many as were to be spared are gone.
    """

    replicas: int
    cores: int
    utilisation: float
    mean_wait_s: float
    p95_wait_s: float
    service_s: float


def scv_of(tokens: Sequence[float]) -> float:
    """The squared coefficient of variation of a sample of lengths."""
    mean = sum(tokens) / len(tokens)
    return sum((value - mean) ** 2 for value in tokens) / len(tokens) / mean**2


def erlang_c(servers: int, offered: float) -> float:
    """The probability that a customer of M/M/c waits. offered: arrivals × service time, below servers (else 1)."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    # Erlang's B by its recursion: no factorial, so thousands of servers are no trouble.
    for server in range(1, servers + 1):
        blocked = offered * blocked / (server + offered * blocked)
    utilisation = offered / servers
    return blocked / (1 - utilisation + utilisation * blocked)


def wait_law(servers: int, arrivals_per_s: float, service_s: float, scv: float) -> tuple[float, float]:
    """(probability of a wait, mean of those waits in seconds) in M/G/c; (1, infinity) where the work is too much."""
    offered = arrivals_per_s * service_s
    if offered >= servers:
        return 1.0, math.inf
    return erlang_c(servers, offered), (1 + scv) / 2 * service_s / (servers - offered)


def wait_percentile(servers: int, arrivals_per_s: float, service_s: float, scv: float, percent: float) -> float:
    """Seconds that this share of the customers does not wait longer than."""
    waits, mean = wait_law(servers, arrivals_per_s, service_s, scv)
    share = 1 - percent / 100
    return 0.0 if waits <= share else mean * math.log(waits / share)


def queue_of(work: Work, replica: Replica, replicas: int) -> tuple[int, float, float, float]:
    """(servers, arrivals a second, service seconds, scv) of one replica's queue."""
    if work.texts_a_request == 1:
        service_s = work.tokens * replica.streams / replica.tokens_per_s
        return replica.streams, work.texts_per_s / replicas, service_s, work.scv
    count = work.texts_a_request
    return 1, work.texts_per_s / count / replicas, work.tokens * count / replica.tokens_per_s, work.scv / count


def plan(work: Work, replica: Replica, p95_wait_s: float, *, utilisation_max: float = 0.7, spare: float = 0.0) -> Plan:
    """The fewest replicas whose 95th percentile of the wait is at most this.

    utilisation_max: of none more than this share is asked (the autoscaler's CPU target).   spare: the share that may
    be missing, for a zone that is lost or a rollout: as many more are added.
    """
    if p95_wait_s <= 0 or not 0 < utilisation_max < 1 or not 0 <= spare < 1:
        raise ValueError(
            f"p95_wait_s={p95_wait_s} must be above 0, utilisation_max={utilisation_max} between 0 and 1, "
            f"spare={spare} from 0 to below 1"
        )
    least = max(1, math.ceil(work.texts_per_s * work.tokens / replica.tokens_per_s / utilisation_max))

    def waits(replicas: int) -> float:
        return wait_percentile(*queue_of(work, replica, replicas), 95)

    most = least
    while waits(most) > p95_wait_s:
        most *= 2
    # The wait falls with every replica more.
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if waits(middle) <= p95_wait_s else (middle + 1, most)
    servers, arrivals, service_s, scv = queue_of(work, replica, least)
    probability, mean = wait_law(servers, arrivals, service_s, scv)
    replicas = math.ceil(round(least / (1 - spare), 9))
    return Plan(
        replicas=replicas,
        cores=replicas * replica.cores,
        utilisation=arrivals * service_s / servers,
        mean_wait_s=probability * mean,
        p95_wait_s=waits(least),
        service_s=service_s,
    )
