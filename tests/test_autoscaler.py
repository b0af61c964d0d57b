"""The autoscaler's algorithm, by the examples of Kubernetes' documentation and the rules of its controller."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

from autoscaler import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    Autoscaler,
    Direction,
    Hpa,
    Policy,
    Target,
    quantity,
    read_hpa,
    wanted,
    wanted_in_all,
)

QUEUE = Target("Pods", "me5_queue_tokens", 100.0)
CPU = Target("Resource", "cpu", 0.7)


def test_the_ratio_of_the_metric_to_its_target_is_that_of_pods() -> None:
    # "if the current metric value is 200m, and the desired value is 100m, the number of replicas will be doubled"
    assert wanted(QUEUE, [200.0, 200.0], 2) == 4
    assert wanted(QUEUE, [50.0, 50.0], 2) == 1


def test_within_a_tenth_of_the_target_nothing_changes() -> None:
    assert wanted(QUEUE, [109.0] * 10, 10) == 10
    assert wanted(QUEUE, [91.0] * 10, 10) == 10
    assert wanted(QUEUE, [111.0] * 10, 10) == 12


def test_pods_that_do_not_tell_need_nothing_on_the_way_up_and_are_busy_on_the_way_down() -> None:
    assert wanted(QUEUE, [200.0, 200.0], 4, missing=2) == 4
    assert wanted(QUEUE, [400.0, 400.0], 4, missing=2) == 8
    assert wanted(QUEUE, [50.0, 50.0], 4, missing=2) == 3
    assert wanted(CPU, [0.35, 0.35], 3, missing=1) == 3
    # Those that are not ready yet count on the way up alone.
    assert wanted(CPU, [0.35, 0.35], 4, unready=2) == 1
    assert wanted(CPU, [1.4, 1.4], 4, unready=2) == 4
    assert wanted(QUEUE, [], 4, missing=4) is None


def test_an_external_total_is_divided_by_its_target() -> None:
    target = Target("External", "me5_queue_tokens_all", 100.0)
    assert wanted_in_all(target, 1000.0, 4) == 10
    assert wanted_in_all(target, 420.0, 4) == 4
    assert wanted_in_all(target, None, 4) is None


def hpa(up: Direction = DEFAULT_UP, down: Direction = DEFAULT_DOWN, least: int = 1, most: int = 100) -> Hpa:
    return Hpa(least, most, (QUEUE,), up, down)


def test_the_largest_answer_counts_and_half_the_evidence_takes_nothing_away() -> None:
    assert Autoscaler(hpa()).decide(0, 4, [5, 6]) == 6
    assert Autoscaler(hpa(down=replace(DEFAULT_DOWN, window_s=0))).decide(0, 4, [2, None]) == 4
    assert Autoscaler(hpa()).decide(0, 4, [6, None]) == 6
    assert Autoscaler(hpa()).decide(0, 4, [None, None]) == 4


def test_policies_bound_what_comes_and_goes_in_their_period() -> None:
    up = Direction(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)))
    scaler = Autoscaler(hpa(up=up))
    assert scaler.decide(0, 10, [100]) == 14
    assert scaler.decide(15, 14, [100]) == 14
    assert scaler.decide(61, 14, [100]) == 18
    assert Autoscaler(hpa(up=replace(up, select="Min"))).decide(0, 10, [100]) == 11
    assert Autoscaler(hpa(up=replace(up, select="Disabled"))).decide(0, 10, [100]) == 10
    down = Direction(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)))
    # The documentation's example: 80 replicas, 10 % are 8, and of 30 four pods are more than 10 %.
    assert Autoscaler(hpa(down=down)).decide(0, 80, [1]) == 72
    assert Autoscaler(hpa(down=down)).decide(0, 30, [1]) == 26


def test_a_window_lets_the_most_cautious_answer_count() -> None:
    scaler = Autoscaler(hpa(down=replace(DEFAULT_DOWN, window_s=60)))
    answers = [(0, 10), (15, 4), (30, 6), (60, 4), (75, 4), (90, 4)]
    assert [scaler.decide(at, 10, [number]) for at, number in answers] == [10, 10, 10, 6, 6, 4]


def test_the_bounds_hold() -> None:
    assert Autoscaler(hpa(most=5)).decide(0, 4, [50]) == 5
    assert Autoscaler(hpa(least=3, down=replace(DEFAULT_DOWN, window_s=0))).decide(0, 4, [1]) == 3


def test_defaults_are_those_of_the_api_server() -> None:
    found = read_hpa({"spec": {"maxReplicas": 3, "metrics": []}})
    assert (found.least, found.up, found.down) == (1, DEFAULT_UP, DEFAULT_DOWN)


def test_quantities_are_read() -> None:
    found = [quantity(text) for text in ("700m", "2", "2Gi", "512Mi", "1k", 3)]
    assert found == pytest.approx([0.7, 2, 2**31, 2**29, 1000, 3])
