"""What the gateway does with more work than it can do: an open-loop ramp to ten times its capacity, refused clients
that come back when told, and fifty connections of one API key against one of another.

    python tests/benchmarks/overload.py [--seconds 10]

Everything is a ratio within one run: capacity is measured first, by a closed loop.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flood import Flood, Sent, bulk, connect
from gateway_process import start_gateway

FACTORS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
CLOSED_LOOP_CLIENTS = 8
TIMEOUT_MS = 4000
GREEDY_CLIENTS, BUSY_CLIENTS = 50, 8
# A request of so many passages costs the engine far more than the refusal of one costs the gateway and this process,
# which share the cores: at ten times the capacity the generator would otherwise be what is measured.
PASSAGES = 32
SINGLE = bulk(1)


@dataclass(frozen=True)
class Step:
    """One step of the ramp. factor: offered load over capacity.   rates in requests a second.

    kept: of the accepted requests, the share answered with 200 before their deadline.
    """

    factor: float
    offered: float
    goodput: float
    accepted: int
    kept: float
    p50_s: float
    p99_s: float
    refused: int
    retry_after_s: float
    others: dict[int, int]


@dataclass(frozen=True)
class Return:
    """Refused clients that wait as told and try once more. admitted: the share whose next try is not refused."""

    refused: int
    admitted: float
    longest_wait_s: int


@dataclass(frozen=True)
class Fairness:
    """One key floods with many connections.

    share: of the vectors, the other's part while it keeps the queue filled too; a half is fair.
    lone_s, beside_s: median latency of its single queries, alone and beside the flood.
    """

    share: float
    lone_s: float
    beside_s: float


async def measure_capacity(url: str, bodies: Sequence[bytes], seconds: float) -> float:
    """Requests a second that a closed loop gets answered."""
    async with connect(url) as session:
        flood = Flood(session, bodies)
        await flood.closed_loop(CLOSED_LOOP_CLIENTS, 1.0)
        flood.sent.clear()
        at = time.monotonic()
        await flood.closed_loop(CLOSED_LOOP_CLIENTS, seconds)
        return served(flood.sent, at, at + seconds)


def served(sent: list[Sent], start: float, end: float) -> float:
    """Requests a second answered with 200 in this time."""
    return sum(one.status == 200 and start <= one.answered < end for one in sent) / (end - start)


async def ramp(
    url: str, bodies: Sequence[bytes], capacity: float, factors: Sequence[float], seconds: float
) -> list[Step]:
    """Each factor for so many seconds; requests of many connections and no key, each with a deadline."""
    steps = []
    for factor in factors:
        async with connect(url) as session:
            flood = Flood(session, bodies, timeout_ms=TIMEOUT_MS)
            started = time.monotonic()
            await flood.open_loop(factor * capacity, seconds)
        # The queue fills first: what leaves then is compared, not what is answered when nothing comes any more.
        steps.append(step_of(factor, flood.sent, started + min(TIMEOUT_MS / 2000, seconds / 3), started + seconds))
    return steps


def step_of(factor: float, sent: list[Sent], start: float, end: float) -> Step:
    """The figures of a step; goodput between two moments, the rest of all its requests."""
    refused = [one for one in sent if one.status == 429]
    accepted = [one for one in sent if one.status != 429]
    good = sorted(one.latency_s for one in accepted if one.status == 200 and one.latency_s <= 1.05 * TIMEOUT_MS / 1000)
    within = [one for one in sent if start <= one.at < end]
    return Step(
        factor=factor,
        offered=len(within) / (end - start),
        goodput=served(sent, start, end),
        accepted=len(accepted),
        kept=len(good) / max(len(accepted), 1),
        p50_s=good[len(good) // 2] if good else float("nan"),
        p99_s=good[len(good) * 99 // 100] if good else float("nan"),
        refused=len(refused),
        retry_after_s=statistics.median(one.retry_after_s for one in refused) if refused else 0.0,
        others=dict(Counter(one.status for one in sent if one.status not in (200, 429))),
    )


async def come_back(url: str, bodies: Sequence[bytes], capacity: float, seconds: float) -> Return:
    """A burst of ten times the capacity; who is refused waits as long as told and tries once more."""
    tries: list[tuple[int, Sent]] = []
    async with connect(url) as session:
        flood = Flood(session, bodies, timeout_ms=TIMEOUT_MS)

        async def again(body: bytes, found: Sent) -> None:
            if found.status == 429:
                await asyncio.sleep(found.retry_after_s)
                tries.append((found.retry_after_s, await flood.send(body)))

        await flood.open_loop(10 * capacity, seconds, then=again)
    admitted = sum(second.status != 429 for _, second in tries)
    return Return(len(tries), admitted / max(len(tries), 1), max((wait for wait, _ in tries), default=0))


async def fairness(url: str, bodies: Sequence[bytes], seconds: float) -> Fairness:
    """Key A with fifty connections; key B first with eight, then with one query at a time."""
    async with connect(url) as session:
        lone = Flood(session, SINGLE, key="b")
        await lone.closed_loop(1, seconds / 2)
        greedy, busy = Flood(session, bodies, key="a"), Flood(session, bodies, key="b")
        at = time.monotonic()
        await asyncio.gather(greedy.closed_loop(GREEDY_CLIENTS, seconds), busy.closed_loop(BUSY_CLIENTS, seconds))
        # Not the last moments, in which one of them may be gone already.
        theirs, its = (served(flood.sent, at + seconds / 4, at + seconds) for flood in (greedy, busy))
        beside = Flood(session, SINGLE, key="b")
        # In the lane of the flood: queries have one of their own.
        await asyncio.gather(greedy.closed_loop(GREEDY_CLIENTS, seconds), beside.closed_loop(1, seconds))
    return Fairness(
        share=its / max(its + theirs, 1e-9),
        lone_s=statistics.median(one.latency_s for one in lone.sent if one.status == 200),
        beside_s=statistics.median(one.latency_s for one in beside.sent if one.status == 200),
    )


def report(capacity: float, steps: list[Step], back: Return, fair: Fairness) -> str:
    """All of it in Markdown."""
    peak = max(step.goodput for step in steps)
    lines = [
        f"Capacity (closed loop, {CLOSED_LOOP_CLIENTS} clients): {capacity:.1f} requests a second of {PASSAGES} "
        f"passages; deadline {TIMEOUT_MS / 1000:g} s.",
        "",
        "| offered load | goodput, share of peak | accepted that keep their deadline | p50 s | p99 s | refused (429) "
        "| `Retry-After`, median s | other answers |",
        "|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {step.factor:g} × | {step.goodput / peak:.2f} | {step.kept:.3f} | {step.p50_s:.2f} | {step.p99_s:.2f} "
        f"| {step.refused / max(step.refused + step.accepted, 1):.0%} | {step.retry_after_s:g} "
        f"| {', '.join(f'{count} × {status}' for status, count in sorted(step.others.items()))} |"
        for step in steps
    ]
    lines += [
        "",
        f"Of {back.refused} clients refused in a burst of 10 × that waited as long as told (up to "
        f"{back.longest_wait_s} s), {back.admitted:.0%} were admitted at the first try.",
        "",
        f"{GREEDY_CLIENTS} connections of one key against {BUSY_CLIENTS} of another: the other has {fair.share:.2f} of "
        f"the work done (fair: 0.50). Its single texts, in the same lane: {fair.lone_s * 1000:.0f} ms alone, "
        f"{fair.beside_s * 1000:.0f} ms beside the flood (p50).",
    ]
    return "\n".join(lines)


async def measure(url: str, seconds: float) -> str:
    """The whole programme against a gateway."""
    bodies = bulk(PASSAGES)
    capacity = await measure_capacity(url, bodies, seconds)
    back = await come_back(url, bodies, capacity, seconds / 4)
    steps = await ramp(url, bodies, capacity, FACTORS, seconds)
    return report(capacity, steps, back, await fairness(url, bodies, seconds))


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each step")
    parser.add_argument("--model", default="me5_nano")
    options = parser.parse_args()
    with start_gateway(model=options.model, drain_s=0) as gateway:
        print(asyncio.run(measure(gateway.url, options.seconds)))


if __name__ == "__main__":
    main()
