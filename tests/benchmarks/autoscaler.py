"""The HorizontalPodAutoscaler's algorithm, from a manifest: pure but for what it has to remember between decisions.

As Kubernetes documents it ("Horizontal Pod Autoscaling", sections "Algorithm details" and "Configurable scaling
behavior") and its controller computes it (pkg/controller/podautoscaler: replica_calculator.go, horizontal.go), v1.32,
with the controller's default flags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SYNC_S = 15.0
TOLERANCE = 0.1

_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: str | int | float) -> float:
    """A quantity of Kubernetes as a number: "700m" is 0.7, "2Gi" 2**31."""
    if isinstance(text, int | float):
        return float(text)
    digits = text.rstrip("mkMGiK")
    return float(digits) * _UNITS[text[len(digits) :]]


@dataclass(frozen=True)
class Policy:
    """At most so many pods, or percent of them, may come or go in a period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True)
class Direction:
    """window_s: of the recommendations this far back, the most cautious counts.   select: Max, Min or Disabled."""

    window_s: float
    policies: tuple[Policy, ...]
    select: str = "Max"


@dataclass(frozen=True)
class Target:
    """What a metric should be per pod: tokens, a share of the CPU request, or whatever it counts."""

    kind: Literal["Pods", "Resource", "External"]
    name: str
    value: float


@dataclass(frozen=True)
class Hpa:
    """What a HorizontalPodAutoscaler says, defaults filled in."""

    least: int
    most: int
    targets: tuple[Target, ...]
    up: Direction
    down: Direction


# The API server's own.
DEFAULT_UP = Direction(0, (Policy("Pods", 4, 15), Policy("Percent", 100, 15)))
DEFAULT_DOWN = Direction(300, (Policy("Percent", 100, 15),))


def read_hpa(manifest: dict[str, Any]) -> Hpa:
    """From a manifest of autoscaling/v2."""
    spec = manifest["spec"]
    behavior = spec.get("behavior", {})
    return Hpa(
        least=spec.get("minReplicas", 1),
        most=spec["maxReplicas"],
        targets=tuple(_target(item) for item in spec["metrics"]),
        up=_direction(behavior.get("scaleUp"), DEFAULT_UP),
        down=_direction(behavior.get("scaleDown"), DEFAULT_DOWN),
    )


def _target(item: dict[str, Any]) -> Target:
    if item["type"] == "Resource":
        found = item["resource"]
        return Target("Resource", found["name"], found["target"]["averageUtilization"] / 100)
    found = item["pods" if item["type"] == "Pods" else "external"]
    return Target(item["type"], found["metric"]["name"], quantity(found["target"]["averageValue"]))


def _direction(given: dict[str, Any] | None, default: Direction) -> Direction:
    if given is None:
        return default
    policies = tuple(
        Policy(item["type"], item["value"], float(item["periodSeconds"])) for item in given.get("policies", [])
    )
    return Direction(
        float(given.get("stabilizationWindowSeconds", default.window_s)),
        policies or default.policies,
        given.get("selectPolicy", "Max"),
    )


def wanted(target: Target, told: Sequence[float], current: int, *, missing: int = 0, unready: int = 0) -> int | None:
    """How many pods one metric asks for, or None where no pod tells it.

    told: its values, of pods that run.   missing: pods that run and have none yet.   unready: pods that don't run yet,
    or, for the CPU, have been ready for less than one sample. Pods that end count nowhere.

    Where more pods are asked for, silent ones are taken to need nothing; where fewer are, missing ones to be busy.
    """
    if not told:
        return None
    ratio = sum(told) / len(told) / target.value
    rising = ratio > 1
    if not missing and not (rising and unready):
        return current if abs(1 - ratio) <= TOLERANCE else _whole(ratio * len(told))
    busy = max(1.0, target.value) if target.kind == "Resource" else target.value
    values = [*told, *[0.0 if rising else busy] * missing, *[0.0] * (unready if rising else 0)]
    again = sum(values) / len(values) / target.value
    if abs(1 - again) <= TOLERANCE or rising != (again > 1):
        return current
    found = _whole(again * len(values))
    return max(found, current) if rising else min(found, current)


def wanted_in_all(target: Target, total: float | None, current: int) -> int | None:
    """The same for an external metric: one total, shared by all pods."""
    if total is None:
        return None
    ratio = total / (target.value * current)
    return current if abs(1 - ratio) <= TOLERANCE else _whole(total / target.value)


def _whole(pods: float) -> int:
    """Rounded up, but for the last bits of a float: 3.0000000000000004 pods are three."""
    return math.ceil(round(pods, 9))


@dataclass
class Autoscaler:
    """Decides, every SYNC_S, how many pods there should be."""

    hpa: Hpa
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _added: list[tuple[float, int]] = field(default_factory=list)
    _removed: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, current: int, asked: Sequence[int | None]) -> int:
        """asked: what each metric wants, None for those that are not to be had. The largest counts."""
        known = [number for number in asked if number is not None]
        if not known or (len(known) < len(asked) and max(known) < current):
            # Nothing is taken away on half of the evidence.
            return current
        desired = self._bounded(now, current, self._stabilised(now, current, max(known)))
        if desired > current:
            self._added.append((now, desired - current))
        elif desired < current:
            self._removed.append((now, current - desired))
        return desired

    def _stabilised(self, now: float, current: int, asked: int) -> int:
        up, down = self.hpa.up.window_s, self.hpa.down.window_s
        self._recommended = [item for item in self._recommended if item[0] > now - max(up, down)]
        least = min([asked, *(number for at, number in self._recommended if at > now - up)])
        most = max([asked, *(number for at, number in self._recommended if at > now - down)])
        self._recommended.append((now, asked))
        return min(max(current, least), most)

    def _bounded(self, now: float, current: int, asked: int) -> int:
        hpa = self.hpa
        if asked > current:
            return max(min(asked, hpa.most, max(self._limit(now, current, hpa.up, 1), current)), hpa.least)
        if asked < current:
            return min(max(asked, hpa.least, min(self._limit(now, current, hpa.down, -1), current)), hpa.most)
        return min(max(current, hpa.least), hpa.most)

    def _limit(self, now: float, current: int, direction: Direction, sign: int) -> int:
        """The furthest that the policies of a direction allow."""
        if direction.select == "Disabled":
            return current
        limits = []
        for policy in direction.policies:
            since = now - policy.period_s
            added = sum(number for at, number in self._added if at > since)
            removed = sum(number for at, number in self._removed if at > since)
            start = current - added + removed
            if policy.kind == "Pods":
                limits.append(start + sign * policy.value)
            else:
                share = round(start * (1 + sign * policy.value / 100), 9)
                limits.append(math.ceil(share) if sign > 0 else math.floor(share))
        furthest = max if (direction.select == "Max") == (sign > 0) else min
        return furthest(limits)
