"""Runs of the simulated cluster with the numbers of the manifests that ship: loads, a table, pictures."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autoscaler import Hpa, read_hpa
from cluster import Cluster, Load, Profile, Replica, Run, Simulation, maximum, percentile, steps
from manifests import K8S, build, named, overlay, pod, settings_of

from service.settings import load_settings

STEP_AT_S = 600.0


@dataclass(frozen=True)
class Shipped:
    """What the manifests say. hpa_manifest: to change and read again."""

    hpa_manifest: dict[str, Any]
    cluster: Cluster

    @property
    def hpa(self) -> Hpa:
        """The gateway's autoscaler."""
        return read_hpa(self.hpa_manifest)

    def changed(self, change: Callable[[dict[str, Any]], None]) -> Shipped:
        """The same with another spec of the autoscaler."""
        manifest = copy.deepcopy(self.hpa_manifest)
        change(manifest["spec"])
        return replace(self, hpa_manifest=manifest)


def shipped(tokens_per_s: float, start_s: float, name: str = "cpu-embedded") -> Shipped:
    """Read an overlay and the monitors. Needs kubectl.

    tokens_per_s, start_s: of a replica, which no manifest knows.
    """
    objects = overlay(name)
    monitor = named(build(K8S / "monitoring"), "ServiceMonitor", "me5-gateway")
    return Shipped(
        named(objects, "HorizontalPodAutoscaler", "me5-gateway"),
        Cluster(
            settings=load_settings(settings_of(objects)),
            replica=Replica(tokens_per_s, start_s),
            scrape_s=float(monitor["spec"]["endpoints"][0]["interval"].removesuffix("s")),
            grace_s=float(pod(objects, "me5-gateway").spec["terminationGracePeriodSeconds"]),
        ),
    )


@dataclass(frozen=True)
class Scenario:
    """A load in units of what one replica computes, from so many replicas on. step_at_s: when it changes for good."""

    name: str
    about: str
    profile: Profile
    end_s: float
    replicas: int
    step_at_s: float | None = None
    request_tokens: float = 2000.0
    most: int | None = None


def day(low: float, high: float, length_s: float) -> Profile:
    """A night and a day as a sine."""
    return lambda now: low + (high - low) * (1 - math.cos(2 * math.pi * now / length_s)) / 2


SCENARIOS = (
    Scenario("up", "2 → 8", steps((0, 2), (STEP_AT_S, 8)), 2400, 3, STEP_AT_S),
    Scenario("down", "8 → 2", steps((0, 8), (STEP_AT_S, 2)), 2400, 13, STEP_AT_S),
    Scenario("burst", "3, for a minute 12", steps((0, 3), (STEP_AT_S, 12), (STEP_AT_S + 60, 3)), 2400, 5),
    Scenario("day", "1 to 12 and back in two hours", day(1, 12, 7200), 7200, 2),
    Scenario(
        "large",
        "100 → 350",
        steps((0, 100), (STEP_AT_S, 350)),
        1500,
        143,
        STEP_AT_S,
        request_tokens=4000,
        most=600,
    ),
)


def simulate(scenario: Scenario, of: Shipped, seed: int = 0) -> Run:
    """One run of a scenario."""
    rate = of.cluster.replica.tokens_per_s

    def tokens_per_s(now: float) -> float:
        return rate * scenario.profile(now)

    load = Load(
        tokens_per_s,
        maximum(tokens_per_s, scenario.end_s),
        scenario.request_tokens,
        # Twice as many as replicas: no client is the only one in a queue.
        clients=max(50, 2 * (scenario.most or 0)),
    )
    hpa = of.hpa if scenario.most is None else replace(of.hpa, most=scenario.most)
    return Simulation(hpa, of.cluster, load, seed).until(scenario.end_s, scenario.replicas)


def table(runs: list[tuple[Scenario, Run]]) -> str:
    """What came of each, in Markdown."""
    rows = [
        "| load, in replicas' worth | replicas: at first, at most, at last | turns | requests | answered "
        "| refused once or more (429) | when | answer, p95 / p99.9 s | lost |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for scenario, run in runs:
        counts, turns = run.replicas, run.turns(scenario.step_at_s or 0.0)
        when = f"{run.refused_at[0]:.0f} to {run.refused_at[-1]:.0f} s" if run.refused_at else "–"
        waits = " / ".join(f"{percentile(run.waits_s, part):.1f}" for part in (95, 99.9))
        rows.append(
            f"| {scenario.about} | {counts[0]}, {max(counts)}, {counts[-1]} | {turns} | {run.requests} "
            f"| {run.answered} | {run.refused_requests} | {when} | {waits} | {sum(run.lost.values())} |"
        )
    return "\n".join(rows)


def draw(run: Run, rate: float, path: Path) -> None:
    """Load and replicas above, what waits and what is refused below. The same run gives the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "me5", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4.5), sharex=True, height_ratios=(3, 2))
    minutes = [point.at / 60 for point in run.points]
    above.step(
        minutes, [point.replicas for point in run.points], where="post", color="#0072B2", label="replicas asked for"
    )
    above.step(
        minutes, [point.ready for point in run.points], where="post", color="#56B4E9", linestyle="--", label="ready"
    )
    above.plot(
        minutes, [point.offered / rate for point in run.points], color="#D55E00", label="load, in replicas' worth"
    )
    above.set_ylim(bottom=0)
    above.legend(frameon=False, fontsize=9)
    waiting = [point.queued / rate / max(point.ready, 1) for point in run.points]
    below.plot(minutes, waiting, color="#009E73", label="work waiting in a replica, s")
    below.plot(minutes, [point.refused / 15 for point in run.points], color="#CC79A7", label="429 a second")
    below.set_ylim(bottom=0)
    below.legend(frameon=False, fontsize=9)
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, facecolor="white", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
